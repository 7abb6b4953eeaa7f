"""Requests to the Hub, with bounds on size, time and redirects: whatever answers there, this process survives.

Works on the session of whichever HTTP library huggingface_hub is built on, with its proxies and certificates. Bodies,
redirects and the token are handled here: bodies are never unpacked without a bound, and the token goes to the host that
was asked and to no other.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import huggingface_hub.utils
from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

from ...runtime.errors import NetworkError
from .errors import HTTP_LIBRARY, TIMEOUT, TRANSPORT_ERROR, HubAnswerError, SlowHubError, host
from .settings import check_network_settings, endpoint
from .token import Token

_MAX_ANSWER = 16 * 2**20
"""Bytes that an answer of the API may have."""
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
BLOCK = 1 << 14
_SLOWEST = 1024
"""Bytes a second below which an answer is given up."""
PATIENCE = 3
"""How many times the time limit of one read is waited before the rate is judged."""
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Head:
    """Status and headers of an answer, the headers' names in lower case."""

    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """An answer whose content is still to come."""

    head: Head
    own: Mapping[str, str]
    """The headers of the host that was asked, before it redirected to another."""
    blocks: Iterator[bytes]


@contextmanager
def no_network() -> Iterator[None]:
    """Let no library ask the Hub: what is converted lies here, whatever other models its files name.

    They would ask with the token that is in force, and whatever host HF_ENDPOINT names.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    _reset_sessions()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        _reset_sessions()


def _reset_sessions() -> None:
    """Let huggingface_hub 0.36 look again whether it may use the network; later versions look at each request."""
    reset = getattr(huggingface_hub.utils, "reset_sessions", None)
    if reset is not None:
        reset()


def ask(path: str, token: Token | None) -> bytes:
    """GET a path of the Hub's API; raises HubAnswerError for a status that says no."""
    with opened(f"{endpoint()}{path}", token, timeout=TIMEOUT) as answer:
        refuse(answer.head)
        content = bytearray()
        for block in answer.blocks:
            content += block
            if len(content) > _MAX_ANSWER:
                raise ValueError(f"an answer of more than {_MAX_ANSWER} bytes")
    return bytes(content)


def ask_json(path: str, token: Token | None) -> Any:
    """The JSON that a path of the Hub's API answers with; raises ValueError for anything else."""
    try:
        return json.loads(ask(path, token))
    except RecursionError as error:
        raise ValueError("JSON of too many levels") from error


def refuse(head: Head) -> None:
    """Raise HubAnswerError for an answer that brings nothing."""
    if not 200 <= head.status < 300:
        raise HubAnswerError(head.status, head.headers.get("x-error-code"), head.headers.get("retry-after"))


@contextmanager
def opened(
    url: str, token: Token | None, *, timeout: float, headers: Mapping[str, str] | None = None
) -> Iterator[Answer]:
    """GET a URL, redirects followed; the token is left out as soon as one leads to another host."""
    check_network_settings(HTTP_LIBRARY)
    asked, own = _place_of(url), dict[str, str]()
    for _ in range(_MAX_REDIRECTS + 1):
        sent = build_hf_headers(token=token.value if token is not None else False) | dict(headers or {})
        # Each request has a thread and so, with requests, a session of its own.
        sent |= {"Accept-Encoding": "identity", "Connection": "close"}
        items = _received(url, sent, timeout)
        try:
            head = next(items, None)
            if not isinstance(head, Head):
                raise ValueError("an answer without a status")  # noqa: TRY004 - the Hub's fault
            own |= head.headers if _place_of(url) == asked else {}
            if head.status not in _REDIRECTS:
                yield Answer(head, own, decoded(items, head.headers.get("content-encoding", "")))
                return
        finally:
            items.close()
        target = redirected(url, head.headers.get("location", ""))
        token = token if _place_of(target) == _place_of(url) or upgraded(url, target) else None
        url = target
    raise ValueError(f"more than {_MAX_REDIRECTS} redirects")


