"""Block-wise quantization recipes of decoders, and the search for the fastest one within a KL divergence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b

import numpy as np
import onnx_ir as ir

from ...runtime.bundle.bundle import GRAPH
from ...runtime.bundle.folder import DraftBundle
from ...runtime.bundle.manifest import Precision, Provider
from ...runtime.decoder.decoder import Decoder
from ...runtime.errors import OrtkitError
from ..graph.array_store import Made
from ..graph.external_data import CONTENT, store_weights, write_stored_graph
from ..graph.nodes import linears
from ..graph.passes import tidy
from ..progress import Progress
from ..quantization.blockwise import Rounding
from ..quantization.fastest_recipe import find_fastest
from .certify import agreement_with
from .float16 import convert_to_float16
from .reference import DecoderReference
from .weight_only import BlockRecipe, Moments, quantize_decoder
from .work_folder import WorkFolder

RECIPES = {
    Precision.INT4: (
        BlockRecipe(block_size=64, output_block_size=32),
        BlockRecipe(block_size=32),
        BlockRecipe(block_size=32, output_bits=8),
        BlockRecipe(block_size=32, rounding=Rounding.GPTQ, output_bits=8),
    ),
    Precision.INT8: (
        BlockRecipe(bits=8, block_size=64, rounding=Rounding.NEAREST, output_bits=8),
        BlockRecipe(bits=8, block_size=32, rounding=Rounding.NEAREST, output_bits=8),
    ),
}
"""From the fastest to the most accurate; the first is the default of models that are not wide.

The output matrix decides between tokens: a smaller block size for it lowers SmolLM2's KL divergence from 0.276 to
0.253, and for all matrices to 0.206, where round-to-nearest with blocks of 32 has 0.431. With 8 bits,
importance-weighted rounding is not closer to PyTorch than round-to-nearest.
"""

CUDA_RECIPES = {
    Precision.INT4: (
        BlockRecipe(symmetric=True, cuda=True),
        BlockRecipe(symmetric=True, cuda=True, output_bits=8),
        BlockRecipe(symmetric=True, cuda=True, output_bits=8, rounding=Rounding.GPTQ),
    ),
    Precision.INT8: (BlockRecipe(bits=8, symmetric=True, cuda=True, output_bits=8, rounding=Rounding.NEAREST),),
}
"""The same for CUDA, whose kernel for prompts (fpA_intB) takes symmetric blocks of 32 weights only."""

COARSE = BlockRecipe(block_size=128, output_block_size=32)
"""A fifth faster on layers of Mistral-7B's shape, and less accurate: SmolLM2's KL divergence is 0.341 with it."""
WIDE = 3584
"""Models whose matrices all have at least this many inputs get blocks of 128 by default.

