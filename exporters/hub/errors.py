"""What can go wrong between here and the Hub, in ortkit's words."""

from __future__ import annotations

import os
import re
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ...runtime.errors import NetworkError, OrtkitError
from .settings import endpoint

TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT
"""Seconds to wait for an answer of the Hub: huggingface_hub's own setting, 10 unless the environment changes it."""
_OFFLINE = "with the model in the cache, `--offline` needs no network"
_HTTP_LIBRARIES = frozenset({"requests", "httpx", "httpx2"})

# The root of the exceptions of whichever HTTP library this huggingface_hub is built on.
TRANSPORT_ERROR: type[Exception] = next(
    base
    for base in reversed(HfHubHTTPError.__mro__)
    if base.__module__.partition(".")[0] in _HTTP_LIBRARIES and issubclass(base, Exception)
)

HTTP_LIBRARY = TRANSPORT_ERROR.__module__.partition(".")[0]


class HubAnswerError(Exception):
    """The Hub answered with a status that says no."""

    def __init__(self, status: int, code: str | None = None, retry_after: str | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.code = code
        """The Hub's own name for it, such as `GatedRepo`."""
        self.retry_after = retry_after


class SlowHubError(Exception):
    """Too little of an answer came in a time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


# All that asking the Hub can raise: an answer that says no, none at all, or one that is not the Hub's protocol.
ASKING_FAILED = (HubAnswerError, SlowHubError, TRANSPORT_ERROR, OSError, ValueError)


def host() -> str:
    """The host that HF_ENDPOINT names, with its port and without a password; `huggingface.co` by default."""
    return urlsplit(endpoint()).netloc.rpartition("@")[2]


def network_failure(error: BaseException) -> OrtkitError | None:
    """The error to raise when the Hub could not be asked or did not answer as it should; None for any other failure."""
    if isinstance(error, OrtkitError):
        return error
    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return offline_failure()
    if isinstance(error, SlowHubError):
        return NetworkError(
            f"`{host()}` sent almost nothing for {error.seconds:.0f} seconds", hint=f"try again; {_OFFLINE}"
        )
    if isinstance(error, HubAnswerError):
        return _answer_failure(error)
    # What a broken connection is wrapped in differs from version to version; what broke it is in its causes.
    transport = any(
        isinstance(cause, (TRANSPORT_ERROR, socket.gaierror, TimeoutError, ssl.SSLError)) for cause in _causes(error)
    )
    if transport:
        return _connection_failure(error)
    return strange_answer(error) if isinstance(error, ValueError) else None


def _answer_failure(error: HubAnswerError) -> NetworkError | None:
    """The error for a status that says nothing about what was asked for."""
    status = error.status
    if status == 429:
        return NetworkError(f"`{host()}` answers 429: too many requests", hint=f"{_wait_of(error)}, then try again")
    if status >= 500:
        return NetworkError(
            f"`{host()}` answers {status}: it is down or overloaded", hint="try again later, or use `--offline`"
        )
    return None


def _connection_failure(error: BaseException) -> NetworkError:
    found = list(_causes(error))
    proxy = _proxy_in_use()
    if any(isinstance(cause, ssl.SSLError) for cause in found):
        return NetworkError(
            f"the TLS certificate of `{host()}` is not trusted here",
            hint="where the network inspects TLS, name its certificate in SSL_CERT_FILE and REQUESTS_CA_BUNDLE",
        )
    unreachable = any(
        isinstance(cause, (socket.gaierror, ConnectionRefusedError)) or type(cause).__name__ == "ProxyError"
        for cause in found
    )
    if proxy is not None and unreachable:
        variable, address = proxy
        return NetworkError(
            f"the proxy `{address}` on the way to `{host()}` cannot be used",
            hint=f"correct or unset `{variable}`; {_OFFLINE}",
        )
    if any(isinstance(cause, socket.gaierror) for cause in found):
        return NetworkError(
            f"the name `{host()}` cannot be resolved", hint=f"check the network and its DNS; {_OFFLINE}"
        )
    if any(isinstance(cause, TimeoutError) or type(cause).__name__.endswith("Timeout") for cause in found):
        return NetworkError(f"`{host()}` did not answer within {TIMEOUT} seconds", hint=f"try again; {_OFFLINE}")
    if any(isinstance(cause, ConnectionRefusedError) for cause in found):
        return NetworkError(f"`{host()}` refuses the connection", hint=f"check HF_ENDPOINT and the network; {_OFFLINE}")
    return NetworkError(
        f"the connection to `{host()}` broke", hint=f"run the command again: the download resumes; {_OFFLINE}"
    )


def _proxy_in_use() -> tuple[str, str] | None:
    """The variable that names a proxy on the way to the Hub, and the proxy's host without its password."""
    scheme = urlsplit(endpoint()).scheme
    if urllib.request.proxy_bypass(host()):
        return None
    for variable in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY"):
        if os.environ.get(variable):
            return variable, urlsplit(os.environ[variable]).netloc.rpartition("@")[2] or os.environ[variable]
    return None


def strange_answer(error: BaseException) -> NetworkError:
    answers = (
        f"answers {error.status}" if isinstance(error, HubAnswerError) else "answers with what the Hub would not say"
    )
    return NetworkError(
        f"`{host()}` {answers}",
        hint="something else may stand there in the Hub's name, such as a proxy's sign-in page; check HF_ENDPOINT",
    )


def is_offline() -> bool:
    """Whether the environment forbids the network."""
    return constants.HF_HUB_OFFLINE


def offline_failure() -> NetworkError:
    switch = next(
        (name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)), "HF_HUB_OFFLINE"
    )
    return NetworkError(
        f"offline mode is switched on by `{switch}`, so `{host()}` was not asked",
        hint=f"unset `{switch}` on a machine with a network; a model in the cache is exported with `--offline`",
    )


def _wait_of(error: HubAnswerError) -> str:
    """What a 429 says about how long to wait."""
    seconds = error.retry_after or ""
    return f"wait {seconds} seconds" if re.fullmatch("[0-9]{1,6}", seconds) else "wait some minutes"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and all that led to it, also where libraries keep it in their arguments."""
    seen: set[int] = set()
    pending: list[object] = [error]
    while pending:
        found = pending.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        pending += [found.__cause__, found.__context__, getattr(found, "reason", None), *found.args]
