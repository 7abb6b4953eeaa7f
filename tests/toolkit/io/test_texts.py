from __future__ import annotations

import io

import pytest

from ortkit import InputError
from ortkit.toolkit.io.input_format import InputFormat, Source
from ortkit.toolkit.io.texts import InputOptions, TextRecord, from_arguments, from_stream


def read(content: bytes, input_format: InputFormat = InputFormat.AUTO) -> list[TextRecord]:
    return list(from_stream(Source(io.BytesIO(content)), InputOptions(input_format)))


def test_every_line_is_a_text_even_an_empty_one() -> None:
    assert [record.text for record in read(b"a\n\n b \r\nc")] == ["a", "", " b ", "c"]
    assert read(b"") == []


def test_a_byte_order_mark_is_no_text() -> None:
    assert [record.text for record in read(b"\xef\xbb\xbfa\nb\n")] == ["a", "b"]


def test_jsonl_is_seen_by_its_first_line() -> None:
    records = read(b'{"text": "a", "id": 1}\n\n{"id": 2, "text": "b"}\n')

    assert [(record.text, record.fields, record.where) for record in records] == [
        ("a", {"text": "a", "id": 1}, "line 1"),
        ("b", {"id": 2, "text": "b"}, "line 3"),
    ]


@pytest.mark.parametrize("line", [b"{not json}", b"[1] not json", b"[sic]", b'"text"', b"3"])
def test_other_first_lines_are_texts(line: bytes) -> None:
    assert [record.text for record in read(line)] == [line.decode()]


def test_the_format_can_be_given() -> None:
    assert read(b'{"text": "a"}', InputFormat.TEXT)[0].text == '{"text": "a"}'
    with pytest.raises(InputError, match="line 1 is not valid JSON: Expecting value"):
        read(b"plain", InputFormat.JSONL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": "b"\n', "line 2 is not valid JSON: Expecting ',' delimiter"),
        (b'{"text": "a"}\n{"id": 2}\n', "line 2 has no text in a field `text`; its fields are `id`"),
        (b'{"text": "a"}\n{"text": 2}\n', "line 2 has no text in a field `text` but a number"),
        (b'{"text": "a"}\n[1]\n', "line 2 has no text in a field `text`"),
        (b'{"text": "a"}\n{"text": "\\ud800"}\n', "the text in line 2 is not valid Unicode: surrogates not allowed"),
        (b"a\n\xff\xfeb\n", "line 2 is not valid UTF-8 at byte 1"),
        (b"a\nb\0c\n", "line 2 has a NUL byte and is not text"),
    ],
)
def test_invalid_lines_are_reported_with_their_number(content: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(content)
    assert caught.value.message.startswith(message)


def test_arguments_are_texts() -> None:
    assert [record.text for record in from_arguments(["a", ""])] == ["a", ""]
    with pytest.raises(InputError, match="text 2 is not valid UTF-8"):
        list(from_arguments(["a", "\udcff"]))


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "-1.5e400"])
def test_numbers_that_json_does_not_have_are_refused(literal: str) -> None:
    content = b'{"text": "a", "x": 1e308}\n' + f'{{"text": "b", "x": [{literal}]}}'.encode()
    records = from_stream(Source(io.BytesIO(content)), InputOptions())

    assert next(records).fields["x"] == 1e308
    with pytest.raises(InputError) as caught:
        next(records)
    assert caught.value.message == f"line 2 has `{literal}`, which cannot be written as a JSON number"
    assert caught.value.hint == "write it as a string, or null"
