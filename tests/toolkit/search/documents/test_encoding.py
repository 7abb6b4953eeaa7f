from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tests.toolkit.search.documents.read_files import read, refusal, texts

TEXT = "Die Größe der Düse ist 3 mm.\nÜber 5 bar schließt das Ventil.\n\nfrühestens übermorgen, für alle Öfen.\n"
EXPECTED = ["Die Größe der Düse ist 3 mm.\nÜber 5 bar schließt das Ventil.", "frühestens übermorgen, für alle Öfen."]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py"])
def test_encodings(tmp_path: Path, encoding: str, name: str) -> None:
    assert texts(tmp_path, name, TEXT.encode(encoding)) == EXPECTED


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "Насос не запускается после зимы. Проверьте клапан и предохранитель в коробке."),  # noqa: RUF001
        ("shift_jis", "ポンプは冬の後に始動しません。まずバルブを確認し、次にヒューズを確認してください。"),
        ("gb18030", "冬天过后水泵无法启动。首先检查阀门，然后检查保险丝。水箱里的水必须在霜冻前排空。"),  # noqa: RUF001
    ],
)
def test_encodings_that_are_guessed(tmp_path: Path, encoding: str, text: str) -> None:
    assert texts(tmp_path, "a.txt", text.encode(encoding)) == [text]


def test_without_charset_normalizer_other_encodings_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "charset_normalizer", None)

    assert texts(tmp_path, "a.txt", TEXT) == EXPECTED
    error = refusal(tmp_path, "a.txt", TEXT.encode("cp1252"))
    assert error.message == "is not UTF-8"
    assert error.hint == "for other encodings, install the extra `docs`: `pip install 'ortkit[docs]'`"


def test_a_damaged_byte_does_not_make_utf8_another_encoding(tmp_path: Path) -> None:
    content = (TEXT * 20).encode().replace(b"\xc3\x96fen", b"\xc3fen", 1)

    found = texts(tmp_path, "a.txt", content)

    assert found[1] == "frühestens übermorgen, für alle \ufffdfen.\n" + EXPECTED[0]
    assert found[-1] == EXPECTED[1]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r", "mixed"], ids=["unix", "windows", "mac", "mixed"])
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.py"])
def test_lines_are_counted_as_editors_do(tmp_path: Path, ends: str, name: str) -> None:
    """Other separators of `str.splitlines`, such as a form feed, do not end lines."""
    lines = ["one\x0ctwo\u2028three\x85", "", "four", "", "", "five\x0b"]
    if ends == "mixed":
        text = "".join(line + end for line, end in zip(lines, ["\n", "\r\n", "\r", "\r\n", "\n", "\r\n"], strict=True))
    else:
        text = ends.join(lines)
    if name.endswith("html"):
        text = "".join(f"<p>{line}</p>" if line.strip() else line for line in text.splitlines(keepends=True))
        text = text.replace("</p><p>", "")

    found = read(tmp_path, name, text)[1]

    assert [passage.place.lines for passage in found][-2:] == [(3, 3), (6, 6)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text with a NUL\0 in it", "is not text: it has NUL bytes"),
        (random.Random(1).randbytes(100_000), "is not text: it has NUL bytes"),
        (random.Random(2).randbytes(100_000).replace(b"\0", b"\1"), "is not text: it has many control characters"),
        (b"text" * 100_000 + b"\0", "is not text: it has NUL bytes"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.bin", "a"])
def test_binary_files_are_listed(tmp_path: Path, content: bytes, message: str, name: str) -> None:
    assert refusal(tmp_path, name, content).message == message


def test_control_characters_become_spaces(tmp_path: Path) -> None:
    text = "a log with a colour \x1b[31mred\x1b[0m in it, a bell \x07 and a form feed \x0c" + " and words" * 50

    (found,) = texts(tmp_path, "a.log", text)

    assert found.startswith("a log with a colour  [31mred [0m in it, a bell   and a form feed ")
