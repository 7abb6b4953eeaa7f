"""What the steps of an export take and return, whatever the kind of model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ..runtime.bundle.manifest import (
    DecoderFacts,
    EmbedderFacts,
    PrefillGraph,
    Quantization,
    RerankerFacts,
    TokenizerFacts,
    WeightBlocks,
)
from .progress import Progress


@dataclass(frozen=True)
class Workspace:
    """Where an export puts what is not part of the bundle, and where it reports progress."""

    scratch: Path
    """A folder for temporary files, on the file system of the bundle."""
    resumable: Path
    """A folder for results that outlive an interrupted export, for a task that resumes; else `scratch`."""
    progress: Progress


@dataclass(frozen=True)
class ModelFacts:
    """What the runtime needs to know about a model; of the last three, the one of its kind."""

    tokenizer: TokenizerFacts
    embedder: EmbedderFacts | None = None
    reranker: RerankerFacts | None = None
    decoder: DecoderFacts | None = None


@dataclass(frozen=True)
class QuantizedGraph:
    """A graph in the precision of its bundle, and how it was quantized."""

    graph: ir.Model
    quantization: Quantization | None = None
    """Of an int8 encoder."""
    prefill: ir.Model | None = None
    """The 8-bit graph for prompts of a decoder, its weights in a file, where it was asked for."""
    prefill_facts: PrefillGraph | None = None
    blocks: WeightBlocks | None = None
    """Of a decoder whose weights are quantized block-wise."""
