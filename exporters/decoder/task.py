"""Export a decoder: tokenizer checks, tracing, block-wise quantization, certificate by next-token probabilities."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.bundle.bundle import GRAPH, GRAPH_DATA, TOKENIZER, Bundle
from ...runtime.bundle.manifest import CacheType, Certificate, Manifest, Precision, WeightBlocks
from ...runtime.decoder.decoder import Decoder
from ...runtime.errors import BundleError, OutOfMemoryError, UnsupportedModelError
from ...runtime.text.safe_tokenizer import open_tokenizer
from ..certification.probe import calibration_texts
from ..checkpoint.checkpoint import Checkpoint
from ..gguf.block_formats import BLOCK_READERS
from ..gguf.file import stored_matrices
from ..gguf.metadata import open_gguf
from ..graph.array_store import KeptArrays, Made
from ..graph.external_data import CONTENT, need_space, weights_bytes, write_graph
from ..graph.nodes import Linear, linears, required
from ..graph.passes import tidy
from ..graph.streamed_tensor import StreamedTensor
from ..models.loading import load_tokenizer
from ..progress import Progress
from .calibration import MomentsObserver
from .certify import (
    MAX_PROBE_TOKENS,
    MAX_REFERENCE_LOGITS,
    DecoderReference,
    ProbeObserver,
    agreement_with,
    certify_decoder,
    checked_agreement,
)
from .config import check_tokens, decoder_facts
from .float16 import check_hidden_states, convert_to_float16
from .float16_cache import convert_cache_to_float16
from .gguf_blocks import keep_gguf_blocks
from .layerwise import LayerwiseForward
from .lazy_model import LazyDecoder, open_decoder
from .passes import share_embedding
from .recipe_search import RECIPES, BlockTrials, default_recipe
from .tracing import rebuild, trace

_CALIBRATION_LENGTH = 256
"""Tokens per calibration text: enough context for the attention."""
_CALIBRATION_TOKENS = 2048
"""Calibration tokens in all: more change the KL divergence less than the choice of texts does."""
_MATMUL_NBITS = "MatMulNBits"
_SOURCE_FIGURES = ("source_kl_mean", "source_top1_agreement")
"""In the certificate of a requantized GGUF file: `kl_mean` and `top1_agreement` of the file's own blocks."""


