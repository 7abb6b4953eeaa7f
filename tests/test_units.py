"""The systemd units in docs/examples: systemd accepts them, and they leave ortkit what it needs.

They are not run under systemd here. What `embed` asks of the system is traced, and compared with what they allow.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ortkit import Bundle

UNITS = Path(__file__).parents[1] / "docs" / "examples"
SERVICE = UNITS / "ortkit-embed.service"
SYSTEMD = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def settings(name: str) -> list[str]:
    """The values of a setting of the service."""
    return re.findall(rf"^{name}=(.*)$", SERVICE.read_text("utf-8"), re.MULTILINE)


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@SYSTEMD
def test_systemd_reads_the_units(tmp_path: Path) -> None:
    """With a program at the place that they name."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ortkit").symlink_to(shutil.which("true") or "")
    for path in UNITS.glob("ortkit-embed.*"):
        text = path.read_text("utf-8").replace("/opt/ortkit", str(tmp_path))
        (tmp_path / path.name).write_text(text, "utf-8")

    finished = analyze("verify", *sorted(tmp_path.glob("ortkit-embed.*")))

    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


@SYSTEMD
def test_the_service_is_hardened() -> None:
    """Its exposure is at most 1.0 of 10 (systemd's own measure)."""
    finished = analyze("security", "--offline=true", "--threshold=10", SERVICE)

    assert finished.returncode == 0, finished.stdout


def system_calls(*groups: str) -> set[str]:
    """The system calls of systemd's groups."""
    found: set[str] = set()
    for group in groups:
        for line in analyze("syscall-filter", group).stdout.splitlines()[2:]:
            name = line.strip()
            found |= system_calls(name) if name.startswith("@") else {name}
    return found - {name for name in found if name.startswith("#")}


@SYSTEMD
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_service_allows_what_embed_asks_for(int8_bundle: Bundle, tmp_path: Path) -> None:
    """No other system call, no socket, and no memory that is writable and executable."""
    assert settings("SystemCallFilter") == ["@system-service", "~@privileged"]
    assert settings("RestrictAddressFamilies") == ["none"]
    assert settings("MemoryDenyWriteExecute") == ["yes"]
    allowed = system_calls("@system-service") - system_calls("@privileged")
    assert {"read", "mmap", "sched_setaffinity"} <= allowed
    assert not allowed & {"chown", "mount"}
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
