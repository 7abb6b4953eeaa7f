"""One export in a process of its own: `python -m benchmarks.export_worker SOURCE PRECISION OUT STAGES`.

STAGES is a file that it writes: the stages in their order, and of each its seconds and the peak of memory at its end.
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


class CostByStage(StageProgress):
    """Records the seconds of each stage, and the peak memory in bytes at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[str, tuple[float, int]] = {}

    def end(self, stage: str, seconds: float) -> None:
        super().end(stage, seconds)
        self.costs[stage] = seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT


def main() -> None:
    source, precision, out, stages = sys.argv[1:]
    progress = CostByStage()
    export(source, precision=Precision(precision), out=out, progress=progress)
    Path(stages).write_text(json.dumps(progress.costs))


if __name__ == "__main__":
    main()
