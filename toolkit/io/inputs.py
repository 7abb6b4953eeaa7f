r"""Detect the format of an input by its name and first lines, and read plain text, JSON, JSONL, CSV or TSV.

A line ends with \n or \r\n, as `wc -l` counts them, and with nothing else.
"""

from __future__ import annotations

import codecs
import csv
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ...runtime.errors import InputError

if TYPE_CHECKING:
    from io import BufferedReader


Fault = Callable[[str], InputError]
"""Makes the error for an invalid value from its position in the input."""


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
_MAX_VALUE = 1 << 26
"""Characters of a value in a JSON array; a longer one is taken for broken JSON."""
_MAX_FIELD = 1 << 26
_MAX_BLANK_LINES = 64
"""Lines that are searched for the first one that is not blank."""
_SHOWN_FIELDS = 8
_SHOWN_DIGITS = 40
TEXT_HINT = "to read it as plain text, add `--input-format text`"
_OBJECT_BEGINS = re.compile(r'\s*\[?\s*\{\s*("|$)')
"""An object or an array of objects; prose does not begin like this."""
_ARRAY_BEGINS = re.compile(r'\s*\[\s*["\[{]')
"""The same for a line of which only the beginning is known."""
_COLUMN_NAME = re.compile(r"[^\W\d]([^!?]{,38}[^\s.!?])?")
"""A short name without the punctuation of a sentence; prose has spaces after its commas."""
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gzip -dc"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "zstd -dc"),
    b"BZh91AY&SY": ("bzip2", "bzip2 -dc"),
    b"\xfd7zXZ": ("xz", "xz -dc"),
}
"""Magic bytes -> compression, and the command that decompresses it."""
_BINARY = {
    b"PK\x03\x04": "a ZIP archive or an Office document",
    b"%PDF": "a PDF",
    b"PAR1\x15": "Parquet",
    b"\x93NUMPY": "an npy file",
    b"GGUF\x03\x00": "a GGUF file",
    b"ARROW1\x00": "Arrow",
    b"SQLite format 3\x00": "a SQLite database",
}
"""Magic bytes -> binary format that may contain text."""


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


@dataclass(frozen=True)
class Item:
    """A line of plain text, a JSON value, or a row of a table as an object."""

    value: Any
    where: str
    """`line 3`, or `item 3` for JSON over several lines; counted from 1."""
    size: int
    """Bytes in the input."""


@dataclass(frozen=True)
class FailedRecord:
    """A line or an item that cannot be used."""

    error: InputError
    fields: dict[str, Any]
    """The number of the line or item."""
    where: str
    size: int


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
    return _decoded(raw, number)


