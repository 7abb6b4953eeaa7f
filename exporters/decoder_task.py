"""What is different about exporting a decoder: its tokens, its weights in blocks, and probabilities to agree on."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.block_recipes import RECIPES, default_recipe, find_block_recipe, recipes_for
from exporters.block_weights import BlockRecipe, keep_blocks, quantize_decoder
from exporters.calibration import MomentsReading
from exporters.certify_decoder import (
    LARGEST_REFERENCE,
    MOST_TOKENS,
    DecoderReference,
    ProbeReading,
    agreement_with,
    certify_decoder,
    checked_agreement,
)
from exporters.checkpoint import Checkpoint
from exporters.decoder import rebuild, trace
from exporters.decoder_facts import check_tokens, decoder_facts
from exporters.decoder_graph import share_embedding
from exporters.gguf import stored_matrices
from exporters.gguf_facts import open_gguf
from exporters.graph import tidy
from exporters.graph_files import CONTENT, need_space, weights_bytes, write_graph
from exporters.half_precision import check_states, put_cache_in_half, put_in_half
from exporters.kept_arrays import KeptArrays, Made
from exporters.layerwise import Layerwise
from exporters.nodes import Linear, linears, required
from exporters.probe import calibration_texts
from exporters.progress import Progress
from exporters.pytorch_model import load_tokenizer
from exporters.stored_blocks import BLOCK_READERS
from exporters.stored_tensors import StreamedTensor
from exporters.weightless import WeightlessDecoder, open_decoder
from runtime.bundle import GRAPH, GRAPH_DATA, TOKENIZER, Bundle
from runtime.decoder import Decoder
from runtime.errors import BundleError, OutOfMemoryError, UnsupportedModelError
from runtime.manifest import CacheType, Certificate, Manifest, Precision, WeightBlocks
from runtime.safe_tokenizer import open_tokenizer

PROMPT = 256
"""Tokens of a text that a decoder is calibrated with: enough to attend to."""
CALIBRATION_TOKENS = 2048
"""Of the calibration texts: more of them change the divergence by less than the choice of the texts does."""
IN_BLOCKS = "MatMulNBits"
SOURCE_FIGURES = ("source_kl_mean", "source_top1_agreement")
"""In the certificate of a GGUF file whose weights were rounded anew: `kl_mean` and `top1_agreement` without that."""


class DecoderTask:
    """The next token's probabilities; agreement is their divergence from PyTorch's, 0 at best."""

    def __init__(self, checkpoint: Checkpoint, *, cache: CacheType = CacheType.FLOAT32) -> None:
        """`cache` is the type of the graph's keys and values."""
        self.checkpoint = checkpoint
        self.tokenizer = load_tokenizer(checkpoint)
        self.facts = dataclasses.replace(decoder_facts(checkpoint, self.tokenizer), cache_type=cache)
        self.kept: KeptArrays | None = None
        """What is made of the weights, by the last recipe that was tried."""
        self.of_source: Mapping[str, float] = {}
        """How far a GGUF file's own blocks are from PyTorch, where its weights are rounded anew: `SOURCE_FIGURES`."""
        self.squares: Mapping[str, NDArray[np.float32]] = {}
        """Matrix, by its name in the checkpoint -> what its input's squares add up to on calibration texts."""

    def begin(self, work: Path, told: Progress) -> None:
        self.work = work
        self.told = told

    def described(self, manifest: Manifest, folder: Path) -> Manifest:
        own = open_tokenizer(folder / TOKENIZER)
        check_tokens(self.checkpoint.name, self.tokenizer, own, self.facts)
        tokens = dataclasses.replace(manifest.tokenizer, max_length=self.facts.context_length)
        return dataclasses.replace(manifest, tokenizer=tokens, decoder=self.facts)

    def load(self) -> WeightlessDecoder:
        return open_decoder(self.checkpoint)

    def graph(self, model: WeightlessDecoder, scratch: Path, manifest: Manifest) -> ir.Model:
        graph = trace(model, scratch, plain=self.facts.plain_attention)
        rebuild(graph)
        done = sum(path.stat().st_size for path in self.work.rglob("*") if path.is_file())
        need_space(self.work.parent, self.space(graph, manifest.precision), done=done)
        if manifest.precision is Precision.FP32:
            share_embedding(graph.graph)
            tidy(graph)
        return graph

    def space(self, graph: ir.Model, precision: Precision) -> int:
        """Bytes that an export writes, about: weights in their precision, what is compared, and what is checked."""
        compared = 4 * min(LARGEST_REFERENCE, MOST_TOKENS * self.facts.vocabulary)
        checked = weights_bytes(graph) if self.facts.plain_attention and precision is not Precision.FP32 else 0
        file = self.checkpoint.gguf
        # Its blocks are kept; their scales become float32, and 5 or 6 bits become 8.
        kept = 0 if file is None else 2 * file.stat().st_size
        if precision is Precision.SOURCE:
            return compared + checked + kept
        measured = kept if self.rounds_anew(precision) else 0
        return compared + checked + max(measured, rounded_bytes(graph, precision))

    def reference(self, model: WeightlessDecoder, manifest: Manifest) -> DecoderReference:
        """Read the probe set, and in the same pass what int4 calibrates with."""
        probe = ProbeReading(model, self.tokenizer, self.facts)
        texts: list[Sequence[int]] = list(probe.windows)
        moments = MomentsReading(len(texts), squares_only=True)
        if manifest.precision is Precision.INT4:
            texts += self.calibration_windows()

        def read() -> Made:
            Layerwise(model, texts, probe, moments).run(self.told)
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
            self.check_unrounded(graph, bundle, expected)
        if precision is Precision.FP16:
            check_states(self.checkpoint.name, expected.states)
            share_embedding(graph.graph)
            put_in_half(graph.graph)
            tidy(graph)
            return graph, bundle.manifest
        if self.facts.cache_type is CacheType.FLOAT16:
            put_cache_in_half(graph.graph)
        if precision is Precision.SOURCE:
            products = len(list(linears(graph.graph)))
            exact = self.keep(graph, self.weights())
            return graph, with_blocks(bundle.manifest, graph, products, "source", exact)
        if self.rounds_anew(precision):
            self.of_source = self.measured_source(graph, bundle, expected)
        trials = BlockTrials(graph, self, bundle)
        recipe = default_recipe(precision, trials.inputs)
        if bar is not None:

            def divergence(tried: BlockRecipe) -> float:
                return trials.divergence(tried, expected)

            recipes = recipes_for(precision, trials.inputs)
            recipe = find_block_recipe(recipes, divergence, max_kl=bar, precision=precision)
        made = trials.quantized(recipe)
        return made, with_blocks(bundle.manifest, made, trials.products, recipe.rounding.value)

    def check_unrounded(self, graph: ir.Model, bundle: Bundle, expected: DecoderReference) -> None:
        """Raise EdgekitError for a graph that is not PyTorch's: rounded weights would hide a small mistake."""
        facts = dataclasses.replace(self.facts, cache_type=CacheType.FLOAT32)
        exact = Bundle(bundle.path, dataclasses.replace(bundle.manifest, precision=Precision.FP32, decoder=facts))

        def measure() -> Made:
            with TemporaryDirectory(dir=self.work) as folder, self.refusing_what_does_not_run():
                write_graph(graph.clone(), KeptArrays(Path(folder) / GRAPH_DATA), exact.path / GRAPH)
                return Made({CONTENT: np.array([checked_agreement(Decoder(exact), expected).kl])})

        KeptArrays(self.work / "checks").keep("unrounded", measure)

    def rounds_anew(self, precision: Precision) -> bool:
        """Whether weights that are in blocks already, and could be kept so, are put in others."""
        types = self.checkpoint.block_types
        return precision in RECIPES and bool(types) and types <= BLOCK_READERS.keys()

    def measured_source(self, graph: ir.Model, bundle: Bundle, expected: DecoderReference) -> Mapping[str, float]:
        """What the certificate of the same model in `source` would say; nothing where that cannot be made here."""

        def measure() -> Made:
            with TemporaryDirectory(dir=self.work) as folder:
                made, weights = graph.clone(), KeptArrays(Path(folder) / GRAPH_DATA)
                self.keep(made, weights)
                source = Bundle(bundle.path, dataclasses.replace(bundle.manifest, precision=Precision.SOURCE))
                write_graph(made, weights, source.path / GRAPH)
                found = agreement_with(Decoder(source), expected)
                return Made({CONTENT: np.array([found.kl, found.top])})

        try:
            found = KeptArrays(self.work / "checks").keep("source", measure).array(CONTENT)
        except (UnsupportedModelError, OutOfMemoryError):
            return {}
        return dict(zip(SOURCE_FIGURES, found.tolist(), strict=True))

    def keep(self, graph: ir.Model, weights: KeptArrays) -> int:
        """Let the graph read the blocks of the file that the weights come from; how many products read others too."""
        if self.checkpoint.gguf is None:
            raise ValueError("only a GGUF file holds blocks to keep")
        exact = keep_blocks(graph, stored_matrices(open_gguf(self.checkpoint.gguf)), keep=weights.keep)
        share_embedding(graph.graph)
        tidy(graph)
        return exact

    def weights(self, recipe: str = "weights") -> KeptArrays:
        """What is made of the weights by a recipe; what was made by another one goes."""
        folder = self.work / recipe
        if self.kept is None or self.kept.path.parent != folder:
            for other in self.work.iterdir():
                if other.is_dir() and other != folder:
                    shutil.rmtree(other)
            folder.mkdir(exist_ok=True)
            self.kept = KeptArrays(folder / GRAPH_DATA)
        return self.kept

    def calibration_windows(self) -> list[list[int]]:
        """The ids of the calibration texts, cut in prompts."""
        ids = self.tokenizer("\n".join(calibration_texts().texts))["input_ids"][:CALIBRATION_TOKENS]
        length = min(PROMPT, self.facts.context_length)
        return [ids[start : start + length] for start in range(0, len(ids), length)]

    def moments(self, products: Sequence[Linear], squares_only: bool) -> dict[str, NDArray[np.float32]]:  # noqa: FBT001
        """The second moments of the inputs of some products on calibration texts."""
        names = {product.name: source_of(product) for product in products}
        found = self.squares
        if not squares_only:
            reading = MomentsReading(0, squares_only=False, wanted=frozenset(names.values()))
            Layerwise(self.model, self.calibration_windows(), reading).run()
            found = reading.found
        return {product: found[source] for product, source in names.items()}

    def write(self, graph: ir.Model, folder: Path) -> None:
        write_graph(graph, self.kept or self.weights(), folder / GRAPH, progress=self.told)

    def certify(self, bundle: Bundle, expected: DecoderReference, bar: float | None) -> Certificate:
        with self.refusing_what_does_not_run():
            certificate = certify_decoder(bundle, expected, max_kl=bar)
        return dataclasses.replace(certificate, figures={**certificate.figures, **self.of_source})

    @contextmanager
    def refusing_what_does_not_run(self) -> Iterator[None]:
        """Say of a graph that nobody has tried before that onnxruntime cannot run it."""
        try:
            yield
        except BundleError as error:
            if not self.facts.plain_attention:
                raise
            raise UnsupportedModelError(
                f"`{self.checkpoint.name}` traces to a graph that onnxruntime cannot run",
                hint=f"edgekit has no form of its own for `{self.checkpoint.architecture.name}`",
            ) from error


