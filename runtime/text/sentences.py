"""Where sentences begin, by punctuation: for splitting long texts, not for linguistics."""

from __future__ import annotations

import re
from collections.abc import Iterator

_SENTENCE_END = re.compile(r"(?<=[.!?…])(?=\s)|(?<=[.!?…][\"'”’)\]])(?=\s)|(?<=[。！？])|(?=\n)")  # noqa: RUF001 - CJK


def sentence_starts(text: str) -> Iterator[int]:
    """Where a text can be split: behind the end of a sentence, before its space, and before each line break."""
    return (match.start() for match in _SENTENCE_END.finditer(text))
