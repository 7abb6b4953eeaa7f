from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import sqlite3
import tarfile
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from ortkit.toolkit.search.documents.document import Place, UnreadableFileError
from ortkit.toolkit.search.documents.reading import read_document
from tests.toolkit.search.documents.read_files import found_in, placed, read, refusal, texts, written


def zipped(**parts: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return file.getvalue()


def sqlite() -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("create table a (b)")
        content = connection.serialize()
    connection.close()
    return content


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(3))
    return file.getvalue()


def named(parts: dict[str, bytes]) -> bytes:
    return zipped(**parts)


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (gzip.compress(b"text", mtime=0), "is compressed with gzip", "unpack it: `gzip -dc FILE > ...`"),
        (bz2.compress(b"text"), "is compressed with bzip2", "unpack it: `bzip2 -dc FILE > ...`"),
        (lzma.compress(b"text"), "is compressed with xz", "unpack it: `xz -dc FILE > ...`"),
        (b"\x28\xb5\x2f\xfd...", "is compressed with Zstandard", "unpack it: `zstd -dc FILE > ...`"),
        (zipped(a=b"text"), "is a ZIP archive", "unpack it: `unzip FILE`"),
        (named({"xl/workbook.xml": b""}), "is an Excel workbook", "save its sheets as CSV"),
        (named({"ppt/presentation.xml": b""}), "is a PowerPoint presentation", "save it as PDF"),
        (
            named({"mimetype": b"application/vnd.oasis.opendocument.text"}),
            "is an OpenDocument file",
            "save it as DOCX or PDF",
        ),
        (named({"mimetype": b"application/epub+zip"}), "is an EPUB book", "convert it to HTML or PDF"),
        (tarred(), "is a tar archive", "unpack it: `tar -xf FILE`"),
        (sqlite(), "is not text: it is a SQLite database", None),
        (npy(), "is not text: it is an npy file", None),
        (b"\x89PNG\r\n\x1a\n", "is a PNG image", None),
        (b"\xff\xd8\xff\xe0", "is a JPEG image", None),
        (
            bytes.fromhex("d0cf11e0a1b11ae1"),
            "is an old or an encrypted Office document",
            "save it as DOCX, or as PDF",
        ),
        (b"{\\rtf1 text}", "is an RTF file", "save it as DOCX, or as PDF"),
        (b"%!PS-Adobe", "is a PostScript file", "convert it to PDF: `ps2pdf`"),
    ],
)
def test_what_is_not_text_is_told_by_its_content(
    tmp_path: Path, content: bytes, message: str, hint: str | None
) -> None:
    error = refusal(tmp_path, "a b.txt", content)

    assert (error.message, error.hint) == (message, hint)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.csv", "a.tsv", "a.jsonl", "a.json", "a.py", "a"])
@pytest.mark.parametrize("content", [b"", b"\n \n\r\n", b"\xef\xbb\xbf"], ids=["empty", "blank", "mark"])
def test_empty_files_have_no_passages(tmp_path: Path, name: str, content: bytes) -> None:
    document, passages = read(tmp_path, name, content)

    assert passages == []
    assert (document.title, document.report.skipped_records) == (name, 0)


def test_plain_text_has_paragraphs(tmp_path: Path) -> None:
    document, passages = read(tmp_path, "notes.txt", "\n# One,\ntwo\n \n\n  three\nfour")

    assert document.title == "notes.txt"
    assert placed(passages) == [("# One,\ntwo", (2, 3), ()), ("  three\nfour", (6, 7), ())]
    assert all(passage.line_by_line for passage in passages)


def test_names_that_are_not_utf8_are_valid_titles(tmp_path: Path) -> None:
    document = read_document(written(tmp_path, "caf\udce9.txt", "text"))

    assert document.title == "caf\ufffd.txt"


def test_a_zip_archive_with_the_name_of_a_document_is_a_damaged_one(tmp_path: Path) -> None:
    assert refusal(tmp_path, "a.docx", b"PK\x03\x04").message == "is a damaged DOCX file: BadZipFile"
    assert refusal(tmp_path, "b.docx", zipped(a=b"text")).message == "is a damaged DOCX file: KeyError"


def test_html_is_recognized_by_its_content(tmp_path: Path) -> None:
    content = "\ufeff\n<!DOCTYPE html><title>Pumps</title><h1>Start</h1><p>Open the valve."

    for name in ("page.txt", "page", "page.asp"):
        document, passages = read(tmp_path, name, content)
        assert document.title == "Pumps"
        assert placed(passages) == [("Open the valve.", (2, 2), ("Start",))]
    assert texts(tmp_path, "page.md", "<html>\n\nMarkdown") == ["<html>", "Markdown"]


