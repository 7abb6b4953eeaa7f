"""Answers and embeddings under asyncio: what docs/generate.md shows leaves the event loop free."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from ortkit import Decoder, Embedder, FinishReason, Stream, Token
from tests.tiny_bundles import write_embedder

FOX = "The quick brown fox"
LONG = 60.0
"""Seconds after which a loop that does not run fails a test."""


@pytest.fixture(scope="module")
def tokens() -> Callable[[Stream], AsyncIterator[Token]]:
    """The function of the documentation, as it stands there."""
    page = (Path(__file__).parents[2] / "docs" / "generate.md").read_text("utf-8")
    (snippet,) = re.findall(r"```python\n(import asyncio\n.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet.partition("async def main")[0], names)
    return names["tokens"]


class Meeting:
    """Has each call of a function wait until the event loop has run meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop, function: Callable) -> None:
        self.loop, self.function, self.met = loop, function, 0

    def __call__(self, *arguments: object, **keywords: object) -> object:
        ran = threading.Event()
        self.loop.call_soon_threadsafe(ran.set)
        assert ran.wait(LONG), "the event loop was blocked while a step ran"
        self.met += 1
        return self.function(*arguments, **keywords)


def test_the_loop_runs_during_every_step_of_a_stream(decoder: Decoder, tokens: Callable) -> None:
    async def main() -> tuple[str, int]:
        stream = decoder.stream(FOX, max_tokens=9, lookup=False)
        meeting = Meeting(asyncio.get_running_loop(), stream.steps.forward.run)
        stream.steps.forward.run = meeting
        return "".join([token.text async for token in tokens(stream)]), meeting.met

    text, met = asyncio.run(main())

    assert text == decoder.generate(FOX, max_tokens=9).text
    assert met == 9


def test_the_loop_runs_while_texts_are_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder(write_embedder(tmp_path / "tiny"), workers=1)

    async def main() -> tuple[Any, int]:
        meeting = Meeting(asyncio.get_running_loop(), embedder.session.run)
        monkeypatch.setattr(embedder.session, "run", meeting)
        return await asyncio.to_thread(embedder.embed, ["fox", "dog"]), meeting.met

    vectors, met = asyncio.run(main())

    assert vectors.shape == (2, 8)
    assert met > 0


def test_answers_of_several_tasks_are_those_of_one(decoder: Decoder) -> None:
    async def main() -> list[str]:
        answers = [asyncio.to_thread(decoder.generate, FOX + end, max_tokens=20) for end in (" jumps", " sleeps")]
        return [answer.text for answer in await asyncio.gather(*answers)]

    assert asyncio.run(main()) == [decoder.generate(FOX + end, max_tokens=20).text for end in (" jumps", " sleeps")]


def test_a_task_that_is_cancelled_ends_its_answer(decoder: Decoder, tokens: Callable) -> None:
    stream = decoder.stream(FOX)

    async def read(begun: asyncio.Event) -> None:
        async for _ in tokens(stream):
            begun.set()

    async def main() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(read(begun))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())

    assert stream.answer().finish_reason is FinishReason.CANCELLED
