from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from ortkit import Embedder, InputError, OrtkitError, Precision
from ortkit.exporters import export
from ortkit.exporters.encoder.int8 import Recipe
from ortkit.exporters.encoder.recipe_search import Search, Step
from tests.commands import Finished

HARM = [0.1, 0.5, 0.2, 0.9, 0.05, 0.3, 0.01, 0.4]
"""What each of eight products adds to the error when it is in int8."""


STATIC, STATIC_CLS = Recipe(), Recipe(cls_16bit=True)
PER_TOKEN, PER_TOKEN_CLS = Recipe(per_token=True), Recipe(smoothing=0.7, per_token=True, cls_16bit=True)
ALL_TOKENS, CLS_ONLY = (STATIC, PER_TOKEN), (STATIC, STATIC_CLS, PER_TOKEN_CLS)


class Model:
    """An error that is the sum of what each linear layer in int8 adds, and less with a scale for each token."""

    def __init__(self) -> None:
        self.tried: list[Recipe] = []

    def error(self, recipe: Recipe) -> float:
        added = sum(harm for number, harm in enumerate(HARM) if number not in recipe.float32)
        return added * (0.01 if recipe.per_token else 0.02) * (0.1 if recipe.cls_16bit else 1)

    def lowest_cosine(self, recipe: Recipe) -> float:
        self.tried.append(recipe)
        return 1 - self.error(recipe)

    def search(self, threshold: float, recipes: Sequence[Recipe] = ALL_TOKENS) -> Search:
        return Search(recipes, self.lowest_cosine, threshold=threshold)

    def find(self, threshold: float, recipes: Sequence[Recipe] = ALL_TOKENS) -> Recipe:
        search = self.search(threshold, recipes)
        return search.required(self.error, matmuls=len(HARM), measure="cosine").recipe


def test_the_fastest_recipe_is_taken_where_it_is_good_enough() -> None:
    model = Model()

    assert model.find(0.9) == STATIC
    assert model.tried == [STATIC]


def test_a_scale_for_each_token_comes_next() -> None:
    assert Model().find(0.97) == PER_TOKEN


def test_for_a_head_that_reads_the_cls_token_only_16_bits_for_it_come_next() -> None:
    model = Model()

    assert model.find(0.995, CLS_ONLY) == STATIC_CLS
    assert model.tried == [STATIC, STATIC_CLS]
    found = Model().find(0.9985, CLS_ONLY)
    assert (found.cls_16bit, found.per_token, sorted(found.float32)) == (True, True, [1, 3])


@pytest.mark.parametrize(("threshold", "found", "tried"), [(0.95, 0, 1), (0.99, 1, 2), (0.997, 2, 3), (0.9999, 2, 3)])
def test_without_a_threshold_of_the_user_no_layer_stays_in_float32(threshold: float, found: int, tried: int) -> None:
    model = Model()

    result = model.search(threshold, CLS_ONLY).first_or_last()

    assert result.recipe == CLS_ONLY[found]
    assert model.tried == list(CLS_ONLY[:tried])
    # What was not measured has no figure.
    assert result.ladder == tuple(
        Step(recipe, 1 - model.error(recipe) if number < tried else None) for number, recipe in enumerate(CLS_ONLY)
    )


@pytest.mark.parametrize("count", range(1, 8))
def test_as_few_layers_as_reach_it_stay_in_float32_the_most_harmful_first(count: int) -> None:
    harmful = sorted(range(8), key=lambda number: -HARM[number])[:count]
    model = Model()
    expected = Recipe(per_token=True, float32=frozenset(harmful))
    threshold = 1 - model.error(expected) - 1e-9

    found = model.search(threshold).required(model.error, matmuls=len(HARM), measure="cosine")

    assert found.recipe == expected
    assert found.ladder[-1] == Step(expected, 1 - model.error(expected))
    assert [step.recipe for step in found.ladder[:-1]] == list(ALL_TOKENS)
    assert len(model.tried) <= 2 + 4 + 3


def test_what_no_recipe_reaches_fails() -> None:
    with pytest.raises(OrtkitError) as caught:
        Model().find(0.999999)
    assert caught.value.exit_code == 1
    assert caught.value.message == (
        "no int8 recipe reaches cosine 0.999999 to PyTorch: with 7 of 8 linear layers in float32 it is 0.99990 at best"
    )
    assert caught.value.hint == "no bundle was written; ask for less, or use `--precision fp32`"


@pytest.mark.parametrize("matmuls", [0, 1])
def test_a_graph_without_layers_to_choose_from_fails(matmuls: int) -> None:
    """Its only layer is not left in float32: the bundle would have nothing in int8."""
    model = Model()

    with pytest.raises(OrtkitError) as caught:
        model.search(0.999999).required(model.error, matmuls=matmuls, measure="cosine")

    assert caught.value.message == "no int8 recipe reaches cosine 0.999999 to PyTorch: it is 0.97540 at best"
    assert model.tried == list(ALL_TOKENS)


def test_an_export_holds_the_cosine_that_it_was_asked_for(
    ortkit: Callable[..., Finished], tiny_checkpoint: Path, tmp_path: Path
) -> None:
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
    *faster, taken = quantization.ladder
    assert [str(step) for step in faster] == ["static scales", "per-token scales"]
    assert all(step.agreement is not None and step.agreement < 0.99999 for step in faster)
    assert quantization.is_taken(taken)
    assert taken.agreement == pytest.approx(certificate.figures["cosine_min"], abs=1e-6)
    assert f"{taken} (cosine {taken.agreement:.5f}, taken)" in ortkit("inspect", bundle.path).out.decode()
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
