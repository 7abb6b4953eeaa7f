"""The threads of searches: a bounded queue, and what becomes of cancelled ones."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ortkit.runtime.errors import QueueFullError
from ortkit.toolkit.server.served.search_pool import SearchPool


async def until(condition: object) -> None:
    assert callable(condition)
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


def test_the_event_loop_is_free_and_the_queue_is_bounded() -> None:
    pool, release, ended = SearchPool(1, 1), threading.Event(), []

    def search() -> str:
        assert release.wait(30)
        return threading.current_thread().name

    async def main() -> list[str]:
        running = [asyncio.create_task(pool.run(search, ended=lambda: ended.append(1))) for _ in range(2)]
        await until(lambda: pool.waiting == 1)
        assert (pool.running, pool.waiting) == (1, 1)
        with pytest.raises(QueueFullError, match="2 searches run or wait already"):
            await pool.run(search, ended=lambda: ended.append(1))
        assert ended == [1]
        release.set()
        return await asyncio.gather(*running)

    names = asyncio.run(main())

    assert all(name.startswith("ortkit-search") for name in names)
    assert (ended, pool.running, pool.waiting) == ([1, 1, 1], 0, 0)
    pool.close()


def test_a_cancelled_search_that_waits_is_taken_out() -> None:
    """One that runs keeps its place, and what it uses, until its thread is done."""
    pool, release, started, ended = SearchPool(1, 4), threading.Event(), threading.Event(), []
    ran = []

    def slow() -> None:
        started.set()
        assert release.wait(30)

    async def main() -> None:
        first = asyncio.create_task(pool.run(slow, ended=lambda: ended.append("first")))
        await asyncio.to_thread(started.wait, 30)
        second = asyncio.create_task(pool.run(lambda: ran.append(1), ended=lambda: ended.append("second")))
        await until(lambda: pool.waiting == 1)
        for task in (first, second):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (ended, pool.running, pool.waiting) == (["second"], 1, 0)
        release.set()
        await until(lambda: pool.running == 0)

    asyncio.run(main())

    assert (ended, ran) == (["second", "first"], [])
    pool.close()


def test_an_error_is_raised_where_it_is_waited_for() -> None:
    pool = SearchPool(1, 1)

    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        asyncio.run(pool.run(fails))
    assert pool.running == 0
    pool.close()
