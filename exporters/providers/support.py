"""The precisions and KV caches that graphs for each execution provider come in, and why not others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...runtime.bundle.manifest import CacheType, Kind, Precision, Provider
from ...runtime.errors import InputError, UnsupportedModelError

_ENCODERS = (Kind.EMBEDDER, Kind.RERANKER)
_FLOAT32, _FLOAT16, _INT8 = CacheType


@dataclass(frozen=True)
class Support:
    """What graphs for a provider come in."""

    precisions: Mapping[Kind, tuple[Precision, ...]]
    """By kind, the default first; a kind without any is not exported for this provider."""
    caches: Mapping[Precision, tuple[CacheType, ...]]
    """Types of a decoder's KV cache by precision, the default first."""
    reasons: Mapping[tuple[Kind, Precision | None], tuple[str, str]] = field(default_factory=dict)
    """Kind and precision, or None for any -> why it is refused, and the hint."""


def _of_encoders(precision: Precision, reason: str, hint: str) -> dict[tuple[Kind, Precision | None], tuple[str, str]]:
    """The same reason for embedders and rerankers."""
    return {(kind, precision): (reason, hint) for kind in _ENCODERS}


_ONLY_DECODERS = "weights of 4 bits make LLMs faster, which read all of them for each token, and encoders less accurate"
_NOT_GGUF = "it keeps the blocks of a quantized GGUF file, and encoders are not exported from such files"
SUPPORT = {
    Provider.CPU: Support(
        precisions={
            Kind.EMBEDDER: (Precision.INT8, Precision.FP32),
            Kind.RERANKER: (Precision.INT8, Precision.FP32),
            Kind.DECODER: (Precision.INT4, Precision.INT8, Precision.SOURCE, Precision.FP32),
        },
        caches={
            Precision.INT4: (_FLOAT32, _FLOAT16, _INT8),
            Precision.INT8: (_FLOAT32, _FLOAT16, _INT8),
            Precision.SOURCE: (_FLOAT32, _FLOAT16, _INT8),
            Precision.FP32: (_FLOAT32,),
        },
        reasons={
            **_of_encoders(
                Precision.FP16,
                "a CPU computes it in float32, slower than `int8`",
                "add `--provider cuda` or `coreml`, or use `--precision int8`",
            ),
            **_of_encoders(Precision.INT4, _ONLY_DECODERS, "use `--precision int8`"),
            **_of_encoders(Precision.SOURCE, _NOT_GGUF, "use `--precision int8`"),
            (Kind.DECODER, Precision.FP16): (
                "a CPU computes it in float32, slower than `int4`, and the bundle is larger",
                "add `--provider cuda` for a GPU, or use `--precision int4`",
            ),
        },
    ),
    Provider.CUDA: Support(
        precisions={
            Kind.EMBEDDER: (Precision.FP16, Precision.FP32),
            Kind.RERANKER: (Precision.FP16, Precision.FP32),
            Kind.DECODER: (Precision.INT4, Precision.INT8, Precision.FP16),
        },
        caches=dict.fromkeys((Precision.INT4, Precision.INT8, Precision.FP16), (_FLOAT16,)),
        reasons={
            **_of_encoders(
                Precision.INT8,
                "onnxruntime has no CUDA kernels for the matmuls of int8 encoders",
                "use `--precision fp16`",
            ),
            **_of_encoders(Precision.INT4, _ONLY_DECODERS, "use `--precision fp16`"),
            **_of_encoders(Precision.SOURCE, _NOT_GGUF, "use `--precision fp16`"),
            (Kind.DECODER, Precision.FP32): (
                "onnxruntime's attention with a KV cache has no float32 kernel on CUDA",
                "use `--precision fp16`",
            ),
            (Kind.DECODER, Precision.SOURCE): (
                "the blocks of a GGUF file are not those that CUDA's fast matmuls take: symmetric, of 32 weights",
                "use `--precision int4` or `int8`, which quantize the weights again",
            ),
        },
    ),
    Provider.COREML: Support(
        precisions={
            Kind.EMBEDDER: (Precision.FP32, Precision.FP16),
            Kind.RERANKER: (Precision.FP32, Precision.FP16),
            Kind.DECODER: (),
        },
        caches={},
        reasons={
            **_of_encoders(
                Precision.INT8,
                "CoreML has no kernels for the matmuls of int8 encoders",
                "use `--precision fp32`",
            ),
            **_of_encoders(
                Precision.INT4,
                "CoreML has no kernels for weights of 4 bits, and encoders are quantized to 8 bits at least",
                "use `--precision fp32`, or `--provider cpu --precision int8` for a small bundle",
            ),
            **_of_encoders(Precision.SOURCE, _NOT_GGUF, "use `--precision fp32`"),
            (Kind.DECODER, None): (
                "CoreML has no kernels for LLMs: neither attention with a KV cache nor matmuls of 4 or 8 bits",
                "use `--provider cpu`",
            ),
        },
    ),
}


_WITHOUT_FORM = {
    (Provider.COREML, "deberta-v2"): "its attention picks scores by distance with `GatherElements`, which CoreML lacks"
}
"""Provider and architecture -> why graphs of that architecture are not made for the provider."""


def check_architecture(provider: Provider, name: str, architecture: str) -> None:
    """Raise UnsupportedModelError for an architecture that graphs for this provider are not made of."""
    reason = _WITHOUT_FORM.get((provider, architecture))
    if reason is not None:
        raise UnsupportedModelError(
            f"`{name}` (`{architecture}`) is not exported for `{provider.value}`: {reason}", hint="use `--provider cpu`"
        )


def check_head(provider: Provider, name: str, *, pooled: bool) -> None:
    """Raise UnsupportedModelError for a reranker that pools all tokens, on a provider whose batches are padded."""
    if pooled and provider is Provider.COREML:
        raise UnsupportedModelError(
            f"`{name}` is not exported for `coreml`: it is made of modules that pool all tokens of a text, and texts "
            "are padded there",
            hint="use `--provider cpu`",
        )


def check_supported(provider: Provider, kind: Kind, precision: Precision | None) -> None:
    """Raise InputError for a kind, or a precision of it, that graphs for this provider do not come in."""
    support = SUPPORT[provider]
    known = support.precisions[kind]
    if known and (precision is None or precision in known):
        return
    reason = support.reasons.get((kind, precision)) or support.reasons.get((kind, None))
    graphs = "" if provider is Provider.CPU else f" for `{provider.value}`"
    what = f" to `{precision.value}`" if precision is not None and known else ""
    message = f"{kind.value}s are not exported{what}{graphs}"
    if reason is not None:
        raise InputError(f"{message}: {reason[0]}", hint=reason[1])
    raise InputError(message, hint=f"choose one of {', '.join(f'`{one.value}`' for one in known)}")
