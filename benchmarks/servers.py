"""Servers that are measured: ortkit's and llama.cpp's, each in a process of its own at a free port of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from benchmarks.peers import REPOSITORY

HOST = "127.0.0.1"
START_SECONDS = 120.0
END_SECONDS = 30.0
SHOWN_BYTES = 4000
CLOCK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    name: str
    port: int
    pid: int

    def cpu_seconds(self) -> float:
        """CPU time of its process so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK

    def resident_bytes(self) -> int:
        """Resident memory of its process."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


def ortkit_command(bundles: Mapping[str, Path], *options: str) -> list[str]:
    """The command of ortkit's server, with the names of its models; `{port}` stands for the port."""
    named = [f"{name}={bundle.absolute()}" for name, bundle in bundles.items()]
    return [sys.executable, "-m", "ortkit", "serve", *named, "--host", HOST, "--port", "{port}", *options]


def llama_command(program: Path, model: Path, *, threads: int, slots: int, context: int) -> list[str]:
    """The command of llama.cpp's server with continuous batching; `context` is a slot's limit in tokens."""
    command = [str(program), "--model", str(model), "--host", HOST, "--port", "{port}", "--parallel", str(slots)]
    command += ["--cont-batching", "--threads", str(threads), "--threads-batch", str(threads)]
    return [*command, "--ctx-size", str(slots * context)]


@contextmanager
def running(name: str, command: Sequence[str], *, ready: str = "/health") -> Iterator[Server]:
    """Start a server, wait until `ready` is answered with 200, and end it afterwards; exits if it does not start."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [part.format(port=port) for part in command], cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            if not is_ready(process, port, ready):
                log.seek(0)
                sys.stderr.write(log.read().decode(errors="replace"))
                raise SystemExit(f"{name} does not answer; its messages are above")
            try:
                yield Server(name, port, process.pid)
            except BaseException:
                log.seek(max(0, log.seek(0, os.SEEK_END) - SHOWN_BYTES))
                sys.stderr.write(f"the end of what {name} wrote:\n{log.read().decode(errors='replace')}")
                raise
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def is_ready(process: subprocess.Popen[bytes], port: int, path: str) -> bool:
    """Whether the server answers the path with 200 before it ends, in the time that it has."""
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        connection = HTTPConnection(HOST, port, timeout=5)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return True
        except (OSError, HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    return False
