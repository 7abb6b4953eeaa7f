"""The systemd units in docs/examples: systemd accepts them, and they leave ortkit what it needs.

They are not run under systemd here. What `embed` and `serve` ask of the system is traced, and compared with what they
allow.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ortkit import Bundle
from tests.decoders import write_decoder
from tests.served import serving
from tests.tiny_bundles import write_embedder

UNITS = Path(__file__).parents[1] / "docs" / "examples"
EMBED, SERVE = UNITS / "ortkit-embed.service", UNITS / "ortkit-serve.service"
SYSTEMD = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def settings(service: Path, name: str) -> list[str]:
    """The values of a setting of a service."""
    return re.findall(rf"^{name}=(.*)$", service.read_text("utf-8"), re.MULTILINE)


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@SYSTEMD
def test_systemd_reads_the_units(tmp_path: Path) -> None:
    """With a program at the place that they name."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ortkit").symlink_to(shutil.which("true") or "")
    for path in UNITS.glob("ortkit-*.*"):
        text = path.read_text("utf-8").replace("/opt/ortkit", str(tmp_path))
        (tmp_path / path.name).write_text(text, "utf-8")

    finished = analyze("verify", *sorted(tmp_path.glob("ortkit-*.*")))

    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


@SYSTEMD
@pytest.mark.parametrize("service", [EMBED, SERVE], ids=lambda path: path.stem)
def test_the_services_are_hardened(service: Path) -> None:
    """The exposure is at most 1.0 of 10 (systemd's own measure)."""
    finished = analyze("security", "--offline=true", "--threshold=10", service)

    assert finished.returncode == 0, finished.stdout


def system_calls(*groups: str) -> set[str]:
    """The system calls of systemd's groups."""
    found: set[str] = set()
    for group in groups:
        for line in analyze("syscall-filter", group).stdout.splitlines()[2:]:
            name = line.strip()
            found |= system_calls(name) if name.startswith("@") else {name}
    return found - {name for name in found if name.startswith("#")}


def allowed_calls(service: Path) -> set[str]:
    """The system calls that a service may use."""
    assert settings(service, "SystemCallFilter") == ["@system-service", "~@privileged"]
    assert settings(service, "MemoryDenyWriteExecute") == ["yes"]
    allowed = system_calls("@system-service") - system_calls("@privileged")
    assert {"read", "mmap", "sched_setaffinity"} <= allowed
    assert not allowed & {"chown", "mount"}
    return allowed


@SYSTEMD
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_service_allows_what_embed_asks_for(int8_bundle: Bundle, tmp_path: Path) -> None:
    """No other system call, no socket, and no memory that is writable and executable."""
    assert settings(EMBED, "RestrictAddressFamilies") == ["none"]
    allowed = allowed_calls(EMBED)
    trace, texts = tmp_path / "trace", tmp_path / "texts.txt"
    texts.write_text("the pump does not start\n" * 3)
    command = ["strace", "-f", "-qq", "--signal=none", "-o", trace, sys.executable, "-m", "ortkit", "embed"]
    arguments = [int8_bundle.path, "--input", texts, "--output", tmp_path / "vectors.npy"]
    environment = {"HOME": "/nonexistent", "PATH": "/usr/bin:/bin"}
    finished = subprocess.run(
        [*command, *arguments], env=environment, cwd=UNITS.parents[1], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr

    calls = trace.read_text("utf-8", errors="replace").splitlines()
    names = {found[1] for line in calls if (found := re.match(r"\d+ +(\w+)\(", line))}
    assert {"execve", "openat", "mmap"} <= names
    assert names - allowed <= {"execve"}, "systemd itself starts the program"
    assert not names & {"socket", "socketpair"}
    assert not [line for line in calls if "PROT_WRITE|PROT_EXEC" in line]


@SYSTEMD
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_service_allows_what_serve_asks_for(tmp_path: Path) -> None:
    """With a socket as systemd passes it: no system call that is not allowed, and no socket but those of AF_UNIX."""
    assert settings(SERVE, "RestrictAddressFamilies") == ["AF_UNIX"]
    allowed = allowed_calls(SERVE)
    bundles = [write_embedder(tmp_path / "embedder").path, write_decoder(tmp_path / "decoder")[0].path]
    trace = tmp_path / "trace"
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.bind(str(tmp_path / "notify"))
    with notified, socket.create_server(("127.0.0.1", 0)) as listening:
        prepared = f'exec 3<&{listening.fileno()}; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$0" "$@"'
        # Detached (-D), so that the shell's process becomes the server.
        launcher = ["strace", "-D", "-f", "-qq", "--signal=none", "-o", str(trace), "bash", "-c", prepared]
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"}
        with serving(
            tmp_path,
            *bundles,
            environment=environment,
            pass_fds=[listening.fileno()],
            launcher=[*launcher, sys.executable],
        ) as server:
            messages = [{"role": "user", "content": "a fox"}]
            chat = {"model": "decoder", "messages": messages, "max_tokens": 2}
            assert server.ask("/v1/chat/completions", chat).status == 200
            assert server.ask("/v1/embeddings", {"model": "embedder", "input": "a fox"}).status == 200
            server.signal(signal.SIGHUP)
            server.signal(signal.SIGTERM)
            assert server.end() == 0

    calls = trace.read_text("utf-8", errors="replace").splitlines()
    # What the shell does before it becomes the server is not asked of the service.
    mine = calls[max(place for place, line in enumerate(calls) if "execve(" in line and "ortkit" in line) + 1 :]
    names = {found[1] for line in mine if (found := re.match(r"\d+ +(\w+)\(", line))}
    assert {"accept4", "sendto", "openat"} <= names
    assert names - allowed == set()
    opened = [line for line in mine if re.search(r" socket(pair)?\(", line)]
    assert opened
    assert all("(AF_UNIX, " in line for line in opened), opened
    assert not [line for line in mine if "PROT_WRITE|PROT_EXEC" in line]
