"""Nothing phones home: a process that opens any network socket, natively or from Python, dies of it here."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import Bundle

SECONDS = 30

# A seccomp filter that kills the process at socket(2) for IPv4 and IPv6, in every thread that is started after it. It
# sees what libraries do in C++, which no patch of Python's `socket` can.
GUARD = """
import ctypes, platform, struct
number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
LOAD, EQUAL, RETURN, ALLOW, KILL = 0x20, 0x15, 0x06, 0x7FFF0000, 0x80000000
program = b"".join(struct.pack("HBBI", *step) for step in [
    (LOAD, 0, 0, 0), (EQUAL, 0, 4, number),
    (LOAD, 0, 0, 16), (EQUAL, 1, 0, 2), (EQUAL, 0, 1, 10),
    (RETURN, 0, 0, KILL), (RETURN, 0, 0, ALLOW),
])
code = ctypes.create_string_buffer(program)
prog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_char_p(prog), 0, 0) == 0, ctypes.get_errno()
"""
EMBED = """
import sys, time
from runtime import Embedder
embedder = Embedder(sys.argv[1])
assert embedder.embed(["hello"]).shape == (1, 384)
time.sleep(float(sys.argv[2]))
assert embedder.embed(["still there"]).shape == (1, 384)
print("silent")
"""


def guarded(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", GUARD + code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Only what edgekit itself sets may silence what it loads.
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_the_guard_sees_a_socket(family: str) -> None:
    process = guarded(f"import socket; socket.socket(socket.{family}); print('not seen')")
    out, _ = process.communicate(timeout=30)

    assert (process.returncode, out) == (-signal.SIGSYS, "")


def test_the_guard_lets_local_sockets_be() -> None:
    process = guarded("import socket; socket.socket(socket.AF_UNIX); print('fine')")
    out, errors = process.communicate(timeout=30)

    assert (process.returncode, out) == (0, "fine\n"), errors


def test_no_socket_is_opened_for_half_a_minute_after_an_embedding(int8_bundle: Bundle) -> None:
    process = guarded(EMBED, int8_bundle.path, SECONDS)
    out, errors = process.communicate(timeout=SECONDS + 60)

    assert (process.returncode, out) == (0, "silent\n"), errors


def test_an_embedding_needs_no_network(int8_bundle: Bundle) -> None:
    """In a network namespace of its own, where not even the loopback is up."""
    finished = subprocess.run(
        ["unshare", "--map-root-user", "--net", sys.executable, "-c", EMBED, int8_bundle.path, "0"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (finished.returncode, finished.stdout) == (0, "silent\n"), finished.stderr


LATE = """
import warnings
warnings.simplefilter("error")
import onnxruntime
try:
    import runtime
except UserWarning as warning:
    print(type(warning).__name__, warning)
"""


@pytest.mark.parametrize(("value", "warned"), [(None, True), ("0", True), ("1", False)])
def test_an_onnxruntime_that_was_there_first_is_warned_about(
    value: str | None, *, warned: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    if value is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", value)
    # In a namespace without network, so that what the test lets loose reaches nothing.
    finished = subprocess.run(
        ["unshare", "--map-root-user", "--net", sys.executable, "-c", LATE], capture_output=True, text=True, check=True
    )

    assert finished.stdout.startswith("TelemetryWarning onnxruntime was imported before edgekit") == warned


def test_the_switches_are_set_for_this_process_and_its_children() -> None:
    code = "import os, runtime; print([os.environ[name] for name in runtime.telemetry.SWITCHES])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"}
    ).stdout

    assert out.strip() == "['1', '1', '1', '1']"
