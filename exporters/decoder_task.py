"""What is different about exporting a decoder: its tokens, its weights in blocks, and probabilities to agree on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.block_recipes import RECIPES, find_block_recipe
from exporters.block_rounding import Rounding
from exporters.block_weights import BlockRecipe, keep_blocks, quantize_decoder
from exporters.calibration import PROMPT, prompts, save_graph
from exporters.certify_decoder import DecoderReference, agreement_with, certify_decoder, reference_decoder
from exporters.checkpoint import Checkpoint
from exporters.decoder import load_model, rebuild, trace
from exporters.decoder_facts import check_tokens, decoder_facts
from exporters.decoder_graph import share_embedding
from exporters.gguf import open_gguf, stored_matrices
from exporters.graph import tidy
from exporters.nodes import linears
from exporters.probe import calibration_texts
from exporters.pytorch_model import load_tokenizer
from runtime.bundle import GRAPH, TOKENIZER, Bundle
from runtime.decoder import Decoder
from runtime.errors import BundleError, UnsupportedModelError
from runtime.manifest import Certificate, Manifest, Precision, WeightBlocks
from runtime.tokenizer import open_tokenizer

CALIBRATION_TOKENS = 2048
"""Of the calibration texts: more of them change the divergence by less than the choice of the texts does."""
IN_BLOCKS = "MatMulNBits"


class DecoderTask:
    """The next token's probabilities; agreement is their divergence from PyTorch's, 0 at best."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.tokenizer = load_tokenizer(checkpoint)
        self.facts = decoder_facts(checkpoint, self.tokenizer)

    def described(self, manifest: Manifest, folder: Path) -> Manifest:
        own = open_tokenizer(folder / TOKENIZER)
        own.no_truncation()
        check_tokens(self.checkpoint.name, self.tokenizer, own, self.facts)
        tokens = dataclasses.replace(manifest.tokenizer, max_length=self.facts.context_length)
        return dataclasses.replace(manifest, tokenizer=tokens, decoder=self.facts)

    def load(self) -> Any:
        return load_model(self.checkpoint)

    def graph(self, model: Any, scratch: Path, manifest: Manifest) -> ir.Model:
        graph = trace(model, scratch, plain=self.checkpoint.architecture.plain_attention)
        rebuild(graph)
        if manifest.precision is Precision.FP32:
            share_embedding(graph.graph)
            tidy(graph)
        return graph

    def reference(self, model: Any, manifest: Manifest) -> DecoderReference:
        del manifest
        return reference_decoder(model, self.tokenizer, self.facts)

    def quantized(
        self, graph: ir.Model, bundle: Bundle, expected: DecoderReference, bar: float | None
    ) -> tuple[ir.Model, Manifest]:
        precision = bundle.manifest.precision
        if self.checkpoint.architecture.plain_attention:
            self.certify_unrounded(graph, bundle, expected)
        if precision is Precision.SOURCE:
            products = len(list(linears(graph.graph)))
            self.keep(graph)
            return graph, with_blocks(bundle.manifest, graph, products, "source")
        trials = BlockTrials(graph, list(self.calibration_runs(graph)), bundle)
        recipe = RECIPES[precision][0]
        if bar is not None:

            def divergence(tried: BlockRecipe) -> float:
                return trials.divergence(tried, expected)

            recipe = find_block_recipe(RECIPES[precision], divergence, max_kl=bar, precision=precision)
        made = trials.quantized(recipe)
        return made, with_blocks(bundle.manifest, made, trials.products, recipe.rounding.value)

    def certify_unrounded(self, graph: ir.Model, bundle: Bundle, expected: DecoderReference) -> None:
        """Raise EdgekitError for a graph that is not PyTorch's: rounded weights would hide a small mistake."""
        save_graph(graph, bundle.path / GRAPH)
        self.certify(
            Bundle(bundle.path, dataclasses.replace(bundle.manifest, precision=Precision.FP32)), expected, None
        )

    def keep(self, graph: ir.Model) -> None:
        """Let the graph read the blocks of the file that the weights come from."""
        if self.checkpoint.gguf is None:
            raise ValueError("only a GGUF file holds blocks to keep")
        keep_blocks(graph, stored_matrices(open_gguf(self.checkpoint.gguf)))
        share_embedding(graph.graph)
        tidy(graph)

    def calibration_runs(self, graph: ir.Model) -> Iterator[Mapping[str, NDArray[np.generic]]]:
        """The graph's inputs for the calibration texts."""
        ids = self.tokenizer("\n".join(calibration_texts().texts))["input_ids"][:CALIBRATION_TOKENS]
        return prompts(graph.graph, ids, length=min(PROMPT, self.facts.context_length))

    def certify(self, bundle: Bundle, expected: DecoderReference, bar: float | None) -> Certificate:
        try:
            return certify_decoder(Decoder(bundle), expected, max_kl=bar)
        except BundleError as error:
            if not self.checkpoint.architecture.plain_attention:
                raise
            raise UnsupportedModelError(
                f"`{self.checkpoint.name}` traces to a graph that onnxruntime cannot run",
                hint=f"edgekit has no form of its own for `{self.checkpoint.architecture.name}`",
            ) from error


class BlockTrials:
    """Puts one float32 graph in blocks by one recipe after another, and measures what comes out."""

    def __init__(self, graph: ir.Model, runs: list[Mapping[str, NDArray[np.generic]]], bundle: Bundle) -> None:
        """`bundle` is the one being made: its folder takes the graphs, its manifest describes them."""
        self.graph = graph
        self.runs = runs
        self.bundle = bundle
        self.products = len(list(linears(graph.graph)))
        self.last: tuple[BlockRecipe, ir.Model] | None = None

    def quantized(self, recipe: BlockRecipe) -> ir.Model:
        """A graph of its own; the matrices that it is made from stay as they are."""
        if self.last is None or self.last[0] != recipe:
            made = self.graph.clone()
            quantize_decoder(made, recipe, self.runs if recipe.rounding is not Rounding.NEAREST else ())
            tidy(made)
            self.last = (recipe, made)
        return self.last[1]

    def divergence(self, recipe: BlockRecipe, expected: DecoderReference) -> float:
        save_graph(self.quantized(recipe), self.bundle.path / GRAPH)
        return agreement_with(Decoder(self.bundle), expected).kl


def with_blocks(manifest: Manifest, graph: ir.Model, products: int, rounding: str) -> Manifest:
    """The manifest with what its graph's matrices have become."""
    nodes = [node for node in graph.graph if node.op_type == IN_BLOCKS]
    if not nodes:
        return manifest
    bits, block = ([node.attributes.get_int(name, 0) for node in nodes] for name in ("bits", "block_size"))
    output = next((node for node in reversed(list(graph.graph)) if node.op_type in (IN_BLOCKS, "MatMul")), nodes[-1])
    blocks = WeightBlocks(
        products=products,
        exact_products=products - len(nodes),
        bits=max(set(bits), key=bits.count),
        output_bits=output.attributes.get_int("bits", 32),
        block=max(set(block), key=block.count),
        output_block=output.attributes.get_int("block_size", 0),
        symmetric=all(len(node.inputs) < 4 for node in nodes),
        rounding=rounding,
    )
    return dataclasses.replace(manifest, blocks=blocks)
