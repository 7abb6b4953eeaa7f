from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma

import pytest

from ortkit import InputError
from ortkit.toolkit.io.input_format import BLOCK, InputFormat, Position, Source, detect_format
from ortkit.toolkit.io.inputs import FailedRecord, Item, ItemReader
from ortkit.toolkit.io.texts import InputOptions, TextRecord, from_stream

SEPARATORS = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"
"""Line separators of `str.splitlines` that `wc -l` does not count."""


def texts(content: bytes, name: str | None = None, field: str | None = None, **options: InputFormat) -> list[str]:
    reading = InputOptions(options.get("format", InputFormat.AUTO), field, name)
    return [record.text for record in from_stream(Source(io.BytesIO(content)), reading)]


def refusal(content: bytes, name: str | None = None, field: str | None = None, **options: InputFormat) -> InputError:
    with pytest.raises(InputError) as caught:
        texts(content, name, field, **options)
    return caught.value


def test_lines_are_those_of_wc() -> None:
    content = f"a{SEPARATORS}b\nc\rd\r\n\n\re\r".encode()

    assert texts(content) == [f"a{SEPARATORS}b", "c\rd", "", "\re\r"]
    assert len(texts(content + b"\n")) == (content + b"\n").count(b"\n")


def test_separators_in_json_and_tables_are_characters() -> None:
    text = f"a{SEPARATORS}b"
    line = json.dumps({"text": text}, ensure_ascii=False).encode()

    assert texts(line + b"\r\n" + line) == [text, text]
    assert texts(f'id,text\r\n1,"{text}"\r\n'.encode()) == [text]


RECORDS = [{"text": "one", "id": 1}, {"text": 'two, "2"', "id": 2}, {"text": "three\nlines\u2028", "id": 3}]
TEXTS = [record["text"] for record in RECORDS]


def as_table(delimiter: str) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, ["id", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(RECORDS)
    return file.getvalue().encode()


FORMS = {
    "lines": "\n".join(map(json.dumps, RECORDS)).encode(),
    "array": json.dumps(RECORDS).encode(),
    "pretty array": json.dumps(RECORDS, indent=2).encode(),
    "pretty array of lines": ("[\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]\n").encode(),
    "pretty objects": "\n".join(json.dumps(record, indent=4) for record in RECORDS).encode(),
    "array of strings": json.dumps(TEXTS).encode(),
    "with a byte order mark": b"\xef\xbb\xbf" + json.dumps(RECORDS, indent=2).encode(),
    "after empty lines": b"\n\n" + json.dumps(RECORDS).encode(),
    "csv": as_table(","),
    "semicolons": as_table(";"),
    "tsv": as_table("\t"),
    "csv with a byte order mark": b"\xef\xbb\xbf" + as_table(","),
}


@pytest.mark.parametrize("form", FORMS)
def test_evident_formats_are_detected(form: str) -> None:
    """In a pipe, without a file name."""
    assert texts(FORMS[form]) == TEXTS


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a/x.jsonl", "lines"),
        ("x.ndjson", "lines"),
        ("x.json", "lines"),
        ("x.JSON", "array"),
        ("x.json", "pretty objects"),
        ("x.jsonl", "pretty array"),
        ("x.csv", "csv"),
        ("x.csv", "semicolons"),
        ("x.csv", "tsv"),
        ("x.TSV", "tsv"),
    ],
)
def test_the_suffix_of_a_file_gives_its_format(name: str, form: str) -> None:
    assert texts(FORMS[form], name) == TEXTS
    moved = FORMS[form].replace(b"text", b"body")
    assert texts(moved, name, "body") == TEXTS
    error = refusal(moved, name)
    assert "has no text in a field `text`; its fields are " in error.message
    assert "`body`" in error.message
    assert error.hint is not None
    assert error.hint.startswith("name the text field, for example `--field body`")


@pytest.mark.parametrize("form", [form for form in FORMS if form != "array of strings"])
def test_a_field_of_another_name_is_named(form: str) -> None:
    """A record is never embedded as plain text."""
    content = FORMS[form].replace(b"text", b"content")

    error = refusal(content)
    assert "its fields are" in error.message
    assert error.hint is not None
    assert error.hint.endswith("for example `--field content`; to read it as plain text, add `--input-format text`")
    assert texts(content, field="content") == TEXTS


