from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pypdf import PdfReader, PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from ortkit.toolkit.search.documents import library_process
from ortkit.toolkit.search.documents.library_process import _PROCESS
from tests.toolkit.search.documents.read_files import read, refusal, texts

PAGES = (
    ["The pump does not start", "after the long win-", "ter.", "Open the valve."],
    [],
    ["Page three has \u00fcmlauts."],
)


def pdf_of(
    pages: Sequence[Sequence[str]], *, title: str | None = None, password: str | None = None, algorithm: str = "AES-256"
) -> bytes:
    """A PDF with a line of text for each string; an empty one leaves a gap."""
    writer = PdfWriter()
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica", "/Encoding": "/WinAnsiEncoding"}
    named = DictionaryObject({NameObject(key): NameObject(value) for key, value in font.items()})
    for lines in pages:
        page = writer.add_blank_page(width=600, height=800)
        fonts = DictionaryObject({NameObject("/F1"): writer._add_object(named)})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        content = DecodedStreamObject()
        moves = [f"({line}) Tj 0 -14 Td" for line in lines]
        content.set_data(f"BT /F1 12 Tf 50 700 Td {' '.join(moves)} ET".encode("cp1252"))
        page[NameObject("/Contents")] = writer._add_object(content)
    if title is not None:
        writer.add_metadata({"/Title": title})
    if password is not None:
        writer.encrypt(password, owner_password="owner", algorithm=algorithm)
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def test_paragraphs_with_their_pages(tmp_path: Path) -> None:
    document, passages = read(tmp_path, "manual.pdf", pdf_of(PAGES, title="The manual"))

    assert document.title == "The manual"
    assert [(passage.text, passage.place.page, passage.place.lines) for passage in passages] == [
        ("The pump does not start after the long winter.\nOpen the valve.", 1, None),
        ("Page three has \u00fcmlauts.", 3, None),
    ]
    assert read(tmp_path, "other.pdf", pdf_of(PAGES))[0].title == "other.pdf"


def test_pdf_is_recognized_by_its_content(tmp_path: Path) -> None:
    content = pdf_of([["One page."]])

    assert texts(tmp_path, "a.txt", content) == ["One page."]
    assert texts(tmp_path, "a", b"\r\n" + content) == ["One page."]
    assert texts(tmp_path, "a.pdf", b"mail header\n" + content) == ["One page."]
    assert texts(tmp_path, "a.pdf", "only text") == ["only text"]


def test_encrypted_pdfs(tmp_path: Path) -> None:
    """One that only forbids printing has an empty password."""
    assert texts(tmp_path, "a.pdf", pdf_of([["Open."]], password="")) == ["Open."]
    error = refusal(tmp_path, "a.pdf", pdf_of([["Secret."]], password="secret"))

    assert error.message == "is encrypted"
    assert error.hint == "save it without a password, for example with `qpdf`"


