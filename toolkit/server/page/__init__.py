"""The page at `/`: files of this package, which ask no other host for anything."""

from __future__ import annotations

import hashlib
from importlib import resources

from starlette.types import ASGIApp, Receive, Scope, Send

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path -> file and its media type."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: no inline script, no other host, and no page that frames this one."""
_HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",
}


class PageFiles:
    """ASGI middleware: answers the paths of FILES, and passes all others on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        folder = resources.files(__package__)
        self._files = {path: (folder.joinpath(name).read_bytes(), kind) for path, (name, kind) in FILES.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._files.get(scope["path"]) if scope["type"] == "http" else None
        if found is None or scope["method"] not in {"GET", "HEAD"}:
            await self._app(scope, receive, send)
            return
        content, kind = found
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {**_HEADERS, "content-type": kind, "etag": tag}
        is_known = any(name == b"if-none-match" and value == tag.encode("ascii") for name, value in scope["headers"])
        body = b"" if is_known or scope["method"] == "HEAD" else content
        if not is_known:
            headers["content-length"] = str(len(content))
        encoded = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 304 if is_known else 200, "headers": encoded})
        await send({"type": "http.response.body", "body": body})
