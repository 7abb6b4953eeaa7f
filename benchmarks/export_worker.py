"""One export in a process of its own: `python -m benchmarks.export_worker SOURCE PRECISION OUT STAGES`.

STAGES is a file that it writes: the stages in their order, and the peak of its memory up to the end of each.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from benchmarks.cost import MAXRSS_UNIT
from ortkit.exporters.export_stage import export
from ortkit.runtime.bundle.manifest import Precision
from ortkit.toolkit.console.progress import StageProgress


class PeaksByStage(StageProgress):
    """Records the peak memory in bytes at the end of each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, int] = {}

    def end(self, stage: str, seconds: float) -> None:
        super().end(stage, seconds)
        self.peaks[stage] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT


def main() -> None:
    source, precision, out, stages = sys.argv[1:]
    progress = PeaksByStage()
    export(source, precision=Precision(precision), out=out, progress=progress)
    Path(stages).write_text(json.dumps(progress.peaks))


if __name__ == "__main__":
    main()
