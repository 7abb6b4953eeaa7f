from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from ortkit import Bundle, BundleError, Decoder, Embedder, Precision, Provider
from ortkit.exporters.providers.support import SUPPORT
from ortkit.runtime.bundle.folder import DraftBundle
from ortkit.runtime.bundle.golden_vector import pack_vector, unpack_vector
from ortkit.runtime.bundle.manifest import Certificate, GoldenAnswer
from ortkit.runtime.decoder.golden import answer_steps, golden_answer
from ortkit.runtime.decoder.model_runner import ModelRunner
from ortkit.runtime.encoder.golden import compare_logits, compare_vectors
from ortkit.runtime.replay import Replay, replay
from ortkit.runtime.session.tolerance import TOLERANCES, Tolerance, hint_for, tolerance_of
from tests.decoders import with_facts, write_decoder
from tests.tiny_bundles import write_embedder

EXACT = "log-probabilities within 0.00000 on average"
OTHER = "possible causes: a CPU of another kind than the one that made it, or the certificate of another bundle"
EditManifest = Callable[[Callable[[dict], None]], Path]


def test_a_bundle_replays_to_the_same_bits_where_it_was_made(int8_bundle: Bundle) -> None:
    replayed = replay(Embedder(int8_bundle))

    assert replayed.count == 8
    assert replayed.same_bits
    assert replayed.agreement.startswith("cosine 0.99")


def test_other_outputs_than_certified_are_detected(edit_manifest: EditManifest) -> None:
    """As if this machine's arithmetic had moved every vector: the certified output is right and the one here is not."""
    other = np.random.default_rng(0).normal(size=384).astype(np.float32)

    def change(manifest: dict) -> None:
        manifest["certificate"]["golden"][3].update(reference=pack_vector(other), output=pack_vector(other))

    with pytest.raises(BundleError, match=r"has cosine -?0\.\d+ to PyTorch where 1\.0000 was certified"):
        replay(Embedder(edit_manifest(change)))


def test_other_bits_within_the_tolerance_are_reported(edit_manifest: EditManifest, int8_bundle: Bundle) -> None:
    certificate = int8_bundle.manifest.certificate
    assert certificate is not None
    nudged = unpack_vector(certificate.golden[0].output)
    nudged[0] += 1e-5
    path = edit_manifest(lambda manifest: manifest["certificate"]["golden"][0].update(output=pack_vector(nudged)))

    assert not replay(Embedder(path)).same_bits


def test_a_bundle_without_a_certificate(edit_manifest: EditManifest) -> None:
    with pytest.raises(BundleError, match="has no certificate to replay"):
        replay(Embedder(edit_manifest(lambda manifest: manifest.update(certificate=None))))


def test_a_golden_vector_of_another_dimension(edit_manifest: EditManifest) -> None:
    path = edit_manifest(
        lambda manifest: manifest["certificate"]["golden"][0].update(output=pack_vector(np.ones(3, "f4")))
    )

    with pytest.raises(BundleError, match="has another dimension than the model"):
        replay(Embedder(path))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """Certified with what the same model in numpy gives."""
    bundle, model = write_decoder(tmp_path_factory.mktemp("decoder") / "tiny")
    decoder = Decoder(bundle, threads=1)
    ids = decoder.encode("The quick fox")
    answer = tuple(model.greedy(ids, 16))
    found, logprobs = golden_answer(decoder, ids, 16)
    assert found == answer
    return certified(decoder, GoldenAnswer("The quick fox", tuple(ids), answer, answer, logprobs))


def certified(decoder: Decoder, *answers: GoldenAnswer, precision: Precision = Precision.FP32) -> Decoder:
    """The same decoder with another certificate."""
    certificate = Certificate("numpy", "none", "", 1, {}, (), answers)
    manifest = dataclasses.replace(decoder.bundle.manifest, certificate=certificate, precision=precision)
    return Decoder(Bundle(decoder.bundle.path, manifest), threads=1)


def golden(decoder: Decoder) -> GoldenAnswer:
    certificate = decoder.bundle.manifest.certificate
    assert certificate is not None
    return certificate.answers[0]


def test_a_decoder_gives_its_golden_tokens_again_even_past_an_end(decoder: Decoder) -> None:
    """Whatever ends an answer: here every token does."""
    ends = with_facts(decoder, eos_ids=tuple(range(decoder.facts.vocabulary)))

    assert replay(ends) == Replay(16, EXACT, same_bits=True)


