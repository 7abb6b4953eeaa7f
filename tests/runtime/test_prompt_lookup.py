from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import Decoder, Sampling
from runtime.prompt_lookup import LEAST, LENGTHS, MOST, RUN_COSTS, PromptLookup, best_run, run_cost


def test_a_draft_is_what_followed_the_last_time() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 9, 1, 2, 7, 8, 9, 1, 2])
    lookup.rightness = dict.fromkeys(LENGTHS, 1.0)

    assert lookup.draft(2) == [7, 8]
    lookup.add(3)
    assert lookup.draft(2) == [4, 5], "a longer match wins"


def test_where_nothing_matches_nothing_is_drafted() -> None:
    assert PromptLookup([1, 2, 3, 4]).draft(5) == []
    assert PromptLookup([1]).draft(5) == []
    assert PromptLookup([]).draft(5) == []


def test_a_draft_is_no_longer_than_asked_for() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 1, 2])
    lookup.rightness = dict.fromkeys(LENGTHS, 1.0)

    assert [len(lookup.draft(most)) for most in range(4)] == [0, 1, 2, 3]


def test_a_text_that_repeats_itself_is_drafted_beyond_its_end() -> None:
    lookup = PromptLookup([5, 6, 5, 6, 5, 6])
    lookup.rightness = dict.fromkeys(LENGTHS, 1.0)

    assert lookup.draft(7) == [5, 6, 5, 6, 5, 6, 5]


@given(st.lists(st.integers(0, 3), max_size=40))
def test_a_draft_begins_with_what_followed_the_longest_match(ids: list[int]) -> None:
    draft = PromptLookup(ids).draft(1)

    for length in LENGTHS:
        followers = [ids[end] for end in range(length, len(ids)) if ids[end - length : end] == ids[-length:]]
        if followers and len(ids) >= length:
            assert draft == followers[-1:]
            return
    assert draft == []


def test_the_better_the_drafts_the_longer_the_runs() -> None:
    runs = [best_run(share / 100) for share in range(101)]

    assert runs == sorted(runs)
    assert runs[0] == LEAST
    assert runs[80] > LEAST
    assert runs[100] == MOST


@pytest.mark.parametrize("rightness", [0.0, 0.02, 0.1, 0.35, 0.5, 0.75, 0.9, 1.0])
def test_a_run_is_the_one_that_pays_most_as_drawn(rightness: float) -> None:
    """Against dice instead of the formula: tokens in a unit of time, for each size of a run."""
    dice = random.Random(0)

    def rate(size: int) -> float:
        tokens = 0
        for _ in range(4000):
            while_right = next((place for place in range(size - 1) if dice.random() >= rightness), size - 1)
            tokens += while_right + 1
        return tokens / 4000 / run_cost(size)

    rates = {size: rate(size) for size in range(LEAST, MOST + 1)}

    assert rates[best_run(rightness)] >= 0.96 * max(rates.values())


def test_costs_between_those_that_were_measured() -> None:
    assert {tokens: run_cost(tokens) for tokens in RUN_COSTS} == RUN_COSTS
    assert run_cost(3) == pytest.approx(1.31)
    assert run_cost(6) == pytest.approx(1.975)


def test_drafts_that_are_wrong_become_short_and_those_that_are_right_long() -> None:
    lookup = PromptLookup([1, 2, 3, 1, 2])
    for _ in range(30):
        lookup.learn(len(lookup.draft(8)), 0)
    assert len(lookup.draft(8)) == LEAST - 1

    for _ in range(40):
        lookup.learn(1, 1)
    assert len(lookup.draft(8)) == MOST - 1


def test_what_comes_after_a_wrong_token_is_not_counted() -> None:
    lookup = PromptLookup([1, 2, 3, 1, 2])
    lookup.draft(8)
    before = lookup.rightness[2]
    lookup.learn(7, 0)

    assert lookup.rightness[2] == pytest.approx(0.9 * before)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.4, seed=5)], ids=["greedy", "sampled"])
def test_an_answer_is_the_same_in_fewer_runs(decoder: Decoder, sampling: Sampling) -> None:
    """A bias makes the answer repeat itself, as one that quotes its prompt would."""
    words = decoder.encode(" the quick brown fox jumps over the lazy dog")
    biased = Sampling(**{**vars(sampling), "logit_bias": dict.fromkeys(words, 8.0)})
    prompt = decoder.encode("The dog: ") + words * 6

    rows = []

    def ids_and_runs(*, lookup: bool) -> tuple[list[int], int]:
        steps = decoder.steps(prompt, max_tokens=150, sampling=biased, lookup=lookup)
        run, runs = steps.forward.run, []
        steps.forward.run = lambda *arguments: (runs.append(len(arguments[0])), run(*arguments))[1]
        ids = [step.id for step in steps]
        rows[:] = runs
        return ids, len(runs)

    plain, runs = ids_and_runs(lookup=False)
    drafted, fewer = ids_and_runs(lookup=True)

    assert drafted == plain
    assert runs == 150
    assert fewer < 0.8 * runs
    assert min(rows) == LEAST
