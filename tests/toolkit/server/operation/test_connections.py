"""Connections of uvicorn with the server's bounds, around small applications in this process."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import Mock

import uvicorn

from ortkit.toolkit.server.operation.connections import LARGEST_HEAD, ConnectionTable, JoinedWrites, uvicorn_config
from ortkit.toolkit.server.settings import ServerSettings
from tests.served import read_all, wait_until

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextmanager
def running(app: Any, settings: ServerSettings) -> Iterator[tuple[int, ConnectionTable]]:
    """The port and the connections of a server on a thread."""
    table = ConnectionTable(settings)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn_config(app, settings, table, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield listening.getsockname()[1], table
        finally:
            server.should_exit = True
            thread.join()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def answer_of(client: socket.socket) -> bytes:
    """The whole answer of `greets`."""
    found = b""
    while not found.endswith(b"\r\n\r\nhi"):
        part = client.recv(65536)
        assert part, found
        found += part
    return found


async def greets(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


def test_a_client_that_does_not_read_is_cut_off() -> None:
    ended = threading.Event()

    async def floods(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(200):
            await send({"type": "http.response.body", "body": b"x" * (1 << 20), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        ended.set()

    with running(floods, ServerSettings(idle_seconds=0.5)) as (port, table), connect(port) as client:
        client.sendall(GET)
        assert ended.wait(30)
        wait_until(lambda: table.count() == 0)


def test_connections_with_requests_are_not_closed_for_new_ones() -> None:
    free = threading.Event()

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.to_thread(free.wait, 60)
        await greets(scope, receive, send)

    with running(waits, ServerSettings(max_connections=8)) as (port, table):
        busy = [connect(port) for _ in range(8)]
        for client in busy:
            client.sendall(GET)
        wait_until(lambda: table.count() == 8 and not table.idle)
        with connect(port) as client:
            refused = read_all(client)
        free.set()
        answers = [answer_of(client) for client in busy]
        for client in busy:
            client.close()

    head, _, body = refused.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in head.lower()
    assert json.loads(body)["error"]["code"] == "too_many_connections"
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)


def test_the_longest_idle_one_makes_room() -> None:
    with running(greets, ServerSettings(max_connections=8)) as (port, table):
        kept = [connect(port) for _ in range(8)]
        for client in kept:
            client.sendall(GET)
            answer_of(client)
        wait_until(lambda: len(table.idle) == 8)
        # The first is used once more, so the second is the one that has been idle for longest.
        kept[0].sendall(GET)
        answer_of(kept[0])
        with connect(port) as client:
            client.sendall(GET)
            assert answer_of(client).startswith(b"HTTP/1.1 200 ")
        assert read_all(kept[1]) == b""
        kept[0].sendall(GET)
        assert answer_of(kept[0]).startswith(b"HTTP/1.1 200 ")
        for client in kept:
            client.close()


def test_headers_have_a_size_and_a_time() -> None:
    with running(greets, ServerSettings(header_seconds=0.5, idle_seconds=60)) as (port, _):
        with connect(port) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * LARGEST_HEAD)
            large = read_all(client)
        begun = time.monotonic()
        with connect(port) as client:
            client.sendall(GET)
            answer_of(client)
            client.sendall(b"GET / HTTP/1.1\r\nHo")
            assert read_all(client) == b""
        with connect(port) as client:
            assert read_all(client) == b""
        seconds = time.monotonic() - begun

    assert large.startswith(b"HTTP/1.1 431 ")
    assert json.loads(large.partition(b"\r\n\r\n")[2])["error"] == {
        "message": "the headers have more than 32768 bytes",
        "type": "invalid_request_error",
        "param": None,
        "code": "headers_too_large",
    }
    assert 0.9 < seconds < 30


def test_head_and_body_are_one_write() -> None:
    """Parts that come later are not waited for, and nothing is lost at the end of a connection."""

    async def scenario() -> list[bytes]:
        written: list[bytes] = []
        transport = Mock(is_closing=lambda: False, write=written.append)
        joined = JoinedWrites(transport, asyncio.get_running_loop())
        joined.write(b"HTTP/1.1 200 OK\r\n\r\n")
        joined.write(b"body")
        joined.write(b"HTTP/1.1 200 \r\n\r\n")
        await asyncio.sleep(0)
        joined.write(b"data: 1\n\n")
        joined.write(b"HTTP/1.1 204 \r\n\r\n")
        joined.close()
        transport.close.assert_called_once_with()
        return written

    head = b"HTTP/1.1 20"
    written = asyncio.run(scenario())
    assert written == [
        head + b"0 OK\r\n\r\nbody",
        head + b"0 \r\n\r\n",
        b"data: 1\n\n",
        head + b"4 \r\n\r\n",
    ]
