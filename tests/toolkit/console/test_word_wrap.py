"""Words wrap on a terminal, however the text is split into pieces."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortkit.toolkit.console.word_wrap import WordWrap, width_of


def screen(written: str, columns: int) -> list[str]:
    """The lines of a terminal with line breaks, `move left` and `erase to the end of the line`."""
    lines = [""]
    for part in re.findall(r"\x1b\[\d+D|\x1b\[K|[^\x1b]", written):
        if part == "\n":
            lines.append("")
        elif part.endswith("D"):
            lines[-1] = lines[-1][: -int(part[2:-1])]
        elif not part.startswith("\x1b"):
            lines[-1] += part
            assert sum(map(width_of, lines[-1])) < columns or part.isspace()
    return lines


def wrapped(pieces: list[str], columns: int) -> list[str]:
    wrap = WordWrap(columns)
    return screen("".join(map(wrap.push, pieces)), columns)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three", ["one two", "three"]),
        ("one two", ["one two"]),
        ("one twofour", ["one ", "twofour"]),
        ("abcdefghijkl", ["abcdefg", "hijkl"]),
        ("a abcdefghijkl", ["a ", "abcdefg", "hijkl"]),
        ("one\ntwo", ["one", "two"]),
        ("\u4e00\u4e8c\u4e09\u56db\u4e94", ["\u4e00\u4e8c\u4e09", "\u56db\u4e94"]),
        ("ab e\u0301e\u0301e\u0301e\u0301", ["ab e\u0301e\u0301e\u0301e\u0301"]),
    ],
)
def test_a_word_that_does_not_fit_is_moved_to_the_next_line(text: str, expected: list[str]) -> None:
    assert wrapped([text], 8) == expected
    assert wrapped(list(text), 8) == expected


def test_code_is_not_wrapped() -> None:
    code = "```python\nprint('a long line of code')\n```\n"
    wrap = WordWrap(8)

    assert wrap.push(code) == code
    assert wrap.push("one two three") == "one two\nthree"


@given(st.text(st.sampled_from("ab \n\u4e00"), max_size=60), st.integers(3, 12))
def test_nothing_but_spaces_at_line_breaks_is_lost(text: str, columns: int) -> None:
    lines = wrapped(list(text), columns)

    assert "".join("".join(lines).split()) == "".join(text.split())
    assert len(lines) >= text.count("\n") + 1


@given(st.characters(blacklist_categories=("Cs",)))
def test_the_width_of_a_character_is_0_1_or_2(character: str) -> None:
    assert width_of(character) in ({0} if unicodedata.combining(character) else {0, 1, 2})
