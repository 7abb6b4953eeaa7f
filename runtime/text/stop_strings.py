"""Stop strings in streamed text."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError


class StopStrings:
    """Passes text on up to the first stop string, and holds back a possible beginning of one."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        """Raises InputError for an empty stop string."""
        for index, stop in enumerate(stops):
            if not stop:
                raise InputError(
                    f"stop string {index} is empty, so every answer would be empty",
                    hint="leave it out, or limit the answer with `max_tokens`",
                )
        self.stops = tuple(stops)
        self.held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that is final after this piece, and whether a stop string ended it; push nothing after that."""
        if not self.stops:
            return piece, False
        text = self.held + piece
        found = min((place for stop in self.stops if (place := text.find(stop)) >= 0), default=-1)
        if found >= 0:
            self.held = ""
            return text[:found], True
        certain = len(text) - max(_overlap(text, stop) for stop in self.stops)
        self.held = text[certain:]
        return text[:certain], False

    def end(self) -> str:
        """The text held back, at the end of the answer."""
        held, self.held = self.held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((length for length in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:length])), 0)
