"""One system in a process of its own: `python -m benchmarks.worker TASK SYSTEM MODEL INPUTS OUTPUTS [BATCH]`.

Reads one command per line on stdin and answers each with a JSON list of seconds:

- `run NAME` runs all items of `INPUTS/NAME.json` at once, and writes `OUTPUTS/NAME.npy`: one figure.
- `calls NAME` runs each in a call of its own: one figure per call.

An item is a text to embed, or a search: a query and a list of documents, as many in each search of a set. Imports
nothing of a system that it does not run, so any environment with numpy will do.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import FASTEMBED_MODEL, FASTEMBED_RERANKER

Outputs = NDArray[np.float32]
Embed = Callable[[list[str]], Outputs]
"""Texts to vectors: (texts, dimension)."""
Search = tuple[str, list[str]]
Rerank = Callable[[list[Search]], Outputs]
"""Searches to scores: (searches, documents)."""


class Task(StrEnum):
    """The task."""

    EMBED = "embed"
    RERANK = "rerank"


class System(StrEnum):
    """What can be measured."""

    ORTKIT = "ortkit"
    SENTENCE_TRANSFORMERS = "sentence-transformers"
    SENTENCE_TRANSFORMERS_ONNX = "sentence-transformers-onnx"
    FASTEMBED = "fastembed"
    FLASHRANK = "flashrank"
    OPENVINO = "openvino"

    @property
    def backend(self) -> Any:
        """sentence-transformers' name for its backend."""
        return "torch" if self is System.SENTENCE_TRANSFORMERS else "onnx"


def open_embedder(system: System, model: str, chosen: dict[str, Any]) -> Embed:
    """Load a model, and return a function that embeds texts; `chosen` holds a batch size, if any."""
    if system is System.ORTKIT:
        from ortkit import Embedder

        embedder = Embedder(model)
        # As `embed`, without the warning about truncated texts.
        return lambda texts: embedder.embed_with_report(texts).vectors
    if system in {System.SENTENCE_TRANSFORMERS, System.SENTENCE_TRANSFORMERS_ONNX}:
        from sentence_transformers import SentenceTransformer

        transformer = SentenceTransformer(model, device="cpu", local_files_only=True, backend=system.backend)
        return lambda texts: transformer.encode(texts, **chosen)
    if system is System.OPENVINO:
        from benchmarks.openvino_int8 import Encoder

        return Encoder(Path(model), **chosen).run
    if system is System.FASTEMBED:
        from fastembed import TextEmbedding

        embedding = TextEmbedding(FASTEMBED_MODEL, specific_model_path=model)
        return lambda texts: np.stack(list(embedding.embed(texts, **chosen)))
    raise SystemExit(f"`{system.value}` embeds nothing")


def open_reranker(system: System, model: str, chosen: dict[str, Any]) -> Rerank:
    """Load a model, and return a function that scores searches' documents; `chosen` holds a batch size, if any."""
    if system is System.ORTKIT:
        from ortkit import Reranker

        reranker = Reranker(model)

        def rerank(searches: list[Search]) -> Outputs:
            # As `rank`, without the warning about truncated documents.
            rankings = list(reranker.rank_many_with_report(searches, scores="raw"))
            places = [np.argsort([one.index for one in ranking.ranked]) for ranking in rankings]
            scores = [np.array([one.score for one in ranking.ranked], np.float32) for ranking in rankings]
            return np.stack([own[order] for own, order in zip(scores, places, strict=True)])

        return rerank
    if system in {System.SENTENCE_TRANSFORMERS, System.SENTENCE_TRANSFORMERS_ONNX}:
        from sentence_transformers import CrossEncoder

        encoder = CrossEncoder(model, device="cpu", local_files_only=True, backend=system.backend)
        return by_search(lambda query, texts: encoder.predict([(query, text) for text in texts], **chosen))
    if system is System.OPENVINO:
        from benchmarks.openvino_int8 import Encoder

        pairs = Encoder(Path(model), **chosen)
        return by_search(lambda query, texts: pairs.run([(query, text) for text in texts])[:, 0])
    if system is System.FASTEMBED:
        from fastembed.rerank.cross_encoder import TextCrossEncoder

        cross = TextCrossEncoder(FASTEMBED_RERANKER, specific_model_path=model)
        return by_search(lambda query, texts: np.array(list(cross.rerank(query, texts, **chosen)), np.float32))
    if system is System.FLASHRANK:
        from flashrank import Ranker, RerankRequest

        ranker = Ranker(Path(model).name, cache_dir=str(Path(model).parent), log_level="WARNING")

        def rank(query: str, texts: list[str]) -> Outputs:
            passages = [{"id": place, "text": text} for place, text in enumerate(texts)]
            ranked = ranker.rerank(RerankRequest(query, passages))
            return np.array([one["score"] for one in sorted(ranked, key=lambda one: one["id"])], np.float32)

        return by_search(rank)
    raise SystemExit(f"`{system.value}` reranks nothing")


def by_search(scores_of: Callable[[str, list[str]], Any]) -> Rerank:
    """Reranks searches one after another, as systems do that take one at a time."""
    return lambda searches: np.stack([scores_of(query, texts) for query, texts in searches])


def main(task: str, system: str, model: str, inputs: str, outputs: str, batch: str | None = None) -> None:
    # A batch is counted in texts, by OpenVINO in tokens; without one each system takes its default.
    name = "batch_tokens" if System(system) is System.OPENVINO else "batch_size"
    chosen = {} if batch is None else {name: int(batch)}
    opener: Callable[..., Callable[..., Outputs]] = open_embedder if Task(task) is Task.EMBED else open_reranker
    compute = opener(System(system), model, chosen)
    for line in sys.stdin:
        command, name = line.split()
        items = json.loads((Path(inputs) / f"{name}.json").read_text(encoding="utf-8"))
        seconds = []
        for group in [items] if command == "run" else [[item] for item in items]:
            start = time.perf_counter()
            found = compute(group)
            seconds.append(time.perf_counter() - start)
        if command == "run":
            np.save(Path(outputs) / f"{name}.npy", found)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
