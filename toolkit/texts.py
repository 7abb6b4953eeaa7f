"""Texts as they come to a command: as arguments, one a line, or JSONL with a field `text`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from runtime.errors import InputError


class InputFormat(str, Enum):
    """How a file or a pipe holds texts."""

    AUTO = "auto"
    TEXT = "text"
    JSONL = "jsonl"


@dataclass(frozen=True)
class TextRecord:
    """One text, the JSON fields that came with it, and where it stood."""

    text: str
    fields: dict[str, Any]
    where: str
    """`line 3`, or `text 3` for an argument, counted from 1."""
    size: int
    """Bytes that it took in the input."""


@dataclass(frozen=True)
class FailedRecord:
    """A line that holds no text which could be used."""

    error: InputError
    fields: dict[str, Any]
    """The number of the line, for want of anything else."""
    where: str
    size: int


def from_arguments(texts: Iterable[str]) -> Iterator[TextRecord]:
    for number, text in enumerate(texts, start=1):
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise InputError(f"text {number} is not valid UTF-8") from error
        yield TextRecord(text, {"text": text}, f"text {number}", size)


def from_stream(lines: Iterable[bytes], input_format: InputFormat) -> Iterator[TextRecord]:
    """Read texts line by line; raises InputError that names the line for what is no text."""
    for record in RecordReader(lines, input_format):
        if isinstance(record, FailedRecord):
            raise record.error
        yield record


class RecordReader:
    """Reads texts line by line, and gives a FailedRecord for what is no text.

    `auto` takes lines for JSONL when the first that can be read is a JSON object with a field `text`; `format` is what
    it took. Lines of nothing are texts in plain text, and no records in JSONL. `number` lines were read before.
    """

    def __init__(self, lines: Iterable[bytes], input_format: InputFormat, *, number: int = 0) -> None:
        self.lines = lines
        self.format = input_format
        self.number = number

    def __iter__(self) -> Iterator[TextRecord | FailedRecord]:
        for raw in self.lines:
            self.number += 1
            where = f"line {self.number}"
            try:
                line = decode(raw, self.number)
                if self.format is InputFormat.AUTO:
                    self.format = InputFormat.JSONL if looks_like_jsonl(line) else InputFormat.TEXT
                if self.format is InputFormat.TEXT:
                    yield TextRecord(line, {"text": line}, where, len(raw))
                elif line.strip():
                    fields = parse(line, self.number)
                    yield TextRecord(fields["text"], fields, where, len(raw))
            except InputError as error:
                yield FailedRecord(error, {"line": self.number}, where, len(raw))


def decode(raw: bytes, number: int) -> str:
    if b"\0" in raw:
        raise InputError(f"line {number} holds a NUL byte, so this is no text", hint="give texts in UTF-8, one a line")
    try:
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"line {number} is not valid UTF-8 at byte {error.start + 1}", hint="convert it, for example with `iconv`"
        ) from error
    return line.rstrip("\r\n")


def looks_like_jsonl(line: str) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "text" in value


def parse_object(line: str, number: int) -> dict[str, Any]:
    """The JSON object in a line; one without fields for what is JSON but no object.

    Raises InputError also for numbers that would go out as what is no JSON.
    """

    def refuse(literal: str) -> float:
        raise InputError(
            f"line {number} holds `{literal}`, which cannot be passed on as a number of JSON",
            hint="give it in quotes, or null",
        )

    def finite(digits: str) -> float:
        found = float(digits)
        return found if math.isfinite(found) else refuse(digits)

    try:
        value = json.loads(line, parse_float=finite, parse_constant=refuse)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"line {number} is no JSON: {error}") from error
    except RecursionError as error:
        raise InputError(f"line {number} is JSON that is nested too deep") from error
    return value if isinstance(value, dict) else {}


def parse(line: str, number: int) -> dict[str, Any]:
    value = parse_object(line, number)
    if not isinstance(value.get("text"), str):
        raise InputError(f"line {number} has no text in a field `text`")
    check_unicode(value["text"], f"the text in line {number}")
    return value


def check_unicode(text: str, name: str) -> None:
    """Raises InputError, with what it is called, for a text with half a character, which JSON can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not valid Unicode: {error.reason}") from error
