"""Replay a certificate: compute its golden outputs on this machine, and compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bundle.manifest import Golden, GoldenAnswer
from .decoder.decoder import Decoder
from .decoder.golden import compare_answers, golden_answers
from .encoder.base import Encoder
from .encoder.embedder import Embedder
from .encoder.golden import compare_outputs, pair_of, shortest, unpacked
from .encoder.reranker import Reranker
from .errors import BundleError, InputError
from .session.first_use import wrong_here
from .session.tolerance import DisagreementError, as_disagreement


@dataclass(frozen=True)
class Replay:
    """The result of a replay."""

    count: int
    """Number of golden outputs."""
    agreement: str
    """How close they are to the reference, for people."""
    same_bits: bool
    """Whether all are bit-identical to those of the machine that made the bundle."""


def replay(model: Encoder | Decoder) -> Replay:
    """Run the golden texts, pairs or prompts, and compare their outputs with the certified ones.

    Raises BundleError where a result is less accurate than certified, and ProviderError where that is on another
    provider than the CPU, which certified it.
    """
    return _replay(model, cheap=False)


def replay_one(model: Encoder | Decoder) -> Replay:
    """The same for the shortest golden text, pair or prompt alone: milliseconds, and not every error is found."""
    return _replay(model, cheap=True)


def _replay(model: Encoder | Decoder, *, cheap: bool) -> Replay:
    try:
        if isinstance(model, Decoder):
            return _replay_answers(model, cheap=cheap)
        return _replay_outputs(model, cheap=cheap)
    except DisagreementError as error:
        raise wrong_here(model.bundle, error) from error
    # The texts come from the bundle, not from the user.
    except InputError as error:
        raise BundleError(f"the certificate of `{model.bundle.path}` cannot be replayed: {error.message}") from error


def _replay_answers(decoder: Decoder, *, cheap: bool) -> Replay:
    certificate = decoder.bundle.manifest.certificate
    answers: Sequence[GoldenAnswer] = [] if certificate is None else golden_answers(certificate)
    if not answers:
        raise _no_certificate(decoder)
    if cheap:
        answers = answers[:1]
    found = compare_answers(decoder, answers)
    return Replay(found.tokens, f"log-probabilities within {found.mean:.5f} on average", found.same_bits)


def _replay_outputs(encoder: Encoder, *, cheap: bool) -> Replay:
    certificate = encoder.bundle.manifest.certificate
    golden: Sequence[Golden] = () if certificate is None else certificate.golden
    if not golden:
        raise _no_certificate(encoder)
    if cheap:
        golden = [shortest(golden)]
    with as_disagreement():
        found = _outputs_of(encoder, golden)
    agreement = compare_outputs(encoder.bundle, golden, found)
    _, output = unpacked(encoder.bundle, golden, found.shape[1])
    return Replay(len(found), agreement, bool(np.array_equal(found, output)))


def _no_certificate(model: Encoder | Decoder) -> BundleError:
    return BundleError(f"the bundle `{model.bundle.path}` has no certificate to replay")


def _outputs_of(encoder: Encoder, golden: Sequence[Golden]) -> NDArray[np.float32]:
    """Embeddings of the golden texts, or logits of the golden pairs."""
    if isinstance(encoder, Reranker):
        return encoder.score_with_report([pair_of(one) for one in golden]).logits
    if isinstance(encoder, Embedder):
        vectors: NDArray[np.float32] = encoder.embed_with_report([one.text for one in golden]).vectors
        return vectors
    raise BundleError(f"the bundle `{encoder.bundle.path}` is of a kind that cannot be replayed")
