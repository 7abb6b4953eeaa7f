"""One system in a process of its own: `python -m benchmarks.worker SYSTEM MODEL TEXTS_FOLDER VECTORS_FOLDER [BATCH]`.

It takes a command a line on stdin and answers each with a list of seconds, as JSON:

- `embed NAME` embeds all texts of `TEXTS_FOLDER/NAME.json` at once, and writes `VECTORS_FOLDER/NAME.npy`: one figure.
- `calls NAME` embeds each of them by a call of its own: a figure for each call.

Imports nothing of a system that it does not run, so any environment with numpy will do.
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
    SENTENCE_TRANSFORMERS_ONNX = "sentence-transformers-onnx"
    FASTEMBED = "fastembed"
    OPENVINO = "openvino"


def open_system(system: System, model: str, batch: int | None) -> Embed:
    """Load a model, and return what embeds texts with it.

    `batch` is in texts, for OpenVINO in tokens; None is the system's own default.
    """
    chosen: dict[str, Any] = {} if batch is None else {"batch_size": batch}
    if system is System.EDGEKIT:
        from runtime import Embedder

        embedder = Embedder(model)
        # What `embed` does, less the warning about texts that were cut.
        return lambda texts: embedder.embed_with_report(texts).vectors
    if system in {System.SENTENCE_TRANSFORMERS, System.SENTENCE_TRANSFORMERS_ONNX}:
        from sentence_transformers import SentenceTransformer

        backend: Any = "torch" if system is System.SENTENCE_TRANSFORMERS else "onnx"
        transformer = SentenceTransformer(model, device="cpu", local_files_only=True, backend=backend)
        return lambda texts: transformer.encode(texts, **chosen)
    if system is System.OPENVINO:
        from benchmarks.openvino_int8 import Encoder

        return Encoder(Path(model), **({} if batch is None else {"batch_tokens": batch})).embed
    from fastembed import TextEmbedding

    embedding = TextEmbedding(FASTEMBED_MODEL, specific_model_path=model)
    return lambda texts: np.stack(list(embedding.embed(texts, **chosen)))


def main(system: str, model: str, texts_folder: str, vectors_folder: str, batch: str | None = None) -> None:
    embed = open_system(System(system), model, None if batch is None else int(batch))
    for line in sys.stdin:
        command, name = line.split()
        texts = json.loads((Path(texts_folder) / f"{name}.json").read_text(encoding="utf-8"))
        seconds = []
        for group in [texts] if command == "embed" else [[text] for text in texts]:
            start = time.perf_counter()
            vectors = embed(group)
            seconds.append(time.perf_counter() - start)
        if command == "embed":
            np.save(Path(vectors_folder) / f"{name}.npy", vectors)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