@pytest.mark.parametrize(
    "content",
    [
        b"Hello, world\nGood morning, Vietnam\n",
        b"id,text is what a header may look like\nmore of it\n",
        b"one,two\nand a line without one\n",
        b"[1] The first footnote\n[2] The second\n",
        b"[Chorus]\nLa la la\n",
        b'"To be, or not to be"\n"that is the question"\n',
        b"{{ template }}\n{% raw %}\n",
        b"{x | x > 0}\n",
        b"42\n43\n",
        b"null\n",
    ],
)
def test_prose_stays_prose(content: bytes) -> None:
    assert texts(content) == content.decode().splitlines()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"', "the input is not valid JSON: item 1 cannot be read: Expecting ',' delimiter"),
        (b'{"text": "a}\n{"text": "b"}', "line 1 is not valid JSON: "),
        (b'[{"text": "a"}, {"text": "b"}', "the input is not valid JSON: after item 2 a comma or `]` is missing"),
        (b'[{"text": "a"} {"text": "b"}]', "the input is not valid JSON: after item 1 a comma or `]` is missing"),
        (b'[\n{"text": "a"},\n]', "the input is not valid JSON: item 2 cannot be read: "),
        (b'["a"]\n["b"]\n', "the JSON array ends after item 1, and more input follows"),
        (b'[{"text": "a", "x": NaN}]', "item 1 has `NaN`, which cannot be written as a JSON number"),
        (b'[{"text": "a", "text": "b"}]', "item 1 has the field `text` more than once"),
        (b'{"id": {"a": 1, "a": 1}, "text": "a"}', "line 1 has the field `a` more than once"),
        (b'[{"text": "a"}, 5]', "item 2 has no text in a field `text`"),
        (b'[["a"]]', "item 1 has no text in a field `text`"),
        (b'[{"text": null}]', "item 1 has no text in a field `text` but null"),
        (b'{"data": [{"text": "a"}]}', "line 1 has no text in a field `text`; its fields are `data`"),
        (b"[" * 100_000, "the JSON in line 1 is nested too deeply"),
        (b'[\n"\xff"]', "the JSON is not valid UTF-8"),
        (b"id,text\n1\n", "line 2 has 1 column, and the header 2"),
        (b"text,text\na,b\n", "the header in line 1 has `text` more than once"),
        (b'id,text\n1,"a\n2,b\n', "the row that begins in line 2 is not valid CSV: unexpected end of data"),
        (b"id,text\r1,a\r", "line 1 is not valid CSV: it has a carriage return inside of a line"),
        (b"id,text\n1,a\rb\n", "line 2 is not valid CSV: it has a carriage return inside of a line"),
        (b'{"text": "a", "x": ' + b"9" * 5000 + b"}", f"line 1 has `{'9' * 40}...`, which cannot be"),
        (b'[{"text": "a", "x": ' + b"9" * 5000 + b"}]", f"item 1 has `{'9' * 40}...`, which cannot be"),
    ],
)
def test_invalid_input_is_refused(content: bytes, message: str) -> None:
    name = "x.csv" if content.startswith((b"id,text\n1\n", b"text,text", b"id,text\r", b"id,text\n1,a\r")) else None
    assert refusal(content, name).message.startswith(message)


@pytest.mark.parametrize(
    ("content", "name", "message", "hint"),
    [
        (
            gzip.compress(b"one\n", mtime=0),
            "a b.jsonl.gz",
            "the input is compressed with gzip",
            "`gzip -dc 'a b.jsonl.gz' | ortkit",
        ),
        (
            gzip.compress(b"one\n", mtime=0),
            None,
            "the input is compressed with gzip",
            "unpack it: `gzip -dc FILE | ortkit ...`",
        ),
        (bz2.compress(b"one\n"), "x.bz2", "the input is compressed with bzip2", "`bzip2 -dc x.bz2 | ortkit ...`"),
        (lzma.compress(b"one\n"), "x.xz", "the input is compressed with xz", "`xz -dc x.xz | ortkit ...`"),
        (b"PK\x03\x04...", "x.docx", "the input is a ZIP archive or an Office document, not text", "convert it to"),
        (b"%PDF-1.7\n", "x.pdf", "the input is a PDF, not text", "convert it to plain text, JSONL or CSV first"),
        ("one\n".encode("utf-16"), "x.csv", "the input is UTF-16, not UTF-8", "`iconv -f UTF-16 -t UTF-8`"),
    ],
)
def test_binary_input_is_refused_with_a_hint(content: bytes, name: str | None, message: str, hint: str) -> None:
    for input_format in (InputFormat.AUTO, InputFormat.TEXT, InputFormat.JSONL):
        error = refusal(content, name, format=input_format)
        assert error.message == message
        assert error.hint is not None
        assert hint in error.hint
    assert texts(b"GGUF is a format\nPKs\n") == ["GGUF is a format", "PKs"]


