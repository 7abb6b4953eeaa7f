"""kill -9 in the middle of an installation, an update, a way back and a removal: `current` leads to a whole release.

At chosen places: before the n-th change of the file system (`killed.py`). At random ones: after some time, which
reaches what the places do not, such as the middle of a copy or of `ortkit verify`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from ortkit.runtime.installer.environment import write_commands
from ortkit.runtime.installer.host import Host
from ortkit.runtime.installer.installation import Installation
from tests.kits import Kits
from tests.marks import number_of_kills
from tests.runtime.installer.test_install import tree, version_of

SEED = 21
KITS = {"0.1.0": "line1", "99.0": "line2"}
"""Version that a release answers with -> its kit."""


@dataclass(frozen=True)
class Case:
    """An action on a folder, and the versions that may be current after it was killed; None for nothing installed."""

    arguments: tuple[str, ...]
    starts: str
    before: str | None
    after: str | None


INSTALL = Case(("install", "{line1}", "--trusted-key", "{key}"), "nothing", None, "0.1.0")
UPDATE = Case(("update", "{update}"), "line1", "0.1.0", "99.0")
ROLLBACK = Case(("rollback",), "line2", "99.0", "0.1.0")
REPLACE = Case(("update", "{line1}", "--allow-downgrade"), "line2", "99.0", "0.1.0")
"""Which removes the release before last."""
UNINSTALL = Case(("uninstall",), "line2", "99.0", None)
CASES = {"install": INSTALL, "update": UPDATE, "rollback": ROLLBACK, "replace": REPLACE, "uninstall": UNINSTALL}


@pytest.fixture(scope="session")
def starts(kits: Kits, first_installation: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What a case starts with."""
    updated = tmp_path_factory.mktemp("updated") / "ortkit"
    shutil.copytree(first_installation, updated, symlinks=True)
    command = [sys.executable, "-m", "ortkit.runtime.installer", "--prefix", updated, "update", kits.path("line2")]
    subprocess.run(command, check=True, capture_output=True)
    nothing = tmp_path_factory.mktemp("nothing")
    return {"nothing": nothing, "line1": first_installation, "line2": updated}


@dataclass(frozen=True)
class Target:
    """A folder that a case works on again and again."""

    prefix: Path
    kits: Kits
    starts: dict[str, Path]

    def reset(self, case: Case) -> None:
        shutil.rmtree(self.prefix, ignore_errors=True)
        shutil.copytree(self.starts[case.starts], self.prefix, symlinks=True, copy_function=shutil.copy2)
        if case.before is not None:
            write_commands(self.prefix, Host.this())

    def command(self, case: Case) -> list[str]:
        places = {name: str(self.kits.path(name)) for name in ("line1", "line2", "update")}
        places["key"] = str(self.kits.key.public_file)
        return ["--prefix", str(self.prefix), *(argument.format(**places) for argument in case.arguments)]

    def check(self, case: Case) -> None:
        """What is current is whole; and the same action, done again, ends well and leaves nothing over."""
        installation = Installation(self.prefix)
        version = None
        if os.path.lexists(self.prefix / "current"):
            version = version_of(self.prefix)
            number = installation.current()
            assert number is not None
            bundle = self.kits.plans[KITS[version]].bundles[0].path
            assert tree(installation.folder(number) / "bundles" / "tiny") == tree(bundle)
            assert len(list(installation.environment(number).site(Host.this()).glob("library/*.py"))) == 20
        assert version in (case.before, case.after)
        if version == case.after and case.after is not None and case is ROLLBACK:
            return
        if case is UNINSTALL and not (self.prefix / "releases").exists() and version is None:
            return
        again = subprocess.run(
            [sys.executable, "-m", "ortkit.runtime.installer", *self.command(case)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert again.returncode == 0, again.stderr
        if case.after is None:
            assert not self.prefix.exists()
            return
        assert version_of(self.prefix) == case.after
        names = {path.name for path in (self.prefix / "releases").iterdir()}
        assert all(name.isdecimal() for name in names), names
        assert len(names) <= 2
        assert not (self.prefix / ".current.new").is_symlink()


@pytest.fixture
def target(prefix: Path, kits: Kits, starts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.delenv("ORTKIT_POLICY", raising=False)
    prefix.parent.mkdir(parents=True)
    return Target(prefix, kits, starts)


def killed_before(target: Target, case: Case, count: int) -> int | None:
    """Kill a case before a change; None where that was done, else the number of changes it has."""
    command = [sys.executable, "-m", "tests.runtime.installer.killed", str(count), *target.command(case)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode == -signal.SIGKILL:
        return None
    assert finished.returncode == 0, finished.stderr
    return int(finished.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_the_changes_of_an_action_are_counted(name: str, target: Target) -> None:
    """So that the kills below strike in the middle of something; the last change of each is struck here."""
    case = CASES[name]
    target.reset(case)
    total = killed_before(target, case, 1_000_000)
    assert total is not None
    assert total > (4 if case is ROLLBACK else 20)

    target.reset(case)
    assert killed_before(target, case, total) is None
    target.check(case)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_killed_before_many_changes(name: str, target: Target) -> None:
    case = CASES[name]
    target.reset(case)
    total = killed_before(target, case, 1_000_000)
    assert total is not None
    step = 1 if case is ROLLBACK else 25
    # The switch and what surrounds it are the last changes.
    for count in sorted({*range(1, total + 1, step), *range(max(1, total - 12), total + 1)}):
        target.reset(case)
        assert killed_before(target, case, count) is None
        target.check(case)


def strike(target: Target, case: Case, delay: float) -> bool:
    """Kill a case after some time, and all that it started; False where it had ended before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ortkit.runtime.installer", *target.command(case)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(delay)
    struck = process.poll() is None
    if struck:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return struck


def kill_at_random(target: Target, name: str, times: int) -> None:
    chance = random.Random(f"{SEED} {name}")
    case = CASES[name]
    target.reset(case)
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "ortkit.runtime.installer", *target.command(case)], check=True, capture_output=True
    )
    whole = time.monotonic() - began
    struck = 0
    for _ in range(times):
        target.reset(case)
        struck += strike(target, case, chance.uniform(0.05, whole))
        target.check(case)
    assert struck >= times // 4


def test_killed_at_a_random_moment_of_an_update(target: Target) -> None:
    kill_at_random(target, "update", 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_killed_at_random_moments(name: str, target: Target) -> None:
    kill_at_random(target, name, number_of_kills(13))
