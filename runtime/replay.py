"""A certificate's golden outputs, computed again on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.embedder import Embedder
from runtime.encoder import Encoder
from runtime.errors import BundleError
from runtime.manifest import Certificate, Golden, unpack_vector
from runtime.pooling import cosines
from runtime.reranker import Reranker

TOLERANCE = 0.001
"""How much further from PyTorch a golden vector may be here than on the machine that made the bundle, in cosine."""
LOGIT_TOLERANCE = 0.02
"""The same for a golden logit, as a part of the spread of PyTorch's."""
CURE = "this processor multiplies 8-bit numbers differently: export with `--precision fp32` for it"


@dataclass(frozen=True)
class Replay:
    """How the golden outputs came out here."""

    count: int
    agreement: str
    """How far they are from PyTorch's, in words."""
    same_bits: bool
    """Whether all equal those of the machine that made the bundle, bit for bit."""


def replay(encoder: Encoder) -> Replay:
    """Run the golden texts or pairs again; raises BundleError when one is further from PyTorch than certified."""
    certificate = encoder.bundle.manifest.certificate
    if certificate is None or not certificate.golden:
        raise BundleError(f"the bundle `{encoder.bundle.path}` has no certificate to replay")
    found = outputs_of(encoder, certificate)
    reference, output = (
        unpacked(encoder, vectors, found.shape[1])
        for vectors in zip(*((golden.reference, golden.output) for golden in certificate.golden), strict=True)
    )
    agreement = compare_logits if isinstance(encoder, Reranker) else compare_vectors
    return Replay(len(found), agreement(found, output, reference), bool(np.array_equal(found, output)))


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


def compare_vectors(found: NDArray[np.float32], output: NDArray[np.float32], reference: NDArray[np.float32]) -> str:
    """The lowest cosine to PyTorch's vectors; raises BundleError where it is lower than certified."""
    agreement = cosines(found, reference)
    for here, there in zip(agreement.tolist(), cosines(output, reference).tolist(), strict=True):
        # Written so that NaN fails too.
        if not here >= there - TOLERANCE:
            raise BundleError(
                f"on this machine the bundle gives cosine {here:.4f} to PyTorch where {there:.4f} was certified",
                hint=CURE,
            )
    return f"cosine {agreement.min():.5f} min to PyTorch"


def compare_logits(found: NDArray[np.float32], output: NDArray[np.float32], reference: NDArray[np.float32]) -> str:
    """The largest difference to PyTorch's logits; raises BundleError where it is larger than certified."""
    here, there = (float(np.abs(logits - reference).max()) for logits in (found, output))
    # Written so that NaN fails too.
    if not here <= there + LOGIT_TOLERANCE * max(float(np.ptp(reference)), 1.0):
        raise BundleError(
            f"on this machine a logit differs from PyTorch's by {here:.4f} where {there:.4f} was certified", hint=CURE
        )
    return f"logits within {here:.5f} of PyTorch's"
