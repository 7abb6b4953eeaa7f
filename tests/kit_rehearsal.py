"""Carries a kit to an appliance that is this machine without network: `python -m tests.kit_rehearsal BUNDLE...`.

Builds a signed kit of an embedder, a reranker and an LLM with the real wheels, which the registry has, and installs it
as another user in a network namespace without interfaces, in an environment that has nothing but HOME (without it, libc
asks a daemon for the user's home folder through a Unix socket). Every step is traced, and may not open a socket of any
family. An update that carries only what is new follows, one whose certificate is wrong, and the way back; a policy that
requires signatures is in force. Prints a line for each step; needs Linux, strace and unprivileged or root namespaces.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ortkit.exporters.packaging.kit import KitPlan, digests_of, plan_kit, write_kit
from ortkit.exporters.packaging.sign import generate_key, read_key, sign_bundle, sign_files
from ortkit.exporters.packaging.wheel_target import parse_target
from ortkit.exporters.packaging.wheelhouse import collect, plan_wheelhouse
from ortkit.runtime.bundle.bundle import MANIFEST, Bundle
from ortkit.runtime.installer.host import Host

REPOSITORY = Path(__file__).parents[1]
CACHE = REPOSITORY / ".cache" / "kit"
NOBODY = 65534
QUESTION, PASSAGES = "What is a pump?", ("The pump does not start.", "Berlin has many lakes.")
USES = {
    "embedder": ("embed", QUESTION),
    "reranker": ("rerank", "--query", QUESTION, *PASSAGES),
    "decoder": ("generate", QUESTION, "--max-tokens", "8"),
}
"""What is run of each kind of bundle, its name between the command and its arguments."""


def python_of_the_system() -> tuple[str, tuple[int, int]]:
    """A Python that any user may run, and its version: the system's where ortkit runs on it, else this one."""
    for path in (shutil.which("python3", path=os.defpath), getattr(sys, "_base_executable", sys.executable)):
        if path is not None:
            code = "import sys; print(*sys.version_info[:2])"
            shown = subprocess.run([path, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
            major, minor = map(int, shown.split())
            if (major, minor) >= (3, 11):
                return os.path.realpath(path), (major, minor)
    raise SystemExit("there is no Python from 3.11 on")


def may_be_run_by_others(path: str) -> bool:
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", path, "-I", "-c", ""]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@dataclass
class Appliance:
    """This machine without network, as a user without rights, and a folder of that user."""

    python: str
    folder: Path
    policy: bool = False
    steps: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.other_user = os.geteuid() == 0 and may_be_run_by_others(self.python)
        self.folder.chmod(0o755)
        if self.other_user:
            os.chown(self.folder, NOBODY, NOBODY)

    @property
    def prefix(self) -> Path:
        return self.folder / "ortkit"

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run a command there; raises AssertionError where it opens a socket."""
        trace = self.folder / "trace"
        trace.unlink(missing_ok=True)
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if self.other_user else []
        apart = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-current-user", "--net"]
        traced = ["strace", "-f", "-qq", "--signal=none", "-e", "trace=socket,socketpair", "-o", trace]
        environment = ["env", "-i", "HOME=/nonexistent", f"ORTKIT_PYTHON={self.python}"]
        if self.policy:
            environment.append(f"ORTKIT_POLICY={self.folder / 'policy.toml'}")
        whole = [*apart, *user, *traced, *environment, *command]
        finished = subprocess.run(
            [*map(str, whole)], cwd=self.folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        # Other lines say that a thread was in some call when its process ended (`???( <detached ...>`).
        calls = [line for line in trace.read_text().splitlines() if "socket" in line]
        assert not calls, f"{command} opened a socket:\n{calls}"
        return finished

    def ortkit(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self.run(self.prefix / "bin" / "ortkit", *arguments)

    def installer(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self.run(self.prefix / "bin" / "ortkit-install", *arguments)


def check(finished: subprocess.CompletedProcess[str], code: int = 0, shown: str = "") -> str:
    """What a step printed; raises AssertionError where its exit code or its text is another one than expected."""
    printed = finished.stdout + finished.stderr
    assert finished.returncode == code, f"exit code {finished.returncode} instead of {code}:\n{printed}"
    assert shown in printed, f"`{shown}` is missing in:\n{printed}"
    return printed


def with_wrong_certificate(bundle: Path) -> None:
    """Have the certificate of an encoder state the outputs of its golden texts in another order."""
    manifest = json.loads((bundle / MANIFEST).read_text("utf-8"))
    golden = manifest["certificate"]["golden"]
    outputs = [entry["output"] for entry in golden]
    for entry, output in zip(golden, [*outputs[1:], outputs[0]], strict=True):
        entry["output"] = output
    (bundle / MANIFEST).write_text(json.dumps(manifest), "utf-8")


class Rehearsal:
    """The kits, and the steps on the appliance."""

    def __init__(self, scratch: Path, bundles: Sequence[Path], wheels: Path, python: tuple[int, int]) -> None:
        self.scratch = scratch
        self.kinds = {path.name: Bundle.unsigned(path)[0].manifest.kind.value for path in bundles}
        generate_key(scratch / "key.pem", scratch / "key.pub")
        self.key = read_key(scratch / "key.pem", passphrase=bytes)
        self.bundles, self.wheels, self.python = bundles, wheels, python

    def kit(self, name: str, release: int, change: Callable[[Path], None] = lambda _: None, since: str = "") -> Path:
        """A kit of the bundles, signed with this release; `change` is applied to each before."""
        folder = self.scratch / name
        copies = []
        for path in self.bundles:
            copy = folder / path.name
            shutil.copytree(path, copy, copy_function=os.link)
            # Not the file that is shared with the bundle.
            manifest = (copy / MANIFEST).read_bytes()
            (copy / MANIFEST).unlink()
            (copy / MANIFEST).write_bytes(manifest)
            change(copy)
            sign_bundle(copy, self.key, release=release)
            copies.append(Bundle.listed(copy))
        plan = self.plan("line", copies, release)
        out = self.scratch / f"{name}.kit"
        without = digests_of(self.scratch / f"{since}.kit") if since else set()
        write_kit(plan, out, sign=lambda files, subject: sign_files(files, subject, self.key), without=without)
        return out

    def plan(self, name: str, bundles: Sequence[Bundle], release: int) -> KitPlan:
        return plan_kit(name, bundles, self.wheels, target=Host.this().platform, python=self.python, release=release)

    def perform(self, appliance: Appliance, say: Callable[[str], None]) -> None:
        first = self.kit("line1", 1)
        update = self.kit("line2", 2, since="line1")
        broken = self.kit("line3", 3, self.break_encoders, since="line1")
        say(f"kits of {size(first)}, {size(update)} (an update) and {size(broken)} (its certificate is wrong)")
        key = appliance.folder / "key.pub"
        shutil.copyfile(self.scratch / "key.pub", key)
        write_policy(appliance, key)
        for kit in (first, update, broken):
            shutil.copyfile(kit, appliance.folder / kit.name)
            (appliance.folder / kit.name).chmod(0o444)

        install = ("sh", first.name, "install", "--trusted-key", key, "--prefix", appliance.prefix)
        check(appliance.run(*install), shown=f"line: release 1 in {appliance.prefix}")
        say("installed")
        self.use(appliance, say)
        files = {path for path in (appliance.prefix / "current" / "bundles").rglob("*") if path.is_file()}
        assert files
        assert not any(path.stat().st_mode & 0o222 for path in files), "a bundle can be written"

        check(appliance.installer(update.name), shown=f"line: release 2 in {appliance.prefix}")
        check(appliance.installer("status"), shown="* 2  line, release 2 of it")
        say("updated")
        self.use(appliance, say)

        refused = check(appliance.installer(broken.name), 7, "hint: release 2 is in use as before")
        say(f"refused:\n{refused.strip()}")
        self.use(appliance, say)

        check(appliance.installer(first.name), 7, "is release 1, and release 2 was installed")
        check(appliance.installer("rollback"), shown=f"line: release 1 in {appliance.prefix}")
        say("went back")
        self.use(appliance, say)
        check(appliance.installer("uninstall"), shown="removed the installation")
        assert not appliance.prefix.exists()
        say("uninstalled")

    def break_encoders(self, bundle: Path) -> None:
        if self.kinds[bundle.name] != "decoder":
            with_wrong_certificate(bundle)

    def use(self, appliance: Appliance, say: Callable[[str], None]) -> None:
        """Verify every bundle, and run it."""
        for name, kind in self.kinds.items():
            check(appliance.ortkit("verify", name), shown="ok: ")
            command, *arguments = USES[kind]
            shown = check(appliance.ortkit(command, name, *arguments))
            assert shown.strip()
        if appliance.ortkit("doctor", "--help").returncode == 0:
            check(appliance.ortkit("doctor"))
        say(f"  verified and ran {', '.join(self.kinds)}, without a socket")


def write_policy(appliance: Appliance, key: Path) -> None:
    """A policy that requires signatures by this key, and keeps the releases where the user can write."""
    state = appliance.folder / "state"
    state.mkdir()
    if appliance.other_user:
        os.chown(state, NOBODY, NOBODY)
    settings = {"trusted_keys": [str(key)], "require_signature": True, "state": str(state / "releases.json")}
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    (appliance.folder / "policy.toml").write_text(text, "utf-8")
    appliance.policy = True


def size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def why_not() -> str | None:
    """Why this machine cannot rehearse; None where it can."""
    for program in ("strace", "unshare", "setpriv", "openssl"):
        if shutil.which(program) is None:
            return f"there is no {program}"
    apart = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-current-user", "--net"]
    if subprocess.run([*apart, "strace", "-f", "true"], capture_output=True, check=False).returncode:
        return "this system lets no network namespace be made, or no process be traced"
    return None


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", type=Path)
    options = parser.parse_args(argv)
    if reason := why_not():
        print(f"NOT RUN: {reason}")
        return 1
    path, python = python_of_the_system()
    target = parse_target(Host.this().platform, f"{python[0]}.{python[1]}")
    CACHE.mkdir(parents=True, exist_ok=True)
    wheels = CACHE / f"wheels-{target.name}-{target.python_version}"
    collect(plan_wheelhouse(target), wheels)
    with tempfile.TemporaryDirectory() as away, tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        appliance = Appliance(path, Path(away))
        print(f"{path} as {'another user' if appliance.other_user else 'this user'}, without network", flush=True)
        Rehearsal(Path(scratch), options.bundles, wheels, python).perform(
            appliance, lambda text: print(text, flush=True)
        )
    print("all as expected")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
