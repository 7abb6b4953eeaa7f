"""Building, updating and opening an index."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ortkit import (
    Bundle,
    BundleError,
    Embedder,
    FolderRules,
    Index,
    IndexProgress,
    InputError,
    NotFoundError,
    OutputError,
    UpdateReport,
)
from ortkit.runtime.bundle.folder import MANIFEST
from ortkit.runtime.text.tokenizer import TokenizedText
from ortkit.toolkit.search import batches
from ortkit.toolkit.search.storage import store, vectors, workspace
from ortkit.toolkit.search.storage.index_file import INDEX_FILE
from ortkit.toolkit.search.storage.snapshot import Snapshot
from tests.tiny_bundles import write_embedder
from tests.toolkit.search.conftest import MANUALS, write_files


class Counted:
    """The texts that an embedder embedded, as its tokens spell them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[str] = []
        original = Embedder.embed_tokenized

        def counting(embedder: Embedder, passages: list[TokenizedText], **options: Any) -> Any:
            self.texts += embedder.tokenizer.tokenizer.tokenizer.decode_batch([one.ids.tolist() for one in passages])
            return original(embedder, passages, **options)

        monkeypatch.setattr(Embedder, "embed_tokenized", counting)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def again(index: Index, **options: Any) -> UpdateReport:
    """Update an index from its folder."""
    with Index.build(index.path, index.facts.folder, index.embedder, **{"chunk_tokens": 48} | options) as made:
        report = made.update_report
    assert report is not None
    return report


def contents(index: Index) -> list[tuple[str, str]]:
    """File and text of all chunks."""
    with Index.open(index.path, embedder=index.embedder) as opened:
        hits = opened.search("the", mode="vector", top_n=10_000)
    return sorted((hit.file, hit.text) for hit in hits)


def files_of(index: Index) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(index.path.iterdir())}


def rename_content(path: Path, text: str) -> None:
    """Write another content with a time of change that says so."""
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 10**9))


def test_what_is_built(index: Index, manuals: Path) -> None:
    report = index.update_report
    assert report is not None
    assert (report.added, report.changed, report.removed, report.unchanged) == (4, 0, 0, 0)
    assert (report.skipped, report.partly_read, report.resumed, report.wrote) == ((), (), False, True)
    assert report.embedded == report.chunks == index.facts.chunks >= 4
    assert index.facts.files == 4
    assert index.facts.folder == manuals
    assert index.facts.dimension == 8
    assert index.facts.digest == index.embedder.bundle.digest
    assert {file for file, _ in contents(index)} == set(MANUALS)
    assert repr(index) == f"<Index {str(index.path)!r}: 4 files, {report.chunks} chunks, tiny-embedder>"


def test_the_vectors_are_the_embedders_of_passages(index: Index) -> None:
    """Stored rows are those that `embed_passages` gives for the chunks' texts."""
    with sqlite3.connect(index.path / "texts-1.sqlite") as connection:
        rows = connection.execute("SELECT context, text, row FROM chunks ORDER BY row").fetchall()
    connection.close()
    stored = np.load(index.path / "vectors-1.npy")
    texts = [f"{context}\n{text}" if context else text for context, text, _ in rows]
    assert [row for *_, row in rows] == list(range(len(stored)))
    np.testing.assert_allclose(stored, index.embedder.embed_passages(texts), atol=1e-7)


def test_nothing_changed(index: Index, counted: Counted) -> None:
    before = files_of(index)
    report = again(index)
    assert (report.unchanged, report.wrote, counted.texts) == (4, False, [])
    assert files_of(index) == before
    assert not index.reload()


