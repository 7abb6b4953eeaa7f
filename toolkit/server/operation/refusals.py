"""What the server answers itself, before and around the APIs: errors in OpenAI's shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.types import Send

from ..errors import openai_error


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})

    def content(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        return openai_error(self.message, self.status, code=self.code)

    def body(self) -> bytes:
        return json.dumps(self.content()).encode("ascii")

    def event(self) -> bytes:
        """The error as an event of a stream that has begun (SSE)."""
        return b"data: " + self.body() + b"\n\n"

    async def send(self, send: Send) -> None:
        """Answer a request that has no answer yet."""
        body = self.body()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **self.headers}
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": encoded})
        await send({"type": "http.response.body", "body": body})
