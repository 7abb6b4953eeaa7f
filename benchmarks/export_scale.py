"""Time, memory and size of int4 exports of seeded LLMs with 0.1 to 7 billion weights."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cost import Cost, cost_of
from benchmarks.processor import processor
from benchmarks.table import print_table
from ortkit import Bundle
from tests.seeded_checkpoints import SHAPES, write_seeded

GIBIBYTE = 2**30
CERTIFICATE = "certify against PyTorch"
"""The stage that holds PyTorch's layers beside the bundle's graph."""


@dataclass(frozen=True)
class Measured:
    """Cost and result of an export in a process of its own."""

    name: str
    weights: int
    """Bytes of the checkpoint's."""
    cost: Cost
    uncertified_peak: int
    """Peak bytes before the certificate."""
    stages: dict[str, float]
    """Seconds of each stage."""
    bundle: Bundle


def measure(name: str, scratch: Path, precision: str) -> Measured:
    """Write a checkpoint, export it, and remove it."""
    folder, out, stages = scratch / name, scratch / f"{name}-{precision}", scratch / f"{name}.json"
    write_seeded(folder, SHAPES[name])
    try:
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        worker = [sys.executable, "-m", "benchmarks.export_worker"]
        cost = cost_of([*worker, str(folder), precision, str(out), str(stages)])
        measured = json.loads(stages.read_text())
        peaks = [peak for _, peak in measured.values()]
        uncertified = peaks[list(measured).index(CERTIFICATE) - 1]
        seconds = {stage: seconds for stage, (seconds, _) in measured.items()}
        return Measured(name, weights, cost, uncertified, seconds, Bundle.open(out))
    finally:
        shutil.rmtree(folder)
        stages.unlink(missing_ok=True)


def row(measured: Measured) -> list[str]:
    certificate = measured.bundle.manifest.certificate
    return [
        measured.name,
        f"{measured.weights / 1e9:.2f}",
        f"{measured.cost.seconds:.0f}",
        f"{measured.cost.seconds / (measured.weights / 1e9):.0f}",
        f"{measured.stages[CERTIFICATE]:.0f}",
        f"{measured.uncertified_peak / GIBIBYTE:.2f}",
        f"{measured.cost.peak_bytes / GIBIBYTE:.2f}",
        f"{measured.bundle.size / 1e9:.2f}",
        "" if certificate is None else f"{certificate.figures['kl_mean']:.4f}",
    ]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export_scale", description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=list(SHAPES), metavar="SIZE")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--scratch", type=Path, default=Path("scratch"), help="20 GB are needed there for 7B")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    print(processor())
    rows = []
    for name in options.sizes:
        measured = measure(name, options.scratch, options.precision)
        rows.append(row(measured))
        print("; ".join(f"{stage} {seconds:.1f}" for stage, seconds in measured.stages.items()), file=sys.stderr)
        print("; ".join(rows[-1]), file=sys.stderr)  # The largest takes half an hour: nothing is lost if it fails.
        shutil.rmtree(measured.bundle.path)
    header = [
        "weights",
        "checkpoint GB",
        "seconds",
        "seconds a GB",
        "seconds of the certificate",
        "GiB before the certificate",
        "peak GiB",
        "bundle GB",
        "KL to PyTorch",
    ]
    print_table(f"Exports to {options.precision}, with certificate", header, rows)


if __name__ == "__main__":
    main()
