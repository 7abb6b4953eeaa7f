"""One system in a process of its own: `python -m benchmarks.worker SYSTEM MODEL TEXTS.json VECTORS.npy [BATCH]`.

Each line `run` on stdin makes it embed all texts and answer with the seconds that took; when stdin ends it writes the
vectors of the last run. Imports nothing of a system that it does not run, so any environment with numpy will do.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import FASTEMBED_MODEL

Embed = Callable[[list[str]], NDArray[np.float32]]


class System(str, Enum):
    """What can be measured."""

    EDGEKIT = "edgekit"
    SENTENCE_TRANSFORMERS = "sentence-transformers"
    FASTEMBED = "fastembed"


def open_system(system: System, model: str, batch_size: int | None) -> Embed:
    """Load a model, and return what embeds texts with it; `batch_size` is the system's own default when None."""
    chosen: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
    if system is System.EDGEKIT:
        from runtime import Embedder

        embedder = Embedder(model)
        # What `embed` does, less the warning about texts that were cut.
        return lambda texts: embedder.embed_with_report(texts).vectors
    if system is System.SENTENCE_TRANSFORMERS:
        from sentence_transformers import SentenceTransformer

        transformer = SentenceTransformer(model, device="cpu", local_files_only=True)
        return lambda texts: transformer.encode(texts, **chosen)
    from fastembed import TextEmbedding

    embedding = TextEmbedding(FASTEMBED_MODEL, specific_model_path=model)
    return lambda texts: np.stack(list(embedding.embed(texts, **chosen)))


def main(system: str, model: str, texts_path: str, vectors_path: str, batch_size: str | None = None) -> None:
    texts = json.loads(Path(texts_path).read_text(encoding="utf-8"))
    embed = open_system(System(system), model, None if batch_size is None else int(batch_size))
    vectors = None
    for _ in sys.stdin:
        start = time.perf_counter()
        vectors = embed(texts)
        print(time.perf_counter() - start, flush=True)
    if vectors is not None:
        np.save(vectors_path, vectors)


if __name__ == "__main__":
    main(*sys.argv[1:])
