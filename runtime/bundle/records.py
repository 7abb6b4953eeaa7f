"""Frozen dataclasses <-> JSON values, strictly: missing, unknown and mistyped fields are errors that name the path.

Supported field types: str, int, float, bool, Enum, another record, `T | None`, `tuple[T, ...]` and `dict[str, T]`. The
metadata of an integer field, or of a tuple of integers, may state a range under WITHIN.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from ..errors import InputError

Record = TypeVar("Record")
Choice = TypeVar("Choice", bound=Enum)

WITHIN = "within"


class RecordError(ValueError):
    """A value is not valid for the record; `path` names the field, such as `files.model.onnx.size`."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"`{path}` {problem}" if path else problem)
        self.path = path
        self.problem = problem


def read_record(record: type[Record], value: object, path: str = "") -> Record:
    """Build `record` from a JSON object; raises RecordError for the first field that is not valid."""
    if not isinstance(value, Mapping):
        raise RecordError(path, f"must be an object, not {describe(value)}")
    hints = typing.get_type_hints(record)
    for key in value:
        if key not in hints:
            raise RecordError(join(path, str(key)), "is not a known field")
    arguments = {}
    for field in dataclasses.fields(record):  # type: ignore[arg-type]
        where = join(path, field.name)
        if field.name in value:
            arguments[field.name] = _read_value(hints[field.name], value[field.name], where)
            _check_range(arguments[field.name], field.metadata.get(WITHIN), where)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RecordError(where, "is missing")
    return record(**arguments)


def _check_range(value: object, within: range | None, path: str) -> None:
    if within is not None and isinstance(value, tuple):
        for index, item in enumerate(value):
            _check_range(item, within, f"{path}[{index}]")
    if within is not None and isinstance(value, int) and value not in within:
        raise RecordError(path, f"must be from {within.start} to {within.stop - 1}, not {describe(value)}")


def _read_value(hint: Any, value: object, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (present,) = (argument for argument in arguments if argument is not type(None))
        found = None if value is None else _read_value(present, value, path)
    elif origin is tuple:
        found = _read_tuple(arguments[0], value, path)
    elif origin is dict:
        found = _read_dict(arguments[1], value, path)
    elif issubclass(hint, Enum):
        found = _read_enum(hint, value, path)
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        found = read_record(hint, value, path)
    else:
        found = _read_scalar(hint, value, path)
    return found


def _read_tuple(item_type: Any, value: object, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise RecordError(path, f"must be a list, not {describe(value)}")
    return tuple(_read_value(item_type, item, f"{path}[{index}]") for index, item in enumerate(value))


def _read_dict(item_type: Any, value: object, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise RecordError(path, f"must be an object, not {describe(value)}")
    for key in value:
        if not isinstance(key, str):
            raise RecordError(path, f"must have strings as keys, not {describe(key)}")
        _check_unicode(key, path)
    return {key: _read_value(item_type, item, join(path, key)) for key, item in value.items()}


def choice(choices: type[Choice], value: object, name: str) -> Choice:
    """Convert option `name` of a caller, a member of an enum or its value; InputError lists the supported values."""
    if isinstance(value, choices):
        return value
    try:
        return _read_enum(choices, value, name)
    except RecordError as error:
        raise InputError(str(error)) from error


def _read_enum(choices: type[Choice], value: object, path: str) -> Choice:
    known = [choice.value for choice in choices]
    if value not in known:
        raise RecordError(path, f"must be one of {', '.join(map(str, known))}, not {describe(value)}")
    return choices(value)


def _read_scalar(hint: type, value: object, path: str) -> object:
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError as error:
            raise RecordError(path, "is too large for a float64") from error
    if type(value) is not hint:
        raise RecordError(path, f"must be {_NOUNS[hint]}, not {describe(value)}")
    if isinstance(value, str):
        _check_unicode(value, path)
    # All comparisons with NaN are false, so a check could pass or fail by how it is written.
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError(path, f"must be a finite number, not `{value}`")
    return value


def _check_unicode(text: str, path: str) -> None:
    """Refuse unpaired surrogates, which JSON can contain and libraries refuse."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError(path, f"is not valid Unicode: {error.reason} at character {error.start}") from error


def write_record(record: object) -> Any:
    """Convert a record to a JSON value; the inverse of `read_record`."""
    if isinstance(record, Enum):
        return record.value
    if dataclasses.is_dataclass(record):
        return {field.name: write_record(getattr(record, field.name)) for field in dataclasses.fields(record)}
    if isinstance(record, tuple):
        return [write_record(item) for item in record]
    if isinstance(record, Mapping):
        return {key: write_record(item) for key, item in record.items()}
    return record


_NOUNS = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


def describe(value: object) -> str:
    if isinstance(value, (str, int, float)) and len(repr(value)) <= 40:
        return f"`{value}`"
    names = {type(None): "null", list: "a list", dict: "an object", str: "a long string"}
    return names.get(type(value), type(value).__name__)


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
