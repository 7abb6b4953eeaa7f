"""Limits on JSON schemas that would take a compiler minutes or gigabytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from urllib.parse import unquote

from ..errors import InputError

MOST_VALUES = 20_000
"""Objects, arrays and other values of a schema."""
MOST_PROPERTIES = 2_000
"""Properties of all objects together; a single object with more takes quadratic time: 4,000 take 4 s, 8,000 19 s."""
MOST_PATTERNS = 50
"""Patterns of all `patternProperties`: each is compared with each other one. 200 take 2 s, 600 over 25 s."""
MOST_MULTIPLE = 10_000
"""Least common multiple of all `multipleOf`, without decimal point and final zeros.

A regular expression for multiples of n has n states: n = 9,999,991 takes 3 minutes and 5 GB.
"""
DEEPEST = 64
"""Levels of nested values, two for each object in an object. Parsers have limits of 128."""
_MOST_DIGITS = 30
_NO_CONSTRAINTS = frozenset(
    ("$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples", "deprecated")
)
_SAME_INSTANCE = frozenset(("allOf", "anyOf", "oneOf"))
"""Keywords whose schemas apply to the value that the schema around them applies to."""


def check_limits(schema: object) -> None:
    """Raise InputError for a JSON schema that exceeds a limit, or cannot be held to."""
    properties, patterns, multiple = 0, 0, 1
    for values, value in enumerate(_values_of(schema), start=1):
        if isinstance(value, Mapping):
            properties += _properties_of(value)
            patterns += _size_of(value.get("patternProperties"))
            multiple = math.lcm(multiple, _coefficient(value.get("multipleOf")))
            _check_unique_keys(value)
        if values > MOST_VALUES or properties > MOST_PROPERTIES:
            raise InputError(
                f"the JSON schema has more than {MOST_VALUES} values, or more than {MOST_PROPERTIES} properties",
                hint="split it, and ask for the parts one after another",
            )
        if patterns > MOST_PATTERNS:
            raise InputError(f"the JSON schema has more than {MOST_PATTERNS} patterns in `patternProperties`")
        if multiple > MOST_MULTIPLE:
            raise InputError(
                f"the JSON schema has `multipleOf` with a least common multiple over {MOST_MULTIPLE}, not counting "
                "decimal point and final zeros"
            )
    _check_merged(schema)


class _Merged:
    """The number of values of a JSON schema once references are replaced where a compiler merges their targets.

    A reference alone is compiled once, however often it is used. One beside other constraints is replaced by a copy of
    its target, so a chain of a few may take gigabytes.
    """

    def __init__(self, schema: object) -> None:
        self._schema = schema
        self._sizes: dict[str, int] = {}
        """Of the targets; 0 while one is counted, for those that refer to themselves."""

    def count(self, value: object, *, merged: bool = False) -> int:
        """The values in a value; `merged`: whether other constraints apply to the same instance."""
        if isinstance(value, (list, tuple)):
            return 1 + sum(self.count(inner, merged=merged) for inner in value)
        if not isinstance(value, Mapping):
            return 1
        constraints = [name for name in value if name not in _NO_CONSTRAINTS]
        merged = merged or len(constraints) > 1
        reference = value.get("$ref")
        total = self._target(reference) if merged and isinstance(reference, str) else 1
        for name, inner in value.items():
            several = name == "allOf" and isinstance(inner, (list, tuple)) and len(inner) > 1
            total += self.count(inner, merged=name in _SAME_INSTANCE and (merged or several))
        return total

    def _target(self, reference: str) -> int:
        if reference not in self._sizes:
            self._sizes[reference] = 0
            self._sizes[reference] = 1 + self.count(self._resolved(reference), merged=True)
        return self._sizes[reference]

    def _resolved(self, reference: str) -> object:
        """What a JSON pointer refers to; None for one that a compiler will refuse."""
        if reference not in ("#", "") and not reference.startswith("#/"):
            raise InputError(
                f"the JSON schema has the reference {reference[:100]!r} beside other constraints; supported there: "
                "references that begin with `#/`"
            )
        found = self._schema
        for part in unquote(reference).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping):
                found = found.get(name)
            elif isinstance(found, (list, tuple)) and name.isdecimal() and int(name[:9]) < len(found):
                found = found[int(name[:9])]
            else:
                return None
        return found


def _check_merged(schema: object) -> None:
    try:
        merged = _Merged(schema).count(schema)
    except RecursionError as error:
        raise InputError("the JSON schema has too long a chain of references beside other constraints") from error
    if merged > MOST_VALUES:
        raise InputError(
            f"the JSON schema has more than {MOST_VALUES} values where references are beside other constraints",
            hint="refer to schemas with `$ref` alone",
        )


def _values_of(schema: object) -> Iterator[object]:
    """All values in a value, itself included; raises InputError below the deepest level."""
    pending = [(schema, 0)]
    while pending:
        value, depth = pending.pop()
        if depth > DEEPEST:
            raise InputError(f"the JSON schema has more than {DEEPEST} nested levels", hint="use `$defs` and `$ref`")
        yield value
        if isinstance(value, Mapping):
            pending += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, (list, tuple)):
            pending += [(inner, depth + 1) for inner in value]


def literals_of(schema: object) -> Iterator[str]:
    """The texts that answers are made of: those of `enum` and `const`, names of properties, and a list of choices."""
    if isinstance(schema, (list, tuple)):
        yield from (text for text in schema if isinstance(text, str))
    if not isinstance(schema, Mapping):
        return
    for value in _values_of(schema):
        if isinstance(value, Mapping):
            for name in ("enum", "const"):
                yield from (text for text in _values_of(value.get(name)) if isinstance(text, str))
            properties = value.get("properties")
            if isinstance(properties, Mapping):
                yield from (name for name in properties if isinstance(name, str))


def _properties_of(schema: Mapping[str, object]) -> int:
    """Number of properties that an object schema names."""
    return sum(_size_of(schema.get(name)) for name in ("properties", "patternProperties", "required"))


def _size_of(value: object) -> int:
    return len(value) if isinstance(value, (Mapping, list, tuple)) else 0


def _coefficient(multiple: object) -> int:
    """The digits of a number as an integer, without final zeros; 1 for anything else."""
    if isinstance(multiple, bool) or not isinstance(multiple, (int, float)) or not math.isfinite(multiple):
        return 1
    digits = "".join(map(str, Decimal(repr(multiple)).as_tuple().digits)).strip("0")
    return int(digits[:_MOST_DIGITS] or "1")


def _check_unique_keys(schema: Mapping[str, object]) -> None:
    """Refuse a least number of properties: a grammar counts a key that is repeated twice."""
    least, required = schema.get("minProperties"), schema.get("required")
    needed = _size_of(required)
    if isinstance(least, (int, float)) and not isinstance(least, bool) and least > max(1, needed):
        raise InputError(
            "`minProperties` above 1 is not supported: a grammar cannot tell a repeated key from a new one",
            hint="name the properties in `required`",
        )
