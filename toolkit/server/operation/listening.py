"""The socket that a server listens at: an address, a Unix socket, or one inherited from systemd."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ....runtime.errors import InputError, OrtkitError
from ..settings import ServerSettings, is_loopback

BACKLOG = 1024
_MODE = 0o660
_LONGEST_PATH = 107
"""Bytes of a Unix socket's path (`sockaddr_un`), without the terminating zero; macOS has four fewer."""


@dataclass(frozen=True)
class Listener:
    """Sockets that are bound, and what they are called."""

    sockets: tuple[socket.socket, ...]
    addresses: tuple[str, ...]
    settings: ServerSettings
    """With the address that was really bound."""
    path: Path | None = None
    """The Unix socket that this process has made."""
    identity: tuple[int, int] | None = None

    def listen(self) -> None:
        """Accept connections from now on; raises OrtkitError where another process was faster."""
        for bound, address in zip(self.sockets, self.addresses, strict=True):
            try:
                bound.listen(BACKLOG)
            except OSError as error:
                raise _cannot_listen(address, error) from error

    def close(self) -> None:
        """Close the sockets, and remove a Unix socket that is still this process's own."""
        for bound in self.sockets:
            bound.close()
        if self.path is not None:
            with contextlib.suppress(OSError):
                if _identity_of(self.path) == self.identity:
                    self.path.unlink()


def open_listener(settings: ServerSettings, inherited: Sequence[socket.socket] = ()) -> Listener:
    """Bind the address or the Unix socket, without accepting connections yet; inherited sockets replace both.

    Raises InputError where other machines could reach the server and it has no API keys, and OrtkitError for an
    address that cannot be bound.
    """
    if inherited:
        public = next(
            (name for one in inherited if (name := _host_of(one)) is not None and not is_loopback(name)), None
        )
        if public is not None:
            settings = replace(settings, host=public)
            check_public(settings)
        elif all(one.family == socket.AF_UNIX for one in inherited):
            settings = replace(settings, unix_socket=Path(str(inherited[0].getsockname()) or "inherited"))
        return Listener(tuple(inherited), tuple(map(address_of, inherited)), settings)
    check_public(settings)
    return _open_unix(settings, settings.unix_socket) if settings.unix_socket is not None else _open_tcp(settings)


def check_public(settings: ServerSettings) -> None:
    """Raise InputError for an address that other machines reach, without API keys."""
    if settings.is_public and settings.api_keys is None:
        raise InputError(
            f"other machines can reach `{settings.host}`, and no API keys are set",
            hint="name a file of keys with `--api-keys`, or listen at 127.0.0.1",
        )


def address_of(bound: socket.socket) -> str:
    """The URL of a socket, or the path of a Unix socket."""
    if bound.family == socket.AF_UNIX:
        return f"unix:{bound.getsockname()}"
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _host_of(bound: socket.socket) -> str | None:
    return None if bound.family == socket.AF_UNIX else str(bound.getsockname()[0])


def _open_tcp(settings: ServerSettings) -> Listener:
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(f"`{host}` is not an address of this machine", hint="such as 127.0.0.1 or ::1") from error
    family, _, _, _, address = found[0]
    # asyncio sets TCP_NODELAY only where the protocol is named: without it each small packet waits 40 ms.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _cannot_listen(f"{host}:{port}", error) from error
    return Listener((bound,), (address_of(bound),), replace(settings, port=bound.getsockname()[1]))


def _open_unix(settings: ServerSettings, path: Path) -> Listener:
    where = f"the socket `{path}`"
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise InputError(f"{where} cannot be made: its path has more than {_LONGEST_PATH} bytes")
    _remove_left_over(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~_MODE)
    try:
        bound.bind(str(path))
        # At once: a socket that refuses connections is taken for left over. Clients wait until the models are open.
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise _cannot_listen(str(path), error) from error
    finally:
        os.umask(before)
    return Listener((bound,), (f"unix:{path}",), settings, path, _identity_of(path))


def _remove_left_over(path: Path) -> None:
    """Remove the socket of a server that has ended; raises OrtkitError where one answers, or it is not a socket."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise InputError(f"`{path}` exists and is not a socket, so it is not replaced", hint="name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise OrtkitError(f"`{path}` exists and cannot be replaced: {error.strerror or error}") from error
    raise OrtkitError(f"another process listens at `{path}`", hint="stop it, or name another `--unix-socket`")


def _identity_of(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _cannot_listen(address: str, error: OSError) -> OrtkitError:
    if error.errno == errno.EADDRINUSE:
        return OrtkitError(
            f"another process listens at `{address}`", hint="stop it, or choose another port with `--port`"
        )
    if error.errno == errno.EACCES:
        return OrtkitError(
            f"this user may not listen at `{address}`", hint="ports below 1024 are for root: choose `--port 8080`"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return OrtkitError(f"`{address}` is not an address of this machine", hint="such as 127.0.0.1 or ::1")
    return OrtkitError(f"cannot listen at `{address}`: {error.strerror or error}")
