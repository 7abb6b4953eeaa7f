"""The grammar of answers from the command line: a JSON schema, a regular expression or a Lark grammar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...runtime.errors import InputError
from .streams import open_input

if TYPE_CHECKING:
    from ...runtime.decoder.decoder import Decoder
    from ...runtime.decoder.grammar import Grammar

_LONGEST = 1 << 20
"""Bytes of a file."""


def read_grammar(json_schema: str | None, regex: str | None, lark: str | None) -> dict[str, str]:
    """The keyword of `Decoder.grammar`, with files read; empty without any.

    Raises InputError for more than one of them, and for a file that cannot be read or is not text.
    """
    options = {"--json-schema": json_schema, "--regex": regex, "--grammar": lark}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"`{given[0]}` and `{given[1]}` exclude each other", hint="leave one of them out")
    if json_schema is not None:
        return {"json_schema": _text_of(json_schema, "--json-schema")}
    if lark is not None:
        return {"lark": _text_of(lark, "--grammar")}
    return {} if regex is None else {"regex": regex}


def compile_grammar(decoder: Decoder, given: dict[str, str]) -> Grammar | None:
    """The grammar for the answers of a model; None without one. Raises as `Decoder.grammar` does."""
    return decoder.grammar(**given) if given else None


def _text_of(path: str, option: str) -> str:
    with open_input(path) as file:
        content = file.read(_LONGEST + 1)
    if len(content) > _LONGEST:
        raise InputError(f"`{path}` of `{option}` has more than {_LONGEST} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"`{path}` of `{option}` is not UTF-8 text: {error.reason} at byte {error.start}") from error
