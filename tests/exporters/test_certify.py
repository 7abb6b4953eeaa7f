from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from exporters.certify import certify_embedder, reference_vectors
from exporters.encoder import load_model
from exporters.probe import calibration_texts, probe_texts
from exporters.sources import find_checkpoint
from runtime import Bundle, EdgekitError, Embedder, Manifest


def test_the_reference_is_what_sentence_transformers_gives(checkpoint: Path, int8_bundle: Bundle) -> None:
    texts = probe_texts().texts
    found = find_checkpoint(str(checkpoint))
    vectors = reference_vectors(load_model(found), found, [], int8_bundle.manifest, texts)
    model = SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True)
    expected = np.asarray(model.encode(list(texts), show_progress_bar=False))

    assert np.abs(vectors - expected).max() < 1e-5


def test_the_certificate_says_what_was_measured(int8_bundle: Bundle, fp32_bundle: Bundle) -> None:
    certificate = int8_bundle.manifest.certificate
    assert certificate is not None
    assert certificate.probe_size == len(probe_texts().texts)
    assert certificate.probe_sha256 == probe_texts().sha256
    assert certificate.reference.startswith("torch ")
    assert 0.99 < certificate.figures["cosine_min"] < certificate.figures["cosine_mean"] < 1
    exact = fp32_bundle.manifest.certificate
    assert exact is not None
    assert exact.figures["cosine_min"] > 0.999999


@pytest.fixture(scope="module")
def expected(checkpoint: Path, int8_bundle: Bundle) -> np.ndarray:
    found = find_checkpoint(str(checkpoint))
    return reference_vectors(load_model(found), found, [], int8_bundle.manifest, probe_texts().texts)


def test_a_graph_that_is_wrong_gets_no_certificate(int8_bundle: Bundle, expected: np.ndarray) -> None:
    """The reference is right, the bundle is not: it reads five tokens of each text."""
    embedder = Embedder(int8_bundle)
    embedder.tokenizer.tokenizer.enable_truncation(5)

    with pytest.raises(EdgekitError, match=r"does not agree with PyTorch: cosine -?0\.\d+ on text \d+") as caught:
        certify_embedder(embedder, expected)
    assert caught.value.message.endswith("of the probe set, and int8 must reach 0.98")
    assert caught.value.hint == "no bundle was written; try `--min-cosine 0.98`, or `--precision fp32`"
    assert caught.value.exit_code == 1


def test_a_graph_that_gives_nan_gets_no_certificate(
    int8_bundle: Bundle, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder(int8_bundle)
    monkeypatch.setattr(
        embedder.session, "run", lambda feeds: np.full((*feeds["input_ids"].T.shape, 384), np.nan, "f4")
    )

    with pytest.raises(EdgekitError, match="cosine nan"):
        certify_embedder(embedder, expected)


def test_what_was_asked_for_is_the_bar(fp32_bundle: Bundle, expected: np.ndarray) -> None:
    with pytest.raises(EdgekitError, match=r"and fp32 must reach 1\n") as caught:
        certify_embedder(Embedder(fp32_bundle), expected, min_cosine=1 + 1e-9)
    assert caught.value.hint == "no bundle was written"


def test_only_embedders_have_reference_vectors(checkpoint: Path, int8_bundle: Bundle) -> None:
    manifest: Manifest = dataclasses.replace(int8_bundle.manifest, embedder=None)

    with pytest.raises(ValueError, match="only embedders have vectors"):
        reference_vectors(None, find_checkpoint(str(checkpoint)), [], manifest, ["x"])


def test_nothing_is_certified_on_what_it_was_calibrated_with() -> None:
    calibration, probe = set(calibration_texts().texts), set(probe_texts().texts)

    assert len(calibration) == 150
    assert len(probe) == 64
    assert not calibration & probe