@pytest.fixture
def without_cryptography(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Readers find neither of the packages that pypdf decrypts AES with, which the extra `docs` does not have."""
    for name in ("cryptography", "Crypto"):
        package = tmp_path / "without" / name / "__init__.py"
        package.parent.mkdir(parents=True)
        package.write_text("raise ImportError('not installed')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "without"))
    _PROCESS.end()
    yield
    _PROCESS.end()


@pytest.mark.usefixtures("without_cryptography")
@pytest.mark.parametrize("algorithm", ["AES-128", "AES-256", "AES-256-R5"])
@pytest.mark.parametrize("password", ["", "secret"])
def test_aes_without_its_package(tmp_path: Path, algorithm: str, password: str) -> None:
    error = refusal(tmp_path, "a.pdf", pdf_of([["Secret."]], title="Plans", password=password, algorithm=algorithm))

    # Their passwords are checked without AES.
    if password and algorithm in ("AES-128", "AES-256-R5"):
        assert error.message == "is encrypted"
        assert error.hint == "save it without a password, for example with `qpdf`"
        return
    assert error.message == "is encrypted with AES"
    assert error.hint == "install `cryptography`, or save the file without encryption, for example with `qpdf`"


@pytest.mark.usefixtures("without_cryptography")
def test_rc4_needs_no_package(tmp_path: Path) -> None:
    assert texts(tmp_path, "a.pdf", pdf_of([["Open."]], password="", algorithm="RC4-128")) == ["Open."]


def test_a_pdf_without_a_text_layer(tmp_path: Path) -> None:
    error = refusal(tmp_path, "scan.pdf", pdf_of([[], []]))

    assert error.message == "has no text layer (scanned?)"
    assert error.hint == "add one by text recognition, for example with `ocrmypdf`"


def test_a_pdf_without_pages(tmp_path: Path) -> None:
    assert refusal(tmp_path, "a.pdf", pdf_of([])).message == "is a PDF without pages"


@pytest.mark.parametrize("cut", [9, 40, 300, -200])
def test_a_damaged_pdf(tmp_path: Path, cut: int, capfd: pytest.CaptureFixture[str]) -> None:
    """pypdf repairs some; its warnings do not reach the terminal."""
    content = pdf_of([["One page."]])
    try:
        found = texts(tmp_path, "a.pdf", content[:cut])[0]
    except library_process.UnreadableFileError as error:
        found = error.message
    assert found.startswith(("One page.", "is a damaged PDF: ", "is a PDF without pages", "has no text layer"))
    assert capfd.readouterr() == ("", "")


def test_a_damaged_page_is_skipped_and_counted(tmp_path: Path) -> None:
    content = pdf_of([["One."], ["Two."]])
    reader = PdfReader(io.BytesIO(content))
    writer = PdfWriter(clone_from=reader)
    broken = DecodedStreamObject()
    broken.set_data(b"BT /F1 12 Tf (unclosed Tj ET")
    broken[NameObject("/Filter")] = NameObject("/NoSuchFilter")
    writer.pages[0][NameObject("/Contents")] = writer._add_object(broken)
    file = io.BytesIO()
    writer.write(file)

    document, passages = read(tmp_path, "a.pdf", file.getvalue())

    assert [(passage.text, passage.place.page) for passage in passages] == [("Two.", 2)]
    assert document.report.skipped_records == 1
    assert str(document.report.first_fault).startswith("page 1 is damaged: ")


def test_without_pypdf_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)

    error = refusal(tmp_path, "a.pdf", pdf_of([["One."]]))

    assert str(error) == "is a PDF\n\nhint: to read it: `pip install 'ortkit[docs]'`"


def bomb() -> bytes:
    """A page of a few kilobytes whose content unpacks to 60 MB of text."""
    content = pdf_of([["One."]])
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(content)))
    stream = DecodedStreamObject()
    stream.set_data(b"BT /F1 12 Tf 50 700 Td " + b"(word) Tj 0 -14 Td " * 3_000_000 + b" ET")
    page = writer.pages[0]
    page[NameObject("/Contents")] = writer._add_object(stream.flate_encode())
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def test_a_page_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_process, "SECONDS_BETWEEN", 2.0)
    content = bomb()
    assert len(content) < 1 << 20
    started = time.monotonic()

    error = refusal(tmp_path, "bomb.pdf", content)

    assert error.message in {
        "is a PDF that takes more than 2 s for a page, or 600 s in all",
        "is a damaged PDF: page 1 is damaged: LimitReachedError",
    }
    assert time.monotonic() - started < 60
    assert texts(tmp_path, "a.pdf", pdf_of([["One."]])) == ["One."], "the next file is read"


def test_memory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.toolkit.search.documents import hungry

    _PROCESS.end()
    monkeypatch.setattr(library_process, "_CHILD", hungry.CHILD)
    error = refusal(tmp_path, "a.pdf", pdf_of([["One."]]))
    _PROCESS.end()

    assert error.message == "is a PDF that takes more than 2G of memory"


def test_a_reader_that_crashes_is_started_again(tmp_path: Path) -> None:
    content = pdf_of([["One."]])
    assert texts(tmp_path, "a.pdf", content) == ["One."]
    process = _PROCESS.process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)

    assert texts(tmp_path, "a.pdf", content) == ["One."]
    assert _PROCESS.process is not process
    again = _PROCESS.process
    assert texts(tmp_path, "a.pdf", content) == ["One."]
    assert _PROCESS.process is again, "one process reads many files"


def test_an_idle_reader_that_ended_is_started_again(tmp_path: Path) -> None:
    content = pdf_of([["One."]])
    assert texts(tmp_path, "a.pdf", content) == ["One."]
    process = _PROCESS.process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    process.wait(30)

    assert texts(tmp_path, "a.pdf", content) == ["One."]


def test_a_forked_child_reads_with_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pdf_of([["One."]])
    assert texts(tmp_path, "a.pdf", content) == ["One."]
    process = _PROCESS.process
    monkeypatch.setattr(_PROCESS, "owner", os.getpid() + 1)

    assert texts(tmp_path, "a.pdf", content) == ["One."]
    assert process is not None
    assert _PROCESS.process is not process
    assert os.waitpid(process.pid, 0)[1] == 0, "it was not killed; here it ended, since there is only one end to close"


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    assert texts(tmp_path, "caf\udce9.pdf", pdf_of([["One."]])) == ["One."]


def test_compressed_streams(tmp_path: Path) -> None:
    """As other programs write them."""
    content = pdf_of([["One."]])
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(content)))
    for page in writer.pages:
        page.compress_content_streams()
    file = io.BytesIO()
    writer.write(file)

    assert b"FlateDecode" in file.getvalue()
    assert texts(tmp_path, "a.pdf", file.getvalue()) == ["One."]
