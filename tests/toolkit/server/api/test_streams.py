from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from ortkit import OutOfMemoryError, Token
from ortkit.toolkit.server.api import sse
from ortkit.toolkit.server.api.answers import Answers
from ortkit.toolkit.server.api.sse import EventStream, EventTemplate, event
from ortkit.toolkit.server.operation.metrics import Metrics
from ortkit.toolkit.server.served.models import ServedModels
from ortkit.toolkit.server.settings import ServerSettings
from tests.toolkit.server.conftest import LocalServer, running

MESSAGES: list[Any] = [{"role": "user", "content": "fox"}]


@pytest.fixture
def small_server(bundles: dict[str, Path]) -> Iterator[LocalServer]:
    """One slot, and one place to wait."""
    settings, metrics = ServerSettings(slots=1, max_waiting=1, threads=1), Metrics()
    models = ServedModels.open({"tiny": bundles["tiny-decoder"]}, settings, metrics)
    with running(models, settings, metrics) as found:
        yield found
    models.close()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_error_in_the_middle_is_an_event(
    client: openai.OpenAI, lenient_client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    arrived, count = Answers._arrived, 0

    def short_of_memory(self: Answers, index: int, item: Token | Exception) -> Token:
        nonlocal count
        count += 1
        if count == 4:
            raise OutOfMemoryError("there is no memory left", hint="free some")
        return arrived(self, index, item)

    monkeypatch.setattr(Answers, "_arrived", short_of_memory)
    if "chat" in path:
        stream = client.chat.completions.create(model="tiny-decoder", messages=MESSAGES, max_tokens=9, stream=True)
    else:
        stream = lenient_client.completions.create(model="tiny-decoder", prompt="fox", max_tokens=9, stream=True)
    with pytest.raises(openai.APIError, match=r"^there is no memory left \(free some\)$") as caught:
        list(stream)
    assert caught.value.code == "out_of_memory"


def test_a_full_queue_is_429_and_leaves_nothing_behind(
    small_server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = small_server.models.find("tiny").batch
    # As where other requests have taken the places.
    monkeypatch.setattr(Answers, "check_count", lambda *_: None)
    body = {"model": "tiny", "messages": MESSAGES, "n": 4, "logit_bias": {"2": -100}}
    answer = small_server.post("/v1/chat/completions", body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "queue_full")
    assert int(answer.headers["retry-after"]) > 0
    assert small_server.post("/v1/chat/completions", {"model": "tiny", "messages": MESSAGES}).status_code == 200
    assert batch.stats.running == 0


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "n": 3}, "n"),
        ("/v1/completions", {"prompt": ["a", "b", "c"]}, "prompt"),
    ],
)
def test_more_answers_than_ever_fit_are_400(
    small_server: LocalServer, path: str, fields: dict[str, Any], param: str
) -> None:
    """Not 429, at which clients send the same request again and again."""
    answer = small_server.post(path, {"model": "tiny", **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"] == "the request asks for 3 answers, and the model takes 2 at a time"


def test_a_stream_ends_where_the_model_is_closed(small_server: LocalServer) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "stream": True, "logit_bias": {"2": -100}}
    with (
        httpx.Client(timeout=60) as connection,
        connection.stream("POST", f"{small_server.url}/v1/chat/completions", json=body) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        small_server.models.find("tiny").batch.close()
        left = [line for line in lines if line]
    assert "the server is closing, or the model was replaced" in left[-1] or left[-1] == "data: [DONE]"
    assert small_server.post("/v1/chat/completions", body).status_code >= 400


def test_events_of_a_template_are_those_written_in_full() -> None:
    value = {"id": "a", "choices": [], "model": 'quoted " \ue000x', "usage": None}
    choices = [{"text": "ü"}]
    assert EventTemplate(value, "choices").event(choices) == event(value | {"choices": choices})


def test_a_silent_stream_has_comments_and_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its generator is closed where the client goes away, also while the response waits to send."""
    monkeypatch.setattr(sse, "_KEEP_ALIVE_SECONDS", 0.01)
    sent: list[bytes] = []
    ended: list[str] = []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            yield event("first")
            await asyncio.sleep(0.1)
            yield event("second")
        finally:
            ended.append("generator")

    async def run() -> None:
        gone = asyncio.Event()

        async def receive() -> dict[str, str]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))
            if message.get("body") == event("second"):
                gone.set()
                await asyncio.sleep(60)

        await asyncio.wait_for(EventStream(events(), lambda: ended.append("response"))({}, receive, send), 20)

    asyncio.run(run())
    assert sent[1] == event("first")
    assert b": keep-alive\n\n" in sent
    assert ended == ["generator", "response"]


def test_a_stream_that_never_began_is_closed() -> None:
    ended: list[str] = []

    async def events() -> AsyncGenerator[bytes, None]:
        yield b""

    async def run() -> None:
        async def receive() -> dict[str, str]:
            return {"type": "http.disconnect"}

        async def send(_message: Any) -> None:
            raise OSError("the connection is closed")

        await EventStream(events(), lambda: ended.append("response"))({}, receive, send)

    asyncio.run(run())
    assert ended == ["response"]
