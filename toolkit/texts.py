"""Texts as they come to a command: as arguments, one a line, or JSONL with a field `text`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, BinaryIO

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


def from_arguments(texts: Iterable[str]) -> Iterator[TextRecord]:
    for number, text in enumerate(texts, start=1):
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise InputError(f"text {number} is not valid UTF-8") from error
        yield TextRecord(text, {"text": text}, f"text {number}", size)


def from_stream(stream: BinaryIO, input_format: InputFormat) -> Iterator[TextRecord]:
    """Read texts line by line; raises InputError that names the line for what is no text.

    `auto` takes lines for JSONL when the first is a JSON object with a field `text`.
    """
    for number, raw in enumerate(stream, start=1):
        line = decode(raw, number)
        if input_format is InputFormat.AUTO:
            input_format = InputFormat.JSONL if looks_like_jsonl(line) else InputFormat.TEXT
        if input_format is InputFormat.TEXT:
            yield TextRecord(line, {"text": line}, f"line {number}", len(raw))
        elif line.strip():
            fields = parse(line, number)
            yield TextRecord(fields["text"], fields, f"line {number}", len(raw))


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
    except ValueError:
        return False
    return isinstance(value, dict) and "text" in value


def parse(line: str, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"line {number} is no JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise InputError(f"line {number} has no text in a field `text`")
    try:
        value["text"].encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the text in line {number} is not valid Unicode: {error.reason}") from error
    return value
