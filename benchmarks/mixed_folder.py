"""A folder of 60 files as people have them: several formats and encodings, and two that cannot be read."""

from __future__ import annotations

import csv
import gzip
import html
import io
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from benchmarks.accuracy import PASSAGES
from benchmarks.known_items import library_modules

SEED = 23
PDF_LINE, PDF_LINES = 80, 50
"""Characters of a line and lines of a page."""
SOURCES = 8


@dataclass(frozen=True)
class Passage:
    title: str
    text: str


@dataclass(frozen=True)
class Format:
    """How many files of a format a folder has, with how many passages each."""

    suffix: str
    files: int
    passages: int
    write: Callable[[Sequence[Passage]], bytes]


def passages() -> list[Passage]:
    """The 80 passages of the examples, in mixed order, the same every time."""
    lines = [json.loads(line) for line in PASSAGES.read_text(encoding="utf-8").splitlines()]
    found = [Passage(line["title"], line["text"]) for line in lines]
    Random(SEED).shuffle(found)
    return found


def write_folder(folder: Path) -> dict[str, str]:
    """Write the files; the title of each passage -> the file that has it, relative to the folder."""
    waiting = iter(passages())
    homes: dict[str, str] = {}
    for kind in FORMATS:
        for own in (list(islice(waiting, kind.passages)) for _ in range(kind.files)):
            name = f"{kind.suffix.rpartition('.')[2]}/{slug(own[0].title)}{kind.suffix}"
            write(folder / name, kind.write(own))
            homes |= {passage.title: name for passage in own}
    for module in islice((one for one in library_modules() if 2000 < len(one.text) < 20_000), SOURCES):
        write(folder / "py" / module.name, module.text.encode())
    anywhere = passages()[0]
    write(folder / "old" / "notes.txt.gz", gzip.compress(text_of([anywhere]), mtime=0))
    write(folder / "old" / "damaged.pdf", pdf_of([anywhere])[:400])
    return homes


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def slug(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def text_of(own: Sequence[Passage]) -> bytes:
    return "\n\n".join(f"{one.title}\n\n{textwrap.fill(one.text, 72)}" for one in own).encode()


def utf16_of(own: Sequence[Passage]) -> bytes:
    """As Windows' Notepad writes "Unicode": a byte order mark, and lines that end with CRLF."""
    return text_of(own).decode().replace("\n", "\r\n").encode("utf-16")


def markdown_of(own: Sequence[Passage]) -> bytes:
    return "\n".join(f"# {one.title}\n\n{textwrap.fill(one.text, 72)}\n" for one in own).encode()


def html_of(own: Sequence[Passage]) -> bytes:
    title = html.escape(own[0].title)
    body = "".join(f"<h1>{html.escape(one.title)}</h1>\n<p>{html.escape(one.text)}</p>\n" for one in own)
    style = "<style>p { color: black }</style><script>var unread = 1;</script>"
    return f"<!doctype html>\n<html><head><title>{title}</title>{style}</head>\n<body>\n{body}</body></html>\n".encode()


def csv_of(own: Sequence[Passage]) -> bytes:
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(("topic", "advice"))
    writer.writerows((one.title, one.text) for one in own)
    return lines.getvalue().encode()


def jsonl_of(own: Sequence[Passage]) -> bytes:
    return "".join(json.dumps({"title": one.title, "text": one.text}) + "\n" for one in own).encode()


def docx_of(own: Sequence[Passage]) -> bytes:
    import docx

    document = docx.Document()
    for one in own:
        document.add_heading(one.title, level=1)
        document.add_paragraph(one.text)
    content = io.BytesIO()
    document.save(content)
    return content.getvalue()


def pdf_of(own: Sequence[Passage]) -> bytes:
    """A PDF 1.4 file with a page for each passage, in a font that needs no file."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    pages = []
    for one in own:
        content = page_of([one.title, "", *textwrap.wrap(one.text, PDF_LINE)])
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> >> >>" % len(objects)
        )
        pages.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(pages), len(pages))
    return with_references(objects)


def page_of(lines: Sequence[str]) -> bytes:
    shown = b"".join(
        b"(%s) Tj T*\n" % re.sub(rb"([\\()])", rb"\\\1", line.encode("latin-1")) for line in lines[:PDF_LINES]
    )
    return b"BT /F1 11 Tf 14 TL 60 780 Td\n" + shown + b"ET"


def with_references(objects: Sequence[bytes]) -> bytes:
    """The file of these objects, with the table of where each begins."""
    parts, places = [b"%PDF-1.4\n"], []
    for number, content in enumerate(objects, 1):
        places.append(sum(map(len, parts)))
        parts.append(b"%d 0 obj\n%s\nendobj\n" % (number, content))
    start, count = sum(map(len, parts)), len(objects) + 1
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (count, start)
    return b"".join([*parts, b"xref\n0 %d\n0000000000 65535 f \n" % count, table, trailer])


FORMATS = (
    Format(".txt", 17, 1, text_of),
    Format(".utf16.txt", 1, 1, utf16_of),
    Format(".md", 12, 2, markdown_of),
    Format(".html", 8, 1, html_of),
    Format(".csv", 2, 5, csv_of),
    Format(".jsonl", 2, 4, jsonl_of),
    Format(".pdf", 4, 2, pdf_of),
    Format(".docx", 4, 1, docx_of),
)
"""With 8 Python modules, a file in gzip and a damaged one: 60 files, with the 80 passages."""


def files_of(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
