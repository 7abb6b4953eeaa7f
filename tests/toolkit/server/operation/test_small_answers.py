"""Small answers leave at once."""

from __future__ import annotations

import socket
from contextlib import closing

from ortkit.toolkit.server.operation.listening import open_listener
from ortkit.toolkit.server.settings import ServerSettings


def test_connections_send_small_packets_without_delay() -> None:
    # asyncio sets TCP_NODELAY only where the listening socket names the protocol. Without it, the second packet of each
    # answer, and each token of a stream, waits 40 ms for the client's delayed acknowledgement.
    with closing(open_listener(ServerSettings(port=0)).sockets[0]) as listening:
        assert listening.proto == socket.IPPROTO_TCP
