r"""The format of an input, detected by its name and first lines.

A line ends with \n or \r\n, as `wc -l` counts them, and with nothing else.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ...runtime.errors import InputError
from .magic_bytes import binary_format_of, compression_of

if TYPE_CHECKING:
    from io import BufferedReader


class InputFormat(StrEnum):
    """Format of a file or a pipe."""

    AUTO = "auto"
    TEXT = "text"
    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    TSV = "tsv"


_SUFFIXES = {
    ".jsonl": InputFormat.JSONL,
    ".ndjson": InputFormat.JSONL,
    ".json": InputFormat.JSON,
    ".csv": InputFormat.CSV,
    ".tsv": InputFormat.TSV,
    ".tab": InputFormat.TSV,
}
BLOCK = 1 << 16
"""Bytes to read at once, and bytes of a line that are looked at to detect a format."""
_MAX_BLANK_LINES = 64
"""Lines that are searched for the first one that is not blank."""
TEXT_HINT = "to read it as plain text, add `--input-format text`"
_OBJECT_BEGINS = re.compile(r'\s*\[?\s*\{\s*("|$)')
"""An object or an array of objects; prose does not begin like this."""
_ARRAY_BEGINS = re.compile(r'\s*\[\s*["\[{]')
"""The same for a line of which only the beginning is known."""
_COLUMN_NAME = re.compile(r"[^\W\d]([^!?]{,38}[^\s.!?])?")
"""A short name without the punctuation of a sentence; prose has spaces after its commas."""
_TABLES = ("Parquet", "Arrow")


@dataclass(frozen=True)
class Position:
    """The format of an input and a position in it: all that is needed to resume there."""

    format: InputFormat = InputFormat.AUTO
    number: int = 0
    """Lines that were read; for JSON over several lines, values."""
    array: bool = False
    """Whether the position is inside of a JSON array."""
    delimiter: str = ","
    columns: tuple[str, ...] = ()
    """The header of CSV or TSV."""


class Source:
    """A stream with look-ahead; `size` is the number of bytes that were read."""

    def __init__(self, stream: BinaryIO | BufferedReader) -> None:
        self.stream = stream
        self.size = 0
        self.ahead: list[bytes] = []
        """Lines read ahead; of a long line, only the beginning."""

    def take(self, data: bytes) -> None:
        """Count the next bytes as read."""
        self.size += len(data)

    def look(self) -> bytes:
        """Read one more line ahead, or the beginning of a long one; b"" at the end."""
        line = self.stream.readline(BLOCK)
        if line:
            self.ahead.append(line)
        return line

    def __iter__(self) -> Iterator[bytes]:
        while line := self.next_line():
            self.take(line)
            yield line

    def next_line(self) -> bytes:
        line = self.ahead.pop(0) if self.ahead else self.stream.readline()
        while line and not line.endswith(b"\n"):
            more = self.ahead.pop(0) if self.ahead else self.stream.readline()
            if not more:
                break
            line += more
        return line

    def block(self) -> bytes:
        """The next bytes, b"" at the end; the caller calls `take`."""
        return self.ahead.pop(0) if self.ahead else self.stream.readline(BLOCK)


def decode(raw: bytes, number: int) -> str:
    """Decode a line without its line ending; raises InputError for invalid UTF-8."""
    if raw.endswith(b"\n"):
        raw = raw[: -2 if raw.endswith(b"\r\n") else -1]
    return decoded(raw, number)


def as_typed(text: str) -> str:
    """An argument decoded as UTF-8, whatever the locale; unchanged if it is not valid UTF-8."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return text


def decoded(raw: bytes, number: int) -> str:
    if b"\0" in raw:
        raise InputError(f"line {number} has a NUL byte and is not text", hint="give texts in UTF-8, one per line")
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"line {number} is not valid UTF-8 at byte {error.start + 1}", hint="convert it, for example with `iconv`"
        ) from error


