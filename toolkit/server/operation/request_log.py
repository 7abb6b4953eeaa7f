"""The log of `ortkit serve`: one JSON object a line, written by a thread so that a slow reader delays no request.

It has no text of requests and answers unless `log_texts` is set, and never a key, a header or a query string.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import queue
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import CLIENT_CLOSED
from .metrics import Metrics
from .refusals import RefusedError
from .request_record import RECORD

_MOST_LINES = 10_000
"""Lines that wait to be written; more are counted, and dropped."""
_LONGEST_TEXT = 1 << 16
_FRAMES = 12
_FREQUENT = frozenset({"/health", "/ready", "/metrics"})
"""Paths that monitoring asks for every few seconds: the log has their failures alone."""
_LIBRARIES = ("uvicorn.error", "asyncio", "ortkit.server")


class ServerLog:
    """Writes lines to a stream, from any thread."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._lines: queue.Queue[str | None] = queue.Queue(_MOST_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def event(self, event: str, *, level: str = "info", **fields: object) -> None:
        """Write a line; None as a value leaves its field out."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        content: dict[str, object] = {"time": now, "level": level, "event": event}
        content.update({name: value for name, value in fields.items() if value is not None})
        try:
            self._lines.put_nowait(json.dumps(content))
        except queue.Full:
            self._dropped += 1

    def failure(self, event: str, error: BaseException, **fields: object) -> None:
        """Write what went wrong inside: the error's type and place, not its message, which may quote texts."""
        frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
        where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        self.event(event, level="error", error=type(error).__name__, where=where, **fields)

    def close(self) -> None:
        """Write what is left, for at most a second."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=1)
        self._thread.join(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            if dropped:
                line = f'{line}\n{{"level": "warning", "event": "lines dropped", "lines": {dropped}}}'
            # A closed pipe or a full disk must not end the server.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()


class LibraryLog(logging.Handler):
    """Errors that uvicorn and asyncio log, as lines of the server's log."""

    def __init__(self, log: ServerLog) -> None:
        super().__init__(logging.ERROR)
        self._log = log

    @classmethod
    def install(cls, log: ServerLog) -> None:
        """Take the place of their own handlers."""
        for name in _LIBRARIES:
            logger = logging.getLogger(name)
            logger.handlers = [cls(log)]
            logger.propagate = False
            logger.setLevel(logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, asyncio.CancelledError):
            # A request that SIGTERM has ended: its client was told, and nothing went wrong.
            return
        if error is not None:
            self._log.failure("internal error", error, logger=record.name)
        else:
            # The message without its arguments, which may have been sent by a client.
            self._log.event("library error", level="error", logger=record.name, message=str(record.msg)[:500])


class RequestLog:
    """ASGI middleware, the outermost: logs and counts each request, gives it an id, and answers 500 for a bug."""

    def __init__(
        self,
        app: ASGIApp,
        log: ServerLog,
        metrics: Metrics,
        *,
        endpoint_of: Callable[[str], str],
        log_texts: bool = False,
    ) -> None:
        """`endpoint_of` gives the path of a route for a request's path, or OTHER."""
        self._app = app
        self._log = log
        self._metrics = metrics
        self._endpoint_of = endpoint_of
        self._log_texts = log_texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Unlike uuid4, without a system call, at which this thread would lose the GIL to those that compute.
        record: dict[str, Any] = {"id": f"{random.getrandbits(128):032x}"}
        token = RECORD.set(record)
        exchange = _Exchange(record, receive, send, keep_texts=self._log_texts)
        begun = time.monotonic()
        self._metrics.request_opened()
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:  # noqa: BLE001 - a bug must not end the connection without an answer
            self._log.failure("internal error", error, id=record["id"])
            if exchange.status is None:
                await RefusedError(500, "internal_error", f"internal error; request id {record['id']}").send(
                    exchange.send
                )
        finally:
            RECORD.reset(token)
            self._metrics.request_closed()
            self._write(scope, exchange, time.monotonic() - begun)

    def _write(self, scope: Scope, exchange: _Exchange, seconds: float) -> None:
        status = exchange.status if exchange.status is not None else CLIENT_CLOSED
        endpoint = self._endpoint_of(scope["path"])
        self._metrics.request(endpoint, status, seconds)
        if endpoint in _FREQUENT and status < 400:
            return
        client = scope.get("client")
        fields: MutableMapping[str, object] = {
            "method": scope["method"][:16],
            "endpoint": endpoint,
            "status": status,
            "seconds": round(seconds, 6),
            "client": client[0] if client else None,
            "bytes": exchange.sent,
            "complete": None if exchange.is_complete else False,
            **exchange.record,
        }
        if self._log_texts:
            fields["request_text"] = exchange.request_text.decode("utf-8", "replace")
            fields["answer_text"] = exchange.answer_text.decode("utf-8", "replace")
        self._log.event("request", level="error" if status >= 500 else "info", **fields)


class _Exchange:
    """A request and its answer, as they pass."""

    def __init__(self, record: dict[str, Any], receive: Receive, send: Send, *, keep_texts: bool) -> None:
        self.record = record
        self.status: int | None = None
        self.sent = 0
        self.is_complete = False
        self.request_text = bytearray()
        self.answer_text = bytearray()
        self._receive = receive
        self._send = send
        self._keep_texts = keep_texts

    async def receive(self) -> Message:
        message = await self._receive()
        if self._keep_texts and len(self.request_text) < _LONGEST_TEXT:
            self.request_text += message.get("body", b"")[:_LONGEST_TEXT]
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), (b"x-request-id", self.record["id"].encode("ascii"))]
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            self.sent += len(body)
            if self._keep_texts and len(self.answer_text) < _LONGEST_TEXT:
                self.answer_text += body[:_LONGEST_TEXT]
            self.is_complete = not message.get("more_body", False)
        await self._send(message)
