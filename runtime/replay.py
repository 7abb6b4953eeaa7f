"""A certificate's golden outputs, computed again on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime.embedder import Embedder
from runtime.errors import BundleError
from runtime.manifest import unpack_vector
from runtime.pooling import cosines

TOLERANCE = 0.001
"""How much further from PyTorch a golden vector may be here than on the machine that made the bundle, in cosine."""


@dataclass(frozen=True)
class Replay:
    """How the golden outputs came out here."""

    texts: int
    cosine_min: float
    """The lowest cosine to PyTorch's vectors."""
    same_bits: bool
    """Whether all vectors equal those of the machine that made the bundle, bit for bit."""


def replay(embedder: Embedder) -> Replay:
    """Embed the golden texts again; raises BundleError when a vector is further from PyTorch than certified."""
    certificate = embedder.bundle.manifest.certificate
    if certificate is None or not certificate.golden:
        raise BundleError(f"the bundle `{embedder.bundle.path}` has no certificate to replay")
    found = embedder.embed_with_report([golden.text for golden in certificate.golden]).vectors
    agreement = []
    same_bits = True
    for golden, vector in zip(certificate.golden, found, strict=True):
        reference, output = unpack_vector(golden.reference), unpack_vector(golden.output)
        if reference.shape != vector.shape or output.shape != vector.shape:
            raise BundleError(f"a golden vector in `{embedder.bundle.path}` has another dimension than the model")
        here, there = cosines(np.stack([vector, output]), np.stack([reference, reference])).tolist()
        # Written so that NaN fails too.
        if not here >= there - TOLERANCE:
            raise BundleError(
                f"on this machine the bundle gives cosine {here:.4f} to PyTorch where {there:.4f} was certified",
                hint="this processor multiplies 8-bit numbers differently: export with `--precision fp32` for it",
            )
        agreement.append(here)
        same_bits = same_bits and bool(np.array_equal(vector, output))
    return Replay(len(agreement), min(agreement), same_bits)
