"""Load on an HTTP server: requests of many clients at once, and when each part of each response came.

As a process of its own, `python -m benchmarks.http_load HOST PORT` reads a request per line on stdin, as JSON, and
answers each with a line:

- `{"path": PATH, "bodies": [...], "clients": N}` sends the bodies as `run_load` does, and answers with what `Load` has.

It shares the CPU cores with the server, so it does as little as it can while responses come: it stores bytes with the
time of their arrival, and reads them when all is over. `Load.cpu_seconds` says what it took.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

SECONDS = 300.0
"""Limit of one response."""
_END_OF_HEAD, _END_OF_CHUNKS = b"\r\n\r\n", b"\r\n0\r\n\r\n"
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True)
class Event:
    """A server-sent event."""

    data: str
    seconds: float
    """From the request to the arrival of its last byte."""


@dataclass(frozen=True)
class Response:
    """A response, as it came."""

    head: bytes
    body: bytes
    """As framed on the wire."""
    arrivals: tuple[tuple[int, float], ...]
    """Bytes of head and body that had come, and the seconds from the request to then."""

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    @property
    def seconds(self) -> float:
        """From the request to the last byte."""
        return self.arrivals[-1][1]

    def header(self, name: str) -> str | None:
        return header_of(self.head, name)

    def content(self) -> bytes:
        """The body without its framing."""
        return b"".join(payload for payload, _ in self._chunks())

    def json(self) -> Any:
        return json.loads(self.content())

    def events(self) -> list[Event]:
        """The server-sent events; comments are left out."""
        chunks = list(self._chunks())
        content = b"".join(payload for payload, _ in chunks)
        ends = list(accumulate(len(payload) for payload, _ in chunks))
        found, start = [], 0
        for blank in _BLANK_LINE.finditer(content):
            lines = content[start : blank.start()].decode().splitlines()
            start = blank.end()
            data = [line.removeprefix("data:").removeprefix(" ") for line in lines if line.startswith("data:")]
            if data:
                found.append(Event("\n".join(data), chunks[bisect_left(ends, blank.end())][1]))
        return found

    def _chunks(self) -> list[tuple[bytes, float]]:
        """Parts of the body, each with the time at which it was complete."""
        if not is_chunked(self.head):
            return [(self.body, self.seconds)]
        chunks: list[tuple[bytes, float]] = []
        place = 0
        counts = [count for count, _ in self.arrivals]
        while True:
            end = self.body.index(b"\r\n", place)
            size = int(self.body[place:end].partition(b";")[0], 16)
            if size == 0:
                return chunks
            place = end + 2 + size
            came = self.arrivals[bisect_left(counts, len(self.head) + place)][1]
            chunks.append((self.body[end + 2 : place], came))
            place += 2


class BrokenResponseError(Exception):
    """The connection ended before the response did."""


class ClosedConnectionError(BrokenResponseError):
    """The connection ended after an earlier response, and before any byte of this one."""


class Connection(asyncio.Protocol):
    """A connection that is kept for one request after another."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._arrivals: list[tuple[int, float]] = []
        self._start = 0.0
        self._head_size = 0
        self._size: int | None = None
        self._whole: asyncio.Future[Response] | None = None
        self._used = False
        """Whether it has had a whole response."""

    @classmethod
    async def open(cls, host: str, port: int) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    async def request(
        self, method: str, path: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Send a request, and return the response when it is whole.

        Raises BrokenResponseError where the connection ends before, and TimeoutError. Cancelling it closes the
        connection, as a client does that goes away.
        """
        self._arrivals = []
        if self._transport is None or self.closed:
            raise self._broken("the connection is closed")
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        if body:
            lines.append("Content-Type: application/json")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self._received.clear()
        self._head_size, self._size = 0, None
        self._whole = asyncio.get_running_loop().create_future()
        self._start = time.perf_counter()
        self._transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        try:
            async with asyncio.timeout(SECONDS):
                return await self._whole
        except (TimeoutError, asyncio.CancelledError):
            self.close()
            raise

    async def reopen(self, host: str, port: int) -> None:
        """Connect again."""
        self.close()
        self._used, self._arrivals = False, []
        await asyncio.get_running_loop().create_connection(lambda: self, host, port)

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._arrivals.append((len(self._received), time.perf_counter() - self._start))
        if not self._head_size and not self._read_head():
            return
        whole = (
            self._received.endswith(_END_OF_CHUNKS, self._head_size - 2)
            if self._size is None
            else len(self._received) >= self._head_size + self._size
        )
        if whole and self._whole is not None and not self._whole.done():
            received = bytes(self._received)
            head, body = received[: self._head_size], received[self._head_size :]
            self._used = True
            self._whole.set_result(Response(head, body, tuple(self._arrivals)))

    def _read_head(self) -> bool:
        end = self._received.find(_END_OF_HEAD)
        if end < 0:
            return False
        self._head_size = end + len(_END_OF_HEAD)
        head = bytes(self._received[: self._head_size])
        self._size = None if is_chunked(head) else int(header_of(head, "content-length") or 0)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._whole is not None and not self._whole.done():
            self._whole.set_exception(self._broken(f"the connection ended after {len(self._received):,} bytes: {exc}"))

    def _broken(self, text: str) -> BrokenResponseError:
        is_new = not self._used or self._arrivals
        return BrokenResponseError(text) if is_new else ClosedConnectionError(text)


def header_of(head: bytes, name: str) -> str | None:
    """The value of a header, None where it is not there."""
    start = f"\r\n{name.lower()}:".encode()
    place = head.lower().find(start)
    if place < 0:
        return None
    return head[place + len(start) :].partition(b"\r\n")[0].decode().strip()


def is_chunked(head: bytes) -> bool:
    return (header_of(head, "transfer-encoding") or "").lower() == "chunked"


@dataclass(frozen=True)
class Reply:
    """What a response of an API of OpenAI's form says."""

    seconds: float
    """From the request to the end of the response."""
    first_seconds: float
    """From the request to the first text of the answer; of a response that is not a stream, to its end."""
    last_seconds: float
    """To the last text."""
    tokens: int
    """Tokens of the answer."""
    prompt_tokens: int
    cached_tokens: int
    vectors: int
    """Embeddings in the response."""
    finish_reason: str | None
    text: str


@dataclass(frozen=True)
class Load:
    """Responses to the requests of several clients at once."""

    seconds: float
    """From the first request to the end of the last response."""
    cpu_seconds: float
    """Of the load generator, in that time."""
    replies: tuple[Reply, ...]
    """In the order of the requests."""


def reply_of(response: Response) -> Reply:
    """Read a response; raises BrokenResponseError for an error, and for a stream that ends before its answer does."""
    if response.status != 200:
        raise BrokenResponseError(f"status {response.status}: {response.content().decode(errors='replace')}")
    if not (response.header("content-type") or "").startswith("text/event-stream"):
        return _whole_reply(response)
    events = response.events()
    if not events or events[-1].data != "[DONE]":
        raise BrokenResponseError("a stream without its end")
    usage: dict[str, Any] = {}
    times, texts, finish_reason = [], [], None
    for event in events[:-1]:
        message = json.loads(event.data)
        if "error" in message:
            raise BrokenResponseError(f"an error in the stream: {event.data}")
        usage = message.get("usage") or usage
        for choice in message["choices"]:
            text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
            if text:
                times.append(event.seconds)
                texts.append(text)
            finish_reason = choice.get("finish_reason") or finish_reason
    times = times or [response.seconds]
    return _reply(response, usage, times, finish_reason, "".join(texts))


def _whole_reply(response: Response) -> Reply:
    message = response.json()
    usage, choices = message.get("usage") or {}, message.get("choices") or []
    if not choices:
        return _reply(response, usage, [response.seconds], None, "", len(message["data"]))
    [choice] = choices
    text = choice["text"] if "text" in choice else choice["message"]["content"] or ""
    return _reply(response, usage, [response.seconds], choice["finish_reason"], text)


def _reply(
    response: Response,
    usage: Mapping[str, Any],
    times: Sequence[float],
    finish_reason: str | None,
    text: str,
    vectors: int = 0,
) -> Reply:
    details = usage.get("prompt_tokens_details") or {}
    return Reply(
        seconds=response.seconds,
        first_seconds=times[0],
        last_seconds=times[-1],
        tokens=usage.get("completion_tokens", 0),
        prompt_tokens=usage.get("prompt_tokens", 0),
        cached_tokens=details.get("cached_tokens") or 0,
        vectors=vectors,
        finish_reason=finish_reason,
        text=text,
    )


@asynccontextmanager
async def connections(host: str, port: int, count: int) -> AsyncIterator[list[Connection]]:
    """As many connections to a server."""
    opened = await asyncio.gather(*(Connection.open(host, port) for _ in range(count)))
    try:
        yield opened
    finally:
        for connection in opened:
            connection.close()


async def run_load(host: str, port: int, path: str, bodies: Sequence[Any], clients: int) -> Load:
    """Send the bodies, JSON, by several clients: each takes the next one when it has its response.

    Raises BrokenResponseError for a response that is not whole, and for one that is an error.
    """
    encoded = [json.dumps(body).encode() for body in bodies]
    responses: dict[int, Response] = {}
    waiting = iter(enumerate(encoded))

    async def client(connection: Connection) -> None:
        for place, body in waiting:
            try:
                responses[place] = await connection.request("POST", path, body)
            except ClosedConnectionError:
                # A server may end a connection between two requests, as llama.cpp's does after a stream.
                await connection.reopen(host, port)
                responses[place] = await connection.request("POST", path, body)

    async with connections(host, port, clients) as opened:
        cpu, start = time.process_time(), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for connection in opened:
                group.create_task(client(connection))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return Load(seconds, cpu_seconds, tuple(reply_of(responses[place]) for place in range(len(encoded))))


def main(host: str, port: str) -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            load = asyncio.run(run_load(host, int(port), asked["path"], asked["bodies"], asked["clients"]))
        except* (BrokenResponseError, OSError) as errors:
            sys.exit(f"{host}:{port}{asked['path']}: {errors.exceptions[0]}")
        print(json.dumps(asdict(load)), flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(*sys.argv[1:])
