from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortkit import OutOfMemoryError
from ortkit.runtime.encoder.batching import TokenBudget, batches, in_chunks, numbered, run_all


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 2000))
def test_every_text_is_in_one_batch_of_its_own_length_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = batches(range(len(lengths)), budget, length=lengths.__getitem__)

    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len({lengths[index] for index in group}) == 1
        assert len(group) == 1 or len(group) * lengths[group[0]] <= budget
    firsts = [lengths[group[0]] for group in groups]
    assert firsts == sorted(firsts, reverse=True)


@pytest.mark.parametrize("workers", [1, 3])
def test_all_groups_run(workers: int) -> None:
    done: list[int] = []
    run_all(done.extend, [[0], [1, 2], [3]], workers)

    assert sorted(done) == [0, 1, 2, 3]


def test_groups_run_at_once() -> None:
    both = threading.Barrier(2, timeout=10)

    def run(_: list[int]) -> None:
        both.wait()

    run_all(run, [[0], [1]], 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_and_stops_the_rest(workers: int) -> None:
    done: list[int] = []

    def run(group: list[int]) -> None:
        done.extend(group)
        if group == [0]:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        run_all(run, [[number] for number in range(1000)], workers)
    assert len(done) < 1000


@pytest.mark.parametrize(("count", "most", "expected"), [(2, 100, ["ab", "cd", "e"]), (9, 3, ["abc", "de"])])
def test_chunks_end_by_count_or_by_size(count: int, most: int, expected: list[str]) -> None:
    chunks = in_chunks("abcde", count, size=len, most=most)

    assert ["".join(chunk) for chunk in chunks] == expected


def test_items_before_an_error_are_yielded_first() -> None:
    def texts() -> Iterator[str]:
        yield from "abc"
        raise OSError("the disk is gone")

    chunks = in_chunks(texts(), 2, size=len, most=100)

    assert next(chunks) == ["a", "b"]
    assert next(chunks) == ["c"]
    with pytest.raises(OSError, match="the disk is gone"):
        next(chunks)


def test_chunks_are_numbered() -> None:
    assert list(numbered([[5, 6], [7], [], [8]])) == [(0, [5, 6]), (2, [7]), (3, []), (3, [8])]


class Memory:
    """A device that runs batches of up to so many tokens."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.tried: list[int] = []
        self.done: list[int] = []

    def run(self, batch: list[int]) -> None:
        """Run a batch of texts, which are given as their lengths."""
        self.tried.append(sum(batch))
        if sum(batch) > self.tokens:
            raise OutOfMemoryError("there is too little GPU memory", hint="of the GPU")
        self.done += batch


def test_a_batch_that_does_not_fit_is_halved_and_later_ones_begin_there() -> None:
    memory, budget = Memory(25), TokenBudget()

    budget.run(memory.run, [10] * 8, length=int)
    assert memory.done == [10] * 8
    assert memory.tried == [80, 40, 20, 20, 20, 20]
    assert budget.tokens == 20

    memory.tried.clear()
    budget.run(memory.run, [6] * 8, length=int)
    assert memory.tried == [12, 12, 12, 12]


def test_a_text_that_does_not_fit_alone() -> None:
    """Those before it are done, and the error names its length."""
    memory = Memory(25)

    with pytest.raises(OutOfMemoryError) as caught:
        TokenBudget().run(memory.run, [10, 10, 10, 30], length=int)
    assert memory.done == [10, 10, 10]
    assert caught.value.message == (
        "a text of 30 tokens does not fit in memory, even alone: there is too little GPU memory"
    )
    assert caught.value.hint == "raise `max_memory` (`--max-memory`) or free memory, or use shorter texts"
    assert caught.value.exit_code == 9


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(50, 500))
def test_every_text_runs_once_in_order_whatever_fits(lengths: list[int], tokens: int) -> None:
    memory, budget = Memory(tokens), TokenBudget()

    for _ in range(2):
        memory.done.clear()
        budget.run(memory.run, lengths, length=int)
        assert memory.done == lengths


def test_other_errors_are_not_halved() -> None:
    tried: list[int] = []

    def run(batch: list[int]) -> None:
        tried.append(len(batch))
        raise LookupError

    with pytest.raises(LookupError):
        TokenBudget().run(run, [1, 2], length=int)
    assert tried == [2]