@pytest.mark.parametrize(
    ("precision", "hint"),
    [
        (Precision.INT4, f"{OTHER}; `--precision fp32` depends less on the CPU"),
        (Precision.FP32, f"{OTHER}; export it again on this kind of CPU"),
    ],
)
def test_other_log_probabilities_than_certified_are_detected(decoder: Decoder, precision: Precision, hint: str) -> None:
    answer = golden(decoder)
    limit = {Precision.INT4: 0.12, Precision.FP32: 0.01}[precision]

    def replayed(distance: float) -> Replay:
        changed = dataclasses.replace(answer, logprobs=tuple(one - distance for one in answer.logprobs))
        manifest = dataclasses.replace(certified(decoder, changed).bundle.manifest, precision=precision)
        return replay(Decoder(Bundle(decoder.bundle.path, manifest), threads=1))

    assert replayed(0.9 * limit) == Replay(
        16, f"log-probabilities within {0.9 * limit:.5f} on average", same_bits=False
    )
    with pytest.raises(BundleError) as caught:
        replayed(1.1 * limit)
    assert caught.value.message == (
        f"on this machine the log-probabilities of 16 certified tokens differ by {1.1 * limit:.4f} on "
        f"average and {1.1 * limit:.4f} at most; the limits are {limit:g} and 2; "
        "16 of 16 greedy tokens are the most probable ones, and 50% must be"
    )
    assert caught.value.hint == hint


def test_one_token_that_is_far_off_is_enough(decoder: Decoder) -> None:
    answer = golden(decoder)
    changed = dataclasses.replace(answer, logprobs=(answer.logprobs[0] - 2.1, *answer.logprobs[1:]))
    many = [answer] * 9

    with pytest.raises(BundleError, match=r"differ by 0\.0131 on average and 2\.1000 at most"):
        replay(certified(decoder, *many, changed, precision=Precision.INT4))


def test_a_certificate_without_probabilities_is_judged_by_its_tokens(decoder: Decoder) -> None:
    """Those of schema 4 hold none."""
    answer = dataclasses.replace(golden(decoder), logprobs=())
    assert replay(certified(decoder, answer)) == Replay(16, EXACT, same_bits=True)
    (step,) = decoder.steps([*answer.prompt, *answer.output[:3]], max_tokens=1, top_logprobs=decoder.facts.vocabulary)
    least = step.top_logprobs[-1].id
    changed = dataclasses.replace(answer, output=(*answer.output[:3], least, *answer.output[4:]))

    with pytest.raises(BundleError, match="the log-probabilities of 16 certified tokens differ by"):
        replay(certified(decoder, changed))


def test_another_onnxruntime_version_is_the_first_hint(decoder: Decoder) -> None:
    """It can be installed, and other versions are known to compute other outputs."""
    none = dataclasses.replace(golden(decoder), output=(0, *golden(decoder).output[1:]))
    manifest = dataclasses.replace(certified(decoder, none).bundle.manifest, made_with={"onnxruntime": "1.22.0"})

    with pytest.raises(BundleError) as caught:
        replay(Decoder(Bundle(decoder.bundle.path, manifest), threads=1))

    assert caught.value.hint == (
        f"it was made with onnxruntime 1.22.0, and {onnxruntime.__version__} is installed: install that version, and "
        "verify again"
    )


def with_second_best(decoder: Decoder, count: int) -> GoldenAnswer:
    """The golden answer with the second most probable token at its first places, and the log-probabilities of these."""
    answer = golden(decoder)
    output: list[int] = []
    for _ in range(count):
        (step,) = decoder.steps([*answer.prompt, *output], max_tokens=1, top_logprobs=2)
        output.append(step.top_logprobs[1].id)
    rest, _ = golden_answer(decoder, [*answer.prompt, *output], len(answer.output) - count)
    tokens = (*output, *rest)
    return dataclasses.replace(
        answer, output=tokens, logprobs=golden_answer(decoder, answer.prompt, 16, given=tokens)[1]
    )


def test_most_greedy_tokens_are_the_most_probable_ones(decoder: Decoder) -> None:
    """Refused even where all log-probabilities match, and where those of prose after them are the most probable."""
    assert replay(certified(decoder, with_second_best(decoder, 8))) == Replay(16, EXACT, same_bits=True)

    with pytest.raises(BundleError) as caught:
        replay(certified(decoder, with_second_best(decoder, 9), golden(decoder)))

    assert caught.value.message == (
        "on this machine the log-probabilities of 32 certified tokens differ by 0.0000 on average and "
        "0.0000 at most; the limits are 0.01 and 2; 7 of 16 greedy tokens are the most probable ones, and 50% must be"
    )


