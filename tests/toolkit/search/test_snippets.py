from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from ortkit import Bundle, Embedder, Hit, HitScores, Place
from ortkit.toolkit.search.snippets import Snippet, heading_of, shortened, snippets

SCORES = HitScores(0.5, 1, None, None, 0.01, None)


def hit(text: str, title: str = "", headings: tuple[str, ...] = ()) -> Hit:
    return Hit(1, text, title, "a.md", Path("/a.md"), Place((1, 2), None, headings), 0.5, SCORES)


PARAGRAPH = (
    "The station has two pumps. They are painted green. If a pump does not start,\ncheck the fuse first. "
    "Then look at the valve of the intake. The cellar is dry in summer. Keys hang beside the door."
)


def test_the_sentence_that_fits_best_is_marked(int8_bundle: Bundle) -> None:
    """A paraphrase without a word in common, so words alone do not find it."""
    embedder = Embedder(int8_bundle)
    first, second = snippets(
        "Where can I find what unlocks the entrance?", [hit(PARAGRAPH), hit("One sentence.")], embedder
    )

    assert first.parts[1] == "Keys hang beside the door."
    assert second == Snippet("One sentence.", (0, 13))


def test_without_an_embedder_words_decide() -> None:
    (found,) = snippets("pump start", [hit(PARAGRAPH)], None)

    assert found.parts[1] == "If a pump does not start, check the fuse first."


@pytest.mark.parametrize("width", [60, 100, 150, 240, 1000])
def test_a_snippet_is_within_its_width_and_has_the_sentence(width: int) -> None:
    (found,) = snippets("pump does not start fuse", [hit(PARAGRAPH * 3)], None, width=width)
    before, match, after = found.parts

    assert len(found.text) <= width + 4
    assert match == "If a pump does not start, check the fuse first."
    assert (before[:2], after[-2:]) in {("… ", " …"), ("Th", " …"), ("Th", "r.")}
    whole = " ".join((PARAGRAPH * 3).split())
    assert found.text.removeprefix("… ").removesuffix(" …") in whole
    words = whole.replace(".", " ").split()
    assert set(found.text.replace("…", "").replace(".", " ").split()) <= set(words), "no word is cut"


def test_a_long_sentence_is_cut_at_a_word() -> None:
    (found,) = snippets("x", [hit("word " * 200)], None, width=50)

    assert found.text == "word " * 10 + "…"
    assert found.parts[1] == found.text


@pytest.mark.parametrize(
    "character",
    ["e\u0301", "👩\u200d👩\u200d👧", "👍\U0001f3fd", "🇩🇪", "ก\u0e33", "न\u093f", "한", "❤\ufe0f", "x"],
)
@pytest.mark.parametrize("width", range(20, 34))
def test_no_character_is_cut(character: str, width: int) -> None:
    shown = shortened(character * 60, width).removesuffix("…")

    assert shown == character * (len(shown) // len(character))
    assert 0 < len(shown) <= width
    assert unicodedata.is_normalized("NFC", "한")


def test_a_passage_without_words_has_an_empty_snippet() -> None:
    assert snippets("x", [hit(" \n ")], None) == [Snippet("", (0, 0))]
    assert snippets("x", [], None) == []


def test_a_heading_names_each_part_once() -> None:
    assert heading_of(hit("x", "Pumps", ("Pumps", "Starting\nby hand"))) == "Pumps > Starting by hand"
    assert heading_of(hit("x")) == ""
