"""`ortkit serve` as a process on the loopback, and raw requests to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SECONDS = 60.0
"""How long a server may take to start or to end: other processes may stop this one on the way."""


@dataclass(frozen=True)
class Reply:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        return self.json()["error"]["code"]


class ServedProcess:
    """A server that accepts requests."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self.shown: list[str] = []
        self.url = ""
        assert process.stdout is not None
        for line in iter(process.stdout.readline, b""):
            self.shown.append(line.decode().rstrip("\n"))
            if self.shown[-1].startswith("address"):
                self.url = self.shown[-1].split()[1]
                return
        raise AssertionError(f"{process.wait()}: {log.read_text()}")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def log(self) -> list[dict[str, Any]]:
        """The complete lines, apart from what a terminal would show at Ctrl-C."""
        lines = self._log.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def log_text(self) -> str:
        return self._log.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.log() if line["event"] == name]

    def wait_for(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until the log has so many lines of an event."""
        wait_until(lambda: len(self.events(name)) >= count)
        return self.events(name)

    def ask(self, path: str, body: object = None, *, headers: Mapping[str, str] | None = None) -> Reply:
        return ask(self.url + path, body, headers=headers)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        return self.process.wait(_SECONDS)

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


def ask(url: str, body: object = None, *, headers: Mapping[str, str] | None = None) -> Reply:
    """GET, or POST a body as JSON; bytes are sent as they are."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            return Reply(response.status, dict(response.headers.items()), response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, dict(error.headers.items()), error.read())


def wait_until(condition: Callable[[], bool], seconds: float = _SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@contextmanager
def serving(
    folder: Path,
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    launcher: Sequence[str] = (sys.executable,),
) -> Iterator[ServedProcess]:
    """Start a server at a free port, unless the arguments name an address; it is killed at the end if it still runs."""
    log = folder / "log"
    listens = any(str(one) in {"--unix-socket", "--port", "--config"} for one in arguments) or pass_fds
    command = [*launcher, "-m", "ortkit", "serve", *map(str, arguments), *([] if listens else ["--port", "0"])]
    variables = {**os.environ, **(environment or {})}
    with (
        log.open("wb") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=variables, pass_fds=pass_fds) as process,
    ):
        try:
            yield ServedProcess(process, log)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def read_all(connection: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)
