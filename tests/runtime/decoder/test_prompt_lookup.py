from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.texts import CORPUS, read_lines
from ortkit.runtime.decoder.prompt_lookup import (
    _LEAST_HIT_RATE,
    _LONGEST,
    _NGRAMS,
    _SHORTEST_RUN,
    PromptLookup,
    best_run,
)
from ortkit.runtime.session.cpu import RUN_COSTS

SINGLE_COST = 1.0
TEXTS = st.lists(st.integers(0, 3), max_size=60)


def trusted(ids: list[int]) -> PromptLookup:
    """A lookup that takes all that it finds for right."""
    lookup = PromptLookup(ids)
    lookup.hit_rates = dict.fromkeys(lookup.hit_rates, 1.0)
    lookup.pays = lookup.place is not None
    return lookup


def cost(text: list[int], begin: int) -> float:
    """What the tokens from one place on take with drafts, in units of a run with one token for each."""
    lookup, place, taken = PromptLookup(text[: begin + 1]), begin, 0.0
    while place < len(text) - 1:
        draft = lookup.draft(len(text) - place - 2)
        taken += RUN_COSTS[1 + len(draft)] if draft else SINGLE_COST
        right = 0
        while right < len(draft) and place + right + 2 < len(text) and draft[right] == text[place + right + 1]:
            right += 1
        for token in text[place + 1 : place + right + 2]:
            lookup.add(token)
        place += right + 1
    return taken / (len(text) - 1 - begin)


def words(text: str) -> list[int]:
    """A number for each word."""
    known: dict[str, int] = {}
    return [known.setdefault(word, len(known)) for word in text.split()]


def test_a_draft_is_the_continuation_of_the_last_match() -> None:
    assert trusted([1, 2, 3, 4, 5, 9, 1, 2, 7, 8, 9, 1, 2]).draft(2) == [7]
    assert trusted([1, 2, 3, 4, 5, 9, 1, 2, 7, 8, 9, 1, 2]).draft(3) == [7, 8, 9]
    assert trusted([1, 2, 3, 4, 5, 9, 1, 2, 7, 8, 9, 1, 2, 3]).draft(3) == [4, 5, 9], "the text continues as before"
    assert trusted([1, 2, 3, 4, 0, 9, 2, 3, 5, 0, 1, 2, 3]).draft(1) == [4], "a longer match wins"


def test_without_a_match_there_is_no_draft() -> None:
    assert trusted([1, 2, 3, 4]).draft(5) == []
    assert trusted([1]).draft(5) == []
    assert trusted([]).draft(5) == []


def test_the_length_of_a_draft() -> None:
    lookup = trusted([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2])

    assert [len(lookup.draft(most)) for most in range(9)] == [1, 1, 1, 3, 3, 3, 3, 7, 7]


def test_a_text_that_repeats_itself_is_drafted_beyond_its_end() -> None:
    assert trusted([5, 6, 5, 6, 5, 6]).draft(7) == [5, 6, 5, 6, 5, 6, 5]


@given(TEXTS)
def test_a_match_is_there_and_the_longest_of_those_that_are_looked_up(ids: list[int]) -> None:
    lookup = PromptLookup(ids)

    if lookup.place is not None:
        assert ids[lookup.place - lookup.length : lookup.place] == ids[-lookup.length :]
    for length in _NGRAMS:
        if len(ids) > length and any(ids[end - length : end] == ids[-length:] for end in range(length, len(ids))):
            assert lookup.place is not None
            assert lookup.length >= length
            return
    assert lookup.place is None


@given(TEXTS)
def test_what_is_drafted_further_on_is_what_would_be_drafted_there(ids: list[int]) -> None:
    """Otherwise a token could be right in a draft where none pays, and its bits depend on the length of the draft."""
    lookup = trusted(ids)

    for token in lookup.draft(7):
        assert lookup.place is not None
        assert lookup.ids[lookup.place] == token
        lookup.hit_rates = dict.fromkeys(lookup.hit_rates, 0.0)
        lookup.add(token)
        assert lookup.pays, "even where it would not begin to"


