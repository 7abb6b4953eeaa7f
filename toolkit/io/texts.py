"""Read texts: arguments, lines of an input, or a field of its records."""

from __future__ import annotations

import json
import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError
from .input_format import TEXT_HINT, InputFormat, Position, Source, detect_format
from .inputs import FailedRecord, Item, ItemReader
from .json_values import quoted

FIELD = "text"
"""Name of the text field, unless `--field` gives another."""


@dataclass(frozen=True)
class TextRecord:
    """A text with the fields and the position of its record."""

    text: str
    fields: dict[str, Any]
    where: str
    """`line 3`, `row 3` of a table, or `text 3` for an argument; counted from 1."""
    size: int
    """Bytes in the input."""
    subject: str | None = None
    """The subject of errors of this text, where that is not `where`: in a table they stand in its row."""


@dataclass(frozen=True)
class InputOptions:
    """How to read an input, as the command line says."""

    format: InputFormat = InputFormat.AUTO
    field: str | None = None
    """Name of the text field; None for the default."""
    name: str | None = None
    """Of the file; None for stdin."""

    @property
    def certain(self) -> bool:
        """Whether the format or field was given, so that an invalid record is not a wrong detection."""
        return self.format is not InputFormat.AUTO or self.field is not None

    def begin(self, source: Source, *, tables: bool = True) -> Position:
        """The position to begin at; raises InputError for `--field` with plain text."""
        position = detect_format(source, self.format, name=self.name, column=self.field, tables=tables)
        if self.field is not None and position.format is InputFormat.TEXT:
            raise InputError(
                f"the input is plain text, which has no field `{self.field}`",
                hint="give JSON or CSV, with `--input-format csv` for a pipe, or leave out `--field`",
            )
        return position


def from_arguments(texts: Iterable[str]) -> Iterator[TextRecord]:
    for number, text in enumerate(texts, start=1):
        check_argument(text, f"text {number}")
        yield TextRecord(text, {"text": text}, f"text {number}", len(text.encode("utf-8")))


def check_argument(text: str, name: str) -> None:
    """Raises InputError for an argument that is not valid UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not valid UTF-8") from error


def refuse_file_name(text: str, noun: str) -> None:
    """Raises InputError for an argument that is the name of a file, the path of a folder, or `-`."""
    if text == "-":
        raise InputError(
            f"`-` would be used as the {noun} itself",
            hint=f"`--input -` reads stdin; `--literal` uses the dash as the {noun}",
        )
    if text.startswith("@") and is_file(text[1:]):
        raise InputError(
            f"`{text}` would be used as the {noun} itself, but `{text[1:]}` is a file",
            hint=f"`--input {text[1:]}` reads it; `--literal` uses the name as the {noun}",
        )
    try:
        mode = Path(text).stat().st_mode if text else 0
    except (OSError, ValueError):
        return
    is_folder = stat.S_ISDIR(mode) and os.sep in text.strip(os.sep + ".")
    if stat.S_ISREG(mode):
        raise InputError(
            f"`{text}` is a file, but an argument is used as the {noun} itself",
            hint=f"`--input {text}` reads it; `--literal` uses the name as the {noun}",
        )
    if is_folder:
        raise InputError(
            f"`{text}` is a folder, but an argument is used as the {noun} itself",
            hint=f"give a file in it with `--input`; `--literal` uses the name as the {noun}",
        )


def refuse_file_path(text: str | None, option: str, *, literal: bool) -> None:
    """Raises InputError if the value of an option is the path of a file, with a folder or a suffix."""
    if literal or text is None or not (os.sep in text or Path(text).suffix) or not is_file(text):
        return
    raise InputError(
        f"`{text}` is a file, but `{option}` takes the text itself",
        hint=f'`{option} "$(cat {shlex.quote(text)})"` gives its content; `--literal` uses the name as the text',
    )


def is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False


def from_stream(source: Source, input_options: InputOptions) -> Iterator[TextRecord]:
    """Iterate over texts; raises InputError, with the position, for an invalid record."""
    for record in RecordReader(source, input_options):
        if isinstance(record, FailedRecord):
            raise record.error
        yield record


class RecordReader:
    """Iterates over texts, with a FailedRecord for each invalid record.

    If neither a format nor a field was given and the first record has no text, InputError lists its fields: all others
    would fail as well.
    """

    def __init__(self, source: Source, input_options: InputOptions, *, position: Position | None = None) -> None:
        """`position` is the position to resume at, None to begin."""
        self.field = input_options.field or FIELD
        self.format_is_sure = input_options.certain or position is not None
        self.items = ItemReader(source, position or input_options.begin(source))

    @property
    def position(self) -> Position:
        return self.items.position

    def __iter__(self) -> Iterator[TextRecord | FailedRecord]:
        for item in self.items:
            if isinstance(item, FailedRecord):
                yield item
                continue
            try:
                record: TextRecord | FailedRecord = _record_of(item, self.field)
            except InputError as error:
                if not self.format_is_sure:
                    raise InputError(
                        error.message, hint=f"{error.hint}; {TEXT_HINT}" if error.hint else TEXT_HINT
                    ) from error
                noun, number = item.where.split(" ")
                record = FailedRecord(error, {noun: int(number)}, item.where, item.size)
            self.format_is_sure = True
            yield record


def with_text_hint(error: InputError) -> InputError:
    """The error for an input whose format was detected, with a hint for a wrong detection."""
    return InputError(error.message, hint=f"{error.hint}; {TEXT_HINT}" if error.hint else TEXT_HINT)


def _record_of(item: Item, field: str) -> TextRecord:
    """The text of an item; raises InputError for an item without one."""
    if isinstance(item.value, str):
        text, fields = item.value, {FIELD: item.value}
    else:
        text, fields = field_of(item.value, field, item.where), item.value
    check_unicode(text, f"the text in {item.where}")
    return TextRecord(text, fields, item.where, item.size)


def field_of(value: Any, field: str, where: str) -> str:
    """The text in a field of a record; raises InputError with the existing fields."""
    text = value.get(field) if isinstance(value, dict) else None
    if isinstance(text, str):
        return text
    message = f"{where} has no text in {quoted([field]) if field != FIELD else 'a field `text`'}"
    if not isinstance(value, dict):
        raise InputError(message, hint="give an object or a string")
    if field in value:
        raise InputError(f"{message} but {_type_name(text)}")
    sizes = {name: len(found) for name, found in value.items() if isinstance(found, str) and name.isprintable()}
    longest = max(sizes, key=sizes.__getitem__, default=None)
    raise InputError(
        f"{message}; its fields are {quoted(value)}" if value else message,
        hint=f"name the text field, for example `--field {shlex.quote(longest)}`" if longest else None,
    )


def _type_name(value: object) -> str:
    """Name of a JSON type."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return "an object" if isinstance(value, dict) else "an array" if isinstance(value, list) else "a number"


def check_unicode(text: str, name: str) -> None:
    """Raises InputError for a text with a lone surrogate, which JSON allows; `name` is for the message."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not valid Unicode: {error.reason}") from error
