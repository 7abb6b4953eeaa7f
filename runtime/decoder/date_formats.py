"""Dates and times in JSON schemas: what llguidance lets pass beyond RFC 3339 is excluded with a pattern.

Its expressions have 29 February in every year, and second 60, a leap second, in every minute. The latter exists at
23:59:60 UTC alone, and Python's `datetime` has none, nor a year 0.
"""

from __future__ import annotations

from collections.abc import Mapping

_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = f"(?:{_YEAR}-(?:(?:0[13-9]|1[0-2])-[0-9]{{2}}|02-(?:[01][0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
_TIME = "[0-9]{2}:[0-9]{2}:[0-5]"
PATTERNS = {"date": f"^{_DATE}", "time": f"^{_TIME}", "date-time": f"^{_DATE}[Tt]{_TIME}"}

_SCHEMAS = ("items", "additionalItems", "additionalProperties", "contains", "not", "if", "then", "else")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")


def with_exact_dates(schema: object) -> object:
    """A copy of a JSON schema in which dates and times have a pattern; data in it, such as `enum`, stays as it is."""
    if not isinstance(schema, Mapping):
        return schema
    found = dict(schema)
    for name in _SCHEMAS:
        if name in found:
            found[name] = with_exact_dates(found[name])
    for name in _LISTS:
        if isinstance(found.get(name), (list, tuple)):
            found[name] = [with_exact_dates(one) for one in found[name]]
    for name in _MAPS:
        if isinstance(found.get(name), Mapping):
            found[name] = {key: with_exact_dates(value) for key, value in found[name].items()}
    form = found.get("format")
    if isinstance(form, str) and form in PATTERNS:
        others = found.get("allOf", [])
        if isinstance(others, list):
            found["allOf"] = [*others, {"pattern": PATTERNS[form]}]
    return found
