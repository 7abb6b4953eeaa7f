"""Exports a checkpoint again and again, killed at random moments, until one of them ends by itself.

`python -m tests.exporters.killed_exports CHECKPOINT BUNDLE KILLS SEED` prints how many were killed, and how many files
of earlier work the last one found.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

# Imported once: each export is a fork of this process, which has started no thread yet.
from exporters import export


def main(checkpoint: str, out: str, kills: str, seed: str) -> None:
    chance = random.Random(int(seed))
    unfinished = Path(out).parent / f".{Path(out).name}.unfinished"
    killed, longest = 0, 2.0
    while killed < int(kills):
        process = start(checkpoint, out)
        begun, moment = time.monotonic(), chance.uniform(0, longest)
        while time.monotonic() - begun < moment and not has_ended(process):
            time.sleep(0.002)
        os.kill(process, signal.SIGKILL)
        ended = os.waitpid(process, 0)[1]
        if ended == 0:
            # It came to its end: begin anew, and strike earlier.
            longest = 0.8 * moment
            continue
        killed += 1
        longest *= 1.1
    print(killed, len(list(unfinished.rglob("*.journal"))), flush=True)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(start(checkpoint, out), 0)[1]))


def start(checkpoint: str, out: str) -> int:
    process = os.fork()
    if process == 0:
        export(checkpoint, out=out)
        os._exit(0)
    return process


def has_ended(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


if __name__ == "__main__":
    main(*sys.argv[1:])
