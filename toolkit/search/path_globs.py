"""Path globs: limit a search to some files."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...runtime.errors import InputError


def compiled(patterns: Sequence[str]) -> re.Pattern[str]:
    """A regular expression for the names of files that match any of the globs; raises InputError.

    As in .gitignore files: a glob without `/` matches a file or folder at any depth, one with `/` from the top; a
    folder stands for all below it; `*` and `?` do not match `/`, `**` does; `[a-z]` and `[!a-z]` are sets.
    """
    if isinstance(patterns, str):
        raise InputError("`paths` must be several globs, not one string", hint=f"pass a list: `[{patterns!r}]`")
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InputError(f"a path glob must be a string, not {type(pattern).__name__}")
        if not pattern.strip("/"):
            raise InputError(f"`{pattern}` is not a path glob", hint="for example `manuals/*.md` or `*.pdf`")
    return re.compile("|".join(map(_expression, patterns)), re.DOTALL)


def _expression(pattern: str) -> str:
    plain = pattern.removeprefix("./").rstrip("/")
    start = "" if "/" in plain else "(?:.*/)?"
    return f"{start}{_translated(plain.lstrip('/'))}(?:/.*)?"


_TOKEN = re.compile(r"\*\*/|/\*\*$|\*\*|\*|\?|\[[!^]?\]?[^\]/]*\]|.", re.DOTALL)
_WILDCARDS = {"**/": "(?:.*/)?", "/**": "/.*", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _translated(pattern: str) -> str:
    parts = []
    for token in _TOKEN.findall(pattern):
        if token in _WILDCARDS:
            parts.append(_WILDCARDS[token])
        elif len(token) > 1:
            parts.append(_set(token))
        else:
            parts.append(re.escape(token))
    return "".join(parts)


def _set(token: str) -> str:
    """A set such as `[!a-c]`; a range that is not one, such as `[c-a]`, is the text itself."""
    inverted = token[1] in "!^"
    content = token[1 + inverted : -1].replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
    content = re.sub(r"([&~|^])", r"\\\1", content)
    expression = f"(?!/)[{'^' if inverted else ''}{content}]"
    try:
        re.compile(expression)
    except re.error:
        return re.escape(token)
    return expression
