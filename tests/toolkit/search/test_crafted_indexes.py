"""Index folders that were made to do harm: they are refused, and nothing waits, crashes or leads out of the folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from ortkit import BundleError, Embedder, Index
from ortkit.toolkit.search.storage import snapshot
from ortkit.toolkit.search.storage.index_file import INDEX_FILE

pytestmark = pytest.mark.filterwarnings("error")


def record_size(index: Index, name: str) -> None:
    """Let `index.json` have the size that a file has now."""
    record = json.loads((index.path / INDEX_FILE).read_text())
    record["sizes"][name] = (index.path / name).stat().st_size
    (index.path / INDEX_FILE).write_text(json.dumps(record))


def run_sql(index: Index, *statements: str) -> None:
    connection = sqlite3.connect(index.path / "texts-1.sqlite")
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    record_size(index, "texts-1.sqlite")


def searching_fails(index: Index, message: str, mode: str = "hybrid", paths: tuple[str, ...] = ()) -> None:
    with (
        pytest.raises(BundleError, match=message) as caught,
        Index.open(index.path, embedder=index.embedder) as opened,
    ):
        opened.search("fox fuse", mode=mode, paths=paths)
    assert caught.value.hint is not None


def updating_fails(index: Index, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Index.build(index.path, index.facts.folder, index.embedder, chunk_tokens=48)


NUMBERS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TRIGGER t BEFORE DELETE ON chunks BEGIN DELETE FROM files; END",),
        ("ALTER TABLE files RENAME TO other", "CREATE VIEW files AS SELECT * FROM other"),
        # Without an end: a search would not return.
        (
            "ALTER TABLE files RENAME TO other",
            f"CREATE VIEW files AS {NUMBERS} SELECT x + 9 AS id, x'61' AS name, 1 AS complete FROM n",
        ),
        ("CREATE INDEX more ON chunks (text)",),
        ("DROP TABLE words", "CREATE TABLE words (title, headings, text)"),
        ("DROP INDEX chunks_row",),
    ],
)
def test_another_schema(statements: tuple[str, ...], index: Index) -> None:
    run_sql(index, *statements)
    searching_fails(index, "is damaged: it has another schema than an index")
    updating_fails(index, "is damaged: it has another schema than an index")


@pytest.mark.parametrize("name", ["'pump.md'", "5", "x'2e2e2f612e6d64'", "x'2f6574632f706173737764'", "x'6100'"])
def test_names_that_lead_out_of_the_folder(name: str, index: Index) -> None:
    """Text instead of bytes, a number, `../a.md`, `/etc/passwd`, and `a` with NUL."""
    run_sql(index, f"UPDATE files SET name = {name}")
    searching_fails(index, "has a value that is not valid: .* is not the name of a file in a folder")
    searching_fails(index, "is not the name of a file in a folder", paths=("*.md",))
    updating_fails(index, "is not the name of a file in a folder")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("text", "x'ff00'", "a text, title or heading is not text"),
        ("title", "x'00'", "a text, title or heading is not text"),
        ("headings", "'{'", "Expecting property name"),
        ("headings", "'[1, {}]'", "a text, title or heading is not text"),
        ("headings", "5", "must be an iterable"),
        ("headings", f"'{'[' * 100_000}'", "maximum recursion depth exceeded"),
        ("first_line", "'abc'", "a line or page is not a number"),
        ("first_line", "NULL", "a line or page is not a number"),
        ("page", "'abc'", "a line or page is not a number"),
        ("row", "'abc'", "not supported between"),
        ("number", "'abc'", "invalid literal for int"),
    ],
)
def test_values_of_another_type(column: str, value: str, message: str, index: Index) -> None:
    run_sql(index, f"UPDATE chunks SET {column} = {value}")
    for mode in ("hybrid", "bm25"):
        searching_fails(index, rf"texts-1\.sqlite` has a value that is not valid: .*{message}", mode)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE files SET size = 'x'", "are not the size and times of a file"),
        ("UPDATE files SET modified_ns = x'00'", "are not the size and times of a file"),
        ("UPDATE chunks SET row = 'x'", "invalid literal for int"),
        ("UPDATE chunks SET row = 9223372036854775807", "is out of bounds"),
    ],
)
def test_an_update_of_values_that_are_not_valid(statement: str, message: str, index: Index) -> None:
    run_sql(index, statement)
    (index.facts.folder / "new.md").write_text("A fox.")
    updating_fails(index, f"has a value that is not valid: .*{message}")
    with Index.build(index.path, index.facts.folder, index.embedder, chunk_tokens=48, restart=True) as made:
        assert made.search("A fox", mode="bm25")[0].file == "new.md"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite(value: float, index: Index) -> None:
    path = index.path / "vectors-1.npy"
    vectors = np.lib.format.open_memmap(path, mode="r+")
    vectors[2] = value
    vectors.flush()
    searching_fails(index, "the index has vectors that are not finite")
    searching_fails(index, "the index has vectors that are not finite", paths=("boats/",))


def test_an_archive_instead_of_an_array(index: Index) -> None:
    with (index.path / "vectors-1.npy").open("wb") as file:
        np.savez(file, a=np.zeros(3))
    record_size(index, "vectors-1.npy")
    searching_fails(index, r"vectors-1\.npy` is not a valid \.npy file: the magic string is not correct")


@pytest.mark.parametrize("name", ["texts-1.sqlite", "vectors-1.npy", "rows-1.npy", INDEX_FILE])
def test_named_pipes(name: str, index: Index) -> None:
    (index.path / name).unlink()
    os.mkfifo(index.path / name)
    if name == INDEX_FILE:
        searching_fails(index, r"index\.json` is not valid")
        return
    record_size(index, name)
    searching_fails(index, f"{name}` is not a regular file: the index is damaged")


def test_links_that_a_writer_would_follow(index: Index, tmp_path: Path, tiny_embedder: Embedder) -> None:
    for name in ("texts-2.sqlite", "texts-2.sqlite.new", "vectors-2.npy", "rows-2.npy"):
        (index.path / name).symlink_to(tmp_path / "elsewhere")
    (index.facts.folder / "new.md").write_text("A fox.")
    Index.build(index.path, index.facts.folder, tiny_embedder, chunk_tokens=48).close()
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_without_permission(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read it all the same, so SQLite's and the system's answers are given."""
    original = os.open

    def refusing(path: str | os.PathLike[str], *arguments: int, **options: int) -> int:
        if str(path).endswith("texts-1.sqlite"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path, *arguments, **options)

    def connecting(path: Path, *, read_only: bool) -> sqlite3.Connection:
        assert read_only
        return sqlite3.connect(f"{path.parent.as_uri()}/nowhere/x.sqlite?mode=ro", uri=True)

    monkeypatch.setattr(os, "open", refusing)
    monkeypatch.setattr(snapshot, "connect", connecting)
    with pytest.raises(BundleError, match=r"texts-1\.sqlite` cannot be read: Permission denied") as caught:
        Index.open(index.path, embedder=index.embedder)
    assert caught.value.hint is None


