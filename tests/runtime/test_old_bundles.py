"""Manifests that earlier versions wrote: their bundles still open, and give what they gave then.

`old_manifests/KIND-SCHEMA.json` was written by the first commit after that schema came, or the last before the next,
for the bundles of `tests.tiny_bundles`; the golden outputs in them are what the runtime of then computed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ortkit import Bundle, Decoder, Embedder, Reranker
from ortkit.runtime.bundle.golden_vector import unpack_vector
from ortkit.runtime.bundle.manifest import SCHEMA, Certificate
from ortkit.runtime.bundle.manifest_json import OLDEST
from ortkit.runtime.replay import replay
from tests.tiny_bundles import rehash, write_certified_decoder, write_embedder, write_reranker

FOLDER = Path(__file__).with_name("old_manifests")
NAMES = sorted(path.stem for path in FOLDER.iterdir())
WRITERS: dict[str, Callable[[Path], Bundle]] = {
    "embedder": lambda target: write_embedder(target, dense=True),
    "reranker": write_reranker,
    "decoder": write_certified_decoder,
}


def old_bundle(name: str, target: Path) -> tuple[Bundle, Certificate]:
    WRITERS[name.partition("-")[0]](target)
    (target / "manifest.json").write_text((FOLDER / f"{name}.json").read_text())
    rehash(target)
    bundle = Bundle.open(target)
    assert bundle.manifest.certificate is not None
    return bundle, bundle.manifest.certificate


def test_every_older_schema_that_is_read_is_here() -> None:
    assert {int(name.partition("-")[2]) for name in NAMES} == set(range(OLDEST, SCHEMA))


@pytest.mark.parametrize("name", NAMES)
def test_an_old_bundle_gives_its_golden_outputs(name: str, tmp_path: Path) -> None:
    bundle, certificate = old_bundle(name, tmp_path / "old")
    kind, schema = name.split("-")

    assert bundle.manifest.schema == int(schema)
    assert json.loads((FOLDER / f"{name}.json").read_text())["schema"] == int(schema)
    if kind == "embedder":
        vectors = Embedder(bundle).embed([golden.text for golden in certificate.golden])
        assert np.allclose(vectors, [unpack_vector(golden.output) for golden in certificate.golden], atol=1e-6)
        assert replay(Embedder(bundle)).count == 3
    elif kind == "reranker":
        reranker = Reranker(bundle)
        pairs = [(golden.query or "", golden.text) for golden in certificate.golden]
        logits = reranker.score(pairs, scores="raw")
        assert np.allclose(logits, [unpack_vector(golden.output)[0] for golden in certificate.golden], atol=1e-6)
        assert replay(reranker).count == 3
    else:
        (answer,) = certificate.answers
        decoder = Decoder(bundle, threads=1)
        assert [step.id for step in decoder.steps(answer.prompt, max_tokens=6)] == list(answer.output)
        assert replay(decoder).agreement == "log-probabilities within 0.00000 on average"
