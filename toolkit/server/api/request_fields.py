"""Read a JSON request field by field; an error names the field as a path, such as `messages[0].content`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ....runtime.errors import InputError
from ....runtime.text.tokenizer import checked_text
from ...io.json_values import parse_value, quoted
from ..errors import (
    InvalidJsonError,
    MissingFieldError,
    RequestError,
    UnknownFieldError,
    UnsupportedFieldError,
    printable,
)

_MOST_BRACKETS = 1 << 19
"""`[` and `{` in a body, even inside of its texts: of 8 MiB one byte in sixteen, more than source code has."""
_KINDS = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def parse_body(body: bytes) -> Fields:
    """The JSON object of a request's body; raises InvalidJsonError.

    An empty array of three bytes takes 64 as Python's, so their number is bounded before they are made.
    """
    if body.count(b"[") + body.count(b"{") > _MOST_BRACKETS:
        raise InvalidJsonError(
            f"the body has more than {_MOST_BRACKETS} `[` and `{{`", hint="send its texts in several requests"
        )
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidJsonError(f"the body is not valid UTF-8: {error.reason} at byte {error.start}") from error
    try:
        value = parse_value(text, "the body")
    except InputError as error:
        raise InvalidJsonError(error.message, hint=error.hint) from error
    return Fields(value)


def kind_of(value: object) -> str:
    """What a JSON value is, for a message."""
    return _KINDS.get(type(value), type(value).__name__)


class Fields:
    """The fields of a JSON object, which it empties. Each is read once; `finish` refuses those that nobody has read.

    An optional field that is null counts as missing, as clients write those that they do not use.
    """

    def __init__(self, value: object, path: str = "") -> None:
        """Raises RequestError for anything but an object."""
        if not isinstance(value, dict):
            what = f"`{path}`" if path else "the body"
            raise RequestError(f"{what} must be an object, not {kind_of(value)}", param=path or None)
        self._values: dict[str, Any] = value
        self._path = path
        self._known: set[str] = set()

    def path(self, name: str) -> str:
        """The path of a field."""
        return f"{self._path}.{name}" if self._path else name

    def given(self, name: str) -> bool:
        """Whether a field is there and not null."""
        return self._values.get(name) is not None

    def value(self, name: str, *, required: bool = False) -> Any:
        """A field of any type, None where it is missing or null."""
        self._known.add(name)
        found = self._values.get(name)
        if found is None and required:
            if name in self._values:
                raise RequestError(f"`{self.path(name)}` must not be null", param=self.path(name))
            raise MissingFieldError(f"the field `{self.path(name)}` is missing", param=self.path(name))
        return found

    def ignore(self, *names: str) -> None:
        """Accept fields that do not change the answer."""
        self._known.update(names)
        for name in names:
            # They may be large, and a request lasts for minutes.
            self._values.pop(name, None)

    def refuse(self, name: str, why: str, *, allowed: Sequence[object] = ()) -> None:
        """Raise UnsupportedFieldError for a field that would change the answer, unless its value is allowed."""
        found = self.value(name)
        if found is not None and not any(found == value and type(found) is type(value) for value in allowed):
            raise UnsupportedFieldError(f"`{self.path(name)}` is not supported: {why}", param=self.path(name))

    def finish(self) -> None:
        """Raise UnknownFieldError for fields that were not read, and let go of the others."""
        unknown = [name for name in self._values if name not in self._known]
        if unknown:
            raise UnknownFieldError(
                f"unknown field {quoted(unknown)}",
                param=self.path(printable(unknown[0])),
                hint=f"supported: {quoted_all(sorted(self._known))}",
            )
        self._values = {}

    def text(self, name: str, *, required: bool = False, empty: bool = True) -> str | None:
        """A string of valid Unicode."""
        found = self.value(name, required=required)
        return None if found is None else text_of(found, self.path(name), empty=empty)

    def required_text(self, name: str, *, empty: bool = True) -> str:
        return text_of(self.value(name, required=True), self.path(name), empty=empty)

    def flag(self, name: str, *, default: bool = False) -> bool:
        found = self.value(name)
        if found is None:
            return default
        if not isinstance(found, bool):
            raise self._wrong(name, "a boolean", found)
        return found

    def integer(self, name: str, *, least: int, most: int) -> int | None:
        found = self.value(name)
        return None if found is None else integer_of(found, self.path(name), least=least, most=most)

    def number(self, name: str, *, least: float, most: float) -> float | None:
        """A finite number."""
        found = self.value(name)
        return None if found is None else number_of(found, self.path(name), least=least, most=most)

    def choice(self, name: str, values: Sequence[str], *, default: str | None = None) -> str | None:
        """One of several strings."""
        found = self.value(name)
        if found is None:
            return default
        if not isinstance(found, str) or found not in values:
            shown = f"`{printable(found)}`" if isinstance(found, str) else kind_of(found)
            raise RequestError(
                f"`{self.path(name)}` must be {' or '.join(f'`{value}`' for value in values)}, not {shown}",
                param=self.path(name),
            )
        return found

    def required_choice(self, name: str, values: Sequence[str]) -> str:
        self.value(name, required=True)
        return self.choice(name, values) or ""

    def fields(self, name: str, *, required: bool = False) -> Fields | None:
        """An object."""
        found = self.value(name, required=required)
        return None if found is None else Fields(found, self.path(name))

    def required_fields(self, name: str) -> Fields:
        return Fields(self.value(name, required=True), self.path(name))

    def array(self, name: str, *, required: bool = False, least: int = 0, most: int | None = None) -> list[Any] | None:
        """An array of `least` to `most` values."""
        found = self.value(name, required=required)
        if found is None:
            return None
        if not isinstance(found, list):
            raise self._wrong(name, "an array", found)
        check_count(found, self.path(name), least=least, most=most)
        return found

    def texts(
        self, name: str, *, required: bool = False, least: int = 0, most: int | None = None, empty: bool = True
    ) -> list[str] | None:
        """An array of strings."""
        found = self.array(name, required=required, least=least, most=most)
        return None if found is None else texts_of(found, self.path(name), empty=empty)

    def objects(
        self, name: str, *, required: bool = False, least: int = 0, most: int | None = None
    ) -> list[Fields] | None:
        """An array of objects."""
        found = self.array(name, required=required, least=least, most=most)
        if found is None:
            return None
        return [Fields(value, f"{self.path(name)}[{place}]") for place, value in enumerate(found)]

    def _wrong(self, name: str, wanted: str, found: object) -> RequestError:
        return RequestError(f"`{self.path(name)}` must be {wanted}, not {kind_of(found)}", param=self.path(name))


def check_count(found: Sequence[object], path: str, *, least: int = 0, most: int | None = None) -> None:
    """Raise RequestError for an array of another length."""
    if len(found) < least:
        raise RequestError(f"`{path}` must not be empty", param=path)
    if most is not None and len(found) > most:
        raise RequestError(f"`{path}` has {len(found)} items, and the limit is {most}", param=path)


def text_of(found: object, path: str, *, empty: bool = True) -> str:
    """A value as a string of valid Unicode; raises RequestError."""
    if not isinstance(found, str):
        raise RequestError(f"`{path}` must be a string, not {kind_of(found)}", param=path)
    if not found and not empty:
        raise RequestError(f"`{path}` must not be empty", param=path)
    try:
        return checked_text(found, f"`{path}`")
    except InputError as error:
        raise RequestError(error.message, param=path) from error


def texts_of(found: Iterable[object], path: str, *, empty: bool = True) -> list[str]:
    """Values as strings; raises RequestError for the first that is not one."""
    return [text_of(value, f"{path}[{place}]", empty=empty) for place, value in enumerate(found)]


def integer_of(found: object, path: str, *, least: int, most: int) -> int:
    """A value as an integer; JSON Schema counts 5.0 among them. Raises RequestError."""
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    if not isinstance(found, int) or isinstance(found, bool):
        raise RequestError(f"`{path}` must be an integer, not {kind_of(found)}", param=path)
    if not least <= found <= most:
        raise RequestError(f"`{path}` must be from {least} to {most}, not {_shown(found)}", param=path)
    return found


def number_of(found: object, path: str, *, least: float, most: float) -> float:
    """A value as a finite number; raises RequestError."""
    if not isinstance(found, (int, float)) or isinstance(found, bool):
        raise RequestError(f"`{path}` must be a number, not {kind_of(found)}", param=path)
    # An integer may exceed every float; comparing it is exact.
    if not least <= found <= most or not math.isfinite(found):
        raise RequestError(f"`{path}` must be from {least:g} to {most:g}, not {_shown(found)}", param=path)
    return float(found)


def _shown(number: float) -> str:
    text = str(number)
    return text if len(text) <= 30 else f"{text[:30]}..."


def quoted_all(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