class BlockTrials:
    """Puts one float32 graph in blocks by one recipe after another, and measures what comes out."""

    def __init__(self, graph: ir.Model, task: DecoderTask, bundle: Bundle) -> None:
        """`bundle` is the one being made: its folder takes the graphs, its manifest describes them."""
        self.graph = graph
        self.task = task
        self.bundle = bundle
        self.inputs = [product.inputs for product in linears(graph.graph)]
        """Of each product."""
        self.products = len(self.inputs)
        self.last: tuple[BlockRecipe, ir.Model] | None = None

    def quantized(self, recipe: BlockRecipe) -> ir.Model:
        """A graph of its own; the matrices that it is made from stay as they are."""
        if self.last is None or self.last[0] != recipe:
            made = self.graph.clone()
            quantize_decoder(
                made, recipe, self.task.moments, keep=self.task.weights(name_of(recipe)).keep, told=self.task.told
            )
            tidy(made)
            self.last = (recipe, made)
        return self.last[1]

    def divergence(self, recipe: BlockRecipe, expected: DecoderReference) -> float:
        """How far the bundle would be from PyTorch; measured once, however often the export is broken off."""

        def measure() -> Made:
            self.task.write(self.quantized(recipe), self.bundle.path)
            return Made({CONTENT: np.array([agreement_with(Decoder(self.bundle), expected).kl])})

        found = KeptArrays(self.task.work / "trials").keep(name_of(recipe), measure)
        return float(found.array(CONTENT)[0])