def as_typed(text: str) -> str:
    """An argument decoded as UTF-8, whatever the locale; unchanged if it is not valid UTF-8."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return text


def _decoded(raw: bytes, number: int) -> str:
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
    for start, (kind, command) in _COMPRESSED.items():
        if beginning.startswith(start):
            file = shlex.quote(name) if name is not None and name != "-" else "FILE"
            raise InputError(f"the input is compressed with {kind}", hint=f"unpack it: `{command} {file} | ortkit ...`")
    for start, kind in _BINARY.items():
        if beginning.startswith(start):
            raise InputError(f"the input is {kind}, not text", hint="convert it to plain text, JSONL or CSV first")
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


class ItemReader:
    """Iterates over the items of an input; `position` is after the last one."""

    def __init__(self, source: Source, position: Position) -> None:
        self.source = source
        self.position = position
        self.last_line = ""
        """The last line of a table that was read."""

    def __iter__(self) -> Iterator[Item | FailedRecord]:
        if self.position.format in (InputFormat.CSV, InputFormat.TSV):
            return self.rows()
        return self.values() if self.position.format is InputFormat.JSON else self.lines()

    def advance(self, **changes: Any) -> int:
        self.position = replace(self.position, **changes)
        return self.position.number

    def lines(self) -> Iterator[Item | FailedRecord]:
        """Lines of text, or JSON values; blank lines between JSON values are skipped."""
        for raw in self.source:
            number = self.advance(number=self.position.number + 1)
            where = f"line {number}"
            try:
                line = decode(raw, number)
                if self.position.format is InputFormat.TEXT:
                    yield Item(line, where, len(raw))
                elif line.strip():
                    yield Item(_parse_value(line, where), where, len(raw))
            except InputError as error:
                yield FailedRecord(error, {"line": number}, where, len(raw))

    def values(self) -> Iterator[Item | FailedRecord]:
        """JSON values, consecutive or in an array; raises InputError for invalid JSON."""
        text = _JsonBuffer(self.source)
        if self.position.number == 0 and not self.position.array and text.next_character() == "[":
            text.pass_over()
            self.advance(array=True)
        while True:
            following = text.next_character()
            if self.position.array and following == "]":
                text.pass_over()
                if text.next_character():
                    raise InputError(
                        f"the JSON array ends after item {self.position.number}, and more input follows",
                        hint=f"give one array, or one value per line as JSONL; {TEXT_HINT}",
                    )
                return
            if self.position.array and self.position.number:
                if following != ",":
                    raise _broken(f"after item {self.position.number} a comma or `]` is missing")
                text.pass_over()
                following = text.next_character()
            if not following and not self.position.array:
                return
            number = self.position.number + 1
            size = self.source.size
            value, refused = text.value(number)
            text.taken()
            self.advance(number=number)
            where, size = f"item {number}", self.source.size - size
            if refused is not None:
                yield FailedRecord(refused(where), {"item": number}, where, size)
            else:
                yield Item(value, where, size)

    def rows(self) -> Iterator[Item | FailedRecord]:
        """Rows of a table as objects; raises InputError for a row that does not end."""
        csv.field_size_limit(_MAX_FIELD)
        while True:
            size, first = self.source.size, self.position.number + 1
            where = f"line {first}"
            try:
                row = next(csv.reader(self.row_lines(), delimiter=self.position.delimiter, strict=True))
            except StopIteration:
                return
            except csv.Error as error:
                failed = _not_csv(first, error, self.last_line, alone=self.position.number == first)
                if self.position.number > first or not self.position.columns:
                    raise failed from error
                yield FailedRecord(failed, {"line": first}, where, self.source.size - size)
                continue
            except InputError as error:
                if self.position.number > first or not self.position.columns:
                    raise
                yield FailedRecord(error, {"line": first}, where, self.source.size - size)
                continue
            if not row:
                continue
            if not self.position.columns:
                self.advance(columns=_checked_header(row, where))
            elif len(row) != len(self.position.columns):
                columns = len(self.position.columns)
                failed = InputError(f"{where} has {len(row)} columns, and the header {columns}")
                yield FailedRecord(failed, {"line": first}, where, self.source.size - size)
            else:
                yield Item(dict(zip(self.position.columns, row, strict=True)), where, self.source.size - size)

    def row_lines(self) -> Iterator[str]:
        """Lines with their line endings, since quoted fields may contain line breaks."""
        while raw := self.source.next_line():
            self.source.take(raw)
            self.last_line = _decoded(raw, self.advance(number=self.position.number + 1))
            yield self.last_line


def _not_csv(number: int, error: csv.Error, line: str, *, alone: bool) -> InputError:
    if "\r" in line.rstrip("\r\n"):
        return InputError(
            f"line {number} is not valid CSV: it has a carriage return inside of a line",
            hint="convert old Mac line endings with `tr '\\r' '\\n'`, or put quotes around the field",
        )
    return InputError(
        f"line {number} is not valid CSV: {error}"
        if alone
        else f"the row that begins in line {number} is not valid CSV: {error}",
        hint='quote a field that contains quotes, and double these: "a ""b"" c"',
    )


def _checked_header(names: list[str], where: str) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"the header in {where} has {quoted(twice)} more than once", hint="rename one of them")
    return tuple(names)


class _JsonBuffer:
    """JSON text that is read in blocks and consumed value by value."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text = ""
        self.at = 0
        self.ended = False

    def more(self, count: int = 1) -> bool:
        """Read at least `count` more characters, or up to the end; False if nothing was left."""
        pieces: list[str] = []
        got = 0
        while got < count and not self.ended:
            block = self.source.block()
            self.ended = not block
            try:
                pieces.append(self.decoder.decode(block, final=self.ended))
            except UnicodeDecodeError as error:
                raise InputError("the JSON is not valid UTF-8", hint="convert it, for example with `iconv`") from error
            got += len(pieces[-1])
        self.text = self.text + "".join(pieces)
        return got > 0

    def next_character(self) -> str:
        """The next character that is not whitespace, "" at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in " \t\r\n\ufeff":
                    return self.text[self.at]
                self.at += 1
            if not self.more():
                return ""

    def pass_over(self) -> None:
        self.at += 1

    def value(self, number: int) -> tuple[Any, Fault | None]:
        """The next value, and the fault for which it must be refused, if any."""
        while True:
            faults: list[Fault] = []
            try:
                value, end = json.JSONDecoder(**_hooks(faults)).raw_decode(self.text, self.at)
            except RecursionError as error:
                raise InputError(f"the JSON of item {number} is nested too deeply") from error
            except ValueError as error:
                if len(self.text) - self.at > _MAX_VALUE or not self.more(max(1, len(self.text) - self.at)):
                    raise _broken(f"item {number} cannot be read: {error}") from error
                continue
            if end == len(self.text) and not isinstance(value, (str, dict, list)) and self.more():
                # More digits may follow.
                continue
            self.at = end
            return value, faults[0] if faults else None

    def taken(self) -> None:
        """Discard the consumed text, and count it as read."""
        self.source.take(self.text[: self.at].encode())
        self.text, self.at = self.text[self.at :], 0


def _broken(why: str) -> InputError:
    return InputError(f"the input is not valid JSON: {why}", hint=f"correct it; {TEXT_HINT}")


def _hooks(faults: list[Fault]) -> dict[str, Any]:
    """Hooks for Python's JSON decoder, which accepts more than JSON: they add what is invalid to `faults`."""

    def refuse(digits: str) -> None:
        faults.append(lambda where: _not_json(where, digits))

    def finite(digits: str) -> float:
        found = float(digits)
        if not math.isfinite(found):
            refuse(digits)
        return found

    def whole(digits: str) -> int:
        try:
            return int(digits)
        except ValueError:
            # More digits than Python converts.
            refuse(digits)
            return 0

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            faults.append(lambda where: _repeats(where, repeated))
        return found

    return {"parse_float": finite, "parse_int": whole, "parse_constant": refuse, "object_pairs_hook": without_repeats}


def _repeats(where: str, name: str) -> InputError:
    return InputError(f"{where} has the field {quoted([name])} more than once", hint="remove one of them")


def _not_json(where: str, literal: str) -> InputError:
    shown = literal if len(literal) <= _SHOWN_DIGITS else f"{literal[:_SHOWN_DIGITS]}..."
    return InputError(
        f"{where} has `{shown}`, which cannot be written as a JSON number",
        hint="write it as a string, or null",
    )


def _parse_value(line: str, where: str) -> Any:
    """The JSON value in a line; raises InputError for invalid JSON, for NaN and for duplicate fields."""
    faults: list[Fault] = []
    try:
        value = json.loads(line, **_hooks(faults))
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InputError(f"the JSON in {where} is nested too deeply") from error
    if faults:
        raise faults[0](where)
    return value


def quoted(names: Iterable[str]) -> str:
    """Field names for a message: a few, without control characters."""
    shown = list(names)
    some = ["`" + "".join(c if c.isprintable() else "\ufffd" for c in name[:80]) + "`" for name in shown]
    return ", ".join(some[:_SHOWN_FIELDS]) + (", ..." if len(some) > _SHOWN_FIELDS else "")