def test_a_writer_that_removes_the_texts_while_they_are_opened(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader opens the newer generation."""
    original = snapshot.connect
    published = []

    def connecting(path: Path, *, read_only: bool) -> sqlite3.Connection:
        if not published:
            published.append(path)
            (index.facts.folder / "new.md").write_text("A fox.")
            Index.build(index.path, index.facts.folder, index.embedder, chunk_tokens=48).close()
            assert not path.exists()
        return original(path, read_only=read_only)

    monkeypatch.setattr(snapshot, "connect", connecting)
    with Index.open(index.path, embedder=index.embedder) as opened:
        assert opened.facts.generation == 2


@pytest.mark.parametrize("seed", range(20))
def test_bytes_that_changed_on_disk(seed: int, index: Index) -> None:
    """Whatever is found of it is said; no error of SQLite or Python gets out."""
    random = np.random.default_rng(seed)
    path = index.path / "texts-1.sqlite"
    content = bytearray(path.read_bytes())
    for place in random.integers(0, len(content), 40):
        content[place] = random.integers(0, 256)
    page = int(random.integers(0, len(content) // 4096)) * 4096
    content[page : page + 4096] = random.bytes(4096) if seed % 2 else bytes(4096)
    path.write_bytes(content)
    (index.facts.folder / "new.md").write_text("A fox.")
    for action in (
        lambda: Index.open(index.path, embedder=index.embedder),
        lambda: Index.build(index.path, index.facts.folder, index.embedder, chunk_tokens=48),
    ):
        with contextlib.suppress(BundleError), action() as opened:
            opened.search("fox fuse", paths=("*.md",))
    with Index.build(index.path, index.facts.folder, index.embedder, chunk_tokens=48, restart=True) as made:
        assert made.facts.files == 5
