"""Replay a certificate: compute its golden outputs on this machine, and compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bundle.folder import BundleFolder
from .bundle.manifest import Certificate, Golden, GoldenAnswer, Precision, Provider, unpack_vector
from .decoder.decoder import Decoder
from .decoder.generation import Steps
from .decoder.model_runner import ModelRunner
from .decoder.sampler import Sampling
from .encoder.base import Encoder
from .encoder.embedder import Embedder
from .encoder.pooling import cosines
from .encoder.reranker import Reranker
from .errors import BundleError, InputError
from .session.onnxruntime_import import ONNXRUNTIME, onnxruntime_version


@dataclass(frozen=True)
class Tolerance:
    """How far a replay may be from the certificate, which was computed on the CPU."""

    cosine: float = 0.001
    """Largest drop below the certified cosine similarity to PyTorch."""
    logits: float = 0.02
    """Largest increase of a reranker's logit error, relative to the range of PyTorch's logits."""
    logprobs: float = 0.12
    """Largest mean difference from the certified log-probabilities."""


_CPU_FLOAT16 = Tolerance(logprobs=0.03)
_CPU_INT8 = Tolerance()
"""Matmuls with 8-bit activations, which the kernels of each CPU round differently.

For SmolLM2 on emulated ARM with dot product, 32 greedy tokens and 32 of prose differ by about 0.06 (`source`) and 0.095
(`int4`) from rounding alone, and `source` by 0.127 with KleidiAI's kernels, whose scales of activations are by row.
"""
_GPU_FLOAT32 = Tolerance(cosine=0.0001, logits=0.002)
"""The same float32 matmuls, summed in another order; TF32 is off."""
_GPU_FLOAT16 = Tolerance(cosine=0.001, logits=0.02, logprobs=0.05)
"""Activations in float16, rounded after each operator on both sides, and summed in another order.

CUDA dequantizes weights of 4 and 8 bits, and its activations are float16 too. Chosen, not measured: on the CPU, float16
alone moves log-probabilities by less than 0.03.
"""
TOLERANCES = {
    **{(Provider.CPU, precision): _CPU_INT8 for precision in (Precision.INT8, Precision.INT4, Precision.SOURCE)},
    (Provider.CPU, Precision.FP32): Tolerance(logprobs=0.01),
    (Provider.CPU, Precision.FP16): _CPU_FLOAT16,
    **{(Provider.CUDA, precision): _GPU_FLOAT16 for precision in (Precision.FP16, Precision.INT8, Precision.INT4)},
    (Provider.CUDA, Precision.FP32): _GPU_FLOAT32,
    (Provider.COREML, Precision.FP32): _GPU_FLOAT32,
    (Provider.COREML, Precision.FP16): _GPU_FLOAT16,
}
"""By the provider that runs the graph, and the bundle's precision."""
_LARGEST_DIFFERENCE = 2.0
"""Largest difference of a single log-probability; the largest measured with any kernel is 0.8."""
_LEAST_GREEDY = 0.5
"""Lowest share of the tokens of the first golden answer, which was generated greedily, that are the most probable here.

Their log-probabilities alone would not show that the certificate is of another model, or that another token has most of
the probability here. Kernels that round differently decide near-ties otherwise, so not all need to be.
"""
_LEAST_COSINE = 0.9
"""Lowest certified cosine similarity that is accepted; every export is far above it."""


@dataclass(frozen=True)
class Replay:
    """The result of a replay."""

    count: int
    """Number of golden outputs."""
    agreement: str
    """How close they are to the reference, for people."""
    same_bits: bool
    """Whether all are bit-identical to those of the machine that made the bundle."""


def replay(encoder: Encoder | Decoder) -> Replay:
    """Run the golden texts, pairs or prompts; raises BundleError where a result is less accurate than certified."""
    try:
        return _replayed(encoder)
    # The texts come from the bundle, not from the user.
    except InputError as error:
        raise BundleError(f"the certificate of `{encoder.bundle.path}` cannot be replayed: {error.message}") from error


