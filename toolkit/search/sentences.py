"""Where the sentences of a text end."""

from __future__ import annotations

import re

_END = re.compile(
    r"(?<=[.!?…])(?=\s)|(?<=[.!?…][\"'”’)\]])(?=\s)|(?<=[。！？])"  # noqa: RUF001 - CJK
    r"|(?=\n\s*\n)|(?<=\n)(?=\s*(?:[-*+|#>]|\d{1,3}[.)]\s))"
)
"""After a full stop and the quote or bracket behind it, at a blank line, and before an item of a list, a row of a table
or a heading. A line break alone ends nothing: most texts are wrapped."""
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|approx|figs?|pp|ca|mr|mrs|dr|st|z\.B|d\.h|bzw|[A-Z])|^\s*\d{1,3})\.\Z", re.IGNORECASE
)
"""A full stop that does not end a sentence: of an abbreviation, an initial, or the number of a list item."""


def sentence_ends(text: str) -> list[int]:
    """The places where sentences end, in order; the last is the end of the text."""
    ends: list[int] = []
    start = 0
    for match in _END.finditer(text):
        end = match.start()
        if not text[start:end].strip() or _ABBREVIATION.search(text[start:end][-16:]):
            continue
        ends.append(end)
        start = end
    if text[start:].strip() or not ends:
        ends.append(len(text))
    return ends


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