class DecoderTask:
    """Export task of decoders; accuracy is the KL divergence of next-token probabilities from PyTorch's."""

    def __init__(self, checkpoint: Checkpoint, *, cache: CacheType = CacheType.FLOAT32) -> None:
        """`cache` is the type of the graph's KV cache."""
        self.checkpoint = checkpoint
        self.tokenizer = load_tokenizer(checkpoint)
        self.facts = dataclasses.replace(decoder_facts(checkpoint, self.tokenizer), cache_type=cache)
        self.kept: KeptArrays | None = None
        """The weights quantized by the last recipe tried."""
        self.of_source: Mapping[str, float] = {}
        """How far a GGUF file's own blocks are from PyTorch, where its weights are requantized: `_SOURCE_FIGURES`."""
        self.squares: Mapping[str, NDArray[np.float32]] = {}
        """Weight, by its name in the checkpoint -> the sum of its squared inputs on calibration texts."""

    def begin(self, work: Path, progress: Progress) -> None:
        self.work = work
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
        done = sum(path.stat().st_size for path in self.work.rglob("*") if path.is_file())
        need_space(self.work.parent, self._estimate_bytes(graph, manifest.precision), done=done)
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
        probe = ProbeObserver(model, self.tokenizer, self.facts)
        texts: list[Sequence[int]] = list(probe.windows)
        moments = MomentsObserver(len(texts), squares_only=True)
        if manifest.precision is Precision.INT4:
            texts += self._calibration_windows()

        def read() -> Made:
            LayerwiseForward(model, texts, probe, moments).run(self.progress)
            found = {f"logprobs {number}": array for number, array in enumerate(probe.logprobs)}
            found |= {f"states {number}": array for number, array in enumerate(probe.states)}
            return Made(found | {f"squares {name}": array for name, array in moments.found.items()})

        kept = KeptArrays(self.work / "readings").keep("reference", read)
        arrays = {key: kept.array(key) for key in kept.arrays}
        probe.logprobs = [array for key, array in arrays.items() if key.startswith("logprobs ")]
        probe.states = [array for key, array in arrays.items() if key.startswith("states ")]
        self.squares = {key[len("squares ") :]: array for key, array in arrays.items() if key.startswith("squares ")}
        self.model = model
        return probe.reference()

    def quantized(
        self, graph: ir.Model, bundle: Bundle, expected: DecoderReference, bar: float | None
    ) -> tuple[ir.Model, Manifest]:
        precision = bundle.manifest.precision
        if self.facts.plain_attention:
            self._check_float32(graph, bundle, expected)
        if precision is Precision.FP16:
            check_hidden_states(self.checkpoint.name, expected.states)
            share_embedding(graph.graph)
            convert_to_float16(graph.graph)
            tidy(graph)
            return graph, bundle.manifest
        if self.facts.cache_type is CacheType.FLOAT16:
            convert_cache_to_float16(graph.graph)
        if precision is Precision.SOURCE:
            products = len(list(linears(graph.graph)))
            exact = self._keep_blocks(graph, self._weights_of())
            return graph, _with_blocks(bundle.manifest, graph, products, "source", exact)
        if self._requantizes(precision):
            self.of_source = self._measure_source(graph, bundle, expected)
        trials = BlockTrials(
            graph, bundle, self.work, moments=self._moments, weights=self._weights_of, progress=self.progress
        )
        recipe = trials.find(precision, bar, expected)
        made = trials.quantized(recipe)
        return made, _with_blocks(bundle.manifest, made, len(trials.inputs), recipe.rounding.value)

    def _check_float32(self, graph: ir.Model, bundle: Bundle, expected: DecoderReference) -> None:
        """Raise OrtkitError for a float32 graph that differs from PyTorch: quantization would hide a small mistake."""
        facts = dataclasses.replace(self.facts, cache_type=CacheType.FLOAT32)
        exact = Bundle(bundle.path, dataclasses.replace(bundle.manifest, precision=Precision.FP32, decoder=facts))

        def measure() -> Made:
            with TemporaryDirectory(dir=self.work) as folder, self._refusing_broken_graphs():
                write_graph(graph.clone(), KeptArrays(Path(folder) / GRAPH_DATA), exact.path / GRAPH)
                return Made({CONTENT: np.array([checked_agreement(Decoder(exact), expected).kl])})

        KeptArrays(self.work / "checks").keep("unrounded", measure)

    def _requantizes(self, precision: Precision) -> bool:
        """Whether quantized weights that could be kept are requantized."""
        types = self.checkpoint.block_types
        return precision in RECIPES and bool(types) and types <= BLOCK_READERS.keys()

    def _measure_source(self, graph: ir.Model, bundle: Bundle, expected: DecoderReference) -> Mapping[str, float]:
        """Measure the same model in `source` precision; empty where it cannot run here."""

        def measure() -> Made:
            with TemporaryDirectory(dir=self.work) as folder:
                made, weights = graph.clone(), KeptArrays(Path(folder) / GRAPH_DATA)
                self._keep_blocks(made, weights)
                source = Bundle(bundle.path, dataclasses.replace(bundle.manifest, precision=Precision.SOURCE))
                write_graph(made, weights, source.path / GRAPH)
                found = agreement_with(Decoder(source), expected)
                return Made({CONTENT: np.array([found.kl, found.top])})

        try:
            found = KeptArrays(self.work / "checks").keep("source", measure).array(CONTENT)
        except (UnsupportedModelError, OutOfMemoryError):
            return {}
        return dict(zip(_SOURCE_FIGURES, found.tolist(), strict=True))

    def _keep_blocks(self, graph: ir.Model, weights: KeptArrays) -> int:
        """Let the graph read its GGUF file's blocks; returns how many linear layers read other weights too."""
        if self.checkpoint.gguf is None:
            raise ValueError("only a GGUF file has blocks to keep")
        exact = keep_gguf_blocks(graph, stored_matrices(open_gguf(self.checkpoint.gguf)), keep=weights.keep)
        share_embedding(graph.graph)
        tidy(graph)
        return exact

    def _weights_of(self, recipe: str = "weights") -> KeptArrays:
        """Return the store for the weights of a recipe, and delete those of other recipes."""
        folder = self.work / recipe
        if self.kept is None or self.kept.path.parent != folder:
            for other in self.work.iterdir():
                if other.is_dir() and other != folder:
                    shutil.rmtree(other)
            folder.mkdir(exist_ok=True)
            self.kept = KeptArrays(folder / GRAPH_DATA)
        return self.kept

    def _calibration_windows(self) -> list[list[int]]:
        """Tokenize the calibration texts, cut to `_CALIBRATION_LENGTH`."""
        ids = self.tokenizer("\n".join(calibration_texts().texts))["input_ids"][:_CALIBRATION_TOKENS]
        length = min(_CALIBRATION_LENGTH, self.facts.context_length)
        return [ids[start : start + length] for start in range(0, len(ids), length)]

    def _moments(self, layers: Sequence[Linear], squares_only: bool) -> dict[str, NDArray[np.float32]]:  # noqa: FBT001
        """Return the second moments of the inputs of linear layers on calibration texts."""
        names = {linear.name: _source_of(linear) for linear in layers}
        found = self.squares
        if not squares_only:
            observer = MomentsObserver(0, squares_only=False, wanted=frozenset(names.values()))
            LayerwiseForward(self.model, self._calibration_windows(), observer).run()
            found = observer.found
        return {name: found[source] for name, source in names.items()}

    def write(self, graph: ir.Model, folder: Path) -> None:
        write_graph(graph, self.kept or self._weights_of(), folder / GRAPH, progress=self.progress)

    def certify(self, bundle: Bundle, expected: DecoderReference, bar: float | None) -> Certificate:
        with self._refusing_broken_graphs():
            certificate = certify_decoder(bundle, expected, max_kl=bar)
        return dataclasses.replace(certificate, figures={**certificate.figures, **self.of_source})

    @contextmanager
    def _refusing_broken_graphs(self) -> Iterator[None]:
        """Raise UnsupportedModelError where onnxruntime cannot run the graph of an untested architecture."""
        try:
            yield
        except BundleError as error:
            if not self.facts.plain_attention:
                raise
            raise UnsupportedModelError(
                f"`{self.checkpoint.name}` traces to a graph that onnxruntime cannot run",
                hint=f"ortkit has no support of its own for `{self.checkpoint.architecture.name}`",
            ) from error


def _source_of(linear: Linear) -> str:
    """Return the checkpoint's name of a weight with the same input as a linear layer."""
    matrix = linear.matrix
    if not isinstance(matrix, StreamedTensor):
        raise TypeError(f"`{linear.name}` is not streamed from the checkpoint")
    return matrix.parts[0].name


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
