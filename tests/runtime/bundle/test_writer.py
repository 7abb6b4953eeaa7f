from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ortkit import Bundle, BundleError, Certificate, InputError
from ortkit.runtime.bundle import writer as bundle_writer
from ortkit.runtime.bundle.writer import BundleWriter


def fill(writer: BundleWriter, int8_bundle: Bundle) -> None:
    for name in int8_bundle.manifest.files:
        shutil.copyfile(int8_bundle.path / name, writer.folder / name)


def test_a_written_bundle_opens(int8_bundle: Bundle, tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "new" / "bundle") as writer:
        fill(writer, int8_bundle)
        written = writer.commit(int8_bundle.manifest)

    assert Bundle.open(tmp_path / "new" / "bundle").manifest == written.manifest == int8_bundle.manifest
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["bundle"]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_new_bundle_replaces_the_old(
    int8_bundle: Bundle, bundle_copy: Path, *, swaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swaps:
        monkeypatch.setattr(bundle_writer, "exchange", lambda _first, _second: False)
    (bundle_copy / "old").write_text("a file that only the old bundle has")
    with BundleWriter(bundle_copy) as writer:
        fill(writer, int8_bundle)
        writer.commit(int8_bundle.manifest)

    Bundle.open(bundle_copy)
    assert [path.name for path in bundle_copy.parent.iterdir()] == [bundle_copy.name]


def test_this_system_swaps_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "inner").mkdir(parents=True)

    assert bundle_writer.exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "inner").is_dir()


def test_a_failure_leaves_the_old_bundle(int8_bundle: Bundle, bundle_copy: Path) -> None:
    with pytest.raises(KeyboardInterrupt), BundleWriter(bundle_copy) as writer:
        fill(writer, int8_bundle)
        raise KeyboardInterrupt

    assert Bundle.open(bundle_copy).manifest == int8_bundle.manifest
    assert [path.name for path in bundle_copy.parent.iterdir()] == [bundle_copy.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("renamed", [False, True])
def test_an_interrupt_around_the_two_renames_leaves_a_bundle(
    int8_bundle: Bundle,
    bundle_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    call: int,
    *,
    renamed: bool,
) -> None:
    """Where nothing swaps in one step; the interrupt may come before or after either rename."""
    rename, calls = os.rename, []

    def interrupted(old: Path, new: Path) -> None:
        calls.append(new)
        if len(calls) != call or renamed:
            rename(old, new)
        if len(calls) == call:
            raise error

    monkeypatch.setattr(bundle_writer, "exchange", lambda _first, _second: False)
    monkeypatch.setattr("os.rename", interrupted)

    with pytest.raises(error), BundleWriter(bundle_copy) as writer:
        fill(writer, int8_bundle)
        writer.commit(int8_bundle.manifest)

    assert Bundle.open(bundle_copy).manifest == int8_bundle.manifest
    assert [path.name for path in bundle_copy.parent.iterdir()] == [bundle_copy.name]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"architecture": 5}, "`architecture` must be a string, not `5`"),
        ({"made_with": {"torch": None}}, "`made_with.torch` must be a string, not null"),
        (
            {"certificate": Certificate("", "", "", 1, {"kl_mean": float("nan")}, ())},
            "`certificate.figures.kl_mean` must be a finite number, not `nan`",
        ),
    ],
)
def test_a_bundle_that_could_not_be_opened_is_not_written(
    written: tuple[Bundle, object], tmp_path: Path, change: dict, problem: str
) -> None:
    bundle, _ = written
    with pytest.raises(BundleError) as caught, BundleWriter(tmp_path / "new") as writer:
        fill(writer, bundle)
        writer.commit(dataclasses.replace(bundle.manifest, **change))

    assert caught.value.message == f"`manifest.json` is not valid: {problem}"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_a_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")

    with pytest.raises(InputError, match="exists and is not a bundle, so it is not replaced") as caught:
        BundleWriter(tmp_path / "mine").__enter__()
    assert caught.value.hint == "choose another folder with `--out`"
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_the_staging_folder_of_a_killed_export_is_removed_by_the_next(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    left = tmp_path / f".bundle.{killed.pid}.0a1b2c3d.partial"
    left.mkdir()
    mine = tmp_path / f".bundle.{os.getppid()}.0a1b2c3d.partial"
    mine.mkdir()
    with BundleWriter(tmp_path / "bundle"):
        assert left.exists(), "an export that still runs must keep its folder"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    with BundleWriter(tmp_path / "bundle"):
        assert not left.exists()
    assert mine.exists()


def test_staging_folders_of_killed_exports_are_removed(tmp_path: Path) -> None:
    """Also where a process has the number again that wrote it, as the first one of every container has."""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    left = {
        "of another target": tmp_path / f".other.{int(gone.stdout)}.0a1b2c3d.partial",
        "of this number": tmp_path / f".other.{os.getpid()}.0a1b2c3d.partial",
        "old": tmp_path / f".other.{os.getppid()}.0a1b2c3d.partial",
    }
    kept = {
        "of a process that runs": tmp_path / f".other.{os.getppid()}.0a1b2c3e.partial",
        "of another name": tmp_path / ".thesis.partial",
        "a file": tmp_path / f".file.{int(gone.stdout)}.0a1b2c3d.partial",
        "behind a link": tmp_path / "elsewhere",
    }
    for path in (*left.values(), *kept.values()):
        path.touch() if path.name.startswith(".file") else path.mkdir()
    (tmp_path / f".link.{int(gone.stdout)}.0a1b2c3d.partial").symlink_to(kept["behind a link"])
    os.utime(left["old"], (0, 0))
    with BundleWriter(tmp_path / "running") as running:
        os.utime(running.staging, (0, 0))

        with BundleWriter(tmp_path / "bundle"):
            assert {name for name, path in left.items() if path.exists()} == set()
            assert {name for name, path in kept.items() if path.exists()} == set(kept)
            assert running.folder.exists(), "it holds its lock"
