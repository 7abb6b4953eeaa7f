"""The ladder of int8 recipes, and the search for the fastest one that reaches a threshold of accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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

LADDER = (
    Recipe(),
    Recipe(cls_16bit=True),
    Recipe(per_token=True),
    # Less smoothing than where all tokens are in 8 bits: in 16, outliers do no harm.
    Recipe(smoothing=0.7, per_token=True, cls_16bit=True),
)
"""The recipes without a float32 linear layer, fastest first; `benchmarks/README.md` has speed and accuracy of each.

A search continues with the last of them and as few linear layers in float32 as the threshold needs.
"""


def ladder_for(graph: ir.Graph) -> tuple[Recipe, ...]:
    """The recipes of the ladder for a graph, fastest first.

    Where the head reads the [CLS] token only, how that token is computed decides most of the error: 16 bits for it are
    faster than a scale per token without them, and more exact: tau 0.974 beside 0.969 on trained weights.
    """
    if path_of_first_tokens(graph) is None:
        return tuple(recipe for recipe in LADDER if not recipe.cls_16bit)
    return tuple(recipe for recipe in LADDER if recipe.cls_16bit or not recipe.per_token)


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


@dataclass(frozen=True)
class Step:
    """A recipe, and its agreement with PyTorch on the probe set, None where it was not measured."""

    recipe: Recipe
    agreement: float | None = None


@dataclass(frozen=True)
class Found:
    """The recipe that a search took."""

    recipe: Recipe
    ladder: tuple[Step, ...]
    """All recipes of the ladder, fastest first; with one that has float32 linear layers at the end if it was taken."""


class Search:
    """Searches the fastest recipe of a ladder that reaches a threshold."""

    def __init__(self, recipes: Sequence[Recipe], agreement: Callable[[Recipe], float], *, threshold: float) -> None:
        self.recipes = recipes
        self.threshold = threshold
        self._agreement = agreement
        self._measured: dict[Recipe, float] = {}

    def agreement(self, recipe: Recipe) -> float:
        """With PyTorch, measured once."""
        if recipe not in self._measured:
            self._measured[recipe] = self._agreement(recipe)
        return self._measured[recipe]

    def first(self) -> Recipe | None:
        """The first recipe of the ladder that reaches the threshold; None where none does."""
        return find_fastest(self.recipes, self.agreement, threshold=self.threshold).recipe

    def found(self, recipe: Recipe) -> Found:
        steps = [*self.recipes, *([] if recipe in self.recipes else [recipe])]
        return Found(recipe, tuple(Step(one, self._measured.get(one)) for one in steps))

    def first_or_last(self) -> Found:
        """The first recipe that reaches the threshold, and the last of the ladder, the most exact, where none does.

        Certificates have a threshold of their own below which there is no bundle.
        """
        return self.found(self.first() or self.recipes[-1])

    def required(self, damage: Callable[[Recipe], float], *, matmuls: int, measure: str) -> Found:
        """The first recipe that reaches the threshold; raises OrtkitError where none does.

        After the ladder comes its last recipe with as few of the `matmuls` linear layers in float32 as needed, those
        first that do the most damage when they alone are in int8. `damage` measures that on other texts than the
        agreement, whose unit is `measure`. At least one layer stays in int8.
        """
        return self.found(self.first() or self._with_float32(damage, matmuls, measure))

    def _with_float32(self, damage: Callable[[Recipe], float], matmuls: int, measure: str) -> Recipe:
        if matmuls < 2:
            raise self._failure(measure, "")
        last, everything = self.recipes[-1], frozenset(range(matmuls))
        harm = [
            damage(replace(last, float32=everything - {number})) for number in counted(range(matmuls), "matrices tried")
        ]
        ranked = sorted(range(matmuls), key=lambda number: -harm[number])

        def reached(count: int) -> bool:
            return self.agreement(replace(last, float32=frozenset(ranked[:count]))) >= self.threshold

        too_few, enough = 0, 1
        while not reached(enough):
            if enough >= matmuls - 1:
                raise self._failure(measure, f"with {enough} of {matmuls} linear layers in float32 ")
            too_few, enough = enough, min(2 * enough, matmuls - 1)
        while enough - too_few > 1:
            count = (too_few + enough) // 2
            too_few, enough = (too_few, count) if reached(count) else (count, enough)
        return replace(last, float32=frozenset(ranked[:enough]))

    def _failure(self, measure: str, how: str) -> OrtkitError:
        best = max([0.0, *self._measured.values()])
        return OrtkitError(
            f"no int8 recipe reaches {measure} {self.threshold:g} to PyTorch: {how}it is {best:.5f} at best",
            hint="no bundle was written; ask for less, or use `--precision fp32`",
        )


class Trials:
    """Quantizes one float32 graph by one recipe after another, and measures what comes out."""

    def __init__(self, graph: ir.Model, calibration: Calibration, task: Measured, bundle: DraftBundle) -> None:
        """The folder of `bundle` takes the graphs, and its manifest describes them."""
        self.graph = graph
        self.calibration = calibration
        self.task = task
        self.bundle = bundle
        self.matmuls = len(list(linears(graph.graph)))
        self.recipes = ladder_for(graph.graph)

    def quantized(self, recipe: Recipe) -> ir.Model:
        graph = self.graph.clone()
        quantize_encoder(graph, self.calibration, recipe)
        tidy(graph)
        return graph

    def outputs(self, graph: ir.Model, *, sample: bool = False) -> Outputs:
        save_graph(graph, self.bundle.path / GRAPH)
        return self.task.outputs(self.bundle, sample=sample)

    def find(self, threshold: float | None, reference: Outputs) -> Found:
        """The fastest recipe that reaches `threshold` on the probe set, for which PyTorch gives `reference`.

        Without one, no matmul stays in float32: the fastest of `recipes` that reaches the task's default, or the last.
        """

        def agreement(recipe: Recipe) -> float:
            return self.task.agreement(self.outputs(self.quantized(recipe)), reference)

        if threshold is None:
            return Search(self.recipes, agreement, threshold=self.task.default_threshold).first_or_last()
        exact = self.outputs(self.graph, sample=True)

        def damage(recipe: Recipe) -> float:
            return self.task.damage(self.outputs(self.quantized(recipe), sample=True), exact)

        search = Search(self.recipes, agreement, threshold=max(threshold, self.task.lowest))
        return search.required(damage, matmuls=self.matmuls, measure=self.task.measure)