def test_old_files_are_known_by_size_and_time(index: Index, manuals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files whose time is long before they were hashed are not read again; the others are hashed."""
    for path in manuals.rglob("*.*"):
        os.utime(path, ns=(10**18, 10**18))
    assert again(index, restart=True).wrote
    hashed: list[str] = []
    original = batches.stamp_of
    monkeypatch.setattr(batches, "stamp_of", lambda found: hashed.append(found.name) or original(found))
    assert not again(index).wrote
    assert hashed == []
    os.utime(manuals / "notes.txt")
    assert not again(index).wrote
    assert hashed == ["notes.txt"]


def test_a_change_of_the_same_size_just_after(index: Index, manuals: Path) -> None:
    """Within the resolution of a file's time, size and time say nothing: the content does."""
    path = manuals / "notes.txt"
    status = path.stat()
    path.write_text(MANUALS["notes.txt"].replace("fox", "cat"), encoding="utf-8")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert again(index).changed == 1
    assert any("cat" in text for _, text in contents(index))


def test_added_changed_removed(index: Index, manuals: Path, tiny_embedder: Embedder) -> None:
    (manuals / "boats/knots.md").unlink()
    rename_content(manuals / "notes.txt", "And the dog sleeps.\n")
    write_files(manuals, {"new.txt": "A third kind of pump."})
    report = again(index)
    assert (report.added, report.changed, report.removed, report.unchanged) == (1, 1, 1, 2)
    assert index.reload()
    assert index.facts.generation == 2
    # As if it were built from scratch.
    with Index.build(index.path.with_name("other.index"), manuals, tiny_embedder, chunk_tokens=48) as other:
        assert contents(index) == contents(other)
        for query in ("pump", "the dog", "rope", "水泵"):
            found, expected = index.search(query, top_n=50), other.search(query, top_n=50)
            assert [(hit.file, hit.text, hit.scores) for hit in found] == [
                (hit.file, hit.text, hit.scores) for hit in expected
            ]
    assert sorted(path.name for path in index.path.iterdir() if path.name.startswith("texts")) == ["texts-2.sqlite"]


def test_a_moved_file_is_not_embedded_again(index: Index, manuals: Path, counted: Counted) -> None:
    (manuals / "boats/knots.md").rename(manuals / "knots.md")
    report = again(index)
    assert (report.added, report.removed, report.embedded, counted.texts) == (1, 1, 0, [])
    assert report.reused > 0
    assert "knots.md" in {file for file, _ in contents(index)}


def test_an_edit_embeds_what_is_new(index: Index, manuals: Path, counted: Counted) -> None:
    rename_content(manuals / "boats/knots.md", MANUALS["boats/knots.md"] + "\n## Splices\n\nAn eye splice.\n")
    report = again(index)
    assert report.embedded == len(counted.texts) == 1
    assert "An eye splice." in counted.texts[0]


def test_equal_texts_are_embedded_once(tmp_path: Path, tiny_embedder: Embedder, counted: Counted) -> None:
    folder = write_files(tmp_path / "folder", {f"{name}/same.txt": "The same text." for name in "abc"})
    with Index.build(tmp_path / "x.index", folder, tiny_embedder) as made:
        assert len(counted.texts) == 1
        assert [hit.file for hit in made.search("text")] == ["a/same.txt", "b/same.txt", "c/same.txt"]


def test_many_batches(tmp_path: Path, tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files over several batches, updates over several segments, and their merging: always as if built at once."""
    monkeypatch.setattr(batches, "_BATCH_CHUNKS", 3)
    folder = write_files(tmp_path / "folder", {f"{n}.txt": f"Text {n} of the dog.\n" * 9 for n in range(8)})
    built = Index.build(tmp_path / "x.index", folder, tiny_embedder, chunk_tokens=24, overlap=0)
    for step in range(8, 20):
        write_files(folder, {f"{step}.txt": f"Text {step} of the fox.\n" * (step % 5)})
        (folder / f"{step - 6}.txt").unlink()
        again(built, chunk_tokens=24, overlap=0)
        built.reload()
    # A logarithmic number of segments, and no more than half of the rows dead.
    record = json.loads((built.path / INDEX_FILE).read_text())
    assert 1 <= len(record["segments"]) <= 6
    assert sum(one["rows"] for one in record["segments"]) <= 2 * record["chunks"]
    with Index.build(tmp_path / "y.index", folder, tiny_embedder, chunk_tokens=24, overlap=0) as other, built:
        assert contents(built) == contents(other)
        found, expected = built.search("fox 13", top_n=9), other.search("fox 13", top_n=9)
        assert [(hit.file, hit.scores) for hit in found] == [(hit.file, hit.scores) for hit in expected]


def test_progress_within_a_batch_of_chunks(tmp_path: Path, tiny_embedder: Embedder) -> None:
    folder = write_files(tmp_path / "many", {f"{n}.txt": f"fox number {n}" for n in range(40)})
    seen: list[IndexProgress] = []
    original = Embedder.embed_tokenized

    def in_small_batches(embedder: Embedder, passages: list[TokenizedText], **options: Any) -> Any:
        return original(embedder, passages, batch_tokens=64, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Embedder, "embed_tokenized", in_small_batches)
        Index.build(tmp_path / "x.index", folder, tiny_embedder, progress=seen.append).close()
    embedded = [one.embedded for one in seen]
    assert embedded == sorted(embedded)
    assert (embedded[0], embedded[-1]) == (0, 40)
    # All chunks are one batch of the index, but not of the embedder.
    assert len(set(embedded)) > 4


def test_progress(tmp_path: Path, manuals: Path, tiny_embedder: Embedder) -> None:
    seen: list[IndexProgress] = []
    with Index.build(tmp_path / "x.index", manuals, tiny_embedder, progress=seen.append) as made:
        chunks = made.facts.chunks
    assert seen[-1] == IndexProgress(files=4, of_files=4, chunks=chunks, embedded=chunks)
    assert [one.files for one in seen] == sorted(one.files for one in seen)


def test_names_that_are_not_utf8(tmp_path: Path, manuals: Path, tiny_embedder: Embedder) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (manuals / name).write_text("An unusual word: zyzzyva.", encoding="utf-8")
    with Index.build(tmp_path / os.fsdecode(b"ind\xe9x"), manuals, tiny_embedder) as made:
        [hit] = made.search("zyzzyva", mode="bm25")
        assert (hit.file, hit.path) == (name, manuals / name)
        assert hit.path.exists()
        assert made.search("zyzzyva", paths=[name], top_n=1)[0].file == name
        assert not again(made, chunk_tokens=None).wrote
        (manuals / name).unlink()
        assert again(made, chunk_tokens=None).removed == 1


def test_files_that_cannot_be_read(index: Index, manuals: Path) -> None:
    (manuals / "binary.dat").write_bytes(b"\x00\x01\x02\xff" * 100)
    rename_content(manuals / "notes.txt", "was text\n")
    (manuals / "notes.txt").write_bytes(b"\x7fELF\x00\x00\x00")
    report = again(index)
    assert {one.name for one in report.skipped} == {"binary.dat", "notes.txt"}
    assert (report.removed, report.unchanged) == (1, 3)


def test_a_file_that_cannot_be_opened_stays_as_it_was(
    index: Index, manuals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename_content(manuals / "notes.txt", "Something else entirely.")
    original = batches.stamp_of

    def denied(found: Any) -> Any:
        if found.name == "notes.txt":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(found.path))
        return original(found)

    monkeypatch.setattr(batches, "stamp_of", denied)
    report = again(index)
    assert [(one.name, one.reason) for one in report.skipped] == [("notes.txt", "Permission denied")]
    assert (report.wrote, report.unchanged) == (False, 4)


def test_files_that_vanish_and_change_meanwhile(index: Index, manuals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(manuals, {"log.txt": "first line", "gone.txt": "soon gone"})
    original = batches.read_document

    def slow(found: Any) -> Any:
        document = original(found)
        if found.name == "log.txt":
            with found.path.open("a") as log:
                log.write(" and more")
        if found.name == "gone.txt":
            list(document.passages)
            found.path.unlink()
            return original(found)
        return document

    monkeypatch.setattr(batches, "read_document", slow)
    report = again(index)
    reasons = {one.name: one.reason for one in report.skipped}
    assert reasons["log.txt"] == "changed while it was read; the next run reads it again"
    assert "gone.txt" in reasons
    assert not report.wrote
    monkeypatch.undo()
    assert again(index).added == 1


def test_a_file_that_is_no_file_any_more(tmp_path: Path) -> None:
    from ortkit.toolkit.search.folder import FoundFile

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is not a regular file"):
        batches.stamp_of(FoundFile("pipe", tmp_path / "pipe", 0, 0))


def test_the_index_is_not_indexed(manuals: Path, tiny_embedder: Embedder) -> None:
    with Index.build(manuals / "own", manuals, tiny_embedder) as made:
        assert made.facts.files == 4
        assert not again(made, chunk_tokens=None).wrote


def test_nothing_to_index(tmp_path: Path, index: Index, manuals: Path, tiny_embedder: Embedder) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError) as caught:
        Index.build(tmp_path / "x.index", empty, tiny_embedder)
    assert caught.value.message == f"there is nothing to index in `{empty}`: no file of it matches the rules"
    (empty / "nothing.txt").touch()
    with pytest.raises(InputError, match=r"nothing to index in `.*`: it has no file with text\n"):
        Index.build(tmp_path / "x.index", empty, tiny_embedder)
    with pytest.raises(NotFoundError):
        Index.open(tmp_path / "x.index", embedder=tiny_embedder)
    with pytest.raises(NotFoundError):
        Index.build(tmp_path / "x.index", tmp_path / "missing", tiny_embedder)
    # A disk that is not mounted.
    shutil.move(manuals, tmp_path / "elsewhere")
    manuals.mkdir()
    with pytest.raises(InputError, match=r"no file of it matches the rules; the index is unchanged"):
        again(index)
    assert len(contents(index)) == index.facts.chunks


def test_a_folder_that_moved(tmp_path: Path, index: Index, manuals: Path, counted: Counted) -> None:
    moved = manuals.rename(tmp_path / "moved")
    with Index.build(index.path, moved, index.embedder, chunk_tokens=48) as made:
        assert (made.update_report.unchanged, made.facts.folder, counted.texts) == (4, moved, [])
        assert all(hit.path == moved / hit.file for hit in made.search("fox"))


def test_another_folder(tmp_path: Path, index: Index) -> None:
    other = write_files(tmp_path / "other", {"a.txt": "Other."})
    with pytest.raises(InputError) as caught:
        Index.build(index.path, other, index.embedder, chunk_tokens=48)
    assert caught.value.message == (
        f"the index `{index.path}` is that of the folder `{index.facts.folder}`, and not of `{other}`"
    )
    assert caught.value.hint == (
        "use another name for the index; to rebuild it, add `--restart`, in Python `restart=True`"
    )


def test_other_chunks(index: Index) -> None:
    with pytest.raises(InputError, match=r"has chunks of 48 tokens with an overlap of \d+ .*and these are 32 and"):
        again(index, chunk_tokens=32)
    report = again(index, chunk_tokens=32, restart=True)
    assert report.wrote
    assert report.embedded == report.chunks
    assert index.reload()
    assert index.facts.chunking.max_tokens == 32


@pytest.mark.parametrize("restart", [False, True])
def test_chunk_settings_that_are_not_given_stay(
    tmp_path: Path, manuals: Path, tiny_embedder: Embedder, *, restart: bool
) -> None:
    for name, overlap in (("default", None), ("chosen", 3)):
        path = tmp_path / name
        Index.build(path, manuals, tiny_embedder, chunk_tokens=48, overlap=overlap).close()
        with Index.build(path, manuals, tiny_embedder, restart=restart) as kept:
            assert (kept.facts.chunking.max_tokens, kept.facts.chunking.overlap) == (48, overlap or 7)


def test_the_overlap_follows_the_length_unless_it_was_chosen(
    tmp_path: Path, manuals: Path, tiny_embedder: Embedder
) -> None:
    """15% of the length, as `Chunker` says: 20 of 64 tokens would be refused for 32."""
    for name, overlap, expected in (("default", None, 4), ("chosen", 3, 3)):
        Index.build(tmp_path / name, manuals, tiny_embedder, chunk_tokens=64, overlap=overlap).close()
        with Index.build(tmp_path / name, manuals, tiny_embedder, chunk_tokens=32, restart=True) as made:
            assert (made.facts.chunking.max_tokens, made.facts.chunking.overlap) == (32, expected)
    with pytest.raises(InputError, match="the overlap must be from 0 to 16 tokens, half of a chunk, not 20"):
        Index.build(tmp_path / "chosen", manuals, tiny_embedder, chunk_tokens=32, overlap=20, restart=True)


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_embedder(tmp_path_factory.mktemp("bundles") / "dense", dense=True)


def test_another_bundle(index: Index, manuals: Path, other_bundle: Bundle) -> None:
    with Embedder(other_bundle) as other:
        with pytest.raises(InputError, match=r"was built with the bundle `tiny-embedder` \(.*\), and this is"):
            Index.build(index.path, manuals, other, chunk_tokens=48)
        with pytest.raises(BundleError, match=r"the index `.*` was built with the bundle `tiny-embedder`.*is another"):
            Index.open(index.path, embedder=other)
    with pytest.raises(BundleError) as caught:
        Index.open(index.path, embedder=other_bundle.path)
    assert caught.value.exit_code == 7
    assert "--restart" in str(caught.value.hint)
    # A reader of the old one continues, and does not take vectors of another model.
    with Index.build(index.path, manuals, other_bundle.path, restart=True) as made:
        assert made.facts.dimension == 6
        assert made.facts.chunking.max_tokens == 64, "its own default: tokens of one embedder are not those of another"
        assert made.search("fox")
    assert index.search("fox")
    with pytest.raises(BundleError, match="is another"):
        index.reload()
    assert index.search("fox")


def test_the_bundle_is_found(
    tmp_path: Path, index: Index, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Index.open(index.path) as opened:
        assert opened.embedder.bundle.path == tiny_bundle.path
        assert opened.search("fox")
    # The index and its bundle on a stick.
    stick = tmp_path / "stick"
    shutil.copytree(index.path, stick / "manuals.index")
    record = json.loads((stick / "manuals.index" / INDEX_FILE).read_text())
    record["origin"]["bundle"]["path"] = (tmp_path / "was" / "tiny").as_uri()
    (stick / "manuals.index" / INDEX_FILE).write_text(json.dumps(record))
    monkeypatch.setenv("ORTKIT_BUNDLES", str(tmp_path / "none"))
    with pytest.raises(NotFoundError) as caught:
        Index.open(stick / "manuals.index")
    assert caught.value.message == (
        f"the bundle `tiny-embedder` of the index `{stick}/manuals.index` is not at `{tmp_path}/was/tiny`, nor in "
        f"`{tmp_path}/none`"
    )
    assert caught.value.hint == "give its path: `--bundle PATH`, in Python `embedder=`"
    shutil.copytree(tiny_bundle.path, stick / "bundles" / "tiny")
    with Index.open(stick / "manuals.index") as opened:
        assert opened.embedder.bundle.path == stick / "bundles" / "tiny"
    manifest = stick / "bundles" / "tiny" / MANIFEST
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(BundleError, match="is another"):
        Index.open(stick / "manuals.index")


def test_closing(index: Index) -> None:
    opened = Index.open(index.path)
    model = opened.embedder
    opened.close()
    opened.close()
    for use in (lambda: opened.search("x"), opened.reload, opened.__enter__, lambda: opened.facts):
        with pytest.raises(InputError, match=r"the Index `.*` is closed"):
            use()
    with pytest.raises(InputError, match="closed"):
        model.embed_query("x")
    # An embedder that was given stays open.
    Index.open(index.path, embedder=index.embedder).close()
    assert index.search("fox")
    with pytest.raises(TypeError, match=r"Index cannot be pickled: open it in each process, `Index.open\("):
        pickle.dumps(index)


def test_read_only(index: Index) -> None:
    """Nothing is written or locked, so neither the folder nor its files need be writable."""
    for path in index.path.iterdir():
        path.chmod(0o444)
    index.path.chmod(0o555)
    before = files_of(index)
    try:
        with Index.open(index.path, embedder=index.embedder) as opened:
            assert opened.search("fox")
            assert files_of(index) == before
    finally:
        index.path.chmod(0o755)


def test_two_writers(index: Index) -> None:
    from ortkit.toolkit.search.storage.writer_lock import writing

    with writing(index.path), pytest.raises(OutputError) as caught:
        again(index)
    assert caught.value.message.startswith(f"the index `{index.path}` is being written by the process {os.getpid()}")
    assert caught.value.hint == "wait until that is done; searches work meanwhile"
    assert not again(index).wrote


def test_a_folder_that_is_not_an_index(tmp_path: Path, manuals: Path, tiny_embedder: Embedder) -> None:
    with pytest.raises(OutputError, match=r"`.*` is not an index: it holds `boats`") as caught:
        Index.build(manuals, manuals, tiny_embedder)
    assert caught.value.hint == "name a new folder for the index"
    assert sorted(path.name for path in manuals.iterdir()) == sorted({"boats", "notes.txt", "中文.txt"})
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"`.*file` cannot be written: it is a file"):
        Index.build(tmp_path / "file", manuals, tiny_embedder)
    with pytest.raises(OutputError, match=r"cannot be written: Not a directory"):
        Index.build(tmp_path / "file" / "x", manuals, tiny_embedder)
    with pytest.raises(NotFoundError, match=r"there is no index at"):
        Index.open(tmp_path / "file")


@pytest.mark.parametrize("where", ["vectors", "texts", "publish"])
def test_a_disk_that_fills(where: str, index: Index, manuals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old generation stays, and the next run resumes."""
    write_files(manuals, {f"{n}.txt": f"File number {n}. " * 200 for n in range(30)})
    before, chunks = contents(index), index.facts.chunks

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "vectors":
        monkeypatch.setattr(vectors.SegmentWriter, "append", full)
    elif where == "publish":
        monkeypatch.setattr(workspace, "save_array", full)
    else:
        original = store.connect

        def small(path: Path, *, read_only: bool) -> sqlite3.Connection:
            connection = original(path, read_only=read_only)
            connection.execute("PRAGMA max_page_count = 40")
            return connection

        monkeypatch.setattr(store, "connect", small)
    with pytest.raises(OutputError) as caught:
        again(index)
    assert caught.value.message == f"`{index.path}` cannot be written: No space left on device"
    assert caught.value.hint == "make room, or name a folder on another disk; what was there is unchanged"
    assert contents(index) == before
    monkeypatch.undo()
    report = again(index)
    assert report.added == 30
    assert report.resumed or where != "publish"
    assert report.chunks > chunks


def test_an_interrupted_run_resumes(
    index: Index, manuals: Path, monkeypatch: pytest.MonkeyPatch, tiny_embedder: Embedder
) -> None:
    write_files(manuals, {f"{n:02}.txt": f"File number {n}. " * 8 for n in range(12)})
    monkeypatch.setattr(batches, "_BATCH_CHUNKS", 4)
    original, calls = Embedder.embed_tokenized, 0

    def interrupted(embedder: Embedder, passages: list[TokenizedText], **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(embedder, passages, **options)

    monkeypatch.setattr(Embedder, "embed_tokenized", interrupted)
    before = contents(index)
    with pytest.raises(KeyboardInterrupt):
        again(index)
    monkeypatch.setattr(Embedder, "embed_tokenized", original)
    assert contents(index) == before
    report = again(index)
    assert (report.resumed, report.added) == (True, 12)
    assert 0 < report.embedded < report.chunks - index.facts.chunks
    with Index.build(index.path.with_name("other"), manuals, tiny_embedder, chunk_tokens=48) as other:
        assert contents(index) == contents(other)


def test_readers_beside_a_writer(tmp_path: Path, tiny_embedder: Embedder) -> None:
    """20 readers that open, search and reload while generations come and go see whole ones only."""
    folder = write_files(tmp_path / "folder", {f"{n}.txt": "generation 0" for n in range(5)})
    built = Index.build(tmp_path / "x.index", folder, tiny_embedder)
    faults: list[object] = []
    seen: set[str] = set()
    done = threading.Event()

    def read() -> None:
        try:
            with Index.open(built.path, embedder=tiny_embedder) as own:
                while not done.is_set():
                    texts = {hit.text.strip() for hit in own.search("generation", top_n=9)}
                    seen.update(texts)
                    if len(texts) != 1:
                        faults.append(texts)
                    own.reload()
                    # The writer shares the cores.
                    time.sleep(0.02)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test fails
            faults.append(error)

    readers = [threading.Thread(target=read) for _ in range(20)]
    for reader in readers:
        reader.start()
    for generation in range(1, 5):
        for path in folder.iterdir():
            rename_content(path, f"generation {generation}")
        again(built, chunk_tokens=None)
    done.set()
    for reader in readers:
        reader.join()
    built.close()
    assert faults == []
    assert len(seen) > 1


def test_a_search_that_meets_a_reload(index: Index, manuals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generation is replaced, or the index closed, after a search began and before it holds the generation."""
    write_files(manuals, {"new.txt": "A new word: zyzzyva."})
    again(index)
    original = Snapshot.acquire
    meanwhile = [index.reload]

    def acquire(snapshot: Snapshot) -> bool:
        if meanwhile:
            meanwhile.pop()()
        return original(snapshot)

    monkeypatch.setattr(Snapshot, "acquire", acquire)
    assert index.search("zyzzyva", mode="bm25")[0].file == "new.txt"
    with Index.open(index.path, embedder=index.embedder) as opened:
        meanwhile.append(opened.close)
        with pytest.raises(InputError, match="is closed"):
            opened.search("fox")


def damaged(index: Index, name: str) -> Path:
    [path] = index.path.glob(name)
    return path


def opening_fails(index: Index, message: str) -> BundleError:
    with pytest.raises(BundleError, match=message) as caught:
        Index.open(index.path, embedder=index.embedder)
    assert caught.value.exit_code == 7
    return caught.value


@pytest.mark.parametrize("name", ["vectors-*.npy", "rows-*.npy", "texts-*.sqlite"])
def test_a_file_that_is_cut_or_missing(name: str, index: Index) -> None:
    path = damaged(index, name)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    error = opening_fails(index, rf"`.*{path.name}` has {len(content) - 1} bytes instead of {len(content)}: the index")
    assert error.hint == "build it again: `ortkit index FOLDER --bundle BUNDLE -o INDEX --restart`"
    with pytest.raises(BundleError, match="the index is damaged"):
        again(index)
    path.unlink()
    opening_fails(index, rf"`.*{path.name}` is missing from the index")
    with pytest.raises(BundleError, match="is missing from the index"):
        again(index)
    assert again(index, restart=True).wrote
    assert index.reload()


@pytest.mark.parametrize("name", ["vectors-*.npy", "rows-*.npy", "texts-*.sqlite"])
def test_a_file_that_is_cut_while_it_is_open(name: str, index: Index, manuals: Path, tiny_embedder: Embedder) -> None:
    """Reading mapped pages of it would end the process (SIGBUS)."""
    path = damaged(index, name)
    content = path.read_bytes()
    assert index.search("fox")
    for size in (0, len(content) - 1):
        os.truncate(path, size)
        for mode in ("hybrid", "bm25", "vector"):
            with pytest.raises(BundleError) as caught:
                index.search("fox", mode=mode)
            assert caught.value.message == (
                f"`{path}` has {size} bytes instead of {len(content)}: the index is damaged"
            )
            assert caught.value.exit_code == 7
    # A copy that is whole again.
    path.write_bytes(content)
    assert index.search("fox")
    # A file that a writer removed has no name, and its size still.
    with Index.build(index.path, manuals, tiny_embedder, restart=True) as newer:
        assert newer.search("fox")
        assert not path.exists()
        assert index.search("fox")
    index.close()
    index.close()


def test_arrays_of_another_shape(index: Index) -> None:
    path = damaged(index, "vectors-*.npy")
    content = path.read_bytes()
    path.write_bytes(content.replace(b", 8)", b", 4)"))
    opening_fails(index, r"has an array float32 \(\d+, 4\) instead of float32 \(\d+, 8\)")
    path.write_bytes(content.replace(b"<f4", b"|O8"))
    opening_fails(index, r"is not a valid \.npy file")
    path.write_bytes(b"x" * len(content))
    opening_fails(index, r"is not a valid \.npy file")


def test_a_damaged_database(index: Index) -> None:
    path = damaged(index, "texts-*.sqlite")
    content = path.read_bytes()
    path.write_bytes(b"x" * len(content))
    opening_fails(index, r"`.*texts-1.sqlite` is damaged: file is not a database")
    # Damage that is seen when a page is read.
    page = 4096
    path.write_bytes(content[: 2 * page] + b"\xff" * (len(content) - 2 * page))
    with pytest.raises(BundleError, match=r"texts-1.sqlite` is damaged|do not belong together"):  # noqa: SIM117
        with Index.open(index.path, embedder=index.embedder) as opened:
            opened.search("fox")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2, of a newer ortkit; this one reads format 1"),
        ({"format": 0}, "has format 0, of an older ortkit; this one reads format 1"),
        ({"format": "1"}, "is not valid: `format` must be an integer"),
        ({"sizes": {"../../etc/passwd": 3}}, "names `../../etc/passwd`, which is not a file of an index"),
        ({"sizes": {}}, "`sizes` does not name the files of this generation"),
        ({"chunks": -1}, "is not valid: `chunks` must be from 0"),
        ({"unknown": 1}, "is not valid: `unknown` is not a known field"),
        ({"built": "yesterday"}, "is not valid: `built`"),
    ],
)
def test_an_index_file_that_is_not_valid(change: dict[str, object], message: str, index: Index) -> None:
    path = index.path / INDEX_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    opening_fails(index, message)


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b"\xff", b"[" * 100_000, b'{"format": 1, "format": 1}'])
def test_an_index_file_that_is_not_json(content: bytes, index: Index) -> None:
    (index.path / INDEX_FILE).write_bytes(content)
    opening_fails(index, r"index.json` is not valid:")
    (index.path / INDEX_FILE).write_bytes(b" " * (1 << 20) + content)
    if content:
        opening_fails(index, r"index.json` has more than 1048576 bytes")


def test_rules(tmp_path: Path, manuals: Path, tiny_embedder: Embedder) -> None:
    rules = FolderRules(include=("*.md",))
    with Index.build(tmp_path / "x.index", manuals, tiny_embedder, rules=rules) as made:
        assert made.facts.files == 2
        assert made.facts.rules == rules


def test_an_update_without_rules_follows_those_of_the_index(
    tmp_path: Path, manuals: Path, tiny_embedder: Embedder
) -> None:
    rules = FolderRules(include=("*.md", "*.txt"), exclude=("notes.txt",), max_file_bytes=1000, hidden=True)
    with Index.build(tmp_path / "x.index", manuals, tiny_embedder, rules=rules, chunk_tokens=48) as made:
        pass
    report = again(Index.open(made.path, embedder=tiny_embedder))
    assert (report.wrote, report.rules_changed) == (False, False)
    write_files(manuals, {"new.md": "a fox", "new.csv": "a,b\n1,2\n", "large.md": "fox " * 300, ".hidden.md": "fox"})
    for restart in (False, True):
        with Index.build(made.path, manuals, tiny_embedder, chunk_tokens=48, restart=restart) as updated:
            assert updated.facts.rules == rules
            assert not updated.update_report.rules_changed
            assert {file for file, _ in contents(updated)} == {
                "boats/knots.md",
                "boats/pump.md",
                "new.md",
                ".hidden.md",
                "中文.txt",
            }


def test_other_rules_are_followed_and_kept(index: Index, tiny_embedder: Embedder) -> None:
    assert index.facts.rules == FolderRules()
    report = again(index, rules=FolderRules(exclude=("boats/",)))
    assert (report.rules_changed, report.removed, report.added, report.embedded) == (True, 2, 0, 0)
    report = again(index)
    assert (report.rules_changed, report.wrote) == (False, False)
    # Rules that leave the same files are kept too.
    report = again(index, rules=FolderRules(exclude=("boats/", "none.txt")))
    assert (report.rules_changed, report.wrote, report.unchanged) == (True, True, 2)
    with Index.open(index.path, embedder=tiny_embedder) as opened:
        assert opened.facts.rules == FolderRules(exclude=("boats/", "none.txt"))
    report = again(index, rules=FolderRules())
    assert (report.rules_changed, report.added) == (True, 2)


def test_rules_that_are_not_valid_make_no_folder(tmp_path: Path, manuals: Path, tiny_embedder: Embedder) -> None:
    with pytest.raises(InputError, match=r"the exclude pattern `\[` has a `\[` without `\]`"):
        Index.build(tmp_path / "x.index", manuals, tiny_embedder, rules=FolderRules(exclude=("[",)))
    with pytest.raises(NotFoundError, match="there is no folder"):
        Index.build(tmp_path / "x.index", tmp_path / "nowhere", tiny_embedder)
    assert not (tmp_path / "x.index").exists()


@pytest.mark.parametrize("arguments", [{"restart": "yes"}, {"path": 3}, {"folder": 3}, {"path": ""}])
def test_arguments(arguments: dict[str, Any], tmp_path: Path, manuals: Path, tiny_embedder: Embedder) -> None:
    with pytest.raises(InputError, match=r"must be|is an empty path"):
        Index.build(**{"path": tmp_path / "x", "folder": manuals, "embedder": tiny_embedder} | arguments)
