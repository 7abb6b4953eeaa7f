from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ortkit import Embedder, InputError, OrtkitError, Precision
from ortkit.exporters import export
from ortkit.exporters.encoder.int8 import Recipe
from ortkit.exporters.encoder.recipe_search import FIRST_PRECISE, OF_FIRST_TOKENS, PLAIN, find_recipe, first_that_holds
from tests.commands import Finished

HARM = [0.1, 0.5, 0.2, 0.9, 0.05, 0.3, 0.01, 0.4]
"""What each of eight products adds to the error when it is in int8."""


class Model:
    """An error that is the sum of what each product in int8 adds, and less with a scale for each token."""

    def __init__(self) -> None:
        self.tried: list[Recipe] = []

    def error(self, recipe: Recipe) -> float:
        added = sum(harm for number, harm in enumerate(HARM) if number not in recipe.exact)
        return added * (0.01 if recipe.per_token else 0.02) * (0.1 if recipe.precise_first_token else 1)

    def lowest_cosine(self, recipe: Recipe) -> float:
        self.tried.append(recipe)
        return 1 - self.error(recipe)

    def find(self, bar: float, recipes: Sequence[Recipe] = PLAIN) -> Recipe:
        return find_recipe(
            self.lowest_cosine, self.error, recipes=recipes, products=len(HARM), bar=bar, measure="cosine"
        )


def test_the_fastest_recipe_is_taken_where_it_is_good_enough() -> None:
    model = Model()

    assert model.find(0.9) == Recipe()
    assert model.tried == [Recipe()]


def test_a_scale_for_each_token_comes_next() -> None:
    assert Model().find(0.97) == Recipe(per_token=True)


def test_for_a_head_that_reads_first_tokens_these_come_next() -> None:
    model = Model()

    assert model.find(0.995, OF_FIRST_TOKENS) == FIRST_PRECISE
    assert model.tried == [Recipe(), FIRST_PRECISE]
    found = Model().find(0.9985, OF_FIRST_TOKENS)
    assert (found.precise_first_token, found.per_token, sorted(found.exact)) == (True, True, [1, 3])


@pytest.mark.parametrize(("threshold", "found", "tried"), [(0.95, 0, 1), (0.99, 1, 2), (0.997, 2, 2), (0.9999, 2, 2)])
def test_without_a_threshold_of_the_user_no_product_stays_exact(threshold: float, found: int, tried: int) -> None:
    model = Model()

    recipe = first_that_holds(model.lowest_cosine, recipes=OF_FIRST_TOKENS, threshold=threshold)

    assert recipe == OF_FIRST_TOKENS[found]
    assert model.tried == list(OF_FIRST_TOKENS[:tried])


@pytest.mark.parametrize("exact", range(1, 8))
def test_as_few_products_as_hold_it_stay_exact_the_most_harmful_first(exact: int) -> None:
    harmful = sorted(range(8), key=lambda number: -HARM[number])[:exact]
    model = Model()
    bar = 1 - model.error(Recipe(per_token=True, exact=frozenset(harmful))) - 1e-9

    assert model.find(bar) == Recipe(per_token=True, exact=frozenset(harmful))
    assert len(model.tried) <= 2 + 4 + 3


def test_what_no_recipe_holds_fails() -> None:
    with pytest.raises(OrtkitError) as caught:
        Model().find(0.999999)
    assert caught.value.exit_code == 1
    assert caught.value.message == (
        "no int8 recipe reaches cosine 0.999999 to PyTorch: with 7 of 8 linear layers in float32 it is 0.99990 at best"
    )
    assert caught.value.hint == "no bundle was written; ask for less, or use `--precision fp32`"


@pytest.mark.parametrize("products", [0, 1])
def test_a_graph_without_layers_to_choose_from_fails(products: int) -> None:
    """Its only layer is not left in float32: the bundle would have nothing in int8."""
    model = Model()

    with pytest.raises(OrtkitError) as caught:
        find_recipe(model.lowest_cosine, model.error, recipes=PLAIN, products=products, bar=0.999999, measure="cosine")

    assert caught.value.message == "no int8 recipe reaches cosine 0.999999 to PyTorch: it is 0.97540 at best"
    assert model.tried == list(PLAIN)


def test_an_export_holds_the_cosine_that_it_was_asked_for(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = export(str(tiny_checkpoint), out=tmp_path / "bundle", min_cosine=0.99999).bundle
    quantization, certificate = bundle.manifest.quantization, bundle.manifest.certificate
    assert quantization is not None
    assert certificate is not None
    print(quantization)

    assert bundle.manifest.precision is Precision.INT8
    assert certificate.figures["cosine_min"] >= 0.99999
    assert quantization.per_token
    assert quantization.matmuls == 8
    assert 0 < quantization.float32_matmuls < 8
    texts = ["the pump", "a dry pump", "water runs", "cold"]
    embedder = Embedder(bundle)
    together = embedder.embed(texts)
    for text, vector in zip(texts, together, strict=True):
        assert np.array_equal(embedder.embed([text])[0], vector), "the same bits in any company"


def test_an_export_that_cannot_hold_it_leaves_nothing(ortkit: object, tiny_checkpoint: Path, tmp_path: Path) -> None:
    finished: Finished = ortkit("export", tiny_checkpoint, "--out", tmp_path / "b", "--min-cosine", "0.99999999")

    assert finished.code == 1
    assert "error: no int8 recipe reaches cosine 1 to PyTorch" in finished.err
    assert not list(tmp_path.glob("b*"))


@pytest.mark.parametrize("bar", [0, 1, -0.5, 2, float("nan")])
def test_a_cosine_that_is_none(tiny_checkpoint: Path, tmp_path: Path, bar: float) -> None:
    with pytest.raises(InputError, match=f"`min_cosine` must lie between 0 and 1, not {bar}"):
        export(str(tiny_checkpoint), out=tmp_path / "b", min_cosine=bar)
