r"""How an input holds its texts: recognized by its name and its first lines, and read as plain text, JSON, CSV or TSV.

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
"""Gives the error for a value, by where it stands."""


class InputFormat(StrEnum):
    """How a file or a pipe holds texts."""

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
"""Bytes read at once where lines do not matter, and the most of a line that is looked at to recognize a format."""
_MOST_OF_A_VALUE = 1 << 26
"""Characters of one value in a JSON array: more is taken for JSON that is broken."""
_MOST_OF_A_FIELD = 1 << 26
_LOOKED_AT = 64
"""Lines that are looked at for one that holds something."""
_SHOWN_FIELDS = 8
_SHOWN_DIGITS = 40
AS_TEXT = "to have it read as plain text, add `--input-format text`"
_OBJECT_BEGINS = re.compile(r'\s*\[?\s*\{\s*("|$)')
"""An object, or an array of them: no prose begins like this."""
_ARRAY_BEGINS = re.compile(r'\s*\[\s*["\[{]')
"""The same for a line that is so long that only its beginning was looked at."""
_COLUMN_NAME = re.compile(r"[^\W\d]([^!?]{,38}[^\s.!?])?")
"""As short as a name, and no sentence: prose has a space behind its commas."""
_PACKED = {
    b"\x1f\x8b": ("gzip", "gzip -dc"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "zstd -dc"),
    b"BZh91AY&SY": ("bzip2", "bzip2 -dc"),
    b"\xfd7zXZ": ("xz", "xz -dc"),
}
"""What compressed files begin with, what they are, and what unpacks them."""
_BINARY = {
    b"PK\x03\x04": "a ZIP archive or an Office document",
    b"%PDF": "a PDF",
    b"PAR1\x15": "Parquet",
    b"\x93NUMPY": "an npy file",
    b"GGUF\x03\x00": "a GGUF file",
    b"ARROW1\x00": "Arrow",
    b"SQLite format 3\x00": "a SQLite database",
}
"""What other files begin with that hold texts, but not as text."""


@dataclass(frozen=True)
class Place:
    """How an input is read, and how far it was: all that is needed to go on from there."""

    format: InputFormat = InputFormat.AUTO
    number: int = 0
    """Lines that were read; values in JSON that is not one a line."""
    array: bool = False
    """Whether the values of JSON are those of an array that is open."""
    delimiter: str = ","
    columns: tuple[str, ...] = ()
    """The header of a table."""


@dataclass(frozen=True)
class Item:
    """A line of plain text, a value of JSON, or a row of a table as an object."""

    value: Any
    where: str
    """`line 3`, or `item 3` in JSON that is not one a line; counted from 1."""
    size: int
    """Bytes that it took in the input."""


@dataclass(frozen=True)
class FailedRecord:
    """A line or an item that holds nothing that could be used."""

    error: InputError
    fields: dict[str, Any]
    """The number of the line or item, for want of anything else."""
    where: str
    size: int


class Source:
    """The bytes of a stream, of which some can be looked at before they are read; `size` were read."""

    def __init__(self, stream: BinaryIO | BufferedReader) -> None:
        self.stream = stream
        self.size = 0
        self.ahead: list[bytes] = []
        """Lines that were looked at; of a long one only the beginning."""

    def take(self, data: bytes) -> None:
        """Note that these bytes, the next ones, were read."""
        self.size += len(data)

    def look(self) -> bytes:
        """The next line that was not looked at yet, or its beginning; b"" at the end."""
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
        """Some of the bytes that come next, b"" at the end; `take` is for the caller to call."""
        return self.ahead.pop(0) if self.ahead else self.stream.readline(BLOCK)


def decode(raw: bytes, number: int) -> str:
    """A line without what ends it; raises InputError for what is not UTF-8."""
    if raw.endswith(b"\n"):
        raw = raw[: -2 if raw.endswith(b"\r\n") else -1]
    return _decoded(raw, number)


def as_typed(text: str) -> str:
    """A text that the locale made of bytes: what they are in UTF-8, where they are that."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return text


def _decoded(raw: bytes, number: int) -> str:
    if b"\0" in raw:
        raise InputError(f"line {number} holds a NUL byte, so this is not text", hint="give texts in UTF-8, one a line")
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"line {number} is not valid UTF-8 at byte {error.start + 1}", hint="convert it, for example with `iconv`"
        ) from error


