"""Compare graphs other than the bundle's with PyTorch: before quantization, and with a GGUF file's own blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...runtime.bundle.bundle import GRAPH, GRAPH_DATA
from ...runtime.bundle.folder import DraftBundle
from ...runtime.bundle.manifest import CacheType, Precision
from ...runtime.decoder.decoder import Decoder
from ...runtime.errors import BundleError, OutOfMemoryError, UnsupportedModelError
from ..checkpoint.checkpoint import Checkpoint
from ..gguf.file import stored_matrices
from ..gguf.metadata import open_gguf
from ..graph.array_store import Keep, KeptArrays, Made
from ..graph.external_data import CONTENT, write_graph
from ..graph.passes import tidy
from .certify import agreement_with, checked_agreement
from .gguf_blocks import keep_gguf_blocks
from .passes import share_embedding
from .reference import DecoderReference
from .work_folder import WorkFolder

_SOURCE_FIGURES = ("source_kl_mean", "source_top1_agreement")
"""In the certificate of a requantized GGUF file: `kl_mean` and `top1_agreement` of the file's own blocks."""
_CHECKS, _FLOAT32, _SOURCE = "checks", "unrounded", "source"
"""The store of these comparisons, and the entries in it."""


def check_float32(
    graph: ir.Model, bundle: DraftBundle, checkpoint: Checkpoint, expected: DecoderReference, work: WorkFolder
) -> None:
    """Raise OrtkitError for a float32 graph that differs from PyTorch: quantization would hide a small mistake."""
    exact = draft_of(graph, bundle, Precision.FP32)

    def measure() -> Made:
        with work.scratch() as folder, refusing_broken_graphs(checkpoint):
            write_graph(graph.clone(), KeptArrays(folder / GRAPH_DATA), exact.path / GRAPH)
            return Made({CONTENT: np.array([checked_agreement(Decoder(exact), expected).kl])})

    work.measurements(_CHECKS).keep(_FLOAT32, measure)


def measure_source(
    graph: ir.Model, bundle: DraftBundle, gguf: Path, expected: DecoderReference, work: WorkFolder
) -> None:
    """Compare a GGUF file's own blocks with PyTorch, for `source_figures`, unless their graph cannot run here."""

    def measure() -> Made:
        with work.scratch() as folder:
            made, weights = graph.clone(), KeptArrays(folder / GRAPH_DATA)
            keep_blocks(made, gguf, weights.keep)
            source = draft_of(graph, bundle, Precision.SOURCE)
            write_graph(made, weights, source.path / GRAPH)
            found = agreement_with(Decoder(source), expected)
            return Made({CONTENT: np.array([found.kl, found.top])})

    try:
        work.measurements(_CHECKS).keep(_SOURCE, measure)
    except (UnsupportedModelError, OutOfMemoryError):
        return


def draft_of(graph: ir.Model, bundle: DraftBundle, precision: Precision) -> DraftBundle:
    """Describe the bundle's folder with another graph: its precision, and the type of its KV cache."""
    half = graph.graph.inputs[-1].dtype is ir.DataType.FLOAT16
    cache = CacheType.FLOAT16 if half else CacheType.FLOAT32
    facts = bundle.manifest.decoder and dataclasses.replace(bundle.manifest.decoder, cache_type=cache)
    return DraftBundle(bundle.path, dataclasses.replace(bundle.manifest, precision=precision, decoder=facts))


def source_figures(work: WorkFolder) -> Mapping[str, float]:
    """Return the figures of `measure_source`, empty where it measured nothing."""
    checks = work.measurements(_CHECKS)
    if _SOURCE not in checks.entries:
        return {}
    # It is there, so nothing is made.
    found = checks.keep(_SOURCE, lambda: Made({})).array(CONTENT)
    return dict(zip(_SOURCE_FIGURES, found.tolist(), strict=True))


def keep_blocks(graph: ir.Model, gguf: Path, keep: Keep) -> int:
    """Let a graph read its GGUF file's blocks; returns how many linear layers read other weights too."""
    exact = keep_gguf_blocks(graph, stored_matrices(open_gguf(gguf)), keep=keep)
    share_embedding(graph.graph)
    tidy(graph)
    return exact


@contextmanager
def refusing_broken_graphs(checkpoint: Checkpoint, *, tested: bool = False) -> Iterator[None]:
    """Raise UnsupportedModelError where onnxruntime cannot run the graph of an untested architecture."""
    try:
        yield
    except BundleError as error:
        if tested:
            raise
        raise UnsupportedModelError(
            f"`{checkpoint.name}` traces to a graph that onnxruntime cannot run",
            hint=f"ortkit has no support of its own for `{checkpoint.architecture.name}`",
        ) from error
