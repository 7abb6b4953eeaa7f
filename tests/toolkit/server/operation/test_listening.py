"""Sockets that a server listens at, and what systemd and a service say to each other."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from ortkit import InputError, OrtkitError
from ortkit.toolkit.server.operation.listening import open_listener
from ortkit.toolkit.server.operation.liveness import Liveness, Progress
from ortkit.toolkit.server.operation.systemd import Notifier, inherited_sockets
from ortkit.toolkit.server.settings import ServerSettings


def test_a_free_port() -> None:
    listener = open_listener(ServerSettings(port=0))
    try:
        assert listener.addresses == (f"http://127.0.0.1:{listener.settings.port}",)
        assert listener.settings.port > 0
        listener.listen()
        with pytest.raises(OrtkitError) as caught:
            open_listener(ServerSettings(port=listener.settings.port))
        assert caught.value.message == f"another process listens at `127.0.0.1:{listener.settings.port}`"
        assert caught.value.exit_code == 1
    finally:
        listener.close()


def test_two_servers_that_start_at_once() -> None:
    """Both can bind the port while neither listens; the second one then gets the same message."""
    one = open_listener(ServerSettings(port=0))
    other = open_listener(ServerSettings(port=one.settings.port))
    try:
        one.listen()
        with pytest.raises(OrtkitError, match="another process listens at"):
            other.listen()
    finally:
        one.close()
        other.close()


def test_ipv6() -> None:
    try:
        listener = open_listener(ServerSettings(host="::1", port=0))
    except OrtkitError as error:
        pytest.skip(str(error))
    listener.close()
    assert listener.addresses == (f"http://[::1]:{listener.settings.port}",)


def test_public_addresses_need_keys(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(InputError) as caught:
            open_listener(ServerSettings(host=host, port=0))
        assert caught.value.message == f"other machines can reach `{host}`, and no API keys are set"
        assert caught.value.hint == "name a file of keys with `--api-keys`, or listen at 127.0.0.1"
    open_listener(ServerSettings(host="0.0.0.0", port=0, api_keys=tmp_path)).close()


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("no such host", "`no such host` is not an address of this machine"),
        ("a" * 300, f"`{'a' * 300}` is not an address of this machine"),
        ("192.0.2.1", "`192.0.2.1:0` is not an address of this machine"),
    ],
)
def test_addresses_that_are_not_here(host: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OrtkitError) as caught:
        open_listener(ServerSettings(host=host, port=0, api_keys=tmp_path))
    assert (caught.value.message, caught.value.hint) == (message, "such as 127.0.0.1 or ::1")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may listen at any port")
def test_a_port_that_is_not_allowed() -> None:
    with pytest.raises(OrtkitError, match="this user may not listen at"):
        open_listener(ServerSettings(port=1))


def test_a_unix_socket_that_is_left_over(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_over:
        left_over.bind(str(path))
    settings = ServerSettings(unix_socket=path)

    listener = open_listener(settings)

    assert listener.addresses == (f"unix:{path}",)
    with pytest.raises(OrtkitError, match="another process listens at"):
        open_listener(settings)
    path.rename(tmp_path / "moved")
    path.write_text("another's")
    listener.close()
    assert path.read_text() == "another's", "only its own socket is removed"
    with pytest.raises(InputError, match="exists and is not a socket, so it is not replaced"):
        open_listener(settings)


def test_unix_sockets_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its path has more than 107 bytes"):
        open_listener(ServerSettings(unix_socket=tmp_path / ("x" * 108)))
    with pytest.raises(OrtkitError, match=r"cannot listen at .*: No such file or directory"):
        open_listener(ServerSettings(unix_socket=Path("/nowhere/socket")))


def test_inherited_sockets(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # Where systemd has put the first one.
        first = os.dup(listening.fileno())
        variables = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http", "HOME": "/"}

        found = inherited_sockets(variables, first=first)

        assert [one.getsockname() for one in found] == [listening.getsockname()]
        assert variables == {"HOME": "/"}, "child processes do not take them for theirs"
        listener = open_listener(ServerSettings(), found)
        assert listener.addresses == (f"http://127.0.0.1:{listening.getsockname()[1]}",)
        listener.close()
    assert inherited_sockets({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []
    assert inherited_sockets({}) == []
    with socket.create_server(("0.0.0.0", 0)) as public, pytest.raises(InputError, match="no API keys are set"):
        open_listener(ServerSettings(), [public])
    with (tmp_path / "file").open("w") as file, pytest.raises(InputError, match="which is not a socket"):
        inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}, first=os.dup(file.fileno()))


def test_an_inherited_socket_that_does_not_listen() -> None:
    with socket.socket() as idle:
        variables = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
        with pytest.raises(InputError, match="is not a listening stream socket") as caught:
            inherited_sockets(variables, first=idle.detach())
    assert caught.value.hint == "use `ListenStream=` and `Accept=no` in the .socket unit"


def test_notifications(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        variables = {
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "2500000",
            "WATCHDOG_PID": str(os.getpid()),
        }
        notifier = Notifier(variables)
        notifier.ready("serving\na")
        notifier.status("opening", seconds=1.5)
        notifier.alive()

        assert variables == {}
        assert notifier.watchdog_seconds == 2.5
        assert [notified.recv(1000) for _ in range(3)] == [
            b"READY=1\nSTATUS=serving a",
            b"STATUS=opening\nEXTEND_TIMEOUT_USEC=1500000",
            b"WATCHDOG=1",
        ]
    # Nobody listens any more, or never did.
    notifier.stopping("end")
    Notifier({"NOTIFY_SOCKET": "relative"}).reloading()
    assert Notifier({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}).watchdog_seconds is None


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="abstract sockets are Linux's")
def test_notifications_to_an_abstract_socket() -> None:
    name = f"ortkit-test-{os.getpid()}-{threading.get_ident()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(f"\0{name}")
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).alive()

        assert notified.recv(100) == b"WATCHDOG=1"


def test_an_engine_without_progress_is_stalled() -> None:
    now, progress = [0.0], {"a": Progress(busy=True, done=1), "b": Progress(busy=False, done=1)}
    liveness = Liveness(lambda: progress, seconds=10, clock=lambda: now[0])

    assert liveness.stalled() == []
    now[0] = 9
    assert liveness.stalled() == []
    now[0] = 11
    assert liveness.stalled() == ["a"], "b has nothing to do"
    progress["a"] = Progress(busy=True, done=2)
    assert liveness.stalled() == []
    now[0] = 22
    assert liveness.stalled() == ["a"]
    progress["a"] = Progress(busy=False, done=2)
    assert liveness.stalled() == []
    del progress["a"]
    assert liveness.stalled() == []