def test_a_file_that_vanished(tmp_path: Path) -> None:
    found = written(tmp_path, "a.txt", "text")
    found.path.unlink()

    with pytest.raises(UnreadableFileError, match=r"^vanished after the folder was listed$"):
        read_document(found)


def test_a_file_that_changed(tmp_path: Path) -> None:
    found = written(tmp_path, "a.txt", "text")
    found.path.write_text("another text")

    with pytest.raises(UnreadableFileError, match="changed while the folder was read"):
        read_document(found)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_table_that_changes_while_it_is_read(tmp_path: Path, name: str) -> None:
    row = '{"n": 1}\n' if name.endswith("jsonl") else "1,2\n"
    passages = iter(read_document(written(tmp_path, name, ("a,b\n" if "csv" in name else "") + row * 100_000)).passages)
    next(passages)
    with (tmp_path / name).open("a") as file:
        file.write(row)

    with pytest.raises(UnreadableFileError, match="changed while the folder was read"):
        list(passages)


def test_a_file_that_became_a_pipe(tmp_path: Path) -> None:
    found = written(tmp_path, "a.txt", "text")
    found.path.unlink()
    os.mkfifo(found.path)

    with pytest.raises(UnreadableFileError, match=r"^is not a regular file any more$"):
        read_document(found)


def test_a_file_without_permission_or_on_a_failing_disk(tmp_path: Path) -> None:
    """By a stand-in for the system's calls, since the tests may run as root, and disks do not fail on demand."""
    found = written(tmp_path, "a.txt", "text")

    with (
        mock.patch("os.open", side_effect=PermissionError(13, "Permission denied")),
        pytest.raises(UnreadableFileError, match=r"^cannot be opened: Permission denied$"),
    ):
        read_document(found)
    failing = mock.MagicMock(wraps=io.BytesIO())
    failing.__enter__.return_value = failing
    failing.read.side_effect = OSError(5, "Input/output error")
    with (
        mock.patch("os.fdopen", return_value=failing),
        pytest.raises(UnreadableFileError, match=r"^cannot be read: Input/output error$"),
    ):
        read_document(found)


CODE = '''"""What it is for."""
import os

LIMIT = 3

@decorated
class Pump(Base):
    """A pump."""

    def start(self):
        self.on = True

        return self

    # Stops it.
    async def stop(self):
        self.on = False


def main() -> None:
    Pump().start()
'''


def test_source_code_is_under_its_definitions(tmp_path: Path) -> None:
    passages = read(tmp_path, "pump.py", CODE)[1]

    assert placed(passages) == [
        ('"""What it is for."""\nimport os', (1, 2), ()),
        ("LIMIT = 3", (4, 4), ()),
        ('@decorated\nclass Pump(Base):\n    """A pump."""', (6, 8), ("class Pump",)),
        ("    def start(self):\n        self.on = True", (10, 11), ("class Pump", "def start")),
        ("        return self", (13, 13), ("class Pump", "def start")),
        (
            "    # Stops it.\n    async def stop(self):\n        self.on = False",
            (15, 17),
            ("class Pump", "def stop"),
        ),
        ("def main() -> None:\n    Pump().start()", (20, 21), ("def main",)),
    ]


def test_code_with_braces(tmp_path: Path) -> None:
    code = "package a\n\nfunc (p *Pump) Start() {\n\tp.on = true\n\n\tp.go()\n}\n\nvar x = 1\n"

    assert placed(read(tmp_path, "a.go", code)[1]) == [
        ("package a", (1, 1), ()),
        ("func (p *Pump) Start() {\n\tp.on = true", (3, 4), ("func (p *Pump) Start",)),
        ("\tp.go()\n}", (6, 7), ("func (p *Pump) Start",)),
        ("var x = 1", (9, 9), ()),
    ]


def test_settings_files_have_blocks_without_headings(tmp_path: Path) -> None:
    assert texts(tmp_path, "a.yaml", "class Pump: 1\n\nb: 2") == ["class Pump: 1", "b: 2"]
    assert read(tmp_path, "a.toml", "[a]\nb = 1")[1][0].place == Place((1, 2))


def test_found_files_are_those_of_a_walk(tmp_path: Path) -> None:
    written(tmp_path, "a.txt", "text")

    assert found_in(tmp_path, "a.txt").size == 4
