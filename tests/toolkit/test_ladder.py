"""The ladder of int8 recipes, as the export's summary and `ortkit inspect` show it."""

from __future__ import annotations

import dataclasses

import pytest

from ortkit import Bundle, Kind
from ortkit.runtime.bundle.manifest import LadderStep, Quantization
from ortkit.toolkit.commands.descriptions import describe_bundle, describe_ladder

STEPS = (
    LadderStep(per_token=False, cls_16bit=False, float32_matmuls=0, agreement=0.94412),
    LadderStep(per_token=False, cls_16bit=True, float32_matmuls=0, agreement=0.97901),
    LadderStep(per_token=True, cls_16bit=True, float32_matmuls=0, agreement=None),
)
TAKEN = Quantization(24, 0, 0.85, per_token=False, cls_16bit=True, ladder=STEPS)


@pytest.mark.parametrize(
    ("quantization", "kind", "line"),
    [
        (
            TAKEN,
            Kind.RERANKER,
            (
                "fastest first: static scales (tau 0.94412); static scales + 16-bit [CLS] (tau 0.97901, taken); "
                "per-token scales + 16-bit [CLS] (not measured)"
            ),
        ),
        (
            Quantization(24, 0, 0.85, per_token=False, ladder=(dataclasses.replace(STEPS[0], agreement=0.998),)),
            Kind.EMBEDDER,
            "fastest first: static scales (cosine 0.99800, taken)",
        ),
        # A manifest is anybody's text: a ladder without the recipe that was taken is shown as it is.
        (dataclasses.replace(TAKEN, ladder=STEPS[:1]), Kind.RERANKER, "fastest first: static scales (tau 0.94412)"),
    ],
)
def test_each_recipe_has_what_it_reached(quantization: Quantization, kind: Kind, line: str) -> None:
    assert describe_ladder(quantization, kind) == line


def test_inspect_shows_the_ladder_of_a_bundle_that_has_one(tiny_bundle: Bundle) -> None:
    manifest = dataclasses.replace(tiny_bundle.manifest, quantization=TAKEN)
    older = dataclasses.replace(manifest, quantization=dataclasses.replace(TAKEN, ladder=()))

    # It is the manifest of an embedder.
    assert dict(describe_bundle(manifest, 0))["recipes"] == describe_ladder(TAKEN, Kind.EMBEDDER)
    assert "recipes" not in dict(describe_bundle(older, 0))
