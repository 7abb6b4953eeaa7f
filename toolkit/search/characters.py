"""Where a text may be cut without dividing what a reader takes for one character (UAX #29, roughly)."""

from __future__ import annotations

import unicodedata

_JOINER = "\u200d"
_SPACING_MARKS = "\u0e33\u0eb3"
"""Thai and Lao vowels that are letters by category, and marks by UAX #29."""
_MOST_FLAGS = 64
"""Halves of flags that are counted back from a place."""


def whole_characters(text: str, place: int, least: int) -> int:
    """The last place up to `place`, and not below `least`, that is not inside of a character.

    Combining marks, variation selectors, skin tones, joined emoji, flags and Hangul syllables stay whole.
    """
    while place > least and _continues(text, place):
        place -= 1
    return place


def _continues(text: str, place: int) -> bool:
    """Whether the code point at a place belongs to the character before it."""
    if not 0 < place < len(text):
        return False
    here, before = text[place], text[place - 1]
    if unicodedata.category(here) in {"Mn", "Me", "Mc"} or here in _SPACING_MARKS or _JOINER in (here, before):
        return True
    if 0x1F3FB <= ord(here) <= 0x1F3FF or (0x1160 <= ord(here) <= 0x11FF):
        return True
    if _is_regional(here) and _is_regional(before):
        first = place
        while first > max(0, place - _MOST_FLAGS) and _is_regional(text[first - 1]):
            first -= 1
        return (place - first) % 2 == 1
    return False


def _is_regional(character: str) -> bool:
    """Whether a code point is half of a flag."""
    return 0x1F1E6 <= ord(character) <= 0x1F1FF
