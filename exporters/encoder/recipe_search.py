"""The fastest int8 recipe that holds an accuracy, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.bundle.bundle import GRAPH
from ...runtime.bundle.folder import DraftBundle
from ...runtime.errors import OrtkitError
from ..graph.external_data import save_graph
from ..graph.nodes import linears
from ..graph.passes import tidy
from ..progress import counted
from ..quantization.fastest_recipe import find_fastest
from .calibration import Calibration
from .cls_token import path_of_first_tokens
from .int8 import Recipe, quantize_encoder

Outputs = NDArray[np.float32]

PLAIN = (Recipe(), Recipe(per_token=True))
"""One scale for all tokens after layer norms and attentions, then a scale for each token."""
FIRST_PRECISE = Recipe(precise_first_token=True)
PRECISE = Recipe(smoothing=0.7, per_token=True, precise_first_token=True)
"""Less smoothing than where all tokens are in 8 bits: in 16, outliers do no harm."""
OF_FIRST_TOKENS = (Recipe(), FIRST_PRECISE, PRECISE)
"""For classifiers whose head reads [CLS] tokens: how these are computed decides most of the error."""


class Measured(Protocol):
    """What a recipe for one kind of model is judged by."""

    measure: ClassVar[str]
    """What agreement is measured in, as it stands in messages."""
    default_threshold: ClassVar[float]
    """The agreement at which a faster recipe is taken, where the user asks for none."""
    lowest: ClassVar[float]
    """The agreement below which no certificate is given, whatever the user asks for."""

    def outputs(self, bundle: DraftBundle, *, sample: bool = False) -> Outputs:
        """What a bundle gives for the probe set, or for a sample of the calibration texts: (texts, numbers)."""

    def agreement(self, found: Outputs, expected: Outputs) -> float:
        """How alike outputs for the probe set are, 1 at best."""

    def damage(self, found: Outputs, exact: Outputs) -> float:
        """How far outputs are from exact ones."""


def find_recipe(
    agreement: Callable[[Recipe], float],
    damage: Callable[[Recipe], float],
    *,
    recipes: Sequence[Recipe],
    products: int,
    bar: float,
    measure: str,
) -> Recipe:
    """The fastest recipe whose agreement with PyTorch is at least `bar`; raises OrtkitError when none is.

    Tried in the order of their speed: `recipes`, then the last of them with as few linear layers in float32 as needed,
    those first that do the most damage when they alone are in int8. `damage` measures that on other texts than
    `agreement`, whose unit is `measure`. At least one layer stays in int8.
    """
    fastest = find_fastest(recipes, agreement, threshold=bar)
    if fastest.recipe is not None:
        return fastest.recipe
    recipe, best = recipes[-1], max(0.0, fastest.best)
    hint = "no bundle was written; ask for less, or use `--precision fp32`"
    if products < 2:
        raise OrtkitError(f"no int8 recipe reaches {measure} {bar:g} to PyTorch: it is {best:.5f} at best", hint=hint)
    everything = frozenset(range(products))
    harm = [
        damage(replace(recipe, exact=everything - {number})) for number in counted(range(products), "matrices tried")
    ]
    ranked = sorted(range(products), key=lambda number: -harm[number])
    too_few, enough = 0, 1
    while True:
        found = agreement(replace(recipe, exact=frozenset(ranked[:enough])))
        best = max(best, found)
        if found >= bar:
            break
        if enough >= products - 1:
            raise OrtkitError(
                f"no int8 recipe reaches {measure} {bar:g} to PyTorch: with {enough} of "
                f"{products} linear layers in float32 it is {best:.5f} at best",
                hint=hint,
            )
        too_few, enough = enough, min(2 * enough, products - 1)
    while enough - too_few > 1:
        count = (too_few + enough) // 2
        if agreement(replace(recipe, exact=frozenset(ranked[:count]))) >= bar:
            enough = count
        else:
            too_few = count
    return replace(recipe, exact=frozenset(ranked[:enough]))


def first_that_holds(agreement: Callable[[Recipe], float], *, recipes: Sequence[Recipe], threshold: float) -> Recipe:
    """The first recipe whose agreement with PyTorch is at least `threshold`, and the last where none of them is.

    The last one is the most exact, and certificates have a threshold of their own below which there is no bundle.
    """
    return find_fastest(recipes[:-1], agreement, threshold=threshold).recipe or recipes[-1]


class Trials:
    """Quantizes one float32 graph by one recipe after another, and measures what comes out."""

    def __init__(self, graph: ir.Model, calibration: Calibration, task: Measured, bundle: DraftBundle) -> None:
        """The folder of `bundle` takes the graphs, and its manifest describes them."""
        self.graph = graph
        self.calibration = calibration
        self.task = task
        self.bundle = bundle
        self.products = len(list(linears(graph.graph)))
        self.recipes = PLAIN if path_of_first_tokens(graph.graph) is None else OF_FIRST_TOKENS

    def quantized(self, recipe: Recipe) -> ir.Model:
        graph = self.graph.clone()
        quantize_encoder(graph, self.calibration, recipe)
        tidy(graph)
        return graph

    def outputs(self, graph: ir.Model, *, sample: bool = False) -> Outputs:
        save_graph(graph, self.bundle.path / GRAPH)
        return self.task.outputs(self.bundle, sample=sample)

    def find(self, bar: float | None, reference: Outputs) -> Recipe:
        """The fastest recipe that holds `bar` on the probe set, for which PyTorch gives `reference`.

        Without one, no matmul stays in float32: the fastest of `recipes` that holds the task's default, or the last.
        """

        def agreement(recipe: Recipe) -> float:
            return self.task.agreement(self.outputs(self.quantized(recipe)), reference)

        if bar is None:
            return first_that_holds(agreement, recipes=self.recipes, threshold=self.task.default_threshold)
        exact = self.outputs(self.graph, sample=True)

        def damage(recipe: Recipe) -> float:
            return self.task.damage(self.outputs(self.quantized(recipe), sample=True), exact)

        return find_recipe(
            agreement,
            damage,
            recipes=self.recipes,
            products=self.products,
            bar=max(bar, self.task.lowest),
            measure=self.task.measure,
        )