def test_nan_logits_do_not_pass_a_replay(tmp_path: Path) -> None:
    """argmax of NaN logits is 0, which a certificate can contain."""
    bundle, model = write_decoder(tmp_path / "tiny")
    model.weights["head"][:] = np.nan
    onnx.save(model.graph(), bundle.path / "model.onnx")
    decoder = Decoder(Bundle(bundle.path, bundle.manifest), threads=1)
    ids = tuple(decoder.encode("The quick fox"))

    with pytest.raises(BundleError, match="gives logits that are not finite numbers"):
        replay(certified(decoder, GoldenAnswer("The quick fox", ids, (0, 0), (0, 0))))


def test_golden_tokens_are_read_as_answers_are(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """By prefill, the cache and drafts: versions of onnxruntime are known that crash on one of them alone."""
    ids = decoder.encode("The dog: ") + decoder.encode(" the quick brown fox") * 6
    rows: list[int] = []
    run = ModelRunner.run
    monkeypatch.setattr(
        ModelRunner,
        "run",
        lambda self, ids, *rest, **options: (rows.append(len(ids)), run(self, ids, *rest, **options))[1],
    )
    repeating = decoder.encode(" the quick brown fox") * 4
    expected = [step.logprob for step in answer_steps(decoder, ids, len(repeating), given=repeating)]
    wanted = list(rows)
    rows.clear()
    text = decoder.tokenizer.decode(ids, skip_special_tokens=False)
    answer = GoldenAnswer(text, tuple(decoder.encode(text)), (), tuple(repeating), ())

    with contextlib.suppress(BundleError):
        replay(certified(decoder, answer))

    assert rows == wanted
    assert set(rows) - {len(ids) + len(ids) % 2, 1} <= {2, 4, 8}
    assert max(rows[1:]) > 1, "drafts"
    assert len(expected) == len(repeating)


@pytest.mark.parametrize(
    "change",
    [
        {"output": (1,) * 5000, "logprobs": ()},
        {"output": (1, 10**6), "logprobs": ()},
        {"output": (1, 2), "logprobs": (-0.5,)},
        {"output": (1, 2), "logprobs": (-0.5,) * 3},
    ],
)
def test_a_golden_answer_that_the_model_cannot_produce(decoder: Decoder, change: dict) -> None:
    answer = dataclasses.replace(golden(decoder), **change)

    with pytest.raises(BundleError, match="has an answer that its model cannot produce: "):
        replay(certified(decoder, answer))


@pytest.mark.parametrize("certified_cosine", [np.nan, 0.0, 0.5])
def test_a_certificate_of_low_cosine_is_refused(certified_cosine: float) -> None:
    reference = np.array([[1, 0]], np.float32)
    output = np.array([[certified_cosine, (1 - certified_cosine**2) ** 0.5]], np.float32)

    with pytest.raises(BundleError, match=r"has an embedding with cosine .* to PyTorch; at least 0\.9 is required"):
        compare_vectors(output, output, reference, "", Tolerance())


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_and_infinite_embeddings_do_not_pass(value: float, place: int) -> None:
    found, output, reference = np.ones((3, 2, 4), np.float32)
    (found, output, reference)[place][1, 2] = value

    with pytest.raises(BundleError), np.errstate(invalid="ignore", over="ignore"):
        compare_vectors(found, output, reference, "", Tolerance())


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_and_infinite_logits_do_not_pass(value: float, place: int) -> None:
    found, output, reference = np.ones((3, 2, 1), np.float32)
    (found, output, reference)[place][1, 0] = value

    with pytest.raises(BundleError), np.errstate(invalid="ignore"):
        compare_logits(found, output, reference, "", Tolerance())


def test_a_certificate_of_large_logit_differences_is_refused() -> None:
    reference = np.array([[0], [4]], np.float32)

    with pytest.raises(BundleError) as caught:
        compare_logits(-reference, -reference, reference, "", Tolerance())
    assert caught.value.message == (
        "the certificate has logits that differ from PyTorch's by 8.0000; the difference must be less than "
        "their range, 4.0000"
    )


def test_a_golden_text_of_other_tokens(decoder: Decoder) -> None:
    answer = golden(decoder)
    changed = dataclasses.replace(answer, prompt=(1, *answer.prompt))

    with pytest.raises(BundleError) as caught:
        replay(certified(decoder, changed))
    assert caught.value.message == (
        "on this machine a golden text has other tokens than certified: "
        f"{list(answer.prompt[:8])}... instead of {[1, *answer.prompt][:8]}..."
    )


def test_a_decoder_without_golden_tokens(decoder: Decoder) -> None:
    with pytest.raises(BundleError, match="has no certificate to replay"):
        replay(certified(decoder))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_embedder(tmp_path_factory.mktemp("replay") / "tiny")


def turned(degrees: float) -> np.ndarray:
    """A unit vector at this angle from the first axis."""
    return np.array([[np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]], np.float32)


@pytest.mark.parametrize(
    ("provider", "precision", "cosine"),
    [
        (Provider.CPU, Precision.INT8, 0.001),
        (Provider.CPU, Precision.FP32, 0.001),
        (Provider.CUDA, Precision.FP16, 0.001),
        (Provider.CUDA, Precision.FP32, 0.0001),
        (Provider.COREML, Precision.FP16, 0.001),
        (Provider.COREML, Precision.FP32, 0.0001),
    ],
)
def test_how_far_vectors_may_be_from_those_certified(
    tiny: Bundle, provider: Provider, precision: Precision, cosine: float
) -> None:
    bundle = Bundle(tiny.path, dataclasses.replace(tiny.manifest, provider=provider, precision=precision))
    reference = turned(0)

    def compared(drop: float) -> str:
        found = turned(np.degrees(np.arccos(1 - drop)))
        return compare_vectors(found, reference, reference, "mended so", tolerance_of(bundle))

    assert compared(0.9 * cosine).startswith("cosine 0.99")
    with pytest.raises(BundleError) as caught:
        compared(1.1 * cosine)
    assert caught.value.message.startswith("on this machine the bundle has cosine 0.99")
    assert caught.value.hint == "mended so"


@pytest.mark.parametrize(
    ("provider", "precision", "share"),
    [
        (Provider.CUDA, Precision.FP32, 0.002),
        (Provider.CUDA, Precision.FP16, 0.02),
        (Provider.CPU, Precision.INT8, 0.02),
    ],
)
def test_how_far_logits_may_be_from_those_certified(
    tiny: Bundle, provider: Provider, precision: Precision, share: float
) -> None:
    bundle = Bundle(tiny.path, dataclasses.replace(tiny.manifest, provider=provider, precision=precision))
    reference = np.array([[0], [10]], np.float32)

    def compared(distance: float) -> str:
        return compare_logits(reference + distance, reference, reference, "", tolerance_of(bundle))

    assert compared(9 * share).startswith("logits within ")
    with pytest.raises(BundleError, match=r"a logit differs from PyTorch's by .* where 0\.0000 was certified"):
        compared(11 * share)


def test_every_graph_that_is_exported_has_a_tolerance() -> None:
    """Those of `exporters.providers.support`; what a GPU computes in float16 may differ more than in float32."""
    made = {
        (provider, precision)
        for provider, support in SUPPORT.items()
        for precisions in support.precisions.values()
        for precision in precisions
    }

    assert made <= set(TOLERANCES)
    for provider in (Provider.CUDA, Provider.COREML):
        half, full = TOLERANCES[provider, Precision.FP16], TOLERANCES[provider, Precision.FP32]
        assert half.cosine > full.cosine
        assert half.logits > full.logits


def test_a_draft_is_compared_as_on_the_cpu(tiny: Bundle) -> None:
    """An export certifies a bundle for CUDA on the CPU."""
    manifest = dataclasses.replace(tiny.manifest, provider=Provider.CUDA)

    assert tolerance_of(DraftBundle(tiny.path, manifest)) == TOLERANCES[Provider.CPU, Precision.FP32]


def test_the_hint_where_a_gpu_computes_other_outputs(tiny: Bundle) -> None:
    made = {"onnxruntime": onnxruntime.__version__}
    manifest = dataclasses.replace(tiny.manifest, provider=Provider.COREML, made_with=made)

    assert hint_for(Bundle(tiny.path, manifest)) == (
        "use a bundle for the CPU (`ortkit export MODEL --provider cpu`); `ortkit verify` compares all golden outputs"
    )
