"""Export a decoder: tokenizer checks, tracing, block-wise quantization, certificate by next-token probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.bundle.bundle import GRAPH, TOKENIZER, Bundle
from ...runtime.bundle.manifest import CacheType, Certificate, Manifest, Precision, WeightBlocks
from ...runtime.text.safe_tokenizer import open_tokenizer
from ..checkpoint.checkpoint import Checkpoint
from ..gguf.block_formats import BLOCK_READERS
from ..graph.external_data import need_space, weights_bytes, write_graph
from ..graph.nodes import Linear, linears, required
from ..graph.passes import tidy
from ..graph.streamed_tensor import StreamedTensor
from ..models.loading import load_tokenizer
from ..progress import Progress
from .calibration import calibration_windows, compute_moments, moments_by_layer
from .certify import certify_decoder
from .checks import check_float32, keep_blocks, measure_source, refusing_broken_graphs, source_figures
from .config import check_tokens, decoder_facts
from .float16 import check_hidden_states, convert_to_float16
from .float16_cache import convert_cache_to_float16
from .lazy_model import LazyDecoder, open_decoder
from .passes import share_embedding
from .recipe_search import RECIPES, BlockTrials, default_recipe
from .reference import MAX_PROBE_TOKENS, MAX_REFERENCE_LOGITS, DecoderReference, run_reference
from .tracing import rebuild, trace
from .weight_only import Moments
from .work_folder import EXACT, WorkFolder

_MATMUL_NBITS = "MatMulNBits"


class DecoderTask:
    """Export task of decoders; accuracy is the KL divergence of next-token probabilities from PyTorch's.

    Holds what is known before the export begins, and from `begin` on its work folder and its progress. Whatever else a
    method needs are its arguments, or measurements and weights in the work folder.
    """

    def __init__(self, checkpoint: Checkpoint, *, cache: CacheType = CacheType.FLOAT32) -> None:
        """`cache` is the type of the graph's KV cache."""
        self.checkpoint = checkpoint
        self.tokenizer = load_tokenizer(checkpoint)
        self.facts = dataclasses.replace(decoder_facts(checkpoint, self.tokenizer), cache_type=cache)

    def begin(self, work: Path, progress: Progress) -> None:
        self.work = WorkFolder(work)
        self.progress = progress

    def described(self, manifest: Manifest, folder: Path) -> Manifest:
        own = open_tokenizer(folder / TOKENIZER)
        check_tokens(self.checkpoint.name, self.tokenizer, own, self.facts)
        tokens = dataclasses.replace(manifest.tokenizer, max_length=self.facts.context_length)
        return dataclasses.replace(manifest, tokenizer=tokens, decoder=self.facts)

    def load(self) -> LazyDecoder:
        return open_decoder(self.checkpoint)

    def graph(self, model: LazyDecoder, scratch: Path, manifest: Manifest) -> ir.Model:
        graph = trace(model, scratch, plain=self.facts.plain_attention)
        rebuild(graph)
        need_space(self.work.path.parent, self._estimate_bytes(graph, manifest.precision), done=self.work.size)
        if manifest.precision is Precision.FP32:
            share_embedding(graph.graph)
            tidy(graph)
        return graph

    def _estimate_bytes(self, graph: ir.Model, precision: Precision) -> int:
        """Estimate the bytes that an export writes: quantized weights, reference logits, graphs that are checked."""
        compared = 4 * min(MAX_REFERENCE_LOGITS, MAX_PROBE_TOKENS * self.facts.vocabulary)
        checked = weights_bytes(graph) if self.facts.plain_attention and precision is not Precision.FP32 else 0
        file = self.checkpoint.gguf
        # Blocks are kept; scales become float32, and 5 or 6 bits become 8.
        kept = 0 if file is None else 2 * file.stat().st_size
        if precision is Precision.SOURCE:
            return compared + checked + kept
        measured = kept if self._requantizes(precision) else 0
        return compared + checked + max(measured, _quantized_bytes(graph, precision))

    def reference(self, model: LazyDecoder, manifest: Manifest) -> DecoderReference:
        """Run the probe set, and in the same pass the calibration texts of int4."""
        calibration = calibration_windows(self.tokenizer, self.facts) if manifest.precision is Precision.INT4 else []
        store = self.work.measurements("readings")
        return run_reference(model, self.tokenizer, self.facts, calibration, store, self.progress)

    def quantized(
        self, graph: ir.Model, bundle: Bundle, expected: DecoderReference, bar: float | None
    ) -> tuple[ir.Model, Manifest]:
        precision = bundle.manifest.precision
        if self.facts.plain_attention:
            check_float32(graph, bundle, self.checkpoint, expected, self.work)
        if precision is Precision.FP16:
            check_hidden_states(self.checkpoint.name, expected.largest_state)
            share_embedding(graph.graph)
            convert_to_float16(graph.graph)
            tidy(graph)
            return graph, bundle.manifest
        if self.facts.cache_type is CacheType.FLOAT16:
            convert_cache_to_float16(graph.graph)
        if precision is Precision.SOURCE:
            count = len(list(linears(graph.graph)))
            exact = keep_blocks(graph, required(self.checkpoint.gguf), self.work.weights(EXACT).keep)
            return graph, _with_blocks(bundle.manifest, graph, count, "source", exact)
        if self._requantizes(precision):
            measure_source(graph, bundle, required(self.checkpoint.gguf), expected, self.work)
        trials = BlockTrials(graph, bundle, self.work, moments=self._moments_from(expected), progress=self.progress)
        recipe = trials.find(precision, bar, expected)
        made = trials.quantized(recipe)
        return made, _with_blocks(bundle.manifest, made, len(trials.inputs), recipe.rounding.value)

    def _requantizes(self, precision: Precision) -> bool:
        """Whether quantized weights that could be kept are requantized."""
        types = self.checkpoint.block_types
        return precision in RECIPES and bool(types) and types <= BLOCK_READERS.keys()

    def _moments_from(self, reference: DecoderReference) -> Moments:
        """Return how quantization gets the second moments of inputs on calibration texts.

        The squares are those of the reference pass. The moment matrices of GPTQ need a pass of their own for each group
        of layers, over a model that is opened for it.
        """

        def moments(layers: Sequence[Linear], squares_only: bool) -> dict[str, NDArray[np.float32]]:  # noqa: FBT001
            if squares_only:
                return moments_by_layer(layers, reference.squares)
            windows = calibration_windows(self.tokenizer, self.facts)
            return compute_moments(open_decoder(self.checkpoint), windows, layers)

        return moments

    def write(self, graph: ir.Model, folder: Path) -> None:
        write_graph(graph, self.work.weights_of(graph), folder / GRAPH, progress=self.progress)

    def certify(self, bundle: Bundle, expected: DecoderReference, bar: float | None) -> Certificate:
        with refusing_broken_graphs(self.checkpoint, tested=not self.facts.plain_attention):
            certificate = certify_decoder(bundle, expected, max_kl=bar)
        return dataclasses.replace(certificate, figures={**certificate.figures, **source_figures(self.work)})


