"""A certificate's golden outputs, computed again on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bundle.folder import BundleFolder
from .bundle.manifest import Certificate, Golden, GoldenAnswer, Precision, unpack_vector
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

TOLERANCE = 0.001
"""How much further from PyTorch a golden vector may be here than on the machine that made the bundle, in cosine."""
LOGIT_TOLERANCE = 0.02
"""The same for a golden logit, as a part of the spread of PyTorch's."""
LOGPROB_TOLERANCE = {Precision.FP32: 0.01, Precision.FP16: 0.03}
"""How far the logarithms of the golden tokens' probabilities may be from the certified ones, on average, where matmuls
have float activations."""
ROUNDED_TOLERANCE = 0.12
"""The same where they have 8-bit ones, which each processor's kernels round their own way.

64 tokens of SmolLM2 differ by 0.06 to 0.09 where that is all (AVX2, ARM with dot product, exact products), and by 0.134
and more where a kernel is really less exact.
"""
FURTHEST = 2.0
"""How far a single one may be: 0.8 was the most that was seen of any kernel."""
LEAST_COSINE = 0.9
"""To PyTorch: a certificate of less agreement than any export has is none."""


@dataclass(frozen=True)
class Replay:
    """How the golden outputs came out here."""

    count: int
    agreement: str
    """How far they are from PyTorch's, in words."""
    same_bits: bool
    """Whether all equal those of the machine that made the bundle, bit for bit."""


def replay(encoder: Encoder | Decoder) -> Replay:
    """Run the golden texts, pairs or prompts again; raises BundleError when one comes out otherwise than certified."""
    try:
        return replayed(encoder)
    # Nobody gave these texts but the bundle.
    except InputError as error:
        raise BundleError(f"the certificate of `{encoder.bundle.path}` cannot be replayed: {error.message}") from error


def replayed(encoder: Encoder | Decoder) -> Replay:
    certificate = encoder.bundle.manifest.certificate
    decodes = isinstance(encoder, Decoder)
    answers = [] if certificate is None else [answer for answer in certificate.answers if answer.output]
    if certificate is None or not (answers if decodes else certificate.golden):
        raise BundleError(f"the bundle `{encoder.bundle.path}` has no certificate to replay")
    if isinstance(encoder, Decoder):
        return replay_answers(encoder, answers)
    found = outputs_of(encoder, certificate)
    reference, output = (
        unpacked(encoder, vectors, found.shape[1])
        for vectors in zip(*((golden.reference, golden.output) for golden in certificate.golden), strict=True)
    )
    agreement = compare_logits if isinstance(encoder, Reranker) else compare_vectors
    cure = cure_of(encoder.bundle)
    return Replay(len(found), agreement(found, output, reference, cure), bool(np.array_equal(found, output)))


def cure_of(bundle: BundleFolder) -> str:
    """What to do where a bundle, whose files are whole, computes something else than it did where it was made."""
    made, here = bundle.manifest.made_with.get(ONNXRUNTIME), onnxruntime_version()
    if made is not None and made != here:
        return f"it was made with onnxruntime {made}, and {here} runs here: install that version, and verify again"
    other = "another processor than the one that made it, or a certificate of another bundle, would explain it"
    if bundle.manifest.precision in (Precision.FP32, Precision.FP16):
        return f"{other}; export it again on this kind of processor"
    return f"{other}; `--precision fp32` depends less on the processor"


def replay_answers(decoder: Decoder, answers: Sequence[GoldenAnswer]) -> Replay:
    """Read the golden prompts and tokens again, and compare the probabilities of all tokens with the certified ones.

    The golden tokens are given, so that each place counts: chosen anew, they would be others after the first place
    where two are about as probable. Certificates of earlier versions hold no probabilities; their tokens were the most
    probable ones, and the distance is that to the most probable ones here.
    """
    distances: list[float] = []
    same = certified = True
    for answer in answers:
        ids = decoder.encode(answer.text)
        if tuple(ids) != answer.prompt:
            raise BundleError(
                "on this machine a golden text has other tokens than were certified: "
                f"{ids[:8]}... instead of {list(answer.prompt[:8])}..."
            )
        check_answer(decoder, answer)
        steps = list(answer_steps(decoder, answer.prompt, len(answer.output), given=answer.output))
        found = [step.logprob for step in steps]
        most_probable = [step.top_logprobs[0] for step in steps]
        expected = answer.logprobs or tuple(top.logprob for top in most_probable)
        distances += [abs(here - there) for here, there in zip(found, expected, strict=True)]
        same &= tuple(found) == tuple(expected)
        certified &= any(top.id == golden for top, golden in zip(most_probable, answer.output, strict=True))
    mean, most = float(np.mean(distances)), float(np.max(distances))
    # Written so that NaN fails too.
    if not (mean <= tolerance_of(decoder.bundle) and most <= FURTHEST and certified):
        raise BundleError(
            f"on this machine the logarithms of the probabilities of {len(distances)} certified tokens differ by "
            f"{mean:.4f} on average and {most:.4f} at most, where {tolerance_of(decoder.bundle):g} and {FURTHEST:g} "
            "are the limits" + ("" if certified else ", and none of the tokens is the most probable one"),
            hint=cure_of(decoder.bundle),
        )
    return Replay(len(distances), f"log-probabilities within {mean:.5f} on average", same)


