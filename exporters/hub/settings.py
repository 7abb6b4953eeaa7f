"""What the environment says about the Hub and the way there, checked before a library reads it and stumbles."""

from __future__ import annotations

import importlib.util
import os
import re
import ssl
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from ...runtime.errors import InputError, NetworkError

SITE = "https://huggingface.co"
"""Where people accept terms and make tokens, whatever mirror the files come from."""
NUMBERS = {
    "HF_HUB_ETAG_TIMEOUT": 86_400,
    "HF_HUB_DOWNLOAD_TIMEOUT": 86_400,
    "HF_HUB_LOCAL_DIR_AUTO_SYMLINK_THRESHOLD": 10**15,
}
"""What huggingface_hub reads as integers when it is imported, where anything else ends it -> the largest."""
_CERTIFICATES = {
    "requests": ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    "httpx": ("SSL_CERT_FILE", "SSL_CERT_DIR"),
    "httpx2": ("SSL_CERT_FILE", "SSL_CERT_DIR"),
}
"""HTTP library -> the variables that name certificates."""
_SOCKS = {"requests": ("socks", "pysocks"), "httpx": ("socksio", "socksio"), "httpx2": ("socksio", "socksio")}
"""HTTP library -> the module that it speaks SOCKS with, and the package that has it."""
_PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


def check_numbers() -> None:
    """Raise InputError for a time limit that is not a number. An empty variable counts as one that is not set."""
    for name, largest in NUMBERS.items():
        value = os.environ.get(name)
        if value is None:
            continue
        if not value.strip():
            del os.environ[name]
        elif re.fullmatch("[0-9]{1,16}", value.strip()) is None or int(value) > largest:
            raise InputError(
                f"`{name}` must be an integer from 0 to {largest}, not `{value}`",
                hint=f"correct it, or `unset {name}`",
            )


def endpoint() -> str:
    """The URL of the Hub, or of the mirror that HF_ENDPOINT names; raises InputError for what is not a URL."""
    value = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or SITE
    if _web_host(value, ("http", "https")) is None:
        raise InputError(
            f"`HF_ENDPOINT` must be a URL, not `{_without_password(os.environ['HF_ENDPOINT'].strip())}`",
            hint="write it as `https://HOST`, or `unset HF_ENDPOINT`",
        )
    return value


def _web_host(url: str, schemes: tuple[str, ...]) -> str | None:
    """The host of a URL of one of these schemes, None for what is not such a URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in schemes or port == 0 or not url.isascii() or not url.isprintable() or " " in url:
        return None
    return parts.hostname or None


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://{tail}" if at and "://" in head else tail


def check_network_settings(library: str) -> None:
    """Raise for a proxy or a file of certificates that an HTTP library could not use.

    InputError: a proxy that is not a URL, certificates that are not there. NetworkError: SOCKS without its package.
    """
    url = endpoint()
    for variable, address in _proxies(url, library):
        _check_proxy(variable, address, library)
    if url.startswith("https:"):
        for variable in _CERTIFICATES[library]:
            if os.environ.get(variable):
                _check_certificates(variable, Path(os.environ[variable]))


def _proxies(url: str, library: str) -> list[tuple[str, str]]:
    """The variables that name proxies which a library uses, or only opens, for requests to a URL."""
    found = urllib.request.getproxies()
    parts = urlsplit(url)
    if "*" in [name.strip() for name in found.get("no", "").split(",")]:
        return []
    if library == "requests":
        if urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
            return []
        kinds = [kind for kind in (parts.scheme, "all") if found.get(kind)][:1]
    else:
        # These make a transport for each of them, before the first request.
        kinds = [kind for kind in ("http", "https", "all") if found.get(kind)]
    return [(_variable_of(kind), found[kind]) for kind in kinds]


def _variable_of(kind: str) -> str:
    lower, upper = f"{kind}_proxy", f"{kind.upper()}_PROXY"
    return lower if os.environ.get(lower) else upper


def _check_proxy(variable: str, address: str, library: str) -> None:
    full = address if "://" in address else f"http://{address}"
    if _web_host(full, _PROXY_SCHEMES) is None:
        raise InputError(
            f"`{variable}` must be the URL of a proxy, not `{_without_password(address)}`",
            hint=f"write it as `http://HOST:PORT`, or `unset {variable}`",
        )
    module, package = _SOCKS[library]
    if full.startswith("socks") and importlib.util.find_spec(module) is None:
        raise NetworkError(
            f"`{variable}` names a SOCKS proxy, `{_without_password(full)}`, and the package `{package}` that it takes "
            "is not installed",
            hint=f"run `pip install {package}`, or set `{variable}` to an HTTP proxy",
        )


def _check_certificates(variable: str, path: Path) -> None:
    """Raise InputError for a file of certificates that is not there or holds none."""
    try:
        if not path.is_dir():
            ssl.create_default_context(cafile=str(path))
    except ssl.SSLError:
        problem = "which holds no certificates in PEM format"
    except OSError as error:
        problem = f"which cannot be read: {error.strerror}"
    else:
        return
    raise InputError(f"`{variable}` names `{path}`, {problem}", hint=f"correct it, or `unset {variable}`")
