"""The queue of an embedder or a reranker: texts and pairs of all waiting requests share batches.

As many threads as the model has workers take batches from it. Each batch begins with the next row of the request whose
turn it is, and has rows of any requests that run together with it, so that a request of a thousand texts delays one of
a single text by no more than one batch. Texts do not affect each other (`runtime/encoder/batching.py`), so a request
gets the bits that it gets alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from itertools import islice
from time import monotonic
from typing import TypeVar, cast

from ....runtime.encoder.base import Encoder
from ....runtime.encoder.shared_batches import SharedCall, SharedRow
from ....runtime.errors import InputError, QueueFullError

_Call = TypeVar("_Call", bound=SharedCall)
_WAIT = 0.001
"""Seconds that a batch waits for more rows where it is not full: a run takes several milliseconds."""
_LOOK_AHEAD = 64
"""Rows to choose the rows of a batch from: more than a batch has, except of texts of a few tokens."""

Measure = Callable[[int, int], object]
"""Called with the number of texts and of tokens of each batch."""


class _Waiting:
    """A request in the queue."""

    def __init__(self, call: SharedCall, future: Future[SharedCall]) -> None:
        self.call = call
        self.future = future
        self.rows = dict.fromkeys(call.rows)
        """Rows that have not started, in order."""
        self.unfinished = len(call.rows)
        self.since = monotonic()


class EncoderQueue:
    """Runs the calls of all requests for one model. Thread-safe."""

    def __init__(self, encoder: Encoder, *, waiting: int | None = None, measure: Measure | None = None) -> None:
        """Start the threads; at most `waiting` calls may wait, by default any number."""
        self.encoder = encoder
        self._most = waiting
        self._measure = measure
        self._changed = threading.Condition()
        self._order: deque[_Waiting] = deque()
        """Requests with rows that have not started; the first has the next turn."""
        self._alike: dict[tuple[int, int], dict[SharedRow, None]] = {}
        """Rows that have not started, in order, by what may run together."""
        self._open: dict[SharedCall, _Waiting] = {}
        """Requests without a result."""
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"ortkit-queue-{number}", daemon=True)
            for number in range(encoder.workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Number of requests with rows that have not started."""
        return len(self._order)

    @property
    def running(self) -> int:
        """Number of requests of which some rows have started and not all have ended."""
        return max(0, len(self._open) - len(self._order))

    def submit(self, call: _Call) -> Future[_Call]:
        """Queue a call; the future gives it back with its results, and cancelling it takes it out of the queue.

        Raises QueueFullError where too many wait already, and InputError where the queue is closed.
        """
        future: Future[_Call] = Future()
        if not call.rows:
            future.set_result(call)
            return future
        waiting = _Waiting(call, cast("Future[SharedCall]", future))
        with self._changed:
            if self._closed:
                raise InputError("the model is closed")
            if self._most is not None and len(self._order) >= self._most:
                raise QueueFullError(
                    f"{len(self._order)} requests wait for the model already", hint="send the request again later"
                )
            self._order.append(waiting)
            self._open[call] = waiting
            for row in call.rows:
                self._alike.setdefault(self.encoder.batch_key(row), {})[row] = None
            self._changed.notify()
        future.add_done_callback(lambda _: self._forget(waiting))
        return future

    def close(self) -> None:
        """Stop the threads after the batches that they run; what waits fails."""
        with self._changed:
            self._closed = True
            left = list(self._open.values())
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for waiting in left:
            with suppress(InvalidStateError):
                waiting.future.set_exception(InputError("the model was closed"))

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            self._run(batch)
            if self._measure is not None:
                self._measure(len(batch), sum(row.tokens for row in batch))

    def _next(self) -> list[SharedRow] | None:
        """The next batch; None where the queue is closed."""
        with self._changed:
            while not self._closed:
                if not self._order:
                    self._changed.wait()
                    continue
                young = min(waiting.since for waiting in self._order) + _WAIT - monotonic()
                if young > 0 and not self._fills_a_batch():
                    self._changed.wait(young)
                    continue
                return self._take()
            return None

    def _fills_a_batch(self) -> bool:
        left = self.encoder.batch_tokens
        for waiting in self._order:
            for row in waiting.rows:
                left -= row.tokens
                if left <= 0:
                    return True
        return False

    def _take(self) -> list[SharedRow]:
        """Take the rows of a batch out of the queue, and pass the turn on."""
        first = next(iter(self._order[0].rows))
        alike = self._alike[self.encoder.batch_key(first)]
        batch = self.encoder.next_batch([first, *(row for row in islice(alike, _LOOK_AHEAD) if row is not first)])
        for row in batch:
            del self._open[row.call].rows[row]
        self._leave(batch)
        self._order.rotate(-1)
        self._order = deque(waiting for waiting in self._order if waiting.rows)
        # Another thread may take what is left.
        if self._order:
            self._changed.notify()
        return batch

    def _leave(self, rows: Iterable[SharedRow]) -> None:
        """Take rows out of those that have not started."""
        for row in rows:
            key = self.encoder.batch_key(row)
            alike = self._alike[key]
            del alike[row]
            if not alike:
                del self._alike[key]

    def _run(self, batch: list[SharedRow]) -> None:
        """Run a batch; where it fails, run the rows of each request alone, and fail those that fail again."""
        try:
            self.encoder.run_batch(batch)
        except Exception as error:  # noqa: BLE001 - it is the request's
            calls = dict.fromkeys(row.call for row in batch)
            if len(calls) == 1:
                self._fail(batch[0].call, error)
                return
            for call in calls:
                self._run([row for row in batch if row.call is call])
            return
        self._count(batch)

    def _count(self, batch: list[SharedRow]) -> None:
        done = []
        with self._changed:
            for row in batch:
                waiting = self._open.get(row.call)
                if waiting is not None:
                    waiting.unfinished -= 1
                    if waiting.unfinished == 0:
                        done.append(waiting)
        for waiting in done:
            # A request may be cancelled at any time.
            with suppress(InvalidStateError):
                waiting.future.set_result(waiting.call)

    def _fail(self, call: SharedCall, error: Exception) -> None:
        with self._changed:
            waiting = self._open.get(call)
        if waiting is not None:
            with suppress(InvalidStateError):
                waiting.future.set_exception(error)

    def _forget(self, waiting: _Waiting) -> None:
        """Take a request that has its result, or was cancelled, out of the queue."""
        with self._changed:
            self._open.pop(waiting.call, None)
            if waiting.rows:
                self._leave(waiting.rows)
                waiting.rows.clear()
                with suppress(ValueError):
                    self._order.remove(waiting)
