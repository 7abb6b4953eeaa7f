"""Packs that were changed at random are refused; what kills and hostile files leave is never a wrong bundle."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.marks import number_of_kills
from tests.packs import bundle_files, write_bundle


def run(*arguments: object) -> list[int]:
    """Run a module of the tests, and return the numbers that it prints."""
    command = [sys.executable, "-m", *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    return [int(number) for number in finished.stdout.split()]


SHARED_MEMORY = "/dev/shm"


def mutated(first: int, count: int) -> None:
    # In memory where that is possible, because unpacking flushes every file to the disk.
    memory = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as place:
        folder = Path(place) / "folder"
        folder.mkdir()
        refused, unpacked = run("tests.mutated_packs", folder, first, count)
        assert [path.name for path in Path(place).iterdir()] == ["folder"]

    assert refused + unpacked == count
    # Both must happen, or the changes say nothing: a field that nothing reads, or the time of a file.
    assert refused > count / 2
    assert unpacked > 0


def test_mutated_packs() -> None:
    mutated(0, 200)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_many_mutated_packs(part: int) -> None:
    mutated(1000 + 10_000 * part, 10_000)


def killed(tmp_path: Path, seed: int, count: int, size: int) -> None:
    bundle = write_bundle(tmp_path / "model", bundle_files(graph=b"graph" * (size // 5)))
    (tmp_path / "folder").mkdir()
    (kills,) = run("tests.killed_packs", bundle.path, tmp_path / "folder", seed, count)

    assert kills > count // 4


def test_kills(tmp_path: Path) -> None:
    killed(tmp_path, 0, 6, 4_000_000)


@pytest.mark.slow
def test_many_kills(tmp_path: Path) -> None:
    killed(tmp_path, 1, number_of_kills(60), 40_000_000)
