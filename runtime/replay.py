"""A certificate's golden outputs, computed again on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.bundle import Bundle
from runtime.decoder import Decoder
from runtime.embedder import Embedder
from runtime.encoder import Encoder
from runtime.errors import BundleError, InputError
from runtime.forward import Forward
from runtime.manifest import Certificate, Golden, GoldenAnswer, Precision, unpack_vector
from runtime.pooling import cosines
from runtime.reranker import Reranker
from runtime.sampler import Sampling
from runtime.session import onnxruntime_version
from runtime.steps import Steps

TOLERANCE = 0.001
"""How much further from PyTorch a golden vector may be here than on the machine that made the bundle, in cosine."""
LOGIT_TOLERANCE = 0.02
"""The same for a golden logit, as a part of the spread of PyTorch's."""
LOGPROB_TOLERANCE = 0.2
"""How much less probable, as a difference of logarithms, a golden token may be here than the one that is chosen."""
NEAREST = 8
"""Of the most probable tokens, how many a golden one is looked for among."""
LEAST_COSINE = 0.9
"""To PyTorch: a certificate of less agreement than any export has is none."""
ONNXRUNTIME = "onnxruntime"
"""Its name in `made_with`."""


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


def cure_of(bundle: Bundle) -> str:
    """What to do where a bundle, whose files are whole, computes something else than it did where it was made."""
    made, here = bundle.manifest.made_with.get(ONNXRUNTIME), onnxruntime_version()
    if made is not None and made != here:
        return f"it was made with onnxruntime {made}, and {here} runs here: install that version, and verify again"
    other = "another processor than the one that made it, or a certificate of another bundle, would explain it"
    if bundle.manifest.precision in (Precision.FP32, Precision.FP16):
        return f"{other}; export it again on this kind of processor"
    return f"{other}; `--precision fp32` depends less on the processor"


def replay_answers(decoder: Decoder, answers: Sequence[GoldenAnswer]) -> Replay:
    """Continue the golden prompts again, greedily.

    Kernels of another processor add up in another order, so that a token may be another where two are about equally
    probable; all that comes after it may be another then, and is not looked at.
    """
    same = total = 0
    for answer in answers:
        ids = decoder.encode(answer.text)
        if tuple(ids) != answer.prompt:
            raise BundleError(
                "on this machine a golden text has other tokens than were certified: "
                f"{ids[:8]}... instead of {list(answer.prompt[:8])}..."
            )
        same += replay_answer(decoder, answer)
        total += len(answer.output)
    if not same:
        raise BundleError(
            f"on this machine the bundle gives none of the {total} tokens that were certified",
            hint=cure_of(decoder.bundle),
        )
    # By the way that answers take, with drafts: it may give other bits, and must not fail.
    decoder.generate(answers[0].prompt, max_tokens=len(answers[0].output), sampling=Sampling())
    agreement = "all equal" if same == total else f"{same} equal before two tokens that are about as probable"
    return Replay(total, agreement, same == total)


def replay_answer(decoder: Decoder, answer: GoldenAnswer) -> int:
    """How many tokens are equal; raises BundleError where the first that is not is far from it."""
    for place, (step, golden) in enumerate(
        zip(steps_of(decoder, answer.prompt, len(answer.output)), answer.output, strict=True)
    ):
        if step.id == golden:
            continue
        logprob = next((top.logprob for top in step.top_logprobs if top.id == golden), -np.inf)
        # Written so that NaN fails too.
        if not step.logprob - logprob <= LOGPROB_TOLERANCE:
            raise BundleError(
                f"on this machine the bundle continues the golden text with token {step.id} where {golden} was "
                f"certified, at place {place} of {len(answer.output)}",
                hint=cure_of(decoder.bundle),
            )
        return place
    return len(answer.output)


def greedy(decoder: Decoder, prompt: Sequence[int], count: int) -> list[int]:
    """The `count` most probable tokens one after another, whatever ends an answer."""
    return [step.id for step in steps_of(decoder, prompt, count)]


def steps_of(decoder: Decoder, prompt: Sequence[int], count: int) -> Steps:
    return Steps(
        Forward(decoder.session, decoder.new_cache()),
        list(prompt),
        max_tokens=count,
        eos_ids=(),
        sampling=Sampling(),
        run_tokens=decoder.run_tokens,
        top_logprobs=min(NEAREST, decoder.facts.vocabulary),
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
