"""Bundles of encoders for CUDA, from the checkpoint to the certificate, which the CPU computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from ortkit import Bundle, Embedder, Kind, OrtkitError, Precision, Provider, Reranker, UnsupportedModelError
from ortkit.exporters import export
from ortkit.exporters.certification.probe import probe_searches, probe_texts
from ortkit.exporters.encoder.certify import certify_embedder
from ortkit.exporters.encoder.reranker_certify import PairReference, certify_reranker
from ortkit.runtime.bundle.folder import DraftBundle
from ortkit.runtime.bundle.manifest import Layout
from ortkit.runtime.encoder.pooling import cosines
from ortkit.runtime.replay import replay
from tests.commands import Finished
from tests.shared import shared_folder

TEXTS = ["The pump does not start", "Knots for wet rope", "", "word " * 30]
PAIRS = [("wet rope", text) for text in TEXTS]


@pytest.fixture(scope="module")
def fp16_bundle(tiny_checkpoint_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small BERT for CUDA in the default precision."""

    def make(out: Path) -> None:
        export(str(tiny_checkpoint_base), provider=Provider.CUDA, out=out)

    return Bundle.open(shared_folder(tmp_path_factory, "tiny-cuda", make))


def on_cpu(bundle: Bundle) -> DraftBundle:
    """The bundle as the export opens it: on the CPU."""
    return DraftBundle(bundle.path, bundle.manifest)


def test_embedders_come_in_float16_and_are_certified_on_the_cpu(fp16_bundle: Bundle) -> None:
    manifest = fp16_bundle.manifest

    assert (manifest.precision, manifest.provider, manifest.certified_on) == (
        Precision.FP16,
        Provider.CUDA,
        Provider.CPU,
    )
    assert (manifest.layout, manifest.inputs) == (Layout.TEXTS_FIRST, ("input_ids", "positions"))
    assert manifest.certificate is not None
    assert manifest.certificate.figures["cosine_min"] >= 0.9999


def test_weights_are_in_float16_and_token_embeddings_in_float32(fp16_bundle: Bundle) -> None:
    model = onnx.load(fp16_bundle.path / "model.onnx")

    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 2]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert model.graph.node[-1].op_type == "Cast"


def test_embeddings_are_those_of_the_bundle_for_the_cpu(fp16_bundle: Bundle, tiny_bundle: Bundle) -> None:
    found, expected = (Embedder(bundle).embed(TEXTS) for bundle in (on_cpu(fp16_bundle), tiny_bundle))

    assert cosines(found, expected).min() >= 0.9999


def test_the_certificate_can_be_replayed_on_the_cpu(fp16_bundle: Bundle) -> None:
    assert replay(Embedder(on_cpu(fp16_bundle))).count == 8


def test_an_embedder_that_is_not_exact_enough_in_float16_gets_no_certificate(fp16_bundle: Bundle) -> None:
    embedder = Embedder(on_cpu(fp16_bundle))
    expected = embedder.embed_with_report(probe_texts().texts).vectors
    expected[0, 0] += 0.05

    with pytest.raises(OrtkitError, match=r"cosine 0\.99\d\d on text 0 of the probe set") as caught:
        certify_embedder(embedder, expected, reference="a reference")
    assert caught.value.message.endswith("and fp16 must reach 0.9999")
    assert caught.value.hint == "no bundle was written; use `--precision fp32`"


@pytest.fixture(scope="module")
def rerankers(reranker_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Bundle]:
    """A small cross-encoder for CUDA in both precisions."""
    folder = tmp_path_factory.mktemp("rerankers")
    return {
        precision: export(
            str(reranker_checkpoint), precision=precision, provider=Provider.CUDA, out=folder / precision
        ).bundle
        for precision in (Precision.FP16, Precision.FP32)
    }


def test_a_reranker_ranks_and_scores_as_pytorch_does(rerankers: dict[Precision, Bundle]) -> None:
    half, exact = rerankers[Precision.FP16], rerankers[Precision.FP32]
    certificate = half.manifest.certificate
    assert certificate is not None

    assert half.manifest.inputs == ("input_ids", "token_type_ids", "positions")
    assert certificate.figures["tau_mean"] >= 0.99
    found, expected = (Reranker(on_cpu(one)).score_with_report(PAIRS).logits for one in (half, exact))
    assert 0 < np.abs(found - expected).max() <= 2e-3


def test_a_reranker_that_scores_otherwise_in_float16_gets_no_certificate(rerankers: dict[Precision, Bundle]) -> None:
    reranker = Reranker(on_cpu(rerankers[Precision.FP16]))
    logits = reranker.score_with_report(probe_searches().pairs).logits
    largest = np.abs(logits).max()
    reference = PairReference("a reference", logits + np.float32(0.05 * max(1, largest)), (), logits[:0], logits[:0])

    with pytest.raises(OrtkitError, match=r"a logit differs by .*, and fp16 must stay within 0\.0") as caught:
        certify_reranker(reranker, reference)
    assert caught.value.hint == "no bundle was written; use `--precision fp32`"


def test_the_command_names_the_provider_in_the_folder(
    ortkit: Callable[..., Finished], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORTKIT_BUNDLES", str(tmp_path / "bundles"))

    finished = ortkit("export", tiny_checkpoint, "--provider", "cuda", "--precision", "fp32")

    assert finished.code == 0
    path = tmp_path / "bundles" / "tiny-bert-fp32-cuda"
    assert finished.out.decode().strip() == str(path)
    assert Bundle.open(path).manifest.precision is Precision.FP32


def with_weight(folder: Path, name: str, factor: float) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights[name] = weights[name] * np.float32(factor)
    save_file(weights, path, {"format": "pt"})


def test_hidden_states_outside_of_float16_are_refused(
    ortkit: Callable[..., Finished], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with_weight(tiny_checkpoint, "encoder.layer.0.output.LayerNorm.weight", 3e4)

    finished = ortkit("export", tiny_checkpoint, "--provider", "cuda", "--out", tmp_path / "bundle")

    assert finished.code == 10
    assert "hidden states of `tiny-bert` reach " in finished.err
    assert "on the probe set; the largest float16 is 65504" in finished.err
    assert "hint: use `--precision fp32`" in finished.err
    assert not (tmp_path / "bundle").exists()
    exact = export(str(tiny_checkpoint), precision=Precision.FP32, provider=Provider.CUDA, out=tmp_path / "exact")
    assert exact.bundle.manifest.precision is Precision.FP32


def test_weights_outside_of_float16_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    # Of a token that no text of the probe set has.
    path = tiny_checkpoint / "model.safetensors"
    weights = load_file(path)
    weights["embeddings.word_embeddings.weight"][1] = 7e4
    save_file(weights, path, {"format": "pt"})

    with pytest.raises(UnsupportedModelError) as caught:
        export(str(tiny_checkpoint), provider=Provider.CUDA, kind=Kind.EMBEDDER, out=tmp_path / "bundle")
    assert caught.value.message == (
        "`embeddings.word_embeddings.weight` has a weight of magnitude 70000; the largest float16 is 65504"
    )
    assert caught.value.hint == "use `--precision fp32`"
