"""The headings above a place in a document."""

from __future__ import annotations

from collections.abc import Callable


class Headings:
    """The headings at the current place, by their levels.

    A heading with nothing under it would be lost, since headings are only what stands above passages. So `empty` is
    called for it, to make a passage of it.
    """

    def __init__(self) -> None:
        self._above: list[tuple[int, str]] = []
        self._empty: Callable[[tuple[str, ...]], None] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for _, name in self._above)

    def begin(self, level: int, name: str, empty: Callable[[tuple[str, ...]], None]) -> None:
        """A heading begins; `empty` is called with those above it where nothing follows under it."""
        if self._above and level <= self._above[-1][0]:
            self.end()
        while self._above and self._above[-1][0] >= level:
            self._above.pop()
        if name:
            self._above.append((level, name))
            self._empty = empty

    def used(self) -> None:
        """A passage is under the current headings."""
        self._empty = None

    def end(self) -> None:
        """The section or the document ends."""
        if self._empty is not None:
            self._empty(self.names[:-1])
            self._empty = None
