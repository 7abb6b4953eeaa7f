"""Server-sent events: an answer as a stream of `data:` lines, which ends what computes it when its client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
_PLACE = "\ue000"
"""Where the value of an EventTemplate stands; a private character, which a model's name does not have alone."""
_KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which clients skip."""
_KEEP_ALIVE_SECONDS = 15.0
"""Time without an event after which it is sent: proxies close connections that are silent for a minute."""


def json_bytes(value: object) -> bytes:
    """Compact JSON in UTF-8; raises ValueError for NaN and infinity, which JSON does not have."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def event(value: object) -> bytes:
    """An event whose data is a JSON value."""
    return b"data: " + json_bytes(value) + b"\n\n"


class EventTemplate:
    """Events that differ in one field: the others are written once, as a stream has an event for each token."""

    def __init__(self, value: Mapping[str, object], field: str) -> None:
        before, _, after = json_bytes({**value, field: _PLACE}).partition(json_bytes(_PLACE))
        self._before = b"data: " + before
        self._after = after + b"\n\n"

    def event(self, value: object) -> bytes:
        """The event with this value in its field."""
        return self._before + json_bytes(value) + self._after


class EventStream(Response):
    """A response of events. Its generator is closed when the client goes away, wherever the response waits then.

    Starlette's StreamingResponse leaves a generator to the garbage collector where it is cancelled while it sends.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], close: Callable[[], object]) -> None:
        """`close` is called in the end, even where the generator never began."""
        super().__init__()
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        # nginx would collect the events.
        self.headers["x-accel-buffering"] = "no"
        self._events = events
        self._close = close
        self._silent = False
        """Whether nothing was sent since the last look."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not sending.done():
                sending.cancel()
            # Both have ended, whatever they raise, before the generator is closed.
            await asyncio.wait((sending, gone))
            await self._events.aclose()
            self._close()
        if not sending.cancelled() and (error := sending.exception()) is not None and not isinstance(error, OSError):
            raise error

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        alive = asyncio.ensure_future(self._keep_alive(send))
        try:
            async for data in self._events:
                self._silent = False
                await send({"type": "http.response.body", "body": data, "more_body": True})
        finally:
            alive.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        while True:
            await asyncio.sleep(_KEEP_ALIVE_SECONDS)
            if self._silent:
                await send({"type": "http.response.body", "body": _KEEP_ALIVE, "more_body": True})
            self._silent = True


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone; the request's body must have been read."""
    while True:
        message: Any = await receive()
        if message["type"] == "http.disconnect":
            return