def check_answer(decoder: Decoder, answer: GoldenAnswer) -> None:
    """Raise BundleError for a golden answer that the model could not have given."""
    vocabulary, room = decoder.facts.vocabulary, decoder.facts.context_length - len(answer.prompt)
    largest = max((*answer.prompt, *answer.output))
    if largest >= vocabulary or len(answer.output) > room or len(answer.logprobs) not in (0, len(answer.output)):
        raise BundleError(
            f"the certificate of `{decoder.bundle.path}` has an answer that its model cannot give: "
            f"{len(answer.output)} tokens where {room} fit, {len(answer.logprobs)} log-probabilities, and {largest} as "
            f"the largest id of {vocabulary}"
        )


def tolerance_of(bundle: BundleFolder) -> float:
    return LOGPROB_TOLERANCE.get(bundle.manifest.precision, ROUNDED_TOLERANCE)


def golden_answer(decoder: Decoder, prompt: Sequence[int], count: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The `count` most probable tokens one after another, whatever ends an answer, and their log-probabilities."""
    steps = list(answer_steps(decoder, prompt, count))
    return tuple(step.id for step in steps), tuple(step.logprob for step in steps)


def answer_steps(decoder: Decoder, prompt: Sequence[int], count: int, *, given: Sequence[int] | None = None) -> Steps:
    """An answer as users get it by default: prefill, a cache, drafts by prompt lookup; `given` is what it says."""
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


def outputs_of(encoder: Encoder, certificate: Certificate) -> NDArray[np.float32]:
    """Vectors of the golden texts, or logits of the golden pairs."""
    if isinstance(encoder, Reranker):
        return encoder.score_with_report([pair_of(golden) for golden in certificate.golden]).logits
    if isinstance(encoder, Embedder):
        vectors: NDArray[np.float32] = encoder.embed_with_report([golden.text for golden in certificate.golden]).vectors
        return vectors
    raise BundleError(f"the bundle `{encoder.bundle.path}` is of a kind that cannot be replayed")


def pair_of(golden: Golden) -> tuple[str, str]:
    if golden.query is None:
        raise BundleError("a golden pair in `manifest.json` has no query")
    return golden.query, golden.text


def unpacked(encoder: Encoder, vectors: tuple[str, ...], width: int) -> NDArray[np.float32]:
    found = [unpack_vector(vector) for vector in vectors]
    if any(vector.shape != (width,) for vector in found):
        raise BundleError(f"a golden vector in `{encoder.bundle.path}` has another dimension than the model")
    return np.stack(found)


def compare_vectors(
    found: NDArray[np.float32], output: NDArray[np.float32], reference: NDArray[np.float32], cure: str
) -> str:
    """The lowest cosine to PyTorch's vectors; raises BundleError where it is lower than certified."""
    agreement, certified = cosines(found, reference), cosines(output, reference)
    # Written so that NaN fails too, here and below.
    if not (certified >= LEAST_COSINE).all():
        raise BundleError(
            f"the certificate has vectors of cosine {certified.min():.4f} to PyTorch's, and certifies nothing below "
            f"{LEAST_COSINE}"
        )
    for here, there in zip(agreement.tolist(), certified.tolist(), strict=True):
        if not here >= there - TOLERANCE:
            raise BundleError(
                f"on this machine the bundle gives cosine {here:.4f} to PyTorch where {there:.4f} was certified",
                hint=cure,
            )
    return f"cosine {agreement.min():.5f} min to PyTorch"


def compare_logits(
    found: NDArray[np.float32], output: NDArray[np.float32], reference: NDArray[np.float32], cure: str
) -> str:
    """The largest difference to PyTorch's logits; raises BundleError where it is larger than certified."""
    here, there = (float(np.abs(logits - reference).max()) for logits in (found, output))
    spread = max(float(np.ptp(reference)), 1.0)
    # Written so that NaN fails too, here and below.
    if not there < spread:
        raise BundleError(
            f"the certificate has logits that differ from PyTorch's by {there:.4f}, as much as those differ from each "
            "other, and nothing is certified"
        )
    if not here <= there + LOGIT_TOLERANCE * spread:
        raise BundleError(
            f"on this machine a logit differs from PyTorch's by {here:.4f} where {there:.4f} was certified", hint=cure
        )
    return f"logits within {here:.5f} of PyTorch's"
