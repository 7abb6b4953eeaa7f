"""What can go wrong between here and the Hub, in edgekit's words."""

from __future__ import annotations

import json
import os
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from runtime.errors import NetworkError

SITE = "https://huggingface.co"
"""Where people accept terms and make tokens, whatever mirror the files come from."""
TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT
"""Seconds to wait for an answer of the Hub: huggingface_hub's own setting, 10 unless the environment changes it."""
HTTP_LIBRARIES = frozenset({"requests", "httpx", "httpx2"})

# The root of the exceptions of whichever HTTP library this huggingface_hub is built on.
TRANSPORT_ERROR: type[Exception] = next(
    base
    for base in reversed(HfHubHTTPError.__mro__)
    if base.__module__.partition(".")[0] in HTTP_LIBRARIES and issubclass(base, Exception)
)

# All that asking the Hub can raise: an answer that says no, none at all, or one that is not the Hub's protocol.
ASKING_FAILED = (HfHubHTTPError, TRANSPORT_ERROR, OSError, ValueError, KeyError)


def status_of(error: BaseException) -> int | None:
    """The status of the answer that made a request fail, None when there was no answer."""
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def host() -> str:
    """The host that HF_ENDPOINT names, with its port and without a password; `huggingface.co` by default."""
    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]


def network_failure(error: BaseException) -> NetworkError | None:
    """The error to raise when the Hub could not be asked or did not answer as it should; None for any other failure."""
    for cause in causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return offline_failure()
    if any(isinstance(cause, json.JSONDecodeError) for cause in causes(error)):
        return strange_answer(error)
    status = status_of(error)
    if status == 429:
        return NetworkError(f"`{host()}` answers 429: too many requests", hint=f"{wait_of(error)}, then try again")
    if status is not None and status >= 500:
        return NetworkError(
            f"`{host()}` answers {status}: it is down or overloaded", hint="try again later, or use `--offline`"
        )
    # What a broken connection is wrapped in differs from version to version; what broke it is in its causes.
    transport = any(
        isinstance(cause, (TRANSPORT_ERROR, socket.gaierror, TimeoutError, ssl.SSLError)) for cause in causes(error)
    )
    return connection_failure(error) if status is None and transport else None


def connection_failure(error: BaseException) -> NetworkError:
    found = list(causes(error))
    proxy = proxy_in_use()
    offline = "with the model in the cache, `--offline` needs no network"
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
            hint=f"correct or unset `{variable}`; {offline}",
        )
    if any(isinstance(cause, socket.gaierror) for cause in found):
        return NetworkError(f"the name `{host()}` cannot be resolved", hint=f"check the network and its DNS; {offline}")
    if any(isinstance(cause, TimeoutError) or type(cause).__name__.endswith("Timeout") for cause in found):
        return NetworkError(f"`{host()}` did not answer within {TIMEOUT} seconds", hint=f"try again; {offline}")
    if any(isinstance(cause, ConnectionRefusedError) for cause in found):
        return NetworkError(f"`{host()}` refuses the connection", hint=f"check HF_ENDPOINT and the network; {offline}")
    return NetworkError(
        f"the connection to `{host()}` broke", hint=f"run the command again, it goes on where it was; {offline}"
    )


def proxy_in_use() -> tuple[str, str] | None:
    """The variable that names a proxy on the way to the Hub, and the proxy's host without its password."""
    scheme = urlsplit(constants.ENDPOINT).scheme
    if urllib.request.proxy_bypass(host()):
        return None
    for variable in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY"):
        if os.environ.get(variable):
            return variable, urlsplit(os.environ[variable]).netloc.rpartition("@")[2] or os.environ[variable]
    return None


def strange_answer(error: BaseException) -> NetworkError:
    status = status_of(error)
    return NetworkError(
        f"`{host()}` answers {status}" if status is not None else f"`{host()}` answers with what the Hub would not say",
        hint="something else may stand there in the Hub's name, such as a proxy's sign-in page; check HF_ENDPOINT",
    )


def offline_failure() -> NetworkError:
    switch = next(
        (name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)), "HF_HUB_OFFLINE"
    )
    return NetworkError(
        f"offline mode is switched on by `{switch}`, so `{host()}` was not asked",
        hint=f"unset `{switch}` on a machine with a network; a model in the cache is exported with `--offline`",
    )


def wait_of(error: BaseException) -> str:
    """What a 429 says about how long to wait."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    seconds = headers.get("Retry-After", "")
    return f"wait {seconds} seconds" if seconds.isdigit() else "wait some minutes"


def causes(error: BaseException) -> Iterator[BaseException]:
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
