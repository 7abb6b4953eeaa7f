"""Export a decoder: tokenizer checks, tracing, block-wise quantization, certificate by next-token probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.bundle.bundle import GRAPH, GRAPH_DATA, TOKENIZER
from ...runtime.bundle.folder import DraftBundle
from ...runtime.bundle.manifest import (
    CacheType,
    Certificate,
    DecoderFacts,
    Manifest,
    Precision,
    Provider,
    TokenizerFacts,
    WeightBlocks,
)
from ...runtime.errors import UnsupportedModelError
from ...runtime.text.safe_tokenizer import open_tokenizer
from ..checkpoint.checkpoint import Checkpoint
from ..gguf.block_formats import BLOCK_READERS
from ..graph.array_store import Keep
from ..graph.external_data import need_space, store_weights, weights_bytes, weights_file, write_stored_graph
from ..graph.float16 import check_hidden_states
from ..graph.nodes import Linear, linears, required
from ..graph.passes import tidy
from ..graph.streamed_tensor import StreamedTensor
from ..models.loading import load_tokenizer
from ..providers.cuda import plain_attention_refused
from ..steps import ModelFacts, QuantizedGraph, Workspace
from .calibration import calibration_windows, compute_moments, moments_by_layer
from .certify import MAX_KL, certify_decoder
from .checks import check_float32, draft_of, keep_blocks, measure_source, refusing_broken_graphs, source_figures
from .config import check_tokens, decoder_facts
from .float16 import convert_cache_to_float16, convert_to_float16
from .int8_cache import quantize_cache
from .lazy_model import LazyDecoder, open_decoder
from .passes import share_embedding
from .prefill import make_prefill_graph
from .recipe_search import RECIPES, BlockTrials, default_recipe
from .reference import MAX_PROBE_TOKENS, MAX_REFERENCE_LOGITS, DecoderReference, run_reference
from .tracing import rebuild, trace
from .weight_only import Moments
from .work_folder import EXACT, WorkFolder

_MATMUL_NBITS = "MatMulNBits"


@dataclass(frozen=True)
class DecoderTask:
    """Next-token probabilities; agreement is the KL divergence from PyTorch's.

    Results that an interrupted export resumes from are in the work folder: see `WorkFolder`.
    """

    checkpoint: Checkpoint
    tokenizer: Any
    """transformers' own."""
    settings: DecoderFacts
    provider: Provider = Provider.CPU
    """The execution provider that the graph is made for."""
    prefill: bool = False
    """Whether to make an 8-bit graph for prompts too."""

    resumable: ClassVar[bool] = True

    @classmethod
    def open(
        cls, checkpoint: Checkpoint, cache: CacheType, provider: Provider = Provider.CPU, *, prefill: bool = False
    ) -> DecoderTask:
        """Read the facts of a checkpoint; `cache` is the type of the graph's KV cache."""
        tokenizer = load_tokenizer(checkpoint)
        facts = dataclasses.replace(decoder_facts(checkpoint, tokenizer), cache_type=cache)
        if provider is Provider.CUDA and facts.plain_attention:
            raise plain_attention_refused(checkpoint.name, checkpoint.architecture, facts.head_size)
        if cache is CacheType.INT8 and facts.plain_attention:
            raise UnsupportedModelError(
                f"`{checkpoint.name}` is exported with attention of plain operators, which has no int8 KV cache",
                hint="use `--cache float16` for half of the memory, or leave out `--cache`",
            )
        return cls(checkpoint, tokenizer, facts, provider, prefill)

    def facts(self, tokenizer: TokenizerFacts, folder: Path) -> ModelFacts:
        check_tokens(self.checkpoint.name, self.tokenizer, open_tokenizer(folder / TOKENIZER), self.settings)
        tokens = dataclasses.replace(tokenizer, max_length=self.settings.context_length)
        return ModelFacts(tokens, decoder=self.settings)

    def load(self) -> LazyDecoder:
        return open_decoder(self.checkpoint)

    def trace(self, model: LazyDecoder, manifest: Manifest, work: Workspace) -> ir.Model:
        graph = trace(model, work.scratch, plain=self.settings.plain_attention)
        rebuild(graph)
        done = WorkFolder(work.resumable).size
        need_space(work.resumable.parent, self._estimate_bytes(graph, manifest.precision), done=done)
        if manifest.precision is Precision.FP32:
            share_embedding(graph.graph)
            tidy(graph)
        return graph

    def _estimate_bytes(self, graph: ir.Model, precision: Precision) -> int:
        """Estimate the bytes that an export writes: quantized weights, reference logits, graphs that are checked."""
        compared = 4 * min(MAX_REFERENCE_LOGITS, MAX_PROBE_TOKENS * self.settings.vocabulary)
        checked = weights_bytes(graph) if self.settings.plain_attention and precision is not Precision.FP32 else 0
        # 8 bits for each weight of 32.
        prompts = weights_bytes(graph) // 4 if self.prefill else 0
        file = self.checkpoint.gguf
        # Blocks are kept; scales become float32, and 5 or 6 bits become 8.
        kept = 0 if file is None else 2 * file.stat().st_size
        if precision is Precision.SOURCE:
            return compared + checked + prompts + kept
        measured = kept if self._requantizes(precision) else 0
        return compared + checked + prompts + max(measured, _quantized_bytes(graph, precision, self.provider))

    def reference(self, model: LazyDecoder, draft: DraftBundle, work: Workspace) -> DecoderReference:
        """Run the probe set, and in the same pass the calibration texts of int4."""
        int4 = draft.manifest.precision is Precision.INT4
        calibration = calibration_windows(self.tokenizer, self.settings) if int4 else []
        store = WorkFolder(work.resumable).measurements("readings")
        return run_reference(model, self.tokenizer, self.settings, calibration, store, work.progress)

    def quantize(
        self,
        graph: ir.Model,
        trial: DraftBundle,
        reference: DecoderReference,
        threshold: float | None,
        work: Workspace,
    ) -> QuantizedGraph:
        if self.settings.cache_type is not CacheType.INT8:
            return self._quantize_weights(graph, trial, reference, threshold, work)
        # Scales of the cache are measured once weights are final, and blocks are compared without it.
        exact = draft_of(graph, trial, trial.manifest.precision)
        made = self._quantize_weights(graph, exact, reference, threshold, work)
        quantize_cache(made.graph, exact, calibration_windows(self.tokenizer, self.settings), prefill=made.prefill)
        return made

    def _quantize_weights(
        self,
        graph: ir.Model,
        trial: DraftBundle,
        reference: DecoderReference,
        threshold: float | None,
        work: Workspace,
    ) -> QuantizedGraph:
        folder, precision = WorkFolder(work.resumable), trial.manifest.precision
        if self.settings.plain_attention:
            check_float32(graph, trial, self.checkpoint, reference, folder)
        if self.provider is Provider.CUDA:
            check_hidden_states(self.checkpoint.name, reference.largest_state)
        if precision is Precision.FP16:
            share_embedding(graph.graph)
            convert_to_float16(graph.graph)
            tidy(graph)
            return QuantizedGraph(graph)
        if self.settings.cache_type is CacheType.FLOAT16 and self.provider is Provider.CPU:
            convert_cache_to_float16(graph.graph)
        if precision is Precision.SOURCE:
            count, weights = len(list(linears(graph.graph))), folder.weights(EXACT)
            gguf, prompts = required(self.checkpoint.gguf), graph.clone() if self.prefill else None
            exact = keep_blocks(graph, gguf, weights.keep)
            store_weights(graph, weights, progress=work.progress)
            blocks = _blocks_of(graph, count, "source", exact)
            return self._with_prefill(
                QuantizedGraph(graph, blocks=blocks), prompts, lambda rest: _keep_rest(rest, gguf, weights.keep), work
            )
        if self._requantizes(precision):
            measure_source(graph, trial, required(self.checkpoint.gguf), reference, folder)
        trials = BlockTrials(graph, trial, folder, moments=self._moments_from(reference), progress=work.progress)
        # A looser limit than the certificate's own would find what is refused afterwards.
        limit = None if threshold is None else min(threshold, MAX_KL[precision])
        recipe = trials.find(precision, limit, reference)
        made = trials.quantized(recipe)
        blocks = _blocks_of(made, len(trials.inputs), recipe.rounding.value)
        prompts = graph.clone() if self.prefill else None
        # The last graph that was measured; onnx_ir reads no file that has two names.
        (trial.path / GRAPH_DATA).unlink(missing_ok=True)
        return self._with_prefill(
            QuantizedGraph(made, blocks=blocks), prompts, partial(trials.quantize_rest, recipe), work
        )

    def _with_prefill(
        self,
        quantized: QuantizedGraph,
        graph: ir.Model | None,
        quantize_rest: Callable[[ir.Model], None],
        work: Workspace,
    ) -> QuantizedGraph:
        """Add the 8-bit graph for prompts, made of a float32 `graph`; None for none."""
        if graph is None:
            return quantized
        weights = WorkFolder(work.resumable).prefill_weights()
        facts = make_prefill_graph(graph, quantize_rest, weights, progress=work.progress)
        return dataclasses.replace(quantized, prefill=graph, prefill_facts=facts)

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
            windows = calibration_windows(self.tokenizer, self.settings)
            return compute_moments(open_decoder(self.checkpoint), windows, layers)

        return moments

    def write(self, graph: ir.Model, folder: Path, work: Workspace) -> None:
        file = weights_file(graph)
        if file is None:
            # Not quantized: the weights are still in the checkpoint.
            weights = WorkFolder(work.resumable).weights(EXACT)
            store_weights(graph, weights, progress=work.progress)
            file = weights.path
        write_stored_graph(graph, file, folder / GRAPH)

    def certify(
        self, draft: DraftBundle, reference: DecoderReference, threshold: float | None, work: Workspace
    ) -> Certificate:
        with refusing_broken_graphs(self.checkpoint, tested=not self.settings.plain_attention):
            certificate = certify_decoder(draft, reference, max_kl=threshold)
        source = source_figures(WorkFolder(work.resumable))
        return dataclasses.replace(certificate, figures={**certificate.figures, **source})


