"""Packs that were changed at random are refused; what kills and hostile files leave is never a wrong bundle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.packs import bundle_files, write_bundle


def run(*arguments: object) -> list[int]:
    """Run a module of the tests, and return the numbers that it prints."""
    command = [sys.executable, "-m", *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    return [int(number) for number in finished.stdout.split()]


def mutated(tmp_path: Path, first: int, count: int) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    refused, unpacked = run("tests.mutated_packs", folder, first, count)

    assert refused + unpacked == count
    # Both must happen, or the changes say nothing: a field that nothing reads, or the time of a file.
    assert refused > count / 2
    assert unpacked > 0
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_mutated_packs(tmp_path: Path) -> None:
    mutated(tmp_path, 0, 200)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_many_mutated_packs(tmp_path: Path, part: int) -> None:
    mutated(tmp_path, 1000 + 10_000 * part, 10_000)


def killed(tmp_path: Path, seed: int, count: int, size: int) -> None:
    bundle = write_bundle(tmp_path / "model", bundle_files(graph=b"graph" * (size // 5)))
    (tmp_path / "folder").mkdir()
    (kills,) = run("tests.killed_packs", bundle.path, tmp_path / "folder", seed, count)

    assert kills > count // 4


def test_kills(tmp_path: Path) -> None:
    killed(tmp_path, 0, 6, 4_000_000)


@pytest.mark.slow
def test_many_kills(tmp_path: Path) -> None:
    killed(tmp_path, 1, 60, 40_000_000)
