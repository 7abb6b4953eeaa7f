"""Arguments of the public API: checks, whose errors name the argument and what was passed, and keyword options."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ForwardRef, SupportsIndex, TypeVar, cast

from .errors import InputError

Function = TypeVar("Function", bound=Callable[..., Any])


def checked_integer(value: object, name: str, *, least: int | None = 1) -> int:
    """Return any integer, such as numpy's, as an int; raises InputError for anything else, and below `least`.

    Without `least`, callers check the range, and say where it comes from.
    """
    # Asking for a protocol takes microseconds, and a server does so for each request.
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, SupportsIndex)):
        raise InputError(f"`{name}` must be an integer, not {type(value).__name__}")
    number = value.__index__()
    if least is not None and number < least:
        raise InputError(f"`{name}` must be at least {least}, not {number}")
    return number


def checked_flag(value: object, name: str) -> bool:
    """Return a bool; raises InputError for anything else, such as the string "no", which counts as true."""
    if not isinstance(value, bool):
        raise InputError(f"`{name}` must be True or False, not {type(value).__name__}")
    return value


def checked_path(path: object, name: str) -> Path:
    """Return a path; raises InputError for anything but a str or a path of str."""
    if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
        raise InputError(f"`{name}` must be a path, not {type(path).__name__}")
    if not os.fspath(path):
        raise InputError(f"`{name}` is an empty path")
    return Path(path)


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size_of(text: str, name: str) -> int:
    """Return the bytes of a size such as `500M` or `4G`; raises InputError for anything else."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,3})?)([KMGT]?)(?:I?B)?", text.strip().upper(), re.ASCII)
    size = int(float(found[1]) * _UNITS[found[2]]) if found is not None else 0
    if not 0 < size < 1 << 63:
        raise InputError(f"`{name}` must be a size such as 500M or 4G, not `{text}`")
    return size


def without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not None, whose default applies."""
    return {name: value for name, value in options.items() if value is not None}


def takes_keywords(known: type) -> Callable[[Function], Function]:
    """Let the `**options` of a method be the keys of the TypedDict `known`.

    Type checkers read them from `Unpack[...]`; `help` and notebooks read the signature, which gets them in place of
    `**options`. The method raises TypeError for any other keyword, with the closest match. A method that passes its
    options on has fewer of its own than the one that it calls, so each checks them itself.
    """
    keywords = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=kind.__forward_arg__ if isinstance(kind, ForwardRef) else kind,
        )
        for name, kind in known.__annotations__.items()
    ]

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        parameters = {one.name: one for one in (*own, *keywords)}

        @wraps(function)
        def checked(*arguments: Any, **options: Any) -> Any:
            for name in options:
                if name not in parameters:
                    raise TypeError(_unexpected(function, name, parameters.values()))
            return function(*arguments, **options)

        checked.__signature__ = signature.replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]
        return cast("Function", checked)

    return decorate


def _unexpected(function: Callable[..., Any], name: str, parameters: Iterable[inspect.Parameter]) -> str:
    """The message for a keyword that a method does not take: the closest match, or the supported ones."""
    from difflib import get_close_matches  # noqa: PLC0415 - needed for errors only

    names = [one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]
    near = get_close_matches(name, names, n=1)
    ending = f"did you mean `{near[0]}`?" if near else f"supported: {', '.join(f'`{one}`' for one in names)}"
    return f"{function.__qualname__}() got an unexpected keyword argument `{name}`; {ending}"
