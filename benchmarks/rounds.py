"""Measure systems in turn, so that a slow spell of the machine affects all alike, and warn if it was busy."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import TypeVar

Measured = TypeVar("Measured")

PAUSE = 0.5
"""Seconds before each run, in which the threads of the run before stop spinning."""
QUIET = 0.1
"""Cores that other processes may use in the pauses."""
_BUSY: list[float] = []
"""Cores that other processes used in each pause of this process."""


def take_turns(runs: Sequence[Callable[[], Measured]], repeats: int) -> list[list[Measured]]:
    """Call all in turn, round by round, and return their results; a first round warms up and is not counted.

    Every other round runs backwards, so that none always follows the same one.
    """
    for run in runs:
        run()
    measured: list[list[Measured]] = [[] for _ in runs]
    busy = []
    for repeat in range(repeats):
        turns = list(zip(runs, measured, strict=True))
        for run, figures in turns if repeat % 2 == 0 else reversed(turns):
            busy.append(other_load())
            figures.append(run())
    warn_if_busy(busy)
    return measured


def other_load() -> float:
    """The cores that other processes use, measured in a pause."""
    before = busy_seconds()
    time.sleep(PAUSE)
    return (busy_seconds() - before) / PAUSE


def warn_if_busy(busy: Sequence[float]) -> None:
    """Keep the load of others for `busy_cores`, and warn if there was any."""
    _BUSY.extend(busy)
    if mean(busy) > QUIET:
        print(
            f"warning: other processes kept {mean(busy):.1f} of {os.cpu_count()} cores busy: do not quote this run; "
            "threads that wait for each other, as the peers' do, lose more by that than ortkit's workers",
            file=sys.stderr,
        )


def busy_cores() -> float | None:
    """Cores that other processes used in the pauses of this process so far, on average; None before the first."""
    return mean(_BUSY) if _BUSY else None


def busy_seconds() -> float:
    """CPU time of all processes of the machine; 0 without `/proc/stat`."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return 0.0
    user, nice, system = map(int, line.split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")
