"""Batching by length, worker threads, and chunks of a stream.

A batch holds texts of the same number of tokens, so nothing is padded: no time is spent on padding, the graph needs no
attention mask, and a result cannot depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from ..errors import OutOfMemoryError

Item = TypeVar("Item")


def batches(items: Iterable[Item], batch_tokens: int, *, length: Callable[[Item], int]) -> list[list[Item]]:
    """Group items by length, each group of at most `batch_tokens` tokens but at least one item.

    The longest come first, so that the workers finish at about the same time.
    """
    by_length: dict[int, list[Item]] = {}
    for item in items:
        by_length.setdefault(length(item), []).append(item)
    groups = []
    for tokens in sorted(by_length, reverse=True):
        same = by_length[tokens]
        count = max(1, batch_tokens // max(tokens, 1))
        groups += [same[start : start + count] for start in range(0, len(same), count)]
    return groups


def run_all(run: Callable[[list[Item]], None], groups: Sequence[list[Item]], workers: int) -> None:
    """Call `run` for each group on `workers` threads; the first error cancels groups that have not started."""
    if workers == 1 or len(groups) < 2:
        for group in groups:
            run(group)
        return
    # Slow to import, and a single text does not need it.
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    with ThreadPoolExecutor(workers, thread_name_prefix="ortkit") as pool:
        futures = [pool.submit(run, group) for group in groups]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


class TokenBudget:
    """Runs batches, and halves the tokens of one run where memory is short; shared by the calls and threads of a model.

    It never grows again: the memory that a batch needs, and what a GPU has, stay the same.
    """

    def __init__(self) -> None:
        self.tokens: int | None = None
        """The largest number of tokens in one run; None as long as memory was never short."""

    def run(self, run: Callable[[list[Item]], None], batch: list[Item], *, length: Callable[[Item], int]) -> None:
        """Call `run` for a batch, or for its halves where it raises OutOfMemoryError, down to single items.

        Raises OutOfMemoryError, which names the item's length, where one alone does not fit.
        """
        pending = [batch]
        while pending:
            part = pending.pop()
            tokens = len(part) * max(map(length, part))
            if len(part) == 1 or self.tokens is None or tokens <= self.tokens:
                try:
                    run(part)
                    continue
                except OutOfMemoryError as error:
                    if len(part) == 1:
                        raise _too_large(tokens, error) from error
                self.tokens = min(tokens // 2, self.tokens or tokens)
            half = (len(part) + 1) // 2
            pending += [part[half:], part[:half]]


def _too_large(tokens: int, error: OutOfMemoryError) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"a text of {tokens} tokens does not fit in memory, even alone: {error.message}",
        hint="raise `max_memory` (`--max-memory`) or free memory, or use shorter texts",
    )


def in_chunks(items: Iterable[Item], count: int, *, size: Callable[[Item], int], most: int) -> Iterator[list[Item]]:
    """Split into lists of at most `count` items, shorter where the sum of their sizes reaches `most`.

    Where `items` raises, the items before are yielded first.
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


def numbered(chunks: Iterable[list[Item]]) -> Iterator[tuple[int, list[Item]]]:
    """Each chunk with the number of items before it."""
    before = 0
    for chunk in chunks:
        yield before, chunk
        before += len(chunk)
