from __future__ import annotations

import random
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest

from ortkit import Bundle, BundleError, Embedder, QueueFullError, Reranker
from ortkit.runtime.encoder.shared_batches import EmbedCall, RankCall, SharedRow
from ortkit.toolkit.server.served.encoder_queue import EncoderQueue

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "and", "sleeps"]


def texts_of(seed: int, count: int) -> list[str]:
    drawn = random.Random(seed)
    return [" ".join(drawn.choices(WORDS, k=drawn.randint(1, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def embedder(bundles: dict[str, Path]) -> Embedder:
    return Embedder(bundles["tiny-embedder"], workers=2)


class Held:
    """Stands in for an embedder, and runs nothing until it is released."""

    def __init__(self, embedder: Embedder, workers: int = 1) -> None:
        self.embedder = embedder
        self.workers = workers
        self.batch_tokens = embedder.batch_tokens
        self.released = threading.Event()
        self.started = threading.Event()
        self.batches: list[list[SharedRow]] = []
        self.fails_for: EmbedCall | None = None

    def batch_key(self, row: SharedRow) -> tuple[int, int]:
        return self.embedder.batch_key(row)

    def next_batch(self, rows: list[SharedRow]) -> list[SharedRow]:
        return self.embedder.next_batch(rows)

    def run_batch(self, batch: list[SharedRow]) -> None:
        self.started.set()
        assert self.released.wait(30)
        self.batches.append(batch)
        if any(row.call is self.fails_for for row in batch):
            raise BundleError("broken")
        self.embedder.run_batch(batch)


def test_a_request_for_embeddings_gets_the_bits_that_it_gets_alone(tiny_bundle: Bundle) -> None:
    embedder, drawn = Embedder(tiny_bundle, workers=2), random.Random(3)
    options: list[dict[str, object]] = [{}, {"dim": 4}, {"long": "mean"}, {"long": "error", "dim": 8}]
    calls = [(texts_of(n, drawn.choice([1, 1, 2, 5, 70])), options[n % 4]) for n in range(40)]
    queue = EncoderQueue(embedder)

    def ask(call: tuple[list[str], dict[str, object]]) -> EmbedCall:
        return queue.submit(embedder.open_call(call[0], **call[1])).result(60)

    with ThreadPoolExecutor(8) as clients:
        found = list(clients.map(ask, calls))
    for (texts, chosen), call in zip(calls, found, strict=True):
        assert call.result().vectors.tobytes() == embedder.embed(texts, **chosen).tobytes()
    queue.close()
    assert (queue.waiting, queue.running) == (0, 0)


def test_a_request_for_a_ranking_gets_the_bits_that_it_gets_alone(reranker_bundle: Bundle) -> None:
    reranker, drawn = Reranker(reranker_bundle, workers=2), random.Random(3)
    searches = [(f"fox {n}", texts_of(n, drawn.choice([1, 3, 40]))) for n in range(20)]
    queue = EncoderQueue(reranker)

    def ask(search: tuple[str, list[str]]) -> RankCall:
        return queue.submit(reranker.open_call(*search, top_n=5)).result(60)

    with ThreadPoolExecutor(8) as clients:
        found = list(clients.map(ask, searches))
    for (query, documents), call in zip(searches, found, strict=True):
        assert call.result().ranked == reranker.rank(query, documents, top_n=5)
    queue.close()


def test_requests_share_batches(embedder: Embedder) -> None:
    held = Held(embedder)
    queue = EncoderQueue(held)
    futures = [queue.submit(embedder.open_call(["the quick brown fox"])) for _ in range(20)]
    held.released.set()
    wait(futures, 30)
    # The first ones may have run before the others came.
    assert len(held.batches) <= 2
    assert max(len({row.call for row in batch}) for batch in held.batches) >= 10
    queue.close()


def test_a_large_request_does_not_hold_up_a_small_one(embedder: Embedder) -> None:
    held = Held(embedder)
    queue = EncoderQueue(held)
    large = queue.submit(embedder.open_call(texts_of(1, 2000)))
    assert held.started.wait(30)
    small = queue.submit(embedder.open_call(["the lazy dog and the dog"]))
    held.released.set()
    small.result(30)
    place = next(n for n, batch in enumerate(held.batches) if any(row.call is small.result() for row in batch))
    # The one that had begun, and at most one more of the large one.
    assert place <= 2
    large.result(30)
    assert len(held.batches) > 20
    queue.close()


def test_a_cancelled_request_leaves_the_queue(embedder: Embedder) -> None:
    held = Held(embedder)
    queue = EncoderQueue(held)
    first = queue.submit(embedder.open_call(["fox"]))
    assert held.started.wait(30)
    second = queue.submit(embedder.open_call(texts_of(1, 300)))
    assert (queue.waiting, queue.running) == (1, 1)
    assert second.cancel()
    assert queue.waiting == 0
    held.released.set()
    first.result(30)
    queue.close()
    assert len(held.batches) == 1


def test_a_request_that_fails_fails_alone(embedder: Embedder) -> None:
    held = Held(embedder)
    queue = EncoderQueue(held)
    blocker = queue.submit(embedder.open_call(["the"]))
    assert held.started.wait(30)
    calls = [embedder.open_call(["the quick brown fox"]) for _ in range(3)]
    futures: list[Future[EmbedCall]] = [queue.submit(call) for call in calls]
    held.fails_for = calls[1]
    held.released.set()
    wait([blocker, *futures], 30)
    assert isinstance(futures[1].exception(), BundleError)
    expected = embedder.embed(["the quick brown fox"])
    for future in (futures[0], futures[2]):
        assert np.array_equal(future.result().result().vectors, expected)
    queue.close()


def test_a_full_queue_refuses(embedder: Embedder) -> None:
    held = Held(embedder)
    queue = EncoderQueue(held, waiting=2)
    futures = [queue.submit(embedder.open_call(["fox"]))]
    assert held.started.wait(30)
    futures += [queue.submit(embedder.open_call(["fox"])) for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests wait for the model already"):
        queue.submit(embedder.open_call(["fox"]))
    held.released.set()
    wait(futures, 30)
    # A request without texts needs no place.
    assert queue.submit(embedder.open_call([])).result(0).result().vectors.shape == (0, 8)
    queue.close()