def _replayed(encoder: Encoder | Decoder) -> Replay:
    certificate = encoder.bundle.manifest.certificate
    decodes = isinstance(encoder, Decoder)
    answers = [] if certificate is None else [answer for answer in certificate.answers if answer.output]
    if certificate is None or not (answers if decodes else certificate.golden):
        raise BundleError(f"the bundle `{encoder.bundle.path}` has no certificate to replay")
    if isinstance(encoder, Decoder):
        return _replay_answers(encoder, answers)
    found = _outputs_of(encoder, certificate)
    reference, output = (
        _unpacked(encoder, vectors, found.shape[1])
        for vectors in zip(*((golden.reference, golden.output) for golden in certificate.golden), strict=True)
    )
    agreement = compare_logits if isinstance(encoder, Reranker) else compare_vectors
    hint = _hint_for(encoder.bundle)
    text = agreement(found, output, reference, hint, tolerance_of(encoder.bundle))
    return Replay(len(found), text, bool(np.array_equal(found, output)))


def _hint_for(bundle: BundleFolder) -> str:
    """The hint for an intact bundle that computes other outputs here than where it was made."""
    made, here = bundle.manifest.made_with.get(ONNXRUNTIME), onnxruntime_version()
    if made is not None and made != here:
        return f"it was made with onnxruntime {made}, and {here} is installed: install that version, and verify again"
    if bundle.provider is not Provider.CPU:
        return (
            f"`{bundle.provider.value}` computes it wrongly on this machine, or the certificate is of another bundle; "
            "use a bundle for the CPU: `ortkit export MODEL --provider cpu`"
        )
    other = "possible causes: a CPU of another kind than the one that made it, or the certificate of another bundle"
    if bundle.manifest.precision in (Precision.FP32, Precision.FP16):
        return f"{other}; export it again on this kind of CPU"
    return f"{other}; `--precision fp32` depends less on the CPU"


def _replay_answers(decoder: Decoder, answers: Sequence[GoldenAnswer]) -> Replay:
    """Run the golden answers, and compare the log-probabilities of their tokens with the certified ones.

    The golden tokens are fed in (teacher forcing): sampled again, they would diverge at the first near-tie.
    Certificates before schema 5 have no log-probabilities; their tokens were the most probable ones, and are compared
    with the most probable ones here.
    """
    distances: list[float] = []
    same, greedy = True, list[bool]()
    for answer in answers:
        ids = decoder.encode(answer.text)
        if tuple(ids) != answer.prompt:
            raise BundleError(
                "on this machine a golden text has other tokens than certified: "
                f"{ids[:8]}... instead of {list(answer.prompt[:8])}..."
            )
        _check_answer(decoder, answer)
        steps = list(answer_steps(decoder, answer.prompt, len(answer.output), given=answer.output))
        found = [step.logprob for step in steps]
        most_probable = [step.top_logprobs[0] for step in steps]
        expected = answer.logprobs or tuple(top.logprob for top in most_probable)
        distances += [abs(here - there) for here, there in zip(found, expected, strict=True)]
        same &= tuple(found) == tuple(expected)
        greedy = greedy or [top.id == golden for top, golden in zip(most_probable, answer.output, strict=True)]
    mean, most = float(np.mean(distances)), float(np.max(distances))
    limit = tolerance_of(decoder.bundle).logprobs
    # Written so that NaN fails too.
    if not (mean <= limit and most <= _LARGEST_DIFFERENCE and np.mean(greedy) >= _LEAST_GREEDY):
        raise BundleError(
            f"on this machine the log-probabilities of {len(distances)} certified tokens differ by {mean:.4f} on "
            f"average and {most:.4f} at most; the limits are {limit:g} and "
            f"{_LARGEST_DIFFERENCE:g}; {sum(greedy)} of {len(greedy)} greedy tokens are the most probable ones, and "
            f"{_LEAST_GREEDY:.0%} must be",
            hint=_hint_for(decoder.bundle),
        )
    return Replay(len(distances), f"log-probabilities within {mean:.5f} on average", same)


def _check_answer(decoder: Decoder, answer: GoldenAnswer) -> None:
    """Raise BundleError for a golden answer that the model cannot produce."""
    vocabulary, room = decoder.facts.vocabulary, decoder.facts.context_length - len(answer.prompt)
    largest = max((*answer.prompt, *answer.output))
    if largest >= vocabulary or len(answer.output) > room or len(answer.logprobs) not in (0, len(answer.output)):
        raise BundleError(
            f"the certificate of `{decoder.bundle.path}` has an answer that its model cannot produce: "
            f"{len(answer.output)} tokens where {room} fit, {len(answer.logprobs)} log-probabilities, largest token id "
            f"{largest} of {vocabulary}"
        )