@given(TEXTS, st.data())
def test_whether_drafts_pay_follows_from_the_text_alone(ids: list[int], data: st.DataObject) -> None:
    """Where the prompt ends, how long drafts may be, and which were made makes no difference."""
    begin = data.draw(st.integers(0, len(ids)))
    lookup, expected = PromptLookup(ids[:begin]), PromptLookup([])
    for token in ids[:begin]:
        expected.add(token)
    for token in ids[begin:]:
        lookup.draft(data.draw(st.integers(0, 9)))
        lookup.add(token)
        expected.add(token)
        assert (lookup.pays, lookup.place, lookup.hit_rates) == (expected.pays, expected.place, expected.hit_rates)


def test_drafts_stop_paying_where_they_would_be_wrong_and_pay_again_where_they_would_be_right() -> None:
    lookup = PromptLookup([])
    pays = []
    for other in range(10, 30):
        lookup.add(1)
        assert not lookup.pays
        lookup.add(2)
        pays.append(lookup.pays)
        lookup.add(other)

    assert pays == [False] + [True] * 3 + [False] * 16, "the first matches are tried"
    assert lookup.hit_rates[2] < _LEAST_HIT_RATE
    assert lookup.draft(7) == []

    for token in [1, 2, 7] * 12:
        lookup.add(token)
    assert lookup.pays
    assert len(lookup.draft(9)) == max(RUN_COSTS) - 1


def test_the_hit_rate_is_a_moving_average() -> None:
    lookup = PromptLookup([1, 2, 3, 0, 1, 2])
    assert (lookup.place, lookup.length) == (2, 2)
    before = lookup.hit_rates[2]

    lookup.add(9)
    assert lookup.hit_rates[2] == pytest.approx(0.9 * before)
    assert lookup.place is None

    lookup.add(1)
    lookup.add(2)
    lookup.add(9)
    assert lookup.hit_rates[2] == pytest.approx(0.9 * 0.9 * before + 0.1), "the last time is what counts"
    assert lookup.hit_rates[3] == before


@pytest.mark.parametrize("line", range(0, 300, 15))
def test_news_are_read_as_fast_as_without_drafts(line: int) -> None:
    """Real texts that do not repeat themselves, a token for each word, with what runs take where drafts cost most."""
    assert cost(words(read_lines(CORPUS)[line]), 20) <= 1.01


def test_a_quotation_is_read_in_half_of_the_time() -> None:
    text = read_lines(CORPUS)[0]
    sentences = text.split(". ")
    ids = words(f"{text} In short: {'. '.join(sentences[2:5])}. {'. '.join(sentences[6:8])}")

    assert cost(ids, len(words(text)) + 2) < 0.55


def test_the_better_the_drafts_the_longer_the_runs() -> None:
    runs = [best_run(share / 100) for share in range(101)]

    assert runs == sorted(runs)
    assert runs[0] == _SHORTEST_RUN
    assert runs[80] > _SHORTEST_RUN
    assert runs[100] == max(RUN_COSTS)
    assert set(runs) <= set(RUN_COSTS)


@pytest.mark.parametrize("hit_rate", [0.0, 0.02, 0.1, 0.35, 0.5, 0.75, 0.9, 1.0])
def test_the_best_run_is_the_fastest_in_simulation(hit_rate: float) -> None:
    """Against dice instead of the formula: tokens in a unit of time, for each size of a run."""
    dice = random.Random(0)

    def rate(size: int) -> float:
        tokens = 0
        for _ in range(4000):
            while_right = next((place for place in range(size - 1) if dice.random() >= hit_rate), size - 1)
            tokens += while_right + 1
        return tokens / 4000 / RUN_COSTS[size]

    rates = {size: rate(size) for size in RUN_COSTS}

    assert rates[best_run(hit_rate)] >= 0.96 * max(rates.values())
    if hit_rate >= _LEAST_HIT_RATE:
        assert rates[best_run(hit_rate)] > 1.1 * SINGLE_COST


def test_matches_count_as_equally_long_from_some_length_on() -> None:
    lookup = PromptLookup([*range(20), 99, *range(12)])

    assert lookup.length == _LONGEST
    assert lookup.place == 12
