"""Exports a checkpoint again and again, killed at a random moment of one stage after another, and then to its end.

`python -m tests.exporters.killed_exports PROBE CHECKPOINT BUNDLE SEED STAGE...` prints how many entries of earlier work
each kill left; the folder PROBE has the texts to certify on.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

# Imported once, and torch with it: each export is a fork of this process, which has started no thread yet.
import ortkit.exporters.pipeline  # noqa: F401
from ortkit.exporters.certification import probe
from ortkit.exporters.export_stage import export
from ortkit.exporters.progress import NoProgress
from ortkit.exporters.workdir import work_folder_of

LONGEST = 0.3
"""Seconds into a stage at which it is struck at the latest."""


class Struck(NoProgress):
    """Has this process killed some seconds after a stage began, or at the stage's end where that comes first."""

    def __init__(self, stage: str, moment: float) -> None:
        self.stage = stage
        self.moment = moment

    def begin(self, stage: str) -> None:
        if stage == self.stage:
            # The system ends a process that does not handle this signal as it ends one that is killed.
            signal.setitimer(signal.ITIMER_REAL, self.moment)

    def end(self, stage: str, seconds: float) -> None:  # noqa: ARG002 - as Progress has it
        if stage == self.stage:
            os.kill(os.getpid(), signal.SIGKILL)


def main(probe_folder: str, checkpoint: str, out: str, seed: str, *stages: str) -> None:
    probe.DATA = Path(probe_folder)
    chance = random.Random(int(seed))
    for stage in stages:
        status = ended(checkpoint, out, Struck(stage, chance.uniform(0.001, LONGEST)))
        if not os.WIFSIGNALED(status):
            sys.exit(f"an export ended in another way than by a kill in `{stage}`: {status}")
        print(
            sum(len(path.read_bytes().splitlines()) for path in work_folder_of(Path(out)).rglob("*.journal")),
            flush=True,
        )
    sys.exit(os.waitstatus_to_exitcode(ended(checkpoint, out, NoProgress())))


def ended(checkpoint: str, out: str, progress: NoProgress) -> int:
    """How the process of an export ended."""
    process = os.fork()
    if process == 0:
        export(checkpoint, out=out, progress=progress)
        os._exit(0)
    return os.waitpid(process, 0)[1]


if __name__ == "__main__":
    main(*sys.argv[1:])