def redirected(url: str, location: str) -> str:
    """Where a redirect leads; raises for what is not a web address, and where it would take TLS away."""
    target = urljoin(url, quote(location, safe="!#$%&'()*+,/:;=?@[]~"))
    scheme, name, _ = _place_of(target)
    if scheme not in _DEFAULT_PORTS or not name:
        raise ValueError("a redirect to what is not a web address")
    if scheme == "http" and _place_of(url)[0] == "https":
        raise NetworkError(
            f"`{host()}` redirects to `http://{name}`, without TLS",
            hint="something between here and the Hub may have changed the answer; check HF_ENDPOINT",
        )
    return target


def _place_of(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port, which a token belongs to."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme)


def upgraded(url: str, target: str) -> bool:
    """Whether a redirect leads to the same host and adds TLS."""
    name = _place_of(url)[1]
    return _place_of(url) == ("http", name, 80) and _place_of(target) == ("https", name, 443)


def decoded(blocks: Iterator[Any], encoding: str) -> Iterator[bytes]:
    """Unpack what came packed although it was not asked for: a block at a time, however much there is in it."""
    if encoding in ("", "identity"):
        yield from blocks
        return
    if encoding not in ("gzip", "x-gzip"):
        raise ValueError("an encoding that was not asked for")
    unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    for block in blocks:
        packed = block
        while packed:
            try:
                yield unpack.decompress(packed, BLOCK)
            except zlib.error as error:
                raise ValueError("content that is not gzip") from error
            packed = unpack.unconsumed_tail


def _received(url: str, headers: Mapping[str, str], timeout: float) -> Generator[Head | bytes, None, None]:
    """Head and content of one answer, given up when it comes slower than _SLOWEST.

    The request runs in a thread: no library's own time limits end a header, or a body, that comes byte by byte.
    """
    arrived: Queue[Head | bytes | Exception | None] = Queue(maxsize=64)
    given_up = Event()

    def put(item: Head | bytes | Exception | None) -> None:
        while not given_up.is_set():
            try:
                arrived.put(item, timeout=0.5)
            except Full:
                continue
            return

    def work() -> None:
        try:
            for item in exchange(url, headers, timeout):
                put(item)
                if given_up.is_set():
                    return
        except Exception as error:  # noqa: BLE001 - it is raised again where the answer is waited for
            put(error)
        put(None)

    Thread(target=work, daemon=True).start()
    try:
        yield from _judged(arrived, PATIENCE * timeout)
    finally:
        given_up.set()


def _judged(arrived: Queue[Head | bytes | Exception | None], window: float) -> Iterator[Head | bytes]:
    """What arrives; raises what was raised there, and SlowHubError when too little came in a time of waiting."""
    waited, count = 0.0, 0
    while True:
        before = time.monotonic()
        try:
            item = arrived.get(timeout=max(window - waited, 0.001))
        except Empty:
            item = b""
        waited += time.monotonic() - before
        if item is None:
            return
        if isinstance(item, Exception):
            raise item
        count += len(item) if isinstance(item, bytes) else 0
        if waited >= window:
            if count < _SLOWEST * window:
                raise SlowHubError(window)
            waited, count = 0.0, 0
        if isinstance(item, Head) or item:
            yield item


def exchange(url: str, headers: Mapping[str, str], timeout: float) -> Iterator[Head | bytes]:
    """One request with the session of the HTTP library that there is; the body as it comes, not unpacked."""
    session: Any = get_session()
    if HTTP_LIBRARY != "requests":
        with session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=False) as response:
            yield _head_of(response)
            yield from response.iter_raw()
        return
    # Its errors are of urllib3, which only requests' own reading turns into requests' errors.
    import urllib3  # noqa: PLC0415 - comes with requests alone

    try:
        with session.get(url, headers=headers, timeout=timeout, allow_redirects=False, stream=True) as response:
            yield _head_of(response)
            yield from response.raw.stream(BLOCK, decode_content=False)
    except urllib3.exceptions.HTTPError as error:
        raise TRANSPORT_ERROR(error) from error
    finally:
        # A later thread may get this one's number, and with it this session, whose connection the Hub has closed.
        session.close()


def _head_of(response: Any) -> Head:
    return Head(response.status_code, {name.lower(): value for name, value in response.headers.items()})