def detect_format(
    source: Source, given: InputFormat, *, name: str | None = None, column: str | None = None, tables: bool = True
) -> Position:
    """Detect the format of an input that has not been read yet.

    The `given` format decides; then the suffix of the file, for JSON and tables; then the first non-blank line.
    `column` is a field that must exist. Without `tables`, only the suffix makes a table.
    """
    _refuse_binary(_first_bytes(source), name)
    named = _SUFFIXES.get(Path(name).suffix.lower()) if name is not None else None
    wanted = given if given is not InputFormat.AUTO else named
    if wanted in (InputFormat.CSV, InputFormat.TSV):
        return Position(wanted, delimiter=_delimiter_of(_first_line(source), wanted))
    if given in (InputFormat.JSONL, InputFormat.JSON, InputFormat.TEXT):
        return Position(given)
    line = _first_line(source)
    found = _json_format(line, cut=bool(source.ahead) and not source.ahead[-1].endswith(b"\n"))
    if found is not None or named is not None:
        return Position(found or named or InputFormat.JSONL)
    if not source.ahead:
        # An empty input has no missing fields either.
        return Position(InputFormat.TEXT if column is None else InputFormat.JSONL)
    if column is not None or tables:
        delimiter = _table_delimiter(source, line, column)
        if delimiter is not None:
            return Position(InputFormat.TSV if delimiter == "\t" else InputFormat.CSV, delimiter=delimiter)
    return Position(InputFormat.TEXT)


def _first_bytes(source: Source) -> bytes:
    return source.ahead[0] if source.ahead else source.look()


def _refuse_binary(beginning: bytes, name: str | None) -> None:
    """Raises InputError for a compressed or binary file, with the command that makes text of it."""
    compression = compression_of(beginning)
    if compression is not None:
        file = shlex.quote(name) if name is not None and name != "-" else "FILE"
        raise InputError(
            f"the input is compressed with {compression.name}",
            hint=f"unpack it: `{compression.command} {file} | ortkit ...`",
        )
    binary = binary_format_of(beginning)
    if binary is not None:
        hint = "convert it to plain text, JSONL or CSV first"
        if binary in _TABLES:
            hint = f"`ortkit embed` reads it where it writes a table, `--output FILE.parquet`; else {hint}"
        raise InputError(f"the input is {binary}, not text", hint=hint)
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError("the input is UTF-16, not UTF-8", hint="convert it: `iconv -f UTF-16 -t UTF-8`")


def _first_line(source: Source) -> str:
    """The first valid line that is not blank, or its beginning; "" if the first lines are blank."""
    for number in range(1, _MAX_BLANK_LINES + 1):
        raw = source.ahead[number - 1] if number <= len(source.ahead) else source.look()
        if len(raw) == BLOCK:
            return raw.decode("utf-8-sig", errors="ignore")
        try:
            line = decode(raw, number)
        except InputError:
            continue
        if not raw or line.strip():
            return line
    return ""


def _json_format(line: str, *, cut: bool) -> InputFormat | None:
    """JSONL or JSON if the first line is evidently JSON, else None."""
    text = line.strip()
    if not text.startswith(("{", "[")):
        return None
    several = InputFormat.JSON
    try:
        # Numbers do not matter here, and Python refuses those of thousands of digits.
        return InputFormat.JSONL if isinstance(json.loads(text, parse_int=str), dict) else several
    except RecursionError:
        return InputFormat.JSONL
    except json.JSONDecodeError as error:
        if error.pos >= len(text):
            return several
    if _OBJECT_BEGINS.match(text):
        return several if text.startswith("[") else InputFormat.JSONL
    return several if cut and _ARRAY_BEGINS.match(text) else None


def _table_delimiter(source: Source, header: str, column: str | None) -> str | None:
    """The delimiter of an evident table, a line of names above a line of as many values; None for text."""
    for delimiter in ("\t", ",", ";"):
        names = _split_row(header, delimiter)
        if column is not None and column in names:
            return delimiter
        # Commas and semicolons are common in prose, and tabs are not.
        if len(names) < 2 or (delimiter != "\t" and not all(map(_COLUMN_NAME.fullmatch, names))):
            continue
        try:
            values = _split_row(decode(source.look(), 2), delimiter)
        except InputError:
            return None
        return delimiter if len(values) == len(names) else None
    return None


def _split_row(line: str, delimiter: str) -> list[str]:
    """The fields of a header; none if it is not valid CSV, which is refused when its rows are read."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _delimiter_of(header: str, wanted: InputFormat) -> str:
    """Tab for TSV; for CSV the delimiter with the most columns, since some locales write semicolons."""
    if wanted is InputFormat.TSV:
        return "\t"
    return max((",", ";", "\t"), key=lambda delimiter: len(_split_row(header, delimiter)))
