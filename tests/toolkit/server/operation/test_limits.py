"""The middleware around the APIs, called as uvicorn calls it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from ortkit.toolkit.server.operation.api_keys import ApiKeys
from ortkit.toolkit.server.operation.limits import Bounds, Gate, host_name
from ortkit.toolkit.server.settings import ServerSettings

SETTINGS = ServerSettings(max_body=1024, slots=1, max_waiting=1, request_seconds=0.2, header_seconds=0.2)


@dataclass
class Exchange:
    """One request to an ASGI application."""

    method: str = "POST"
    path: str = "/v1/embeddings"
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[bytes, ...] = (b"{}",)
    sent: list[Any] = field(default_factory=list)
    hangs: bool = False

    async def run(self, app: Any) -> Exchange:
        waiting = [
            {"type": "http.request", "body": part, "more_body": index + 1 < len(self.parts) or self.hangs}
            for index, part in enumerate(self.parts)
        ]

        async def receive() -> Any:
            if waiting:
                return waiting.pop(0)
            await asyncio.sleep(30)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            self.sent.append(message)

        headers = [(name.encode(), value.encode("latin-1")) for name, value in self.headers.items()]
        scope = {"type": "http", "method": self.method, "path": self.path, "headers": headers}
        await app(scope, receive, send)
        return self

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def answered(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def code(self) -> str:
        return json.loads(self.body)["error"]["code"]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body that it was given."""
    body, more = b"", True
    while more and scope["method"] == "POST":
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


def ask(app: Any, exchange: Exchange) -> Exchange:
    return asyncio.run(exchange.run(app))


def test_bodies_arrive_whole() -> None:
    assert ask(Bounds(echo, SETTINGS), Exchange(parts=(b"a", b"", b"bc"))).body == b"abc"


@pytest.mark.parametrize(
    ("exchange", "status", "code"),
    [
        (Exchange(parts=(b"x" * 1000, b"x" * 25)), 413, "body_too_large"),
        (Exchange(headers={"content-length": "1025"}), 413, "body_too_large"),
        (Exchange(headers={"content-length": "9" * 5000}), 413, "body_too_large"),
        (Exchange(parts=(b"x",), hangs=True), 408, "body_too_slow"),
        (Exchange(parts=(), hangs=True), 408, "body_too_slow"),
    ],
)
def test_bodies_that_are_refused(exchange: Exchange, status: int, code: str) -> None:
    bounds = Bounds(echo, SETTINGS)

    assert (ask(bounds, exchange).status, exchange.code) == (status, code)
    assert ask(bounds, Exchange(parts=(b"x" * 1024,))).status == 200, "nothing of the refused one is counted"


def test_the_memory_of_all_bodies_is_bounded() -> None:
    async def run() -> list[Exchange]:
        bounds = Bounds(echo, SETTINGS)
        slow = [Exchange(parts=(b"x" * 1024,), hangs=True) for _ in range(8)]
        holding = [asyncio.create_task(one.run(bounds)) for one in slow]
        await asyncio.sleep(0.05)
        refused = await Exchange(parts=(b"x",)).run(bounds)
        await asyncio.gather(*holding)
        return [refused, await Exchange(parts=(b"x",)).run(bounds)]

    refused, later = asyncio.run(run())

    assert (refused.status, refused.code) == (429, "queue_full")
    assert later.status == 200


def test_one_request_too_many() -> None:
    """`slots` are running and `max_waiting` wait: the next gets 429 and when to come again."""

    async def run() -> list[Exchange]:
        free = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await free.wait()
            await echo(scope, receive, send)

        bounds = Bounds(app, replace(SETTINGS, request_seconds=60))
        running = [asyncio.create_task(Exchange().run(bounds)) for _ in range(2)]
        await asyncio.sleep(0.01)
        refused = await Exchange().run(bounds)
        open_path = asyncio.create_task(Exchange(method="GET", parts=()).run(bounds))
        free.set()
        return [refused, *await asyncio.gather(*running), await open_path, await Exchange().run(bounds)]

    refused, *others = asyncio.run(run())

    assert (refused.status, refused.code) == (429, "queue_full")
    assert int(refused.answered["retry-after"]) >= 1
    assert json.loads(refused.body)["error"]["type"] == "rate_limit_error"
    assert [one.status for one in others] == [200] * 4


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_that_takes_too_long(*, begun: bool) -> None:
    cancelled = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        if begun:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    exchange = ask(Bounds(app, SETTINGS), Exchange())

    assert cancelled == [True]
    if begun:
        assert exchange.status == 200
        last = exchange.body.split(b"\n\n")[-2]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "request_timeout"
        assert not exchange.sent[-1].get("more_body", False)
    else:
        assert (exchange.status, exchange.code) == (504, "request_timeout")
        assert exchange.answered["x-should-retry"] == "false"


def test_an_error_of_the_application_is_not_a_time_limit() -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        ask(Bounds(app, SETTINGS), Exchange())


KEY = "k" * 20


