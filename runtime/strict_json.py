"""JSON objects without repeated keys: parsers disagree on which of them counts. Standard library only."""

from __future__ import annotations

from collections import Counter


class RepeatedKeyError(ValueError):
    """An object of JSON with the same key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key `{key[:40]}` is there twice")
        self.key = key


def unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """For `object_pairs_hook` of `json.loads`; raises RepeatedKeyError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((repeated, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise RepeatedKeyError(repeated)
    return found
