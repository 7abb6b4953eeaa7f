"""Vectors of golden outputs in a manifest: float32 in base64."""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError


def pack_vector(vector: NDArray[np.float32]) -> str:
    """Encode a vector as little-endian float32 in base64."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def unpack_vector(text: str) -> NDArray[np.float32]:
    """The inverse of `pack_vector`; raises BundleError for invalid base64."""
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
    except ValueError as error:
        raise BundleError("a golden vector in `manifest.json` is damaged") from error
