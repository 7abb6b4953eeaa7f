"""Build a bundle's certificate: the figures of a comparison, and golden outputs to compare with on another machine."""

from __future__ import annotations

import numpy as np
import torch
import transformers

from ...runtime.bundle.manifest import Certificate, Golden, GoldenAnswer, Precision
from .probe import PairSet, TextSet

_GOLDEN_TEXTS = 8
_LIBRARIES = f"torch {torch.__version__}, transformers {transformers.__version__}, float32"


def hint_of(precision: Precision, option: str) -> str:
    """The hint for an encoder that misses its threshold; `option` sets a lower one for int8."""
    if precision is Precision.FP32:
        return "no bundle was written"
    if precision is Precision.FP16:
        return "no bundle was written; use `--precision fp32`"
    return f"no bundle was written; try `{option}`, or `--precision fp32`"


def golden_places(count: int) -> list[int]:
    """The places of the golden ones among so many, spread evenly."""
    places: list[int] = np.linspace(0, count - 1, _GOLDEN_TEXTS).astype(int).tolist()
    return places


def certificate_of(
    probe: TextSet | PairSet,
    size: int,
    figures: dict[str, float],
    golden: tuple[Golden, ...],
    answers: tuple[GoldenAnswer, ...] = (),
    *,
    reference: str = _LIBRARIES,
) -> Certificate:
    return Certificate(
        reference=reference,
        probe=probe.name,
        probe_sha256=probe.sha256,
        probe_size=size,
        figures=figures,
        golden=golden,
        answers=answers,
    )
