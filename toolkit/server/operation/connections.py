"""Connections: time limits for clients that send or read slowly, and a bound on their number.

uvicorn bounds the size of headers and the time between two requests; what it does not bound is here.
"""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..settings import ServerSettings
from .refusals import RefusedError

LARGEST_HEAD = 32 << 10
"""Bytes of a request's line and headers."""


class ConnectionTable:
    """The open connections of a server, and the idle ones, the longest idle first."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.connections: set[Connection] = set()
        self.idle: OrderedDict[Connection, None] = OrderedDict()

    def count(self) -> int:
        """The number of open connections."""
        return len(self.connections)

    def make_room(self) -> bool:
        """Close the longest idle connection where there is no room for one more; False where none is idle."""
        if len(self.connections) <= self.settings.max_connections:
            return True
        if not self.idle:
            return False
        oldest, _ = self.idle.popitem(last=False)
        oldest.transport.abort()
        return True


class JoinedWrites:
    """A transport that writes the head of an answer together with what comes next, if that comes at once.

    uvicorn writes head and body one after the other; at each system call, the event loop gives the GIL to threads that
    compute, and waits for it.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
            self._transport.write(data)
        elif data.startswith(b"HTTP/1.1 ") and not self._transport.is_closing():
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            data, self._head = self._head, b""
            self._transport.write(data)


class Connection(H11Protocol):
    """A connection of HTTP/1.1, idle while it has no request whose headers are complete."""

    table: ConnectionTable

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(JoinedWrites(transport, self.loop))  # type: ignore[arg-type]
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self.table.connections.add(self)
        if not self.table.make_room():
            self._refuse(RefusedError(503, "too_many_connections", "too many connections are open"))
            return
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.table.connections.discard(self)
        self._stop_waiting()
        self._stop(self._write_timer)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._has_request():
            self._stop_waiting()
        # The time is that for all headers, however many pieces they come in; and for what follows a refused body.
        elif self._head_timer is None:
            self._wait_for_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and not self._has_request():
            self.table.idle[self] = None

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def pause_writing(self) -> None:
        """The client does not read: after a time, its connection is closed."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.table.settings.idle_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop(self._write_timer)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or has too large headers; uvicorn calls this where h11 has raised an error."""
        error = sys.exc_info()[1]
        is_large = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431
        if is_large:
            text = f"the headers have more than {LARGEST_HEAD} bytes"
            self._refuse(RefusedError(431, "headers_too_large", text))
        else:
            self._refuse(RefusedError(400, "invalid_http", msg.lower().rstrip(".")))

    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self.table.idle[self] = None
        self._head_timer = self.loop.call_later(self.table.settings.header_seconds, self._close)

    def _stop_waiting(self) -> None:
        self.table.idle.pop(self, None)
        self._stop(self._head_timer)
        self._head_timer = None

    def _stop(self, timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()

    def _close(self) -> None:
        """Close; without waiting for a client that has not read what was sent."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _refuse(self, refused: RefusedError) -> None:
        """Answer outside of a request, and close."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE} and not self._has_request():
            body = refused.body()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            if refused.status == 503:
                headers.append(("retry-after", "1"))
            for event in (
                h11.Response(status_code=refused.status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def connection_class(table: ConnectionTable) -> type[Connection]:
    """The class of a server's connections, as uvicorn takes it."""
    return type("ServerConnection", (Connection,), {"table": table})


def uvicorn_config(app: Any, settings: ServerSettings, table: ConnectionTable, **more: Any) -> Config:
    """The configuration of uvicorn: no files, no processes, no logging of its own, no headers of proxies."""
    return Config(
        app,
        http=connection_class(table),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(settings.idle_seconds) or 1,
        h11_max_incomplete_event_size=LARGEST_HEAD,
        **more,
    )