@pytest.fixture
def keys(tmp_path: Path) -> ApiKeys:
    path = tmp_path / "keys"
    path.write_text(f"a: sha256:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    return ApiKeys(path)


@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        ({}, {"host": "localhost:8080"}, 200),
        ({}, {"host": "127.0.0.1"}, 200),
        ({}, {"host": "[::1]:8080"}, 200),
        ({}, {"host": "[0:0:0:0:0:0:0:1]:8080"}, 200),
        ({}, {"host": "LOCALHOST."}, 200),
        ({}, {}, 200),
        ({}, {"host": "evil.example"}, 403),
        ({}, {"host": "localhost.evil.example"}, 403),
        ({}, {"host": "192.168.1.2"}, 403),
        ({}, {"host": ""}, 403),
        ({"allowed_hosts": ("box.local",)}, {"host": "Box.local:80"}, 200),
        ({"allowed_hosts": ("*",)}, {"host": "evil.example"}, 200),
        ({"host": "0.0.0.0"}, {"host": "evil.example"}, 200),
        ({"host": "0.0.0.0", "allowed_hosts": ("box",)}, {"host": "evil.example"}, 403),
        ({"unix_socket": Path("/run/socket")}, {"host": "anything"}, 200),
        ({}, {"host": "localhost:8080", "origin": "http://localhost:8080"}, 200),
        ({}, {"host": "localhost:8080", "origin": "http://localhost:9090"}, 403),
        ({}, {"host": "localhost:8080", "origin": "https://evil.example"}, 403),
        ({}, {"host": "localhost:8080", "origin": "null"}, 403),
        ({"cors_origins": ("https://app.example/",)}, {"host": "localhost", "origin": "https://app.example"}, 200),
        ({"cors_origins": ("*",)}, {"host": "localhost", "origin": "https://any.example"}, 200),
    ],
)
def test_hosts_and_origins(settings: dict[str, Any], headers: dict[str, str], status: int) -> None:
    exchange = ask(Gate(echo, ServerSettings(**settings), None), Exchange(headers=headers))

    assert exchange.status == status
    assert exchange.answered["x-content-type-options"] == "nosniff"
    if status == 403:
        option = "--cors-origin" if "origin" in headers else "--allowed-host"
        assert option in json.loads(exchange.body)["error"]["message"]


def test_cors_is_off_by_default() -> None:
    ask_first = {"host": "localhost", "origin": "https://app.example", "access-control-request-method": "POST"}
    closed = ask(Gate(echo, ServerSettings(), None), Exchange("OPTIONS", headers=ask_first, parts=()))
    shared = Gate(echo, ServerSettings(cors_origins=("https://app.example",)), None)
    preflight = ask(shared, Exchange("OPTIONS", headers=ask_first, parts=()))
    answer = ask(shared, Exchange(headers={"host": "localhost", "origin": "https://app.example"}))

    assert closed.status == 403
    assert not any(name.startswith("access-control") for name in closed.answered)
    assert preflight.status == 204
    assert preflight.answered["access-control-allow-headers"] == "authorization, content-type"
    assert answer.answered["access-control-allow-origin"] == "https://app.example"
    assert answer.answered["vary"] == "origin"


def test_preflight_needs_no_key_and_requests_do(keys: ApiKeys) -> None:
    gate = Gate(echo, ServerSettings(cors_origins=("https://app.example",)), keys)
    origin = {"host": "localhost", "origin": "https://app.example"}

    preflight = ask(gate, Exchange("OPTIONS", headers={**origin, "access-control-request-method": "POST"}, parts=()))
    refused = ask(gate, Exchange(headers=origin))
    answer = ask(gate, Exchange(headers={**origin, "authorization": f"bearer {KEY}"}))

    assert (preflight.status, refused.status, answer.status) == (204, 401, 200)
    assert refused.answered["access-control-allow-origin"] == "https://app.example", "the page can read why"


@pytest.mark.parametrize(
    ("path", "status"),
    [("/", 200), ("/page/page.js", 200), ("/health", 200), ("/metrics", 401), ("/page", 401), ("//", 401), ("", 401)],
)
def test_paths_without_a_key(keys: ApiKeys, path: str, status: int) -> None:
    assert ask(Gate(echo, ServerSettings(), keys), Exchange("GET", path, {"host": "localhost"}, ())).status == status


def test_names_in_host_headers() -> None:
    assert host_name("Example.org:80") == "example.org"
    assert host_name("::1") == "::1"
    assert host_name("[fe80::1]") == "fe80::1"
    assert host_name("127.0.0.1:0") == "127.0.0.1"


def test_each_model_adds_room() -> None:
    """So that an LLM whose queue is full leaves room for the requests of an embedder."""

    async def scenario() -> list[int]:
        go_on = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await go_on.wait()
            await echo(scope, receive, send)

        bounds = Bounds(app, replace(SETTINGS, request_seconds=60), models=2)
        running = [asyncio.ensure_future(Exchange().run(bounds)) for _ in range(4)]
        await asyncio.sleep(0.05)
        fifth = await Exchange().run(bounds)
        go_on.set()
        return [exchange.status for exchange in (*await asyncio.gather(*running), fifth)]

    assert asyncio.run(scenario()) == [200, 200, 200, 200, 429]


@pytest.mark.parametrize("path", ["/", "/health", "/page/x"])
def test_bodies_need_a_key_at_every_path(keys: ApiKeys, path: str) -> None:
    """Else anyone could take the memory that is set aside for bodies."""
    assert ask(Gate(echo, ServerSettings(), keys), Exchange("POST", path, {"host": "localhost"})).status == 401