def _quantized_bytes(graph: ir.Model, precision: Precision) -> int:
    """Estimate the bytes of the weights in a precision."""
    if precision not in RECIPES:
        return weights_bytes(graph) // (2 if precision is Precision.FP16 else 1)
    recipe = default_recipe(precision, [linear.inputs for linear in linears(graph.graph)])
    total = 0
    for value in graph.graph.initializers.values():
        tensor = required(value.const_value)
        if isinstance(tensor, StreamedTensor):
            # A scale per block, and room for zero points, also of embeddings.
            total += tensor.size * recipe.bits // 8 + 6 * tensor.size // recipe.block
        else:
            total += tensor.nbytes
    return total


def _with_blocks(
    manifest: Manifest, graph: ir.Model, products: int, rounding: str, exact: int | None = None
) -> Manifest:
    """Record the quantization in the manifest; `exact` linear layers read float32 weights, at least in part."""
    nodes = [node for node in graph.graph if node.op_type == _MATMUL_NBITS]
    if not nodes:
        return manifest
    bits, block = ([node.attributes.get_int(name, 0) for node in nodes] for name in ("bits", "block_size"))
    output = next(
        (node for node in reversed(list(graph.graph)) if node.op_type in (_MATMUL_NBITS, "MatMul")), nodes[-1]
    )
    blocks = WeightBlocks(
        matmuls=products,
        float32_matmuls=products - len(nodes) if exact is None else exact,
        bits=max(set(bits), key=bits.count),
        output_bits=output.attributes.get_int("bits", 32),
        block=max(set(block), key=block.count),
        output_block=output.attributes.get_int("block_size", 0),
        symmetric=all(len(node.inputs) < 4 for node in nodes),
        rounding=rounding,
    )
    return dataclasses.replace(manifest, blocks=blocks)
