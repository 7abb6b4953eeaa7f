"""How far results may be from a bundle's certificate, by provider and precision, and what to do where they are not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..bundle.folder import BundleFolder
from ..bundle.manifest import Kind, Precision, Provider
from ..errors import BundleError
from .onnxruntime_import import ONNXRUNTIME, onnxruntime_version


class DisagreementError(BundleError):
    """A result is further from the certificate than its tolerance; on another provider than the CPU that is its fault.

    Raised by the comparisons alone: `first_use.py` and `replay.py` make a ProviderError of it there.
    """


@contextmanager
def as_disagreement() -> Iterator[None]:
    """Take a run of golden texts that fails for a disagreement: the export ran the same graph on them."""
    try:
        yield
    except BundleError as error:
        raise DisagreementError(error.message, hint=error.hint) from error


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


def tolerance_of(bundle: BundleFolder) -> Tolerance:
    """The tolerance for the provider that runs the bundle's graph; the widest for what no export makes."""
    return TOLERANCES.get((bundle.provider, bundle.manifest.precision), Tolerance())


def hint_for(bundle: BundleFolder) -> str:
    """The hint for an intact bundle that computes other outputs here than where it was made."""
    provider, precision = bundle.provider, bundle.manifest.precision
    if provider is not Provider.CPU:
        exact = f"a bundle in `fp32` (`ortkit export MODEL --provider {provider.value} --precision fp32`), or "
        half = precision is Precision.FP16 and bundle.manifest.kind is not Kind.DECODER
        return (
            f"use {exact if half else ''}a bundle for the CPU (`ortkit export MODEL --provider cpu`); `ortkit verify` "
            "compares all golden outputs"
        )
    made, here = bundle.manifest.made_with.get(ONNXRUNTIME), onnxruntime_version()
    if made is not None and made != here:
        return f"it was made with onnxruntime {made}, and {here} is installed: install that version, and verify again"
    other = "possible causes: a CPU of another kind than the one that made it, or the certificate of another bundle"
    if precision in (Precision.FP32, Precision.FP16):
        return f"{other}; export it again on this kind of CPU"
    return f"{other}; `--precision fp32` depends less on the CPU"
