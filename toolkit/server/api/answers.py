"""Answers of an LLM in progress: tokens pass from the thread of its batch to the event loop of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ....runtime.decoder.generation import Usage
from ....runtime.decoder.stream import Token
from ....runtime.decoder.token_choice import FinishReason
from ....runtime.errors import InputError
from ..errors import ClosingError, RequestError

if TYPE_CHECKING:
    from ....runtime.decoder.batch.batch import BatchStream
    from ..operation.metrics import Metrics
    from ..served.models import ServedModel
    from ..settings import ServerSettings

Arrival = tuple[int, Token]
"""Which of the answers, and its next token."""


@dataclass
class _Progress:
    """One answer."""

    stream: BatchStream
    finish_reason: FinishReason | None = None


class Answers:
    """The answers to the prompts of one request, in one queue. `cancel` them, whatever happens.

    Made on the event loop; `submit` may be called in a thread.
    """

    def __init__(self, served: ServedModel, metrics: Metrics, settings: ServerSettings) -> None:
        if served.batch is None:
            raise InputError(f"`{served.name}` has no batch")
        self._served = served
        self._batch = served.batch
        self._metrics = metrics
        self._most = settings.requests_per_model
        self._loop = asyncio.get_running_loop()
        self._arrivals: asyncio.Queue[tuple[int, Token | Exception]] = asyncio.Queue()
        self._progress: list[_Progress] = []
        self._unfinished = 0

    @property
    def context(self) -> int:
        """Limit of prompt and answer together, in tokens."""
        return self._batch.context

    def check_count(self, answers: int, param: str) -> None:
        """Raise RequestError for more answers than the model ever takes: sending them again later would not help."""
        if answers > self._most:
            raise RequestError(
                f"the request asks for {answers} answers, and the model takes {self._most} at a time", param=param
            )

    def submit(self, prompts: Sequence[tuple[Sequence[int], Mapping[str, Any]]]) -> None:
        """Queue an answer for each prompt with its options; raises as `Batch.submit` does, and then none is queued."""
        try:
            for index, (ids, options) in enumerate(prompts):
                stream = self._batch.submit(list(ids), listener=self._listener(index), **options)
                self._progress.append(_Progress(stream))
        except BaseException:
            self.cancel()
            raise
        self._unfinished = len(prompts)

    def _listener(self, index: int) -> Callable[[Token | Exception], None]:
        def listen(arrived: Token | Exception) -> None:
            # The loop may have ended before the engine.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._arrivals.put_nowait, (index, arrived))

        return listen

    async def arrivals(self) -> list[Arrival]:
        """The tokens that have come, at least one; empty after the last. Raises what the engine raised."""
        if not self._unfinished:
            return []
        found = [await self._arrivals.get()]
        while not self._arrivals.empty():
            found.append(self._arrivals.get_nowait())
        return [(index, self._arrived(index, item)) for index, item in found]

    def _arrived(self, index: int, item: Token | Exception) -> Token:
        progress = self._progress[index]
        if isinstance(item, Exception):
            # Where a batch is closed, its answers end as cancelled.
            if progress.stream.finish_reason is FinishReason.CANCELLED:
                raise ClosingError from item
            raise item
        if item.finish_reason is not None:
            self._unfinished -= 1
            progress.finish_reason = item.finish_reason
            self._count(progress)
            if item.finish_reason is FinishReason.CANCELLED:
                raise ClosingError
        return item

    def usage(self, answers: int) -> Usage:
        """Token counts of all answers; each prompt, which has so many answers, counts once."""
        found = [progress.stream.usage for progress in self._progress]
        return Usage(
            sum(usage.prompt_tokens for usage in found[::answers]),
            sum(usage.completion_tokens for usage in found),
            sum(usage.cached_tokens for usage in found[::answers]),
        )

    def cancel(self) -> None:
        """End the answers that have not ended: their slots are free within a step."""
        for progress in self._progress:
            if progress.finish_reason is None:
                progress.stream.cancel()
                progress.finish_reason = FinishReason.CANCELLED
                self._count(progress)

    def _count(self, progress: _Progress) -> None:
        reason = FinishReason.CANCELLED if progress.finish_reason is None else progress.finish_reason
        self._metrics.answer(self._served.name, progress.stream.rates, reason.value)


async def submitted(answers: Answers, prepare: Callable[[], None]) -> None:
    """Run `prepare`, which ends with `answers.submit`, in a thread; cancels the answers where the request is."""
    preparing = asyncio.ensure_future(asyncio.to_thread(prepare))
    try:
        await asyncio.shield(preparing)
    except asyncio.CancelledError:
        # The thread continues, and nobody wants what it queues.
        preparing.add_done_callback(lambda done: _discard(done, answers))
        raise


def _discard(done: asyncio.Future[None], answers: Answers) -> None:
    if not done.cancelled():
        done.exception()
    answers.cancel()


def usage_json(usage: Usage) -> dict[str, Any]:
    """Token counts as OpenAI's API has them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
