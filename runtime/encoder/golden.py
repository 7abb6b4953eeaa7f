"""Outputs of an embedder or a reranker beside those of its certificate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..bundle.folder import BundleFolder
from ..bundle.golden_vector import unpack_vector
from ..bundle.manifest import Golden, Kind
from ..errors import BundleError
from ..session.tolerance import DisagreementError, Tolerance, hint_for, tolerance_of
from .pooling import cosines

_LEAST_COSINE = 0.9
"""Lowest certified cosine similarity that is accepted; every export is far above it."""


def shortest(golden: Sequence[Golden]) -> Golden:
    """The golden text or pair that is the fastest to run."""
    return min(golden, key=lambda one: len(one.query or "") + len(one.text))


def pair_of(golden: Golden) -> tuple[str, str]:
    if golden.query is None:
        raise BundleError("a golden pair in `manifest.json` has no query")
    return golden.query, golden.text


def unpacked(bundle: BundleFolder, golden: Sequence[Golden], width: int) -> tuple[NDArray[np.float32], ...]:
    """PyTorch's outputs and the certified ones, each (golden, width); raises BundleError for other sizes."""
    return tuple(
        _stacked(bundle, vectors, width)
        for vectors in zip(*((one.reference, one.output) for one in golden), strict=True)
    )


def _stacked(bundle: BundleFolder, vectors: Sequence[str], width: int) -> NDArray[np.float32]:
    found = [unpack_vector(vector) for vector in vectors]
    if any(vector.shape != (width,) for vector in found):
        raise BundleError(f"a golden vector in `{bundle.path}` has another dimension than the model")
    return np.stack(found)


def compare_outputs(bundle: BundleFolder, golden: Sequence[Golden], found: NDArray[np.float32]) -> str:
    """How close outputs (golden, width) are to PyTorch's, for people.

    `golden` are those of the bundle's certificate, or some of them. Raises DisagreementError where an output is less
    accurate than certified, and BundleError for a certificate that is not valid.
    """
    reference, output = unpacked(bundle, golden, found.shape[1])
    hint, tolerance = hint_for(bundle), tolerance_of(bundle)
    if bundle.manifest.kind is not Kind.RERANKER:
        return compare_vectors(found, output, reference, hint, tolerance)
    certificate = bundle.manifest.certificate
    # The range of all logits of the certificate, also where one pair is compared.
    every = reference if certificate is None else unpacked(bundle, certificate.golden, found.shape[1])[0]
    return compare_logits(found, output, reference, hint, tolerance, spread=float(np.ptp(every)))


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
            raise DisagreementError(
                f"on this machine the bundle has cosine {here:.4f} to PyTorch where {there:.4f} was certified, and "
                f"{tolerance.cosine:g} less is allowed",
                hint=hint,
            )
    return f"cosine {agreement.min():.5f} min to PyTorch"


def compare_logits(
    found: NDArray[np.float32],
    output: NDArray[np.float32],
    reference: NDArray[np.float32],
    hint: str,
    tolerance: Tolerance,
    *,
    spread: float | None = None,
) -> str:
    """The largest difference from PyTorch's logits; raises BundleError where it is larger than certified.

    `spread` is their range, by default that of `reference`.
    """
    here, there = (float(np.abs(logits - reference).max()) for logits in (found, output))
    spread = max(float(np.ptp(reference)) if spread is None else spread, 1.0)
    # Written so that NaN fails too, here and below.
    if not there < spread:
        raise BundleError(
            f"the certificate has logits that differ from PyTorch's by {there:.4f}; the difference must be less than "
            f"their range, {spread:.4f}"
        )
    if not here <= there + tolerance.logits * spread:
        raise DisagreementError(
            f"on this machine a logit differs from PyTorch's by {here:.4f} where {there:.4f} was certified, and "
            f"{tolerance.logits * spread:.4f} more is allowed",
            hint=hint,
        )
    return f"logits within {here:.5f} of PyTorch's"
