"""Where sentences end: by punctuation, for splitting texts, not for linguistics.

`sentence_starts` gives every place where a long text can be split, and embeddings depend on it: that of a long text is
the mean of its chunks. `sentence_ends` and `sentence_spans` are for people and LLMs, who want whole sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_PUNCTUATION = r"(?<=[.!?…])(?=\s)|(?<=[.!?…][\"'”’)\]])(?=\s)|(?<=[。！？])"  # noqa: RUF001 - CJK
"""After a full stop and the quote or bracket behind it."""
_SPLIT = re.compile(rf"{_PUNCTUATION}|(?=\n)")
_END = re.compile(rf"{_PUNCTUATION}|(?=\n[^\S\n]*\n)|(?<=\n)(?=[^\S\n]*(?:[-*+|#>]|\d{{1,3}}[.)]\s))")
"""Also at a blank line, and before an item of a list, a row of a table or a heading. A line break alone ends nothing:
most texts are wrapped."""
_NOT_SPACE = re.compile(r"\S")
_LONGEST_ABBREVIATION = 16
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|approx|figs?|pp|ca|mr|mrs|dr|st|z\.B|d\.h|bzw|[A-Z])|^\s*\d{1,3})\.\Z", re.IGNORECASE
)
"""A full stop that does not end a sentence: of an abbreviation, an initial, or the number of a list item."""


def sentence_starts(text: str) -> Iterator[int]:
    """Where a text can be split: behind the end of a sentence, before its space, and before each line break."""
    return (match.start() for match in _SPLIT.finditer(text))


def sentence_ends(text: str) -> list[int]:
    """The places where sentences end, in order; the last is the end of the text."""
    ends: list[int] = []
    start = 0
    word = _next_word(text, start)
    for match in _END.finditer(text):
        end = match.start()
        # Slices of a limited length: a text may be a megabyte of blank lines.
        if word >= end or _ABBREVIATION.search(text[max(start, end - _LONGEST_ABBREVIATION) : end]):
            continue
        ends.append(end)
        start = end
        word = _next_word(text, start)
    if word < len(text) or not ends:
        ends.append(len(text))
    return ends


def _next_word(text: str, start: int) -> int:
    """The place of the next character that is not white space, or the end."""
    found = _NOT_SPACE.search(text, start)
    return len(text) if found is None else found.start()


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence, without the white space around it; none for a text without any word."""
    spans = []
    start = 0
    for end in sentence_ends(text):
        sentence = text[start:end]
        if bare := sentence.strip():
            first = start + len(sentence) - len(sentence.lstrip())
            spans.append((first, first + len(bare)))
        start = end
    return spans
