"""What requests may do: who may send them, how large they are, how many there are, and how long they take.

ASGI middleware, from the outside in: `Gate` (Host, Origin, CORS, API key), then `Bounds` (body, number, time).
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..settings import ServerSettings
from .api_keys import ApiKeys
from .refusals import RefusedError
from .request_record import note

OPEN_PATHS = frozenset({"/", "/health", "/ready", "/openapi.json"})
"""Paths that need no key: they tell nothing of requests, and cost nothing. `/page/` holds the files of `/`."""
PAGE_FILES = "/page/"
_LEAST_RATE = 64 << 10
"""Bytes a second that a client must send of a body, after `header_seconds`."""
_BODIES = 8
"""Largest sum of the bodies that are being read or answered, in bodies of `max_body` bytes."""
_PREFLIGHT_SECONDS = 600
_LONGEST_WAIT = 60
_SECURITY_HEADERS = ((b"x-content-type-options", b"nosniff"),)


class Gate:
    """Refuses requests by where they come from: the Host header, the page that sends them, the API key.

    Without keys, a page of another site must not reach a server on the loopback: its own name may resolve to 127.0.0.1
    (DNS rebinding), so the Host header must be a name of this machine, and the Origin header the page's own server.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, keys: ApiKeys | None) -> None:
        self._app = app
        self._keys = keys
        self._origins = frozenset(origin.rstrip("/").lower() for origin in settings.cors_origins)
        names = {name.lower() for name in settings.allowed_hosts}
        # A socket has no name that a browser could reach; a public address is protected by its keys.
        checks_host = settings.unix_socket is None and (bool(names) or not settings.is_public)
        self._hosts = names | {"localhost", "127.0.0.1", "::1", settings.host.lower()} if checks_host else {"*"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get(b"origin")
        shared = self._shared_headers(origin)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [*message.get("headers", []), *_SECURITY_HEADERS, *shared]
                message = {**message, "headers": added}
            await send(message)

        try:
            self._check_host(headers.get(b"host"))
            self._check_origin(origin, headers.get(b"host"))
            if shared and scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                await send_with_headers({"type": "http.response.start", "status": 204, "headers": _preflight()})
                await send_with_headers({"type": "http.response.body", "body": b""})
                return
            name = self._check_key(scope, headers.get(b"authorization"))
        except RefusedError as refused:
            await refused.send(send_with_headers)
            return
        if name is not None:
            note(key=name)
        await self._app(scope, receive, send_with_headers)

    def _shared_headers(self, origin: str | None) -> list[tuple[bytes, bytes]]:
        """The headers that let a page of another origin read the answer."""
        if origin is None or not self._is_shared(origin):
            return []
        exposed = (b"access-control-expose-headers", b"x-request-id, retry-after")
        return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin"), exposed]

    def _is_shared(self, origin: str) -> bool:
        return "*" in self._origins or origin.lower() in self._origins

    def _check_host(self, host: str | None) -> None:
        if "*" in self._hosts or host is None:
            return
        name = host_name(host)
        if name not in self._hosts:
            raise RefusedError(
                403,
                "host_not_allowed",
                f"the Host header names `{name[:100]}`, which is not a name of this server; "
                "allow it with `--allowed-host`",
            )

    def _check_origin(self, origin: str | None, host: str | None) -> None:
        if origin is None or self._is_shared(origin):
            return
        scheme, separator, place = origin.partition("://")
        if separator and scheme in {"http", "https"} and host is not None and place.lower() == host.lower():
            return
        raise RefusedError(
            403,
            "origin_not_allowed",
            f"pages of the origin `{origin[:100]}` may not use this server; allow them with `--cors-origin`",
        )

    def _check_key(self, scope: Scope, authorization: str | None) -> str | None:
        """The name of the key of a request; raises RefusedError where it has none, or one that is not known."""
        path = scope["path"]
        is_open = path in OPEN_PATHS or path.startswith(PAGE_FILES)
        # Without a key, nobody may send bodies, which share one bound.
        if self._keys is None or (is_open and scope["method"] in {"GET", "HEAD"}):
            return None
        scheme, _, key = (authorization or "").partition(" ")
        name = self._keys.name_of(key.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            problem = "an API key is needed" if authorization is None else "the API key is not valid"
            raise RefusedError(
                401,
                "invalid_api_key",
                f"{problem}: send the header `Authorization: Bearer KEY`",
                headers={"www-authenticate": "Bearer"},
            )
        return name


def host_name(host: str) -> str:
    """The name in a Host header, without the port and the brackets of IPv6."""
    if host.startswith("["):
        name = host[1:].partition("]")[0]
    else:
        name = host if host.count(":") > 1 else host.partition(":")[0]
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower().rstrip(".")


def _preflight() -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", b"authorization, content-type"),
        (b"access-control-max-age", str(_PREFLIGHT_SECONDS).encode("ascii")),
    ]


class Bounds:
    """Bounds the size of bodies, the number of requests that wait, and the time of each.

    A body is read here, as a whole and against a deadline, so that slow clients take no place in the queue.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        *,
        models: int = 1,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Admit what all `models` together take; that one with a full queue leaves room for others is for its queue."""
        self._app = app
        self._settings = settings
        self._is_stopping = is_stopping
        self._most = models * settings.requests_per_model
        self._admitted = 0
        self._held = 0
        self._mean_seconds = 1.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD", "OPTIONS"}:
            await self._app(scope, receive, send)
            return
        body = bytearray()
        answer = _Answer(send)
        try:
            if not await self._read(scope, receive, body):
                return
            await self._run(scope, _replay(bytes(body), receive), answer)
        except RefusedError as refused:
            await answer.end(refused)
        finally:
            self._held -= len(body)

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> bool:
        """Read a body, False where the client goes away; raises RefusedError for one that is too large or too slow."""
        most, begun = self._settings.max_body, asyncio.get_running_loop().time()
        for length in _values(scope, b"content-length"):
            if length.isdigit() and int(length[:20]) > most:
                raise _too_large(most)
        while True:
            deadline = begun + self._settings.header_seconds + len(body) / _LEAST_RATE
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise RefusedError(
                    408,
                    "body_too_slow",
                    f"the body did not arrive in time: {len(body)} bytes in {deadline - begun:.0f} seconds",
                    headers={"connection": "close"},
                ) from error
            if message["type"] == "http.disconnect":
                return False
            part = message.get("body", b"")
            if len(body) + len(part) > most:
                raise _too_large(most)
            if self._held + len(part) > _BODIES * most:
                raise self._full("the bodies of other requests take all the memory that is set aside for them")
            body += part
            self._held += len(part)
            if not message.get("more_body", False):
                return True

    async def _run(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        if self._admitted >= self._most:
            raise self._full(f"{self._admitted} requests are running or waiting already")
        self._admitted += 1
        loop = asyncio.get_running_loop()
        begun, seconds = loop.time(), self._settings.request_seconds
        try:
            async with asyncio.timeout(seconds) as limit:
                await self._app(scope, receive, answer.send)
        except TimeoutError:
            if not limit.expired():
                raise
            raise RefusedError(
                504,
                "request_timeout",
                f"the request took longer than {seconds:g} seconds",
                headers={"x-should-retry": "false"},
            ) from None
        except asyncio.CancelledError:
            if self._is_stopping():
                await answer.end(RefusedError(503, "stopping", "the server is stopping", headers={"retry-after": "5"}))
            raise
        finally:
            self._admitted -= 1
            self._mean_seconds += 0.1 * (loop.time() - begun - self._mean_seconds)

    def _full(self, why: str) -> RefusedError:
        wait = max(1, min(_LONGEST_WAIT, round(self._mean_seconds)))
        return RefusedError(
            429, "queue_full", f"the server is full: {why}; try again later", headers={"retry-after": str(wait)}
        )


class _Answer:
    """An answer as it is sent, so that it can be ended with an error."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._has_begun = False
        self._is_complete = False
        self._is_stream = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_begun = True
            kinds = [value for name, value in message.get("headers", []) if name.lower() == b"content-type"]
            self._is_stream = any(kind.startswith(b"text/event-stream") for kind in kinds)
        else:
            self._is_complete = not message.get("more_body", False)
        await self._send(message)

    async def end(self, refused: RefusedError) -> None:
        """Answer with an error, or end a stream with one; of another answer, the connection is closed."""
        if not self._has_begun:
            await refused.send(self._send)
        elif self._is_stream and not self._is_complete:
            await self._send({"type": "http.response.body", "body": refused.event()})


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read, and then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> MutableMapping[str, Any]:
        return waiting.pop() if waiting else await receive()

    return replayed


def _values(scope: Scope, name: bytes) -> Iterable[str]:
    return (value.decode("latin-1") for found, value in scope["headers"] if found == name)


def _too_large(most: int) -> RefusedError:
    return RefusedError(
        413, "body_too_large", f"the body of the request has more than {most} bytes, the limit of this server"
    )
