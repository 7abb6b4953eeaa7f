"""CSV, TSV, JSONL and JSON: each row or record a passage of `column: value` lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, BinaryIO

from ....runtime.errors import InputError
from ...io.input_format import InputFormat, Position, Source, detect_format
from ...io.inputs import FailedRecord, ItemReader
from ..folder import FoundFile
from .content import HEAD, opened
from .document import Passage, Place, ReadingReport, UnreadableFileError
from .encoding import clean, decode_text, is_utf8

_MAX_FAULTS = 1000
"""Rows that swallow the rest of a table, which is read again behind each."""
_MAX_DEPTH = 20
"""Objects inside of one another whose fields are named; deeper ones are written as JSON."""
_SPACE = " \t\r\n"


def read_table(found: FoundFile, report: ReadingReport) -> Iterator[Passage]:
    """The rows of CSV or TSV, or the records of JSONL, read as they are needed."""
    with _utf8(found) as stream:
        source = Source(stream)
        try:
            table = found.name.lower().endswith((".csv", ".tsv", ".tab"))
            position = detect_format(source, InputFormat.AUTO if table else InputFormat.JSONL, name=found.name)
            if not table:
                yield from _records(ItemReader(source, position), report)
            else:
                yield from _rows(stream, position, report)
        except InputError as error:
            raise UnreadableFileError(error.message, hint=error.hint) from error


def is_jsonl(text: str) -> bool:
    """Whether the first line is an object, though the whole text is not JSON."""
    try:
        return isinstance(json.loads(text.lstrip().partition("\n")[0], parse_int=str), dict)
    except (ValueError, RecursionError):
        return False


@contextmanager
def _utf8(found: FoundFile) -> Iterator[BinaryIO]:
    """The file as a stream of UTF-8; one in another encoding, or with old Mac line ends, is converted in memory."""
    with opened(found) as stream:
        head = stream.read(HEAD)
        stream.seek(0)
        if is_utf8(head, whole=len(head) < HEAD) and (b"\n" in head or b"\r" not in head):
            yield stream
        else:
            yield io.BytesIO(decode_text(stream.read()).encode())


def _records(reader: ItemReader, report: ReadingReport) -> Iterator[Passage]:
    for item in reader:
        if isinstance(item, FailedRecord):
            report.skip(item.error.message)
            continue
        try:
            text = record_text(item.value)
        except RecursionError:
            report.skip(f"{item.where} is nested too deeply")
            continue
        if text:
            number = reader.position.number
            yield Passage(text, Place((number, number)))


def _rows(stream: BinaryIO, position: Position, report: ReadingReport) -> Iterator[Passage]:
    """The rows of a table. One that does not end is skipped, and reading continues in the line after its first."""
    stream.seek(0)
    source = Source(stream)
    position = _header(source, position)
    start = source.size
    for _ in range(_MAX_FAULTS):
        stream.seek(start)
        begun, source = start, Source(stream)
        reader = ItemReader(source, position)
        try:
            for item in reader:
                position, start = reader.position, begun + source.size
                if isinstance(item, FailedRecord):
                    report.skip(item.error.message)
                elif text := _row_text(item.value):
                    yield Passage(text, Place((int(item.where.removeprefix("line ")), position.number)))
        except InputError as error:
            report.skip(error.message)
            position, start = _behind_line(stream, position, start)
        else:
            return
    raise UnreadableFileError(f"has more than {_MAX_FAULTS} rows that do not end", hint="check its quotes")


def _header(source: Source, position: Position) -> Position:
    """The position after the header. Columns without a name, and names that repeat, get numbers."""
    reader = ItemReader(source, position)
    try:
        for row in csv.reader(reader.row_lines(), delimiter=position.delimiter, strict=True):
            if row:
                return replace(reader.position, columns=_unique(row))
    except csv.Error as error:
        raise UnreadableFileError(f"has a header that is not valid CSV: {error}") from error
    return reader.position


def _unique(names: list[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for number, given in enumerate(names, start=1):
        name = given.strip() or f"column {number}"
        found[name if name not in found else f"{name} ({number})"] = None
    # A name may be what another one became; then all are numbered.
    return tuple(found) if len(found) == len(names) else tuple(f"{name} ({at})" for at, name in enumerate(names, 1))


def _behind_line(stream: BinaryIO, position: Position, start: int) -> tuple[Position, int]:
    """The position and offset behind the next line that is not blank."""
    stream.seek(start)
    number = position.number
    while line := stream.readline():
        start += len(line)
        number += 1
        if line.strip():
            break
    return replace(position, number=number), start


def _row_text(row: dict[str, str]) -> str:
    return clean("\n".join(f"{name}: {value.strip()}" for name, value in row.items() if value.strip()))


def record_text(value: Any) -> str:
    """A JSON value as lines `field: value`; the fields of inner objects with their path, such as `pump.name`."""
    return clean("\n".join(_fields("", value, 0)))


def _fields(name: str, value: Any, depth: int) -> Iterator[str]:
    label = f"{name}: " if name else ""
    if depth > _MAX_DEPTH:
        yield label + json.dumps(value, ensure_ascii=False)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _fields(f"{name}.{key}" if name else str(key), inner, depth + 1)
    elif isinstance(value, list) and any(isinstance(inner, (dict, list)) for inner in value):
        for number, inner in enumerate(value, start=1):
            yield from _fields(f"{name}.{number}" if name else "", inner, depth + 1)
    elif isinstance(value, list):
        shown = ", ".join(filter(None, map(_scalar, value)))
        if shown:
            yield label + shown
    elif shown := _scalar(value):
        yield label + shown


def _scalar(value: Any) -> str:
    """A string, number or boolean as text; null has none."""
    if isinstance(value, str):
        return value.strip()
    return "" if value is None else json.dumps(value)


def read_json(text: str) -> list[Passage] | None:
    """The elements of an array, or the members of an object, as passages; None for what is not valid JSON."""
    try:
        return list(_members(text))
    except (ValueError, RecursionError):
        return None


def _members(text: str) -> Iterator[Passage]:
    # Numbers are shown as they are written, and those of thousands of digits are not converted.
    decoder = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_Number)
    lines = _Lines(text)
    at = _after_space(text, 0)
    closing = {"{": "}", "[": "]"}.get(text[at : at + 1])
    if closing is None:
        value, end = decoder.raw_decode(text, at)
        yield from lines.passage(record_text(value), at, end)
        _check_end(text, end)
        return
    at = _after_space(text, at + 1)
    if text[at : at + 1] == closing:
        _check_end(text, at + 1)
        return
    while True:
        start, name = at, ""
        if closing == "}":
            name, at = decoder.raw_decode(text, at)
            at = _after_space(text, at)
            if type(name) is not str or text[at : at + 1] != ":":
                raise ValueError("a member without a name or a value")
            at = _after_space(text, at + 1)
        value, end = decoder.raw_decode(text, at)
        yield from lines.passage(record_text({name: value} if name else value), start, end)
        at = _after_space(text, end)
        if text[at : at + 1] == closing:
            _check_end(text, at + 1)
            return
        if text[at : at + 1] != ",":
            raise ValueError("a comma is missing")
        at = _after_space(text, at + 1)


class _Number(str):
    """A number as it is written."""

    __slots__ = ()


class _Lines:
    """Lines of places in a text that only move on."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1

    def line_at(self, place: int) -> int:
        self.line += self.text.count("\n", self.at, place)
        self.at = place
        return self.line

    def passage(self, text: str, start: int, end: int) -> Iterator[Passage]:
        if text:
            first = self.line_at(start)
            yield Passage(text, Place((first, self.line_at(max(start, end - 1)))))


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _check_end(text: str, at: int) -> None:
    if _after_space(text, at) < len(text):
        raise ValueError("more follows after the value")
