"""kill -9 in the middle of an update: readers see the old or the new generation whole; the next run completes it."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ortkit import Bundle, Embedder, Index
from tests.marks import number_of_kills
from tests.toolkit.search.conftest import write_files

SEED = 23
WORDS = ["pump", "valve", "rope", "knot", "fuse", "engine", "hull", "anchor", "sail", "mast"]


class Folder:
    """A folder that changes at random, its index, and what that must hold."""

    def __init__(self, tmp: Path, embedder: Embedder, name: str) -> None:
        self.chance = random.Random(f"{SEED} {name}")
        self.path, self.index = tmp / "folder", tmp / "x.index"
        self.embedder, self.other = embedder, tmp / "other.index"
        self.path.mkdir()
        self.change(20)
        self.update()

    def change(self, count: int) -> None:
        """Write, rewrite, move and remove some files."""
        for _ in range(count):
            text = "\n\n".join(" ".join(self.chance.choices(WORDS, k=20)) for _ in range(self.chance.randrange(1, 5)))
            write_files(self.path, {f"{self.chance.randrange(40)}.txt": text})
        files = sorted(self.path.iterdir())
        for path in self.chance.sample(files, 3):
            path.unlink()
        moved = self.chance.choice(sorted(self.path.iterdir()))
        moved.rename(self.path / f"moved-{moved.name.removeprefix('moved-')}")

    def update(self) -> None:
        Index.build(self.index, self.path, self.embedder, chunk_tokens=48).close()

    def expected(self) -> list[tuple[str, str, float]]:
        """What an index has that is built from scratch."""
        shutil.rmtree(self.other, ignore_errors=True)
        with Index.build(self.other, self.path, self.embedder, chunk_tokens=48) as built:
            return hits_of(built)

    def found(self) -> list[tuple[str, str, float]]:
        with Index.open(self.index, embedder=self.embedder) as opened:
            assert opened.search("anchor")
            return hits_of(opened)

    def command(self, *more: object) -> list[str]:
        places = (self.index, self.path, self.embedder.bundle.path, *more)
        return [sys.executable, "-m", "tests.toolkit.search.killed", *map(str, places)]

    def killed_before(self, count: int) -> int | None:
        """Kill an update before a change; None where that was done, else the number of changes it has."""
        finished = subprocess.run(self.command(count), capture_output=True, text=True, check=False)
        if finished.returncode == -signal.SIGKILL:
            return None
        assert finished.returncode == 0, finished.stderr
        return int(finished.stdout.splitlines()[-1])

    def killed_after(self, delay: float) -> bool:
        """Kill an update some time after it began; False where it had ended before."""
        with subprocess.Popen(self.command(), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begins\n"
            time.sleep(delay)
            struck = process.poll() is None
            process.kill()
        return struck


def hits_of(index: Index) -> list[tuple[str, str, float]]:
    """All chunks in the order of a search, with their similarity."""
    hits = index.search("the anchor of the hull", mode="vector", top_n=10_000)
    assert len(hits) == index.facts.chunks
    # The full-text index has the same chunks: all have this in their title.
    assert len(index.search("txt", mode="bm25", top_n=10_000)) == len(hits)
    return [(hit.file, hit.text, hit.score) for hit in hits]


def check(folder: Folder, before: list[tuple[str, str, float]]) -> None:
    """The index is the old or the new one, and the same update, done again, leaves the new one and nothing else."""
    after = folder.expected()
    assert folder.found() in (before, after)
    folder.update()
    assert folder.found() == after
    names = {path.name.split("-")[0] for path in folder.index.iterdir()}
    assert names <= {".lock", "index.json", "texts", "rows", "vectors"}
    assert len(list(folder.index.glob("texts-*"))) == len(list(folder.index.glob("rows-*"))) == 1


def kill_at_random(folder: Folder, times: int) -> None:
    kills = tries = 0
    longest = 1.0
    while kills < times:
        tries += 1
        assert tries <= 6 * times
        before = folder.found()
        folder.change(8)
        delay = folder.chance.uniform(0, longest)
        if folder.killed_after(delay):
            kills += 1
            if folder.chance.random() < 0.5:
                # Killed again, and the folder changed again meanwhile.
                assert folder.found() in (before, folder.expected())
                before = folder.found()
                folder.change(2)
                folder.killed_after(folder.chance.uniform(0, longest))
        else:
            longest = max(0.05, (longest + delay) / 2)
        check(folder, before)


def test_killed_at_a_random_moment(tmp_path: Path, tiny_embedder: Embedder) -> None:
    kill_at_random(Folder(tmp_path, tiny_embedder, "few"), 1)


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path, tiny_embedder: Embedder) -> None:
    kill_at_random(Folder(tmp_path, tiny_embedder, "many"), number_of_kills(5))


@pytest.mark.slow
def test_killed_before_changes(tmp_path: Path, tiny_embedder: Embedder, tiny_bundle: Bundle) -> None:
    """Before changes that are spread over a whole update, and before each of the last ones, which publish it."""
    assert tiny_bundle.path == tiny_embedder.bundle.path
    folder = Folder(tmp_path, tiny_embedder, "places")
    folder.change(8)
    total = folder.killed_before(1_000_000)
    assert total is not None
    assert total > 12
    for count in (*range(1, total - 6, 10), *range(total - 6, total + 1)):
        before = folder.found()
        folder.change(8)
        folder.killed_before(count)
        check(folder, before)
