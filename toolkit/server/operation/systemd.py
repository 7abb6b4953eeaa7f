"""What systemd and a service say to each other: inherited sockets, and the state of the service (sd_notify)."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

from ....runtime.errors import InputError

_FIRST = 3
"""The descriptor of the first inherited socket (SD_LISTEN_FDS_START)."""
_MOST = 64


def inherited_sockets(
    environment: MutableMapping[str, str] | None = None, *, first: int = _FIRST
) -> list[socket.socket]:
    """The listening sockets that systemd has opened for this process, none where it did not.

    The variables are removed, so that child processes do not take them for theirs. Raises InputError for descriptors
    that are not listening stream sockets.
    """
    variables = os.environ if environment is None else environment
    pid, count = variables.pop("LISTEN_PID", ""), variables.pop("LISTEN_FDS", "")
    variables.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    found = []
    for descriptor in range(first, first + min(int(count), _MOST)):
        os.set_inheritable(descriptor, False)
        try:
            opened = socket.socket(fileno=descriptor)
            listens = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise InputError(f"LISTEN_FDS names the descriptor {descriptor}, which is not a socket") from error
        if opened.type != socket.SOCK_STREAM or not listens:
            opened.close()
            raise InputError(
                f"LISTEN_FDS names the descriptor {descriptor}, which is not a listening stream socket",
                hint="use `ListenStream=` and `Accept=no` in the .socket unit",
            )
        found.append(opened)
    return found


class Notifier:
    """Tells systemd the state of this service; does nothing where it was not started by systemd."""

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        """Read and remove the variables, so that child processes do not notify."""
        variables = os.environ if environment is None else environment
        self._address = variables.pop("NOTIFY_SOCKET", "")
        microseconds, pid = variables.pop("WATCHDOG_USEC", ""), variables.pop("WATCHDOG_PID", "")
        is_ours = pid in {"", str(os.getpid())}
        self.watchdog_seconds = int(microseconds) / 1e6 if microseconds.isdigit() and is_ours else None
        """How often at least systemd expects `alive`; None where it does not watch."""

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={_one_line(status)}")

    def status(self, status: str, *, seconds: float | None = None) -> None:
        """Say what is being done; `seconds` is the time that it may take from now on, beyond the limit of the unit."""
        extended = f"\nEXTEND_TIMEOUT_USEC={int(seconds * 1e6)}" if seconds is not None else ""
        self._send(f"STATUS={_one_line(status)}{extended}")

    def reloading(self) -> None:
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        self._send(f"STOPPING=1\nSTATUS={_one_line(status)}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address.startswith(("/", "@")):
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # Whether systemd listens does not matter to the clients of this server.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.setblocking(False)
            notified.sendto(text.encode("utf-8", "replace"), address)


def _one_line(text: str) -> str:
    return " ".join(text.split())
