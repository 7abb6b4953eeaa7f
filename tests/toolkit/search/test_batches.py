"""Reading a folder in batches, one ahead of the batch that is embedded."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest

from ortkit import Embedder, FolderRules, Index, IndexProgress
from ortkit.toolkit.search import batches
from ortkit.toolkit.search.batches import Batch, BatchReader
from ortkit.toolkit.search.chunks import Chunker
from ortkit.toolkit.search.folder import walk
from tests.toolkit.search.conftest import write_files

FILES = {f"{number}.txt": f"The valve {number} is closed." for number in range(12)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of twelve batches of one chunk."""
    monkeypatch.setattr(batches, "_BATCH_CHUNKS", 1)
    return write_files(tmp_path / "valves", FILES)


def reader_of(embedder: Embedder) -> BatchReader:
    return BatchReader(Chunker(embedder, max_tokens=48), {}, lambda: None)


def names_of(batch: Batch) -> list[str]:
    return [one.file.name for one in batch.chunks]


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ortkit-read")]


def test_one_batch_is_read_ahead(folder: Path, tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the caller has one batch, the next is read, and no other."""
    read = threading.Semaphore(0)
    original = batches.stamp_of

    def stamp_of(found: batches.FoundFile) -> batches.Stamp:
        read.release()
        return original(found)

    monkeypatch.setattr(batches, "stamp_of", stamp_of)
    reader = reader_of(tiny_embedder)
    with closing(reader.batches(list(walk(folder, FolderRules())))) as found:
        assert names_of(next(found)) == ["0.txt"]
        assert read.acquire(timeout=60)
        assert read.acquire(timeout=60)
        assert not read.acquire(timeout=0.2)
        assert names_of(next(found)) == ["1.txt"]
        assert read.acquire(timeout=60)


def test_all_files_come_in_order(folder: Path, tiny_embedder: Embedder) -> None:
    reader = reader_of(tiny_embedder)
    found = list(walk(folder, FolderRules()))
    read = list(reader.batches(found))
    assert [name for batch in read for name in names_of(batch)] == [file.name for file in found]
    assert [file.name for batch in read for file in batch.finished] == [file.name for file in found]
    assert (reader.files, reader.chunks, reader.names) == (12, 12, set(FILES))


def test_reading_ends_with_the_caller(folder: Path, tiny_embedder: Embedder) -> None:
    reader = reader_of(tiny_embedder)
    with closing(reader.batches(list(walk(folder, FolderRules())))) as found:
        next(found)
    assert reading_threads() == []
    assert reader.files < len(FILES)


@pytest.mark.usefixtures("folder")
def test_an_error_of_the_embedder_ends_the_reading(
    tmp_path: Path, tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Embedder, "embed_tokenized", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Index.build(tmp_path / "x.index", tmp_path / "valves", tiny_embedder)
    assert reading_threads() == []


@pytest.mark.usefixtures("folder")
def test_an_error_of_the_progress_ends_the_build(tmp_path: Path, tiny_embedder: Embedder) -> None:
    """The caller's function is also called by the thread that reads; its error is raised to the caller."""

    def full(progress: IndexProgress) -> None:
        if progress.files == 5:
            raise BrokenPipeError("nobody reads the progress")

    with pytest.raises(BrokenPipeError, match="nobody reads the progress"):
        Index.build(tmp_path / "x.index", tmp_path / "valves", tiny_embedder, progress=full)
    assert reading_threads() == []
    with Index.build(tmp_path / "x.index", tmp_path / "valves", tiny_embedder) as built:
        assert built.facts.chunks == len(FILES)
