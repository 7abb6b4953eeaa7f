"""Which texts run together, and how many runs at once.

A batch holds texts of one length only, so nothing is padded: no computing is spent on padding, the graph needs no mask,
and the bits of a text's result cannot depend on its neighbours' lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import chain, islice
from typing import TypeVar

Item = TypeVar("Item")

WAITING = 4
"""Batches for each worker that are ready before more are made; bounds what waits, and no worker runs dry."""


def batches(items: Iterable[Item], batch_tokens: int, *, length: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Group items by length, each group of at most `batch_tokens` tokens but at least one item.

    A group comes out as soon as it is full, while `items` are still being made; the rest comes at the end, the longest
    first, so that no worker is left with a long batch at the end.
    """
    filling: dict[int, list[Item]] = {}
    for item in items:
        tokens = length(item)
        group = filling.setdefault(tokens, [])
        group.append(item)
        if (len(group) + 1) * tokens > batch_tokens:
            yield filling.pop(tokens)
    for tokens in sorted(filling, reverse=True):
        yield filling[tokens]


def run_all(run: Callable[[list[Item]], None], groups: Iterable[list[Item]], workers: int) -> None:
    """Call `run` for every group, `workers` at a time; the first error stops what has not begun and is raised."""
    groups = iter(groups)
    first = list(islice(groups, 2))
    if workers == 1 or len(first) < 2:
        # No thread is started for what one can do.
        for group in chain(first, groups):
            run(group)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="edgekit") as pool:
        pending: set[Future[None]] = set()
        try:
            for group in chain(first, groups):
                pending.add(pool.submit(run, group))
                if len(pending) > workers * WAITING:
                    pending = finished(pending)
            while pending:
                pending = finished(pending)
        finally:
            pool.shutdown(cancel_futures=True)


def finished(pending: set[Future[None]]) -> set[Future[None]]:
    """Wait until one is done, raise what went wrong, and return those that are not done."""
    done, left = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return left


def in_chunks(items: Iterable[Item], count: int, *, size: Callable[[Item], int], most: int) -> Iterator[list[Item]]:
    """Lists of at most `count` items, ended early when their sizes add up to `most`.

    When `items` raises, what it gave before comes first, and then the error.
    """
    chunk: list[Item] = []
    total = 0
    try:
        for item in items:
            chunk.append(item)
            total += size(item)
            if len(chunk) == count or total >= most:
                yield chunk
                chunk, total = [], 0
    except Exception:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk
