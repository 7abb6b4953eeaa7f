"""Time and peak memory of a process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in one unit of `ru_maxrss`."""
# A process of its own, and a small one: what whoever starts a process holds counts as that one's peak.
LAUNCHER = """
import json, os, sys, time
output = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
start = time.perf_counter()
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[output])
_, status, usage = os.wait4(process, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - start, usage.ru_maxrss]))
"""


@dataclass(frozen=True)
class Cost:
    """Time and peak memory of one process."""

    seconds: float
    peak_bytes: int


def cost_of(command: Sequence[str]) -> Cost:
    """Run a process to its end and discard its output."""
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, *command]
    told = subprocess.run(launcher, stdout=subprocess.PIPE, check=True).stdout
    code, seconds, peak = json.loads(told)
    if code != 0:
        raise SystemExit(f"`{command[0]}` ended with {code}; its messages are above")
    return Cost(seconds, peak * MAXRSS_UNIT)