def source_of(product: Linear) -> str:
    """The name, in the checkpoint, of a matrix that reads what a product reads."""
    matrix = product.matrix
    if not isinstance(matrix, StreamedTensor):
        raise TypeError(f"the matrix `{product.name}` comes from no tensor of the checkpoint")
    return matrix.parts[0].name


def name_of(recipe: BlockRecipe) -> str:
    return blake2b(repr(recipe).encode(), digest_size=8).hexdigest()


def rounded_bytes(graph: ir.Model, precision: Precision) -> int:
    """Bytes of the weights in a precision, about."""
    if precision not in RECIPES:
        return weights_bytes(graph) // (2 if precision is Precision.FP16 else 1)
    recipe = default_recipe(precision, [product.inputs for product in linears(graph.graph)])
    total = 0
    for value in graph.graph.initializers.values():
        tensor = required(value.const_value)
        if isinstance(tensor, StreamedTensor):
            # A scale for each block, and room for zero points, also of tables.
            total += tensor.size * recipe.bits // 8 + 6 * tensor.size // recipe.block
        else:
            total += tensor.nbytes
    return total


def with_blocks(
    manifest: Manifest, graph: ir.Model, products: int, rounding: str, exact: int | None = None
) -> Manifest:
    """The manifest with what its graph's matrices have become; `exact` of the products read float32, also in part."""
    nodes = [node for node in graph.graph if node.op_type == IN_BLOCKS]
    if not nodes:
        return manifest
    bits, block = ([node.attributes.get_int(name, 0) for node in nodes] for name in ("bits", "block_size"))
    output = next((node for node in reversed(list(graph.graph)) if node.op_type in (IN_BLOCKS, "MatMul")), nodes[-1])
    blocks = WeightBlocks(
        products=products,
        exact_products=products - len(nodes) if exact is None else exact,
        bits=max(set(bits), key=bits.count),
        output_bits=output.attributes.get_int("bits", 32),
        block=max(set(block), key=block.count),
        output_block=output.attributes.get_int("block_size", 0),
        symmetric=all(len(node.inputs) < 4 for node in nodes),
        rounding=rounding,
    )
    return dataclasses.replace(manifest, blocks=blocks)
