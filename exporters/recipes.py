"""The fastest int8 recipe that holds an accuracy, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.calibration import Calibration
from exporters.graph import tidy
from exporters.nodes import linears
from exporters.quantize import Recipe, quantize_encoder
from runtime.bundle import GRAPH, Bundle
from runtime.embedder import Embedder
from runtime.errors import EdgekitError
from runtime.manifest import Manifest
from runtime.pooling import cosines

SAMPLE = 48
"""Calibration texts on which a single product's share in the error is measured."""


def find_recipe(
    lowest_cosine: Callable[[Recipe], float], damage: Callable[[Recipe], float], *, products: int, bar: float
) -> Recipe:
    """The fastest recipe whose lowest cosine to PyTorch is at least `bar`; raises EdgekitError when none is.

    Tried in the order of their speed: one scale for all tokens after layer norms and attentions; a scale for each
    token; then as few products in float32 as hold it, those first that do the most damage when they alone are in int8.
    `damage` measures that on other texts than `lowest_cosine`.
    """
    best = 0.0
    for recipe in (Recipe(), Recipe(per_token=True)):
        found = lowest_cosine(recipe)
        if found >= bar:
            return recipe
        best = max(best, found)
    everything = frozenset(range(products))
    harm = [damage(Recipe(per_token=True, exact=everything - {number})) for number in range(products)]
    ranked = sorted(range(products), key=lambda number: -harm[number])
    too_few, enough = 0, 1
    while True:
        found = lowest_cosine(Recipe(per_token=True, exact=frozenset(ranked[:enough])))
        best = max(best, found)
        if found >= bar:
            break
        if enough >= products - 1:
            raise EdgekitError(
                f"no int8 recipe reaches cosine {bar:g} to PyTorch on every text of the probe set: with {enough} of "
                f"{products} products in float32 it is {best:.5f} at best",
                hint="no bundle was written; ask for less, or use `--precision fp32`",
            )
        too_few, enough = enough, min(2 * enough, products - 1)
    while enough - too_few > 1:
        count = (too_few + enough) // 2
        if lowest_cosine(Recipe(per_token=True, exact=frozenset(ranked[:count]))) >= bar:
            enough = count
        else:
            too_few = count
    return Recipe(per_token=True, exact=frozenset(ranked[:enough]))


class Trials:
    """Quantizes one float32 graph by one recipe after another, and measures what comes out."""

    def __init__(self, graph: ir.Model, calibration: Calibration, folder: Path, manifest: Manifest) -> None:
        """`folder` has the tokenizer and takes the graphs; `manifest` describes them."""
        self.proto = ir.to_proto(graph)
        self.calibration = calibration
        self.bundle = Bundle(folder, manifest)
        self.products = len(list(linears(graph.graph)))

    def quantized(self, recipe: Recipe) -> ir.Model:
        graph = ir.from_proto(self.proto)
        quantize_encoder(graph, self.calibration, recipe)
        tidy(graph)
        return graph

    def vectors(self, graph: ir.Model, texts: Sequence[str]) -> NDArray[np.float32]:
        ir.save(graph, self.bundle.path / GRAPH)
        found: NDArray[np.float32] = Embedder(self.bundle).embed_with_report(texts).vectors
        return found

    def find(self, bar: float, probe: Sequence[str], reference: NDArray[np.float32], sample: Sequence[str]) -> Recipe:
        """The fastest recipe that holds `bar` on the probe texts, whose PyTorch vectors are `reference`."""
        exact = self.vectors(ir.from_proto(self.proto), sample[:SAMPLE])

        def lowest_cosine(recipe: Recipe) -> float:
            return float(cosines(self.vectors(self.quantized(recipe), probe), reference).min())

        def damage(recipe: Recipe) -> float:
            return float(1 - cosines(self.vectors(self.quantized(recipe), sample[:SAMPLE]), exact).mean())

        return find_recipe(lowest_cosine, damage, products=self.products, bar=bar)
