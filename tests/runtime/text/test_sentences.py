from __future__ import annotations

import time

import pytest

from ortkit.runtime.text.sentences import sentence_ends, sentence_spans


@pytest.mark.parametrize(
    "sentences",
    [
        ["Open the valve.", "Wait!", "Is it dry?", 'He said "stop."', "Then it stopped."],
        ["See e.g. page 3, fig. 2 or Dr. A. Smith.", "It costs 3.5 euros."],
        ["A sentence over\ntwo lines.", "Another\none."],
        ["A heading", "A paragraph without a full stop", "the end"],
        ["- one item", "- another item", "1. a numbered item", "2. the next"],
        ["水を止める。", "弁を開く！", "待つ"],  # noqa: RUF001 - CJK
    ],
)
def test_sentences(sentences: list[str]) -> None:
    between = "\n\n" if sentences[0][-1] not in ".!?。" else " "
    if sentences[0].startswith("-"):
        between = "\n"
    text = f"  {between.join(sentences)}\n"

    assert [text[start:end] for start, end in sentence_spans(text)] == sentences
    assert sentence_ends(text)[-1] in (len(text), len(text) - 1)


def test_a_text_without_words_has_no_sentence() -> None:
    assert sentence_spans(" \n ") == sentence_spans("") == []
    assert sentence_ends("") == [0]


@pytest.mark.parametrize(
    "text", ["\n" * 200_000, "a" + " \n" * 100_000 + "- b", ". " * 100_000, "e.g. " * 40_000, "\n \t" * 60_000 + "x"]
)
def test_long_texts_take_a_time_that_grows_with_their_length(text: str) -> None:
    began = time.monotonic()
    sentence_spans(text)
    assert time.monotonic() - began < 4
