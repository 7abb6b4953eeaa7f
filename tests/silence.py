"""Processes that die of opening a network socket, natively or from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
from ortkit import Embedder
embedder = Embedder(sys.argv[1])
assert embedder.embed(["hello"]).shape == (1, 384)
time.sleep(float(sys.argv[2]))
assert embedder.embed(["still there"]).shape == (1, 384)
print("silent")
"""


# Only what ortkit itself sets may silence what it loads.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}


def guarded(code: str, *arguments: object) -> list[str]:
    """The command of a guarded process."""
    return [sys.executable, "-c", GUARD + code, *map(str, arguments)]


def be_silent_for_long(bundle: Path, results: Path) -> None:
    """Start a guarded process that embeds, and again half a minute later, and outlives the call.

    What it shows goes into a folder, and at its end its exit code, so that any process of the tests may look.
    """
    results.mkdir()
    script = '("$@" >"$0/out" 2>"$0/err"; echo $? >"$0/partial"; mv "$0/partial" "$0/code") &'
    command = ["sh", "-c", script, str(results), *guarded(EMBED, bundle, SECONDS)]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT, check=True)
