"""Threads that search: numpy and SQLite would stop the event loop, and a bounded number of searches may wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ....runtime.errors import QueueFullError

_T = TypeVar("_T")


class SearchPool:
    """A bounded pool of threads; a search that has not started is taken out where its request is cancelled."""

    def __init__(self, threads: int, waiting: int) -> None:
        self._executor = ThreadPoolExecutor(threads, "ortkit-search")
        self._threads = threads
        self._most = threads + waiting
        self._unfinished = 0
        self.finished = 0
        """How many searches have ended, or were taken out of the queue."""
        self._lock = threading.Lock()

    @property
    def running(self) -> int:
        """Number of searches that have a thread."""
        return min(self._unfinished, self._threads)

    @property
    def waiting(self) -> int:
        """Number of searches that wait for a thread."""
        return max(0, self._unfinished - self._threads)

    async def run(self, search: Callable[[], _T], *, ended: Callable[[], object] = lambda: None) -> _T:
        """Run a function in a thread; `ended` is called once it has ended, or was taken out of the queue.

        Raises QueueFullError where too many wait already; then `ended` is called too. A search that has started runs to
        its end, whoever waits for it.
        """
        try:
            self._admit()
            try:
                future: Future[_T] = self._executor.submit(search)
            except BaseException:
                self._leave()
                raise
        except BaseException:
            ended()
            raise

        def end(_future: Future[_T]) -> None:
            self._leave()
            ended()

        future.add_done_callback(end)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Wait for the searches that have started; those that wait are cancelled."""
        self._executor.shutdown(cancel_futures=True)

    def _admit(self) -> None:
        with self._lock:
            if self._unfinished >= self._most:
                raise QueueFullError(
                    f"{self._unfinished} searches run or wait already", hint="send the request again later"
                )
            self._unfinished += 1

    def _leave(self) -> None:
        with self._lock:
            self._unfinished -= 1
            self.finished += 1
