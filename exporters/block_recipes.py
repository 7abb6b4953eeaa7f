"""The fastest way to put a decoder's matrices in blocks that holds a divergence, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from exporters.block_rounding import Rounding
from exporters.block_weights import BlockRecipe
from runtime.errors import EdgekitError
from runtime.manifest import Precision

RECIPES = {
    Precision.INT4: (
        BlockRecipe(block=64, output_block=32),
        BlockRecipe(block=32),
        BlockRecipe(block=32, output_bits=8),
        BlockRecipe(block=32, rounding=Rounding.GPTQ, output_bits=8),
    ),
    Precision.INT8: (
        BlockRecipe(bits=8, block=64, rounding=Rounding.NEAREST, output_bits=8),
        BlockRecipe(bits=8, block=32, rounding=Rounding.NEAREST, output_bits=8),
    ),
}
"""In the order of their speed; the first is the one that is taken where nothing is asked for and a model is not wide.

The output matrix decides between tokens: its smaller blocks bring SmolLM2's divergence from 0.276 to 0.253, and that of
all matrices to 0.206, where plain rounding in blocks of 32 has 0.431. With 8 bits, rounding by importance is no closer
to PyTorch than to the nearest level.
"""

COARSE = BlockRecipe(block=128, output_block=32)
"""Faster by a fifth on layers of Mistral-7B's shape, and less exact: SmolLM2's divergence is 0.341 with it."""
WIDE = 3584
"""Inputs of each matrix from which on a model gets blocks of 128 where nothing is asked for.

Models of 7 billion weights and more are so wide, and their 4-bit weights are published in such blocks: there, of a
Llama 2 7B in them, Lin et al. 2023 (AWQ) tell a perplexity of 5.60 where float16 has 5.47. Smaller models lose more.
"""


def recipes_for(precision: Precision, inputs: Collection[int]) -> tuple[BlockRecipe, ...]:
    """What is tried for a divergence, in the order of speed; `inputs` are those of each matrix.

    Large blocks make nothing faster where a matrix does not fill them.
    """
    fills = precision is Precision.INT4 and all(count % COARSE.block == 0 for count in inputs)
    return (COARSE, *RECIPES[precision]) if fills else RECIPES[precision]


def default_recipe(precision: Precision, inputs: Collection[int]) -> BlockRecipe:
    """What is taken where no divergence is asked for; `inputs` are those of each matrix."""
    return recipes_for(precision, inputs)[0] if min(inputs, default=0) >= WIDE else RECIPES[precision][0]


def find_block_recipe(
    recipes: Sequence[BlockRecipe], divergence: Callable[[BlockRecipe], float], *, max_kl: float, precision: Precision
) -> BlockRecipe:
    """The first recipe with a divergence of at most `max_kl` from PyTorch; raises EdgekitError when none has."""
    best = float("inf")
    for recipe in recipes:
        found = divergence(recipe)
        if found <= max_kl:
            return recipe
        best = min(best, found)
    finer = "`--precision int8`" if precision is Precision.INT4 else "`--precision fp32`"
    raise EdgekitError(
        f"no {precision.value} recipe stays within KL divergence {max_kl:g} of PyTorch: it is {best:.5f} at best",
        hint=f"no bundle was written; ask for less, or use {finer}",
    )
