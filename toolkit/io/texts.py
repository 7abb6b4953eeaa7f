"""Texts as they come to a command: as arguments, or from an input, one a line or in a field of each record."""

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
from .inputs import AS_TEXT, FailedRecord, InputFormat, Item, ItemReader, Place, Source, quoted, recognized

FIELD = "text"
"""The field that holds the text, unless `--field` names another."""


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
class Reading:
    """How the command line says that an input is to be read."""

    format: InputFormat = InputFormat.AUTO
    field: str | None = None
    """The field that holds the text; None for the usual one."""
    name: str | None = None
    """Of the file, None for stdin."""

    @property
    def certain(self) -> bool:
        """Whether it says so itself, so that a record without that field is at fault and not the reading."""
        return self.format is not InputFormat.AUTO or self.field is not None

    def begin(self, source: Source, *, tables: bool = True) -> Place:
        """Where to begin; raises InputError for a field in plain text."""
        place = recognized(source, self.format, name=self.name, column=self.field, tables=tables)
        if self.field is not None and place.format is InputFormat.TEXT:
            raise InputError(
                f"`--field {self.field}` names a field, and plain text has none",
                hint="give JSON or CSV, with `--input-format csv` for a pipe, or leave out `--field`",
            )
        return place


def from_arguments(texts: Iterable[str]) -> Iterator[TextRecord]:
    for number, text in enumerate(texts, start=1):
        check_argument(text, f"text {number}")
        yield TextRecord(text, {"text": text}, f"text {number}", len(text.encode("utf-8")))


def check_argument(text: str, name: str) -> None:
    """Raises InputError for what is not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not valid UTF-8") from error


def refuse_file_name(text: str, noun: str) -> None:
    """Raises InputError for an argument that evidently names a file, or a folder by a path, or stdin."""
    if text == "-":
        raise InputError(
            f"`-` is taken as a {noun} itself",
            hint=f"`--input -` reads stdin; `--literal` takes the dash as the {noun}",
        )
    if text.startswith("@") and is_file(text[1:]):
        raise InputError(
            f"`{text}` is taken as a {noun} itself, and `{text[1:]}` is a file",
            hint=f"`--input {text[1:]}` reads it; `--literal` takes the name as the {noun}",
        )
    try:
        mode = Path(text).stat().st_mode if text else 0
    except (OSError, ValueError):
        return
    is_folder = stat.S_ISDIR(mode) and os.sep in text.strip(os.sep + ".")
    if stat.S_ISREG(mode):
        raise InputError(
            f"`{text}` is a file, and an argument is taken as a {noun} itself",
            hint=f"`--input {text}` reads it; `--literal` takes the name as the {noun}",
        )
    if is_folder:
        raise InputError(
            f"`{text}` is a folder, and an argument is taken as a {noun} itself",
            hint=f"name a file in it with `--input`; `--literal` takes the name as the {noun}",
        )


def refuse_file_path(text: str | None, option: str, *, literal: bool) -> None:
    """Raises InputError for the value of an option that is the path of a file: one with a folder or a suffix."""
    if literal or text is None or not (os.sep in text or Path(text).suffix) or not is_file(text):
        return
    raise InputError(
        f"`{text}` is a file, and `{option}` takes the text itself",
        hint=f'`{option} "$(cat {shlex.quote(text)})"` takes what is in it; `--literal` takes the name as the text',
    )


def is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False


def from_stream(source: Source, reading: Reading) -> Iterator[TextRecord]:
    """Read texts one by one; raises InputError that says where for what is no text."""
    for record in RecordReader(source, reading):
        if isinstance(record, FailedRecord):
            raise record.error
        yield record


class RecordReader:
    """Reads texts one by one, and gives a FailedRecord for what is no text.

    Where nothing says which field holds the text, a first record without the usual one raises InputError with the
    fields that it has: all others would fail as well.
    """

    def __init__(self, source: Source, reading: Reading, *, place: Place | None = None) -> None:
        """`place` is where an earlier reading came to, None to begin."""
        self.field = reading.field or FIELD
        self.sure = reading.certain or place is not None
        self.items = ItemReader(source, place or reading.begin(source))

    @property
    def place(self) -> Place:
        return self.items.place

    def __iter__(self) -> Iterator[TextRecord | FailedRecord]:
        for item in self.items:
            if isinstance(item, FailedRecord):
                yield item
                continue
            try:
                record: TextRecord | FailedRecord = record_of(item, self.field)
            except InputError as error:
                if not self.sure:
                    raise InputError(
                        error.message, hint=f"{error.hint}; {AS_TEXT}" if error.hint else AS_TEXT
                    ) from error
                noun, number = item.where.split(" ")
                record = FailedRecord(error, {noun: int(number)}, item.where, item.size)
            self.sure = True
            yield record


def or_as_text(error: InputError) -> InputError:
    """The error of an input whose format was only recognized, with what to do where that is wrong."""
    return InputError(error.message, hint=f"{error.hint}; {AS_TEXT}" if error.hint else AS_TEXT)


def record_of(item: Item, field: str) -> TextRecord:
    """The text of an item; raises InputError for one that has none."""
    if isinstance(item.value, str):
        text, fields = item.value, {FIELD: item.value}
    else:
        text, fields = field_of(item.value, field, item.where), item.value
    check_unicode(text, f"the text in {item.where}")
    return TextRecord(text, fields, item.where, item.size)


def field_of(value: Any, field: str, where: str) -> str:
    """The text in a field of a record; raises InputError that names the fields that are there."""
    text = value.get(field) if isinstance(value, dict) else None
    if isinstance(text, str):
        return text
    message = f"{where} has no text in {quoted([field]) if field != FIELD else 'a field `text`'}"
    if not isinstance(value, dict):
        raise InputError(message, hint="give an object or a string each")
    if field in value:
        raise InputError(f"{message} but {_type_name(text)}")
    sizes = {name: len(found) for name, found in value.items() if isinstance(found, str) and name.isprintable()}
    longest = max(sizes, key=sizes.__getitem__, default=None)
    raise InputError(
        f"{message}; its fields are {quoted(value)}" if value else message,
        hint=f"name the field that holds the text, for example `--field {shlex.quote(longest)}`" if longest else None,
    )


def _type_name(value: object) -> str:
    """What JSON calls it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return "an object" if isinstance(value, dict) else "an array" if isinstance(value, list) else "a number"


def check_unicode(text: str, name: str) -> None:
    """Raises InputError, with what it is called, for a text with half a character, which JSON can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not valid Unicode: {error.reason}") from error
