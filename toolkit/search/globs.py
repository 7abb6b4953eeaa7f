"""Patterns for the names of files in a folder, such as `*.md`, `drafts/` and `docs/**/*.txt`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ...runtime.errors import InputError


class Globs:
    """Patterns of which one must match.

    `*` and `?` match within a name, `**` over folders, and `[abc]` one character. A pattern without `/` matches a name
    in any folder, one with `/` the path from the top. A pattern that matches a folder matches all that is in it; one
    that ends with `/` matches folders only.
    """

    def __init__(self, patterns: Iterable[str], option: str = "pattern") -> None:
        """Raises InputError for a pattern that is not valid, with the name of the `option`."""
        self.patterns = tuple(patterns)
        self._expressions = [re.compile(_expression(pattern, option), re.DOTALL) for pattern in self.patterns]

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def match(self, name: str) -> bool:
        """Whether a path with `/`, relative to the folder, matches one of the patterns; folders end with `/`."""
        return any(expression.fullmatch(name) for expression in self._expressions)


def _expression(pattern: str, option: str) -> str:
    path = pattern.removeprefix("./")
    anchored = "/" in path.rstrip("/")
    path = path.lstrip("/")
    folder = path.endswith("/")
    path = path.rstrip("/")
    if not path:
        raise InputError(f"the {option} `{pattern}` matches no file", hint="for all files: `*`")
    if ".." in path.split("/"):
        raise InputError(f"the {option} `{pattern}` leads out of the folder", hint="name files from the folder's top")
    parts = [_part(part, pattern, option) for part in path.split("/")]
    # What stands between two `**` is taken where it matches first, and for good (an atomic group): nothing is lost by
    # it, and a pattern of many stars takes no time that grows with a power of their number.
    *groups, end = _between_stars(parts)
    joined = ""
    for number, group in enumerate(groups):
        folders = "".join(f"{part}/" for part in group)
        joined += folders if number == 0 else f"(?>(?:[^/]+/)*?{folders})"
    if groups:
        joined += "(?:[^/]+/)*" if end else ".+"
    joined += "/".join(end)
    return ("" if anchored else "(?:.*/)?") + joined + ("/.*" if folder else "(?:/.*)?")


def _between_stars(parts: Iterable[str | None]) -> list[list[str]]:
    """The names between `**`."""
    groups: list[list[str]] = [[]]
    for part in parts:
        if part is None:
            groups.append([])
        else:
            groups[-1].append(part)
    return groups


def _part(part: str, pattern: str, option: str) -> str | None:
    """The expression of a name; None for `**`."""
    if part == "**":
        return None
    # What stands between two `*`, which is taken where it matches first.
    pieces = [""]
    at = 0
    while at < len(part):
        character = part[at]
        at += 1
        if character == "*":
            pieces.append("")
            at += len(part[at:]) - len(part[at:].lstrip("*"))
        elif character == "?":
            pieces[-1] += "[^/]"
        elif character == "[":
            # A `]` that stands first is one of the characters.
            end = part.find("]", at + (2 if part[at : at + 1] in ("!", "^") else 1))
            if end < 0:
                raise InputError(f"the {option} `{pattern}` has a `[` without `]`", hint="for the character: `[[]`")
            pieces[-1] += _characters(part[at:end], pattern, option)
            at = end + 1
        else:
            pieces[-1] += re.escape(character)
    first, *middle = pieces
    if not middle:
        return first
    *middle, last = middle
    return first + "".join(f"(?>[^/]*?{piece})" for piece in middle) + "[^/]*" + last


def _characters(inside: str, pattern: str, option: str) -> str:
    negated = inside[:1] in ("!", "^")
    members = inside[1:] if negated else inside
    escaped = re.sub(r"([\\\[\]^&~|])", r"\\\1", members)
    # A class never matches the separator, as in a shell.
    expression = f"(?!/)[{'^' if negated else ''}{escaped}]"
    try:
        re.compile(expression)
    except re.error as error:
        raise InputError(f"the {option} `{pattern}` is not valid: `[{inside}]`: {error.msg}") from error
    return expression