def recognized(
    source: Source, given: InputFormat, *, name: str | None = None, column: str | None = None, tables: bool = True
) -> Place:
    """How to read an input that has not been read yet.

    What is given decides; then the file's name, where it says JSON or a table; then the first line that is not empty.
    `column` is a field that must be there. Without `tables`, only a name makes a table.
    """
    _refuse_binary(_first_bytes(source), name)
    named = _SUFFIXES.get(Path(name).suffix.lower()) if name is not None else None
    wanted = given if given is not InputFormat.AUTO else named
    if wanted in (InputFormat.CSV, InputFormat.TSV):
        return Place(wanted, delimiter=_delimiter_of(_first_line(source), wanted))
    if given in (InputFormat.JSONL, InputFormat.JSON, InputFormat.TEXT):
        return Place(given)
    line = _first_line(source)
    found = _json_format(line, cut=bool(source.ahead) and not source.ahead[-1].endswith(b"\n"))
    if found is not None or named is not None:
        return Place(found or named or InputFormat.JSONL)
    if not source.ahead:
        # Nothing at all, in which no field is missing either.
        return Place(InputFormat.TEXT if column is None else InputFormat.JSONL)
    if column is not None or tables:
        delimiter = _table_delimiter(source, line, column)
        if delimiter is not None:
            return Place(InputFormat.TSV if delimiter == "\t" else InputFormat.CSV, delimiter=delimiter)
    return Place(InputFormat.TEXT)


def _first_bytes(source: Source) -> bytes:
    return source.ahead[0] if source.ahead else source.look()


def _refuse_binary(beginning: bytes, name: str | None) -> None:
    """Raises InputError for a file that is evidently no text, with what makes it one."""
    for start, (kind, command) in _PACKED.items():
        if beginning.startswith(start):
            file = shlex.quote(name) if name is not None and name != "-" else "FILE"
            raise InputError(f"the input is compressed with {kind}", hint=f"unpack it: `{command} {file} | ortkit ...`")
    for start, kind in _BINARY.items():
        if beginning.startswith(start):
            raise InputError(f"the input is {kind}, not text", hint="convert it to plain text, JSONL or CSV first")
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError("the input is UTF-16, not UTF-8", hint="convert it: `iconv -f UTF-16 -t UTF-8`")