def _keep_rest(graph: ir.Model, gguf: Path, keep: Keep) -> None:
    """Let what is float32 still in a graph read its GGUF file's blocks."""
    keep_blocks(graph, gguf, keep)


def _quantized_bytes(graph: ir.Model, precision: Precision, provider: Provider) -> int:
    """Estimate the bytes of the weights in a precision."""
    if precision not in RECIPES:
        return weights_bytes(graph) // (2 if precision is Precision.FP16 else 1)
    recipe = default_recipe(precision, [linear.inputs for linear in linears(graph.graph)], provider)
    total = 0
    for value in graph.graph.initializers.values():
        tensor = required(value.const_value)
        if isinstance(tensor, StreamedTensor):
            # A scale per block, and room for zero points, also of embeddings.
            total += tensor.size * recipe.bits // 8 + 6 * tensor.size // recipe.block_size
        else:
            total += tensor.nbytes
    return total


def _blocks_of(graph: ir.Model, matmuls: int, rounding: str, exact: int | None = None) -> WeightBlocks | None:
    """Describe the quantization of a graph; `exact` linear layers read float32 weights, at least in part."""
    nodes = [node for node in graph.graph if node.op_type == _MATMUL_NBITS]
    if not nodes:
        return None
    bits, block = ([node.attributes.get_int(name, 0) for node in nodes] for name in ("bits", "block_size"))
    output = next(
        (node for node in reversed(list(graph.graph)) if node.op_type in (_MATMUL_NBITS, "MatMul")), nodes[-1]
    )
    return WeightBlocks(
        matmuls=matmuls,
        float32_matmuls=matmuls - len(nodes) if exact is None else exact,
        bits=max(set(bits), key=bits.count),
        output_bits=output.attributes.get_int("bits", 32),
        block=max(set(block), key=block.count),
        output_block=output.attributes.get_int("block_size", 0),
        symmetric=all(len(node.inputs) < 4 for node in nodes),
        rounding=rounding,
    )
