"""Read the items of an input: lines of plain text, JSON values, rows of CSV or TSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ...runtime.errors import InputError
from ..console.progress import counted
from .input_format import TEXT_HINT, InputFormat, Position, Source, decode, decoded
from .json_values import JsonBuffer, broken, parse_value, quoted

_MAX_FIELD = 1 << 26


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
                    yield Item(parse_value(line, where), where, len(raw))
            except InputError as error:
                yield FailedRecord(error, {"line": number}, where, len(raw))

    def values(self) -> Iterator[Item | FailedRecord]:
        """JSON values, consecutive or in an array; raises InputError for invalid JSON."""
        text = JsonBuffer(self.source)
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
                    raise broken(f"after item {self.position.number} a comma or `]` is missing")
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
                failed = InputError(f"{where} has {counted(len(row), 'column')}, and the header {columns}")
                yield FailedRecord(failed, {"line": first}, where, self.source.size - size)
            else:
                yield Item(dict(zip(self.position.columns, row, strict=True)), where, self.source.size - size)

    def row_lines(self) -> Iterator[str]:
        """Lines with their line endings, since quoted fields may contain line breaks."""
        while raw := self.source.next_line():
            self.source.take(raw)
            self.last_line = decoded(raw, self.advance(number=self.position.number + 1))
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