def _first_line(source: Source) -> str:
    """The first line that can be read and is not empty, or its beginning; "" where there is none nearby."""
    for number in range(1, _LOOKED_AT + 1):
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
    """What a first line begins, where it is evidently JSON: an object a line, or values that go on over lines."""
    text = line.strip()
    if not text.startswith(("{", "[")):
        return None
    several = InputFormat.JSON
    try:
        # Numbers are none of the format's business, and Python refuses to read those of thousands of digits.
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
    """What separates the columns of an evident table: a line of names, and one of as many values; None for text."""
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
    """The fields of a header; none where it is not valid CSV, which is refused where its rows are read."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _delimiter_of(header: str, wanted: InputFormat) -> str:
    """Tabs in TSV; in CSV what makes the most columns, since spreadsheets write semicolons where a comma is decimal."""
    if wanted is InputFormat.TSV:
        return "\t"
    return max((",", ";", "\t"), key=lambda delimiter: len(_split_row(header, delimiter)))


class ItemReader:
    """Reads the items of an input one by one; `place` says how far it is."""

    def __init__(self, source: Source, place: Place) -> None:
        self.source = source
        self.place = place
        self.last_line = ""
        """Of a table."""

    def __iter__(self) -> Iterator[Item | FailedRecord]:
        if self.place.format in (InputFormat.CSV, InputFormat.TSV):
            return self.rows()
        return self.values() if self.place.format is InputFormat.JSON else self.lines()

    def advance(self, **changes: Any) -> int:
        self.place = replace(self.place, **changes)
        return self.place.number

    def lines(self) -> Iterator[Item | FailedRecord]:
        """Lines of text; values of JSON, past lines of nothing, which are no records."""
        for raw in self.source:
            number = self.advance(number=self.place.number + 1)
            where = f"line {number}"
            try:
                line = decode(raw, number)
                if self.place.format is InputFormat.TEXT:
                    yield Item(line, where, len(raw))
                elif line.strip():
                    yield Item(_parse_value(line, where), where, len(raw))
            except InputError as error:
                yield FailedRecord(error, {"line": number}, where, len(raw))

    def values(self) -> Iterator[Item | FailedRecord]:
        """Values of JSON that follow one another, or those of an array; raises InputError where it is broken."""
        text = _Buffer(self.source)
        if self.place.number == 0 and not self.place.array and text.next_character() == "[":
            text.pass_over()
            self.advance(array=True)
        while True:
            following = text.next_character()
            if self.place.array and following == "]":
                text.pass_over()
                if text.next_character():
                    raise InputError(
                        f"more follows after the end of the JSON array, after item {self.place.number}",
                        hint=f"give one array, or a value a line as JSONL; {AS_TEXT}",
                    )
                return
            if self.place.array and self.place.number:
                if following != ",":
                    raise _broken(f"after item {self.place.number} a comma or `]` is missing")
                text.pass_over()
                following = text.next_character()
            if not following and not self.place.array:
                return
            number = self.place.number + 1
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
        """Rows of a table as objects, the first row their names; raises InputError for one that does not end."""
        csv.field_size_limit(_MOST_OF_A_FIELD)
        while True:
            size, first = self.source.size, self.place.number + 1
            where = f"line {first}"
            try:
                row = next(csv.reader(self.row_lines(), delimiter=self.place.delimiter, strict=True))
            except StopIteration:
                return
            except csv.Error as error:
                failed = _not_csv(first, error, self.last_line, alone=self.place.number == first)
                if self.place.number > first or not self.place.columns:
                    raise failed from error
                yield FailedRecord(failed, {"line": first}, where, self.source.size - size)
                continue
            except InputError as error:
                if self.place.number > first or not self.place.columns:
                    raise
                yield FailedRecord(error, {"line": first}, where, self.source.size - size)
                continue
            if not row:
                continue
            if not self.place.columns:
                self.advance(columns=_checked_header(row, where))
            elif len(row) != len(self.place.columns):
                columns = len(self.place.columns)
                failed = InputError(f"{where} has {len(row)} columns, and the header {columns}")
                yield FailedRecord(failed, {"line": first}, where, self.source.size - size)
            else:
                yield Item(dict(zip(self.place.columns, row, strict=True)), where, self.source.size - size)

    def row_lines(self) -> Iterator[str]:
        """Lines with what ends them, since fields in quotes may hold line breaks."""
        while raw := self.source.next_line():
            self.source.take(raw)
            self.last_line = _decoded(raw, self.advance(number=self.place.number + 1))
            yield self.last_line


def _not_csv(number: int, error: csv.Error, line: str, *, alone: bool) -> InputError:
    if "\r" in line.rstrip("\r\n"):
        return InputError(
            f"line {number} is not valid CSV: it holds a carriage return that ends no line",
            hint="convert old line ends with `tr '\\r' '\\n'`, or put quotes around the field",
        )
    return InputError(
        f"line {number} is not valid CSV: {error}"
        if alone
        else f"the row that begins in line {number} is not valid CSV: {error}",
        hint='put quotes around a field that holds a quote, and double those in it: "a ""b"" c"',
    )


def _checked_header(names: list[str], where: str) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"the header in {where} names {quoted(twice)} more than once", hint="rename one of them")
    return tuple(names)


class _Buffer:
    """Text of JSON that is read block by block, and taken from its source value by value."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text = ""
        self.at = 0
        self.ended = False

    def more(self, count: int = 1) -> bool:
        """Read on, at least so many characters where they are there; False at the end."""
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
        """The next one that is no space, "" at the end."""
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
        """The next value, and a fault in it for which it is refused."""
        while True:
            faults: list[Fault] = []
            try:
                value, end = json.JSONDecoder(**_hooks(faults)).raw_decode(self.text, self.at)
            except RecursionError as error:
                raise InputError(f"item {number} is JSON that is nested too deep") from error
            except ValueError as error:
                if len(self.text) - self.at > _MOST_OF_A_VALUE or not self.more(max(1, len(self.text) - self.at)):
                    raise _broken(f"item {number} cannot be read: {error}") from error
                continue
            if end == len(self.text) and not isinstance(value, (str, dict, list)) and self.more():
                # More digits may follow.
                continue
            self.at = end
            return value, faults[0] if faults else None

    def taken(self) -> None:
        """Forget what was passed over, and note that it was read."""
        self.source.take(self.text[: self.at].encode())
        self.text, self.at = self.text[self.at :], 0


def _broken(why: str) -> InputError:
    return InputError(f"this is not valid JSON: {why}", hint=f"mend it; {AS_TEXT}")


def _hooks(faults: list[Fault]) -> dict[str, Any]:
    """What Python's JSON decoder is given, which takes more than JSON: what is wrong goes to `faults`."""

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
            # Of more digits than Python reads or writes.
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
    return InputError(f"{where} has the field {quoted([name])} more than once", hint="leave one of them")


def _not_json(where: str, literal: str) -> InputError:
    shown = literal if len(literal) <= _SHOWN_DIGITS else f"{literal[:_SHOWN_DIGITS]}..."
    return InputError(
        f"{where} holds `{shown}`, which cannot be passed on as a number of JSON",
        hint="give it in quotes, or null",
    )


def _parse_value(line: str, where: str) -> Any:
    """The JSON value in a line; raises InputError also for numbers that JSON does not have, and for a field twice."""
    faults: list[Fault] = []
    try:
        value = json.loads(line, **_hooks(faults))
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InputError(f"{where} is JSON that is nested too deep") from error
    if faults:
        raise faults[0](where)
    return value


def quoted(names: Iterable[str]) -> str:
    """Names of fields for a message, not too many of them, and nothing that a terminal obeys."""
    shown = list(names)
    some = ["`" + "".join(c if c.isprintable() else "\ufffd" for c in name[:80]) + "`" for name in shown]
    return ", ".join(some[:_SHOWN_FIELDS]) + (", ..." if len(some) > _SHOWN_FIELDS else "")
