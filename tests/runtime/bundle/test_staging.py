"""Staging folders: what another process does to one that was just made."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ortkit import OutputError
from ortkit.runtime.bundle import staging
from ortkit.runtime.bundle.staging import StagingFolder


@pytest.fixture
def locks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Lock each new staging folder before its own process does; the descriptors, by which to let go."""
    made: list[int] = []
    mkdir = Path.mkdir

    def locked(path: Path, *arguments: object, **options: object) -> None:
        mkdir(path, *arguments, **options)  # type: ignore[arg-type]
        if path.name.endswith(".partial"):
            made.append(os.open(path, os.O_RDONLY))
            fcntl.flock(made[-1], fcntl.LOCK_EX)

    monkeypatch.setattr(Path, "mkdir", locked)
    yield made
    for descriptor in made:
        os.close(descriptor)


def test_a_folder_that_stays_locked_is_refused(
    locks: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody can lock what they can read; it was waited for without end."""
    monkeypatch.setattr(staging, "_LONGEST_LOOK", 0.1)

    with pytest.raises(OutputError) as caught, StagingFolder(tmp_path / "target"):
        pass
    assert len(locks) == 1
    assert f"was locked by the process {os.getpid()} of the user {os.getuid()} before it could be used" in str(
        caught.value
    )
    assert caught.value.hint == "end that process, or write into a folder that other users cannot read"
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_only_looks_is_waited_for(locks: list[int], tmp_path: Path) -> None:
    timer = threading.Timer(0.2, lambda: fcntl.flock(locks[0], fcntl.LOCK_UN))
    timer.start()

    with StagingFolder(tmp_path / "target") as folder:
        assert folder.is_dir()
        with pytest.raises(BlockingIOError):
            fcntl.flock(locks[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    timer.join()
