from __future__ import annotations

import io
import itertools
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docx
import pytest
from docx.enum.style import WD_STYLE_TYPE
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

from tests.toolkit.search.documents.read_files import read, refusal, texts


def docx_of(*steps: Callable[[Any], object]) -> bytes:
    document = docx.Document()
    for step in steps:
        step(document)
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()


def changed(content: bytes, part: str, change: Callable[[bytes], bytes]) -> bytes:
    """The file with another content of one of its parts."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name == part else old.read(name))
    return file.getvalue()


def paragraph(text: str, style: str | None = None) -> Callable[[Any], object]:
    return lambda document: document.add_paragraph(text, style)


def heading(text: str, level: int) -> Callable[[Any], object]:
    return lambda document: document.add_heading(text, level)


def table(document: Any) -> None:
    made = document.add_table(rows=3, cols=3)
    for row, cells in zip(made.rows, (("part", "size", "note"), ("valve", "3 mm", ""), ("both", "", "x")), strict=True):
        for cell, text in zip(row.cells, cells, strict=True):
            cell.text = text
    made.cell(2, 0).merge(made.cell(2, 1))
    inner = made.cell(1, 2).add_table(rows=1, cols=1)
    inner.cell(0, 0).text = "inner"


def xml(content: str) -> Callable[[Any], object]:
    return lambda document: document.element.body.insert(-1, parse_xml(content.replace("W!", nsdecls("w"))))


def test_headings_paragraphs_and_tables_in_order(tmp_path: Path) -> None:
    content = docx_of(
        lambda document: setattr(document.core_properties, "title", "The manual"),
        heading("The pump", 0),
        paragraph("Before."),
        heading("Start", 1),
        paragraph("Open the valve."),
        paragraph("first", "List Bullet"),
        heading("Sizes", 2),
        table,
        paragraph("After."),
        heading("Empty", 1),
    )

    document, passages = read(tmp_path, "manual.docx", content)

    assert document.title == "The manual"
    assert [(passage.text, passage.place.headings) for passage in passages] == [
        ("The pump", ()),
        ("Before.", ()),
        ("Open the valve.", ("Start",)),
        ("first", ("Start",)),
        ("part | size | note", ("Start", "Sizes")),
        ("valve | 3 mm | inner", ("Start", "Sizes")),
        ("both | x", ("Start", "Sizes")),
        ("After.", ("Start", "Sizes")),
        ("Empty", ()),
    ]
    assert all(passage.place.lines is None and passage.place.page is None for passage in passages)


@pytest.mark.parametrize(
    ("steps", "title"),
    [
        ([heading("By style", 0), heading("First", 1)], "By style"),
        ([paragraph("x"), heading("First", 1)], "First"),
        ([heading("Second", 2)], "a.docx"),
    ],
)
def test_the_title(tmp_path: Path, steps: list[Callable[[Any], object]], title: str) -> None:
    clear: Callable[[Any], object] = lambda document: setattr(document.core_properties, "title", "")  # noqa: E731

    assert read(tmp_path, "a.docx", docx_of(clear, *steps))[0].title == title


def test_headings_by_a_style_of_ones_own_or_an_outline_level(tmp_path: Path) -> None:
    def own(document: Any) -> None:
        style = document.styles.add_style("Kapitel", WD_STYLE_TYPE.PARAGRAPH)
        style.base_style = document.styles["Heading 2"]
        document.add_paragraph("By its base", "Kapitel")

    outlined = '<w:p W!><w:pPr><w:outlineLvl w:val="0"/></w:pPr><w:r><w:t>By its level</w:t></w:r></w:p>'

    found = read(tmp_path, "a.docx", docx_of(own, paragraph("One."), xml(outlined), paragraph("Two.")))[1]

    assert [passage.place.headings for passage in found] == [("By its base",), ("By its level",)]


def test_text_that_python_docx_leaves_out(tmp_path: Path) -> None:
    """Content controls and insertions are read; deletions and the copies for older readers are not."""
    content = docx_of(
        xml("<w:sdt W!><w:sdtContent><w:p><w:r><w:t>In a control.</w:t></w:r></w:p></w:sdtContent></w:sdt>"),
        xml(
            "<w:p W!><w:r><w:t>Kept</w:t></w:r><w:ins><w:r><w:t> added</w:t></w:r></w:ins>"
            "<w:del><w:r><w:delText> gone</w:delText></w:r></w:del><w:r><w:tab/><w:t>tab</w:t><w:br/><w:t>line</w:t>"
            "</w:r></w:p>"
        ),
        xml(
            '<w:p W! xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"><mc:AlternateContent>'
            '<mc:Choice Requires="wps"><w:r><w:t>box</w:t></w:r></mc:Choice>'
            "<mc:Fallback><w:r><w:t>box</w:t></w:r></mc:Fallback></mc:AlternateContent></w:p>"
        ),
    )

    assert texts(tmp_path, "a.docx", content) == ["In a control.", "Kept added\ttab\nline", "box"]


def test_docx_is_recognized_by_its_content(tmp_path: Path) -> None:
    assert texts(tmp_path, "a.txt", docx_of(paragraph("Text."))) == ["Text."]
    assert texts(tmp_path, "a.docx", "only text") == ["only text"]


def test_an_empty_document_has_no_passages(tmp_path: Path) -> None:
    assert texts(tmp_path, "a.docx", docx_of()) == []


def test_without_python_docx_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docx", None)

    error = refusal(tmp_path, "a.docx", docx_of())

    assert str(error) == "is a DOCX file\n\nhint: to read it: `pip install 'ortkit[docs]'`"


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("word/document.xml", lambda _: b"<broken", "is a damaged DOCX file: XMLSyntaxError"),
        ("word/document.xml", lambda _: b"", "is a damaged DOCX file: XMLSyntaxError"),
        ("word/document.xml", lambda _: b"<a/>", "is a DOCX file that cannot be read: AttributeError"),
        ("[Content_Types].xml", lambda _: b"<broken", "is a damaged DOCX file: XMLSyntaxError"),
        ("word/_rels/document.xml.rels", lambda _: b"\xff", "is a damaged DOCX file: XMLSyntaxError"),
        (
            "[Content_Types].xml",
            lambda content: content.replace(b"wordprocessingml.document.main", b"wordprocessingml.template.main"),
            "is not a Word document of type DOCX",
        ),
    ],
)
def test_damaged_documents(tmp_path: Path, part: str, change: Callable[[bytes], bytes], message: str) -> None:
    error = refusal(tmp_path, "a.docx", changed(docx_of(paragraph("Text.")), part, change))

    assert error.message.startswith(message)


@pytest.mark.parametrize("cut", [100, 5000, -30])
def test_a_document_that_is_cut(tmp_path: Path, cut: int) -> None:
    error = refusal(tmp_path, "a.docx", docx_of(paragraph("Text."))[:cut] + b"word/document.xml")

    assert error.message == "is a damaged DOCX file: BadZipFile"


def test_a_zip_bomb_is_refused_by_its_declared_sizes(tmp_path: Path) -> None:
    bomb = changed(docx_of(), "word/document.xml", lambda content: content + b" " * (130 << 20))
    assert len(bomb) < 1 << 20

    error = refusal(tmp_path, "a.docx", bomb)

    assert error.message == (
        "unpacks to 17 parts and 130.8M, 130.8M of them XML; the limits are 20,000 parts, 512M and 128M"
    )


LETTERS = "abcdefghijkl"
ENTITIES = b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + b"".join(
    f'<!ENTITY {name} "{10 * f"&{before};"}">'.encode() for before, name in itertools.pairwise(LETTERS)
)


@pytest.mark.parametrize("part", ["word/document.xml", "word/_rels/document.xml.rels", "[Content_Types].xml"])
def test_entities_are_not_expanded(tmp_path: Path, part: str) -> None:
    """The billion laughs, and the content of another file."""
    secret = tmp_path / "secret"
    secret.write_text("the secret text")
    for declared in (ENTITIES + b"]>", f'<!DOCTYPE a [<!ENTITY l SYSTEM "file://{secret}">]>'.encode()):

        def attack(content: bytes, declared: bytes = declared) -> bytes:
            head, mark, rest = content.partition(b"?>")
            return (
                head + mark + declared + rest.replace(b"Text.", b"Text.&l;").replace(b"<Override ", b"&l;<Override ", 1)
            )

        try:
            found = " ".join(texts(tmp_path, "a.docx", changed(docx_of(paragraph("Text.")), part, attack)))
        except ValueError as error:
            found = str(error)
        assert "secret text" not in found
        assert "aaaa" not in found
        assert found.startswith(("Text.", "is a damaged DOCX file: "))


def test_an_encrypted_part(tmp_path: Path) -> None:
    content = bytearray(docx_of(paragraph("Text.")))
    # The flag in the central directory, which readers go by.
    at = content.rindex(b"PK\x01\x02")
    content[at + 8] |= 1

    assert refusal(tmp_path, "a.docx", bytes(content)).message == "is encrypted"


def test_deeply_nested_controls_are_counted(tmp_path: Path) -> None:
    inner = "<w:p><w:r><w:t>deep</w:t></w:r></w:p>"
    for _ in range(40):
        inner = f"<w:sdt><w:sdtContent>{inner}</w:sdtContent></w:sdt>"

    document, passages = read(
        tmp_path, "a.docx", docx_of(paragraph("Text."), xml(inner.replace("<w:sdt>", "<w:sdt W!>", 1)))
    )

    assert [passage.text for passage in passages] == ["Text."]
    assert document.report.skipped_records == 1
