"""Nothing phones home: a process that opens any network socket, natively or from Python, dies of it here."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ortkit import Bundle
from tests.silence import EMBED, ENVIRONMENT, SECONDS, guarded


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(guarded(code), capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=30)


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_the_guard_sees_a_socket(family: str) -> None:
    finished = run(f"import socket; socket.socket(socket.{family}); print('not seen')")

    assert (finished.returncode, finished.stdout) == (-signal.SIGSYS, "")


def test_the_guard_lets_local_sockets_be() -> None:
    finished = run("import socket; socket.socket(socket.AF_UNIX); print('fine')")

    assert (finished.returncode, finished.stdout) == (0, "fine\n"), finished.stderr


def test_no_socket_is_opened_for_half_a_minute_after_an_embedding(silence: Path) -> None:
    deadline = time.monotonic() + SECONDS + 60
    while not (silence / "code").exists():
        assert time.monotonic() < deadline, "the process did not end"
        time.sleep(0.1)

    found = {name: (silence / name).read_text() for name in ("code", "out", "err")}
    assert (found["code"], found["out"]) == ("0\n", "silent\n"), found["err"]


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
    from ortkit import runtime
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

    assert finished.stdout.startswith("TelemetryWarning onnxruntime was imported before ortkit") == warned


def test_the_switches_are_set_for_this_process_and_its_children() -> None:
    code = "import os, runtime; print([os.environ[name] for name in runtime.telemetry.SWITCHES])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"}
    ).stdout

    assert out.strip() == "['1', '1', '1', '1']"