Models of 7B parameters and more are that wide, and their 4-bit weights are published with group size 128: Lin et al.
2023 (AWQ) report a perplexity of 5.60 for Llama 2 7B, where float16 has 5.47. Smaller models lose more.
"""


def recipes_for(
    precision: Precision, inputs: Collection[int], provider: Provider = Provider.CPU
) -> tuple[BlockRecipe, ...]:
    """Return the recipes to search, fastest first; `inputs` are the input widths of the matrices.

    Large blocks are not faster where a matrix does not fill them.
    """
    if provider is Provider.CUDA:
        return CUDA_RECIPES[precision]
    fills = precision is Precision.INT4 and all(count % COARSE.block_size == 0 for count in inputs)
    return (COARSE, *RECIPES[precision]) if fills else RECIPES[precision]


def default_recipe(precision: Precision, inputs: Collection[int], provider: Provider = Provider.CPU) -> BlockRecipe:
    """Return the recipe without a KL target; `inputs` are the input widths of the matrices."""
    if provider is Provider.CPU and min(inputs, default=0) < WIDE:
        return RECIPES[precision][0]
    return recipes_for(precision, inputs, provider)[0]


def find_block_recipe(
    recipes: Sequence[BlockRecipe],
    divergence: Callable[[BlockRecipe], float],
    *,
    max_kl: float,
    precision: Precision,
    provider: Provider = Provider.CPU,
) -> BlockRecipe:
    """Return the first recipe within a KL divergence of `max_kl`; raises OrtkitError where there is none."""
    found = find_fastest(recipes, lambda recipe: -divergence(recipe), threshold=-max_kl)
    if found.recipe is not None:
        return found.recipe
    finest = "`--precision fp32`" if provider is Provider.CPU else "`--precision fp16`"
    finer = "`--precision int8`" if precision is Precision.INT4 else finest
    raise OrtkitError(
        f"no {precision.value} recipe stays within KL divergence {max_kl:g} of PyTorch: "
        f"it is {-found.best:.5f} at best",
        hint=f"no bundle was written; ask for less, or use {finer}",
    )


class BlockTrials:
    """Quantizes one float32 graph by one recipe after another, and measures the results."""

    def __init__(
        self,
        graph: ir.Model,
        bundle: DraftBundle,
        work: WorkFolder,
        *,
        moments: Moments,
        progress: Progress | None = None,
    ) -> None:
        """Take the bundle being made: its folder takes the graphs, its manifest describes them.

        `work` keeps what was measured and the weights of the last recipe; `moments` gives activation statistics.
        """
        self.graph = graph
        self.bundle = bundle
        self.provider = bundle.manifest.provider
        """The provider that the graph is made for; the CPU measures it."""
        self.inputs = [linear.inputs for linear in linears(graph.graph)]
        """Input width of each linear layer."""
        self._moments = moments
        self._progress = progress
        self._work = work
        self._last: tuple[BlockRecipe, ir.Model] | None = None

    def quantized(self, recipe: BlockRecipe) -> ir.Model:
        """Quantize a copy of the graph, and delete the weights of other recipes; the float32 weights stay."""
        if self._last is None or self._last[0] != recipe:
            key, made = _key_of(recipe), self.graph.clone()
            self._work.delete_weights_except(key)
            weights = self._work.weights(key)
            quantize_decoder(made, recipe, self._moments, store=weights, progress=self._progress)
            if recipe.cuda:
                convert_to_float16(made.graph)
            tidy(made)
            store_weights(made, weights)
            self._last = (recipe, made)
        return self._last[1]

    def quantize_rest(self, recipe: BlockRecipe, graph: ir.Model) -> None:
        """Quantize what is float32 still in a graph by a recipe, with the weights that `quantized` stored."""
        quantize_decoder(graph, recipe, self._moments, store=self._work.weights(_key_of(recipe)))

    def divergence(self, recipe: BlockRecipe, expected: DecoderReference) -> float:
        """KL divergence from PyTorch; measured once, also when the export is interrupted and resumed."""

        def measure() -> Made:
            graph = self.quantized(recipe)
            weights = self._work.weights(_key_of(recipe))
            write_stored_graph(graph, weights.path, self.bundle.path / GRAPH)
            return Made({CONTENT: np.array([agreement_with(Decoder(self.bundle), expected).kl])})

        found = self._work.measurements("trials").keep(_key_of(recipe), measure)
        return float(found.array(CONTENT)[0])

    def find(self, precision: Precision, max_kl: float | None, expected: DecoderReference) -> BlockRecipe:
        """Return the fastest recipe within `max_kl` of PyTorch, or the default recipe where no limit is asked for."""
        if max_kl is None:
            return default_recipe(precision, self.inputs, self.provider)
        return find_block_recipe(
            recipes_for(precision, self.inputs, self.provider),
            lambda recipe: self.divergence(recipe, expected),
            max_kl=max_kl,
            precision=precision,
            provider=self.provider,
        )


def _key_of(recipe: BlockRecipe) -> str:
    """Name the work files of a recipe."""
    return blake2b(repr(recipe).encode(), digest_size=8).hexdigest()
