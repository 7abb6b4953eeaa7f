"""What surrounds the APIs: keys, limits, connections, sockets, systemd, log and metrics."""
