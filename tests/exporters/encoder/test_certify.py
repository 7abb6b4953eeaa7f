from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from ortkit import Bundle, Embedder, OrtkitError, Precision, UnsupportedModelError
from ortkit.exporters import export
from ortkit.exporters.certification.probe import calibration_texts, probe_texts
from ortkit.exporters.encoder.certify import Sample, certify_embedder, check_exact, check_length
from ortkit.exporters.encoder.embedder_reference import PublishedEmbedder
from ortkit.exporters.encoder.tracing import load_model
from ortkit.exporters.sources import find_checkpoint

REFERENCE = "a reference"


@pytest.mark.slow
@pytest.mark.usefixtures("whole_probe")
def test_the_certificate_says_what_was_measured(int8_bundle: Bundle, fp32_bundle: Bundle) -> None:
    certificate = int8_bundle.manifest.certificate
    assert certificate is not None
    assert certificate.probe_size == len(probe_texts().texts)
    assert certificate.probe_sha256 == probe_texts().sha256
    assert certificate.reference.startswith("sentence-transformers 5.")
    assert certificate.reference.endswith(", float32")
    assert "sentence-transformers" in int8_bundle.manifest.made_with
    assert 0.99 < certificate.figures["cosine_min"] < certificate.figures["cosine_mean"] < 1
    exact = fp32_bundle.manifest.certificate
    assert exact is not None
    assert exact.figures["cosine_min"] > 0.999999


@pytest.fixture(scope="module")
def expected(tiny_checkpoint_base: Path) -> np.ndarray:
    model = SentenceTransformer(str(tiny_checkpoint_base), device="cpu", local_files_only=True)
    return np.asarray(model.encode(list(probe_texts().texts), batch_size=1, show_progress_bar=False))


def test_a_graph_that_is_wrong_gets_no_certificate(tiny_bundle: Bundle, expected: np.ndarray) -> None:
    """The reference is right, the bundle is not: it reads five tokens of each text."""
    manifest = tiny_bundle.manifest
    facts = dataclasses.replace(manifest.tokenizer, max_length=5)
    changed = dataclasses.replace(manifest, tokenizer=facts, precision=Precision.INT8)
    embedder = Embedder(Bundle(tiny_bundle.path, changed))

    with pytest.raises(OrtkitError, match=r"does not agree with sentence-transformers: cosine -?0\.\d+ on ") as caught:
        certify_embedder(embedder, expected, reference=REFERENCE)
    assert caught.value.message.endswith("of the probe set, and int8 must reach 0.98")
    assert caught.value.hint == "no bundle was written; try `--min-cosine 0.98`, or `--precision fp32`"
    assert caught.value.exit_code == 1


def test_a_graph_that_gives_nan_gets_no_certificate(
    tiny_bundle: Bundle, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder(tiny_bundle)
    monkeypatch.setattr(
        embedder.session, "run", lambda feeds, _: np.full((*feeds["input_ids"].T.shape, 48), np.nan, "f4")
    )

    with pytest.raises(OrtkitError, match="the bundle gives vectors that are not finite numbers"):
        certify_embedder(embedder, expected, reference=REFERENCE)


def test_what_was_asked_for_is_the_bar(tiny_bundle: Bundle, expected: np.ndarray) -> None:
    with pytest.raises(OrtkitError, match=r"and fp32 must reach 1\n") as caught:
        certify_embedder(Embedder(tiny_bundle), expected, reference=REFERENCE, min_cosine=1 + 1e-9)
    assert caught.value.hint == "no bundle was written"


def test_float32_must_agree_to_the_last_digits(tiny_bundle: Bundle, expected: np.ndarray) -> None:
    embedder = Embedder(tiny_bundle)
    texts = probe_texts().texts[:4]

    check_exact(embedder, [Sample(None, texts, expected[:4])])
    wrong = expected[:4].copy()
    wrong[2, 7] += 2e-5
    with pytest.raises(UnsupportedModelError) as caught:
        check_exact(embedder, [Sample(None, texts, wrong)])

    assert caught.value.message.startswith(
        f"the float32 graph of `tiny-bert` gives another vector than sentence-transformers for the text "
        f"{texts[2][:40]!r}: a component differs by 2e-05 of the vector's length"
    )
    assert caught.value.hint == "no bundle was written; the checkpoint has something that ortkit does not support"
    assert caught.value.exit_code == 10


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_reference_without_numbers_is_no_agreement(tiny_bundle: Bundle, expected: np.ndarray, wrong: float) -> None:
    sample = Sample(None, probe_texts().texts[:1], np.full_like(expected[:1], wrong))

    with pytest.raises(UnsupportedModelError, match="gives another vector than sentence-transformers"):
        check_exact(Embedder(tiny_bundle), [sample])


def test_vectors_of_another_width(tiny_bundle: Bundle, expected: np.ndarray) -> None:
    sample = Sample(None, probe_texts().texts[:1], expected[:1, :20])

    with pytest.raises(UnsupportedModelError, match="vectors of 20 components with sentence-transformers, and of 48"):
        check_exact(Embedder(tiny_bundle), [sample])


def test_texts_that_the_library_cuts_elsewhere(tiny_bundle: Bundle) -> None:
    published = SimpleNamespace(max_length=128, cut_at=lambda _: None)

    with pytest.raises(UnsupportedModelError) as caught:
        check_length(published, tiny_bundle.manifest, 512)
    assert caught.value.message == (
        "`tiny-bert` reads 128 tokens of a text with sentence-transformers, and would read 48 here"
    )


def test_int8_is_made_of_an_exact_graph_only(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misreading that int8's own error would hide: here the float32 graph is off by a thousandth."""
    monkeypatch.setattr(
        "ortkit.runtime.encoder.embedder.pool", lambda tokens, *_, **__: tokens.mean(0) + np.float32(1e-3)
    )

    with pytest.raises(UnsupportedModelError, match="the float32 graph of `tiny-bert` gives another vector"):
        export(str(tiny_checkpoint), precision=Precision.INT8, out=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_what_ortkit_implements_is_named(tmp_path: Path, checkpoint: Path) -> None:
    from tests.encoder_checkpoints import write_tiny_checkpoint

    write_tiny_checkpoint(tmp_path / "nomic", checkpoint, "nomic_bert")
    found = find_checkpoint(str(tmp_path / "nomic"))

    published = PublishedEmbedder(found, load_model(found), implemented_here=True)

    assert published.name.startswith("ortkit's own implementation of `nomic_bert` in sentence-transformers 5.")
    assert published.vectors(["a text"]).shape == (1, 48)


def test_the_weights_are_not_in_memory_twice(tiny_checkpoint: Path) -> None:
    found = find_checkpoint(str(tiny_checkpoint))
    traced = load_model(found)

    PublishedEmbedder(found, traced, implemented_here=False)

    assert {parameter.device.type for parameter in traced.parameters()} == {"meta"}


@pytest.mark.usefixtures("whole_probe")
def test_nothing_is_certified_on_what_it_was_calibrated_with() -> None:
    calibration, probe = set(calibration_texts().texts), set(probe_texts().texts)

    assert len(calibration) == 150
    assert len(probe) == 64
    assert not calibration & probe