def tolerance_of(bundle: BundleFolder) -> Tolerance:
    """The tolerance for the provider that runs the bundle's graph; the widest for what no export makes."""
    return TOLERANCES.get((bundle.provider, bundle.manifest.precision), Tolerance())


def golden_answer(
    decoder: Decoder, prompt: Sequence[int], count: int, *, given: Sequence[int] | None = None
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Decode `count` tokens, past any end-of-sequence token: their ids and log-probabilities.

    They are the most probable ones, or those that are `given`, at most as many.
    """
    steps = list(answer_steps(decoder, prompt, count if given is None else len(given), given=given))
    return tuple(step.id for step in steps), tuple(step.logprob for step in steps)


def answer_steps(decoder: Decoder, prompt: Sequence[int], count: int, *, given: Sequence[int] | None = None) -> Steps:
    """An answer as users get it by default, with prompt lookup; `given` forces its tokens (teacher forcing)."""
    tokens = iter(given or ())
    return Steps(
        ModelRunner(decoder.session, decoder.new_cache()),
        list(prompt),
        max_tokens=count,
        eos_ids=(),
        sampling=Sampling(),
        sampler=None if given is None else lambda _: next(tokens),
        run_tokens=decoder.run_tokens,
        top_logprobs=1,
        lookup=True,
    )


def _outputs_of(encoder: Encoder, certificate: Certificate) -> NDArray[np.float32]:
    """Embeddings of the golden texts, or logits of the golden pairs."""
    if isinstance(encoder, Reranker):
        return encoder.score_with_report([_pair_of(golden) for golden in certificate.golden]).logits
    if isinstance(encoder, Embedder):
        vectors: NDArray[np.float32] = encoder.embed_with_report([golden.text for golden in certificate.golden]).vectors
        return vectors
    raise BundleError(f"the bundle `{encoder.bundle.path}` is of a kind that cannot be replayed")


def _pair_of(golden: Golden) -> tuple[str, str]:
    if golden.query is None:
        raise BundleError("a golden pair in `manifest.json` has no query")
    return golden.query, golden.text


def _unpacked(encoder: Encoder, vectors: tuple[str, ...], width: int) -> NDArray[np.float32]:
    found = [unpack_vector(vector) for vector in vectors]
    if any(vector.shape != (width,) for vector in found):
        raise BundleError(f"a golden vector in `{encoder.bundle.path}` has another dimension than the model")
    return np.stack(found)


def compare_vectors(
    found: NDArray[np.float32],
    output: NDArray[np.float32],
    reference: NDArray[np.float32],
    hint: str,
    tolerance: Tolerance,
) -> str:
    """The lowest cosine similarity to PyTorch; raises BundleError where it is lower than certified."""
    agreement, certified = cosines(found, reference), cosines(output, reference)
    # Written so that NaN fails too, here and below.
    if not (certified >= _LEAST_COSINE).all():
        raise BundleError(
            f"the certificate has an embedding with cosine {certified.min():.4f} to PyTorch; at least {_LEAST_COSINE} "
            "is required"
        )
    for here, there in zip(agreement.tolist(), certified.tolist(), strict=True):
        if not here >= there - tolerance.cosine:
            raise BundleError(
                f"on this machine the bundle has cosine {here:.4f} to PyTorch where {there:.4f} was certified",
                hint=hint,
            )
    return f"cosine {agreement.min():.5f} min to PyTorch"


def compare_logits(
    found: NDArray[np.float32],
    output: NDArray[np.float32],
    reference: NDArray[np.float32],
    hint: str,
    tolerance: Tolerance,
) -> str:
    """The largest difference from PyTorch's logits; raises BundleError where it is larger than certified."""
    here, there = (float(np.abs(logits - reference).max()) for logits in (found, output))
    spread = max(float(np.ptp(reference)), 1.0)
    # Written so that NaN fails too, here and below.
    if not there < spread:
        raise BundleError(
            f"the certificate has logits that differ from PyTorch's by {there:.4f}; the difference must be less than "
            f"their range, {spread:.4f}"
        )
    if not here <= there + tolerance.logits * spread:
        raise BundleError(
            f"on this machine a logit differs from PyTorch's by {here:.4f} where {there:.4f} was certified", hint=hint
        )
    return f"logits within {here:.5f} of PyTorch's"