def test_prose_with_carriage_returns_is_one_text() -> None:
    assert texts(b"one\rtwo, three\r") == ["one\rtwo, three\r"]


def test_names_of_columns_may_be_of_several_words() -> None:
    content = b"Question Text,Answer (short)\nWhat is it?,water\n"

    assert refusal(content).message.endswith("its fields are `Question Text`, `Answer (short)`")
    assert texts(content, field="Question Text") == ["What is it?"]


def test_a_table_continues_after_an_invalid_row() -> None:
    content = b'id,text\n1,a\n2\n3,"b" c\n4,\xff\n5,"d\ne"\n\n6,f\n'
    items = list(ItemReader(Source(io.BytesIO(content)), Position(InputFormat.CSV)))

    assert [item.where for item in items] == [f"line {number}" for number in (2, 3, 4, 5, 6, 9)]
    assert [item.value["text"] for item in items if isinstance(item, Item)] == ["a", "d\ne", "f"]
    assert [item.error.message for item in items if isinstance(item, FailedRecord)] == [
        "line 3 has 1 column, and the header 2",
        "line 4 is not valid CSV: ',' expected after '\"'",
        "line 5 is not valid UTF-8 at byte 3",
    ]


def test_plain_text_has_no_fields() -> None:
    error = refusal(b"one\ntwo\n", field="content")

    assert error.message == "the input is plain text, which has no field `content`"
    assert error.hint is not None
    assert "`--input-format csv`" in error.hint
    assert texts(b"content\none\n", field="content", format=InputFormat.CSV) == ["one"]
    assert texts(b"content\none\n", field="content") == ["one"]
    assert texts(b"", field="content") == []


@pytest.mark.parametrize("size", [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_the_format_of_long_lines_is_detected(size: int) -> None:
    """Also if a multi-byte character is split between blocks."""
    text = "ü" * size

    assert texts(text.encode()) == [text]
    assert texts(json.dumps([text, text], ensure_ascii=False).encode()) == [text, text]
    assert texts(json.dumps([{"text": text}] * 2, ensure_ascii=False).encode()) == [text, text]
    assert texts(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" + b'{"text": "b"}') == [text, "b"]


@pytest.mark.parametrize("form", [*FORMS, "plain text"])
def test_reading_resumes_at_every_position(form: str) -> None:
    """After each item, from its position and the remaining bytes."""
    content = FORMS.get(form, b"one\n\ntwo\n")
    whole = list(ItemReader(*(begun(content))))
    assert len(whole) == 3

    for count in range(1, 4):
        source, position = begun(content)
        reader = ItemReader(source, position)
        items = iter(reader)
        first = [next(items) for _ in range(count)]
        position = reader.position
        rest = list(ItemReader(Source(io.BytesIO(content[source.size :])), position))
        assert first + rest == whole


def begun(content: bytes) -> tuple[Source, Position]:
    source = Source(io.BytesIO(content))
    return source, detect_format(source, InputFormat.AUTO)


def test_an_array_is_read_in_bounded_memory() -> None:
    """Incrementally: the first items need no later bytes."""

    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            content = b'[{"text": "a"}' if self.given == 0 else b', {"text": "b"}' * 1000
            assert self.given < 50
            self.given += 1
            buffer[: len(content)] = content[: len(buffer)]
            return min(len(content), len(buffer))

    source = Source(io.BufferedReader(Endless()))
    records = from_stream(source, InputOptions())
    assert [next(records).text for _ in range(3)] == ["a", "b", "b"]


def test_records_keep_their_fields_and_places() -> None:
    def record(form: str) -> TextRecord:
        return list(from_stream(Source(io.BytesIO(FORMS[form])), InputOptions()))[1]

    assert record("pretty array").fields == RECORDS[1]
    assert record("pretty array").where == "item 2"
    assert record("csv").fields == {"id": "2", "text": 'two, "2"'}
    assert record("csv").where == "line 3"
    assert record("array of strings").fields == {"text": 'two, "2"'}
