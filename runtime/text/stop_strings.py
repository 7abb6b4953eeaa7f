"""Stop strings, found in text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError


class StopStrings:
    """Lets text through up to the first stop string, and holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        """Raises InputError for a stop string that is empty."""
        for index, stop in enumerate(stops):
            if not stop:
                raise InputError(
                    f"stop string {index} is empty, and every answer would end before it begins",
                    hint="leave it out, or limit the answer with `max_tokens`",
                )
        self.stops = tuple(stops)
        self.held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that is certain now, and whether a stop string ended it; nothing may be pushed after that."""
        if not self.stops:
            return piece, False
        text = self.held + piece
        found = min((place for stop in self.stops if (place := text.find(stop)) >= 0), default=-1)
        if found >= 0:
            self.held = ""
            return text[:found], True
        certain = len(text) - max(overlap(text, stop) for stop in self.stops)
        self.held = text[certain:]
        return text[:certain], False

    def end(self) -> str:
        """What was held back, when no more text comes."""
        held, self.held = self.held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`, which is not in it."""
    return next((length for length in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:length])), 0)
