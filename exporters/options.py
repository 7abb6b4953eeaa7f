"""The options of an export, and the plan that follows from them and the checkpoint: kind, precision, cache, threshold.

Nothing here reads weights, so a plan that cannot be carried out is refused before they are downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..runtime.bundle.manifest import CacheType, EmbedderFacts, Kind, Precision, Provider
from ..runtime.errors import InputError, UnsupportedModelError
from .checkpoint.catalog import load_catalog
from .checkpoint.checkpoint import Checkpoint
from .checkpoint.cross_encoder import CrossEncoderFiles, Form, checked_cross_encoder
from .checkpoint.generation_config import generation_defaults
from .checkpoint.kind import check_kind, kind_of, max_length
from .encoder.config import embedder_facts
from .gguf.block_formats import BLOCK_READERS
from .providers.cuda import check_attention
from .providers.support import SUPPORT, check_architecture, check_head, check_supported

_THRESHOLD_OPTIONS = {Kind.EMBEDDER: "min_cosine", Kind.RERANKER: "min_tau", Kind.DECODER: "max_kl"}
"""The option that sets the accuracy threshold, by kind."""

PREFILL_PRECISIONS = (Precision.INT4, Precision.INT8, Precision.SOURCE)
"""Precisions of decoders that can have an 8-bit graph for prompts: those whose own matmuls are quantized block-wise."""


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export; None where the model decides."""

    kind: Kind | None
    precision: Precision | None
    cache: CacheType | None
    thresholds: Mapping[Kind, float | None]
    """Accuracy that a bundle must reach, by the kind of model that the measure is for."""
    provider: Provider = Provider.CPU
    prefill: Precision | None = None
    """Precision of a second graph of a decoder, for prompts; None for none."""


@dataclass(frozen=True)
class ExportPlan:
    """What an export makes of a checkpoint."""

    kind: Kind
    precision: Precision
    cache: CacheType
    """The type of a decoder's KV cache."""
    threshold: float | None
    """Accuracy that the bundle must reach, in the measure of its kind."""
    provider: Provider
    """The execution provider that the graph is made for."""
    embedder: EmbedderFacts | None = None
    """What the checkpoint's files say of an embedder; None for other kinds."""
    cross_encoder: CrossEncoderFiles | None = None
    """What they say of a reranker."""
    prefill: bool = False
    """Whether a decoder gets an 8-bit graph for prompts."""


def plan_export(checkpoint: Checkpoint, options: ExportOptions) -> ExportPlan:
    """Plan the export of a checkpoint, whose weights need not be on local disk.

    Raises InputError for options that do not go together, UnsupportedModelError and CheckpointError for a model that
    cannot be exported as that kind.
    """
    kind = kind_of(checkpoint, options.kind)
    threshold = _checked_threshold(kind, options.thresholds)
    provider = options.provider
    check_supported(provider, kind, options.precision)
    precision = options.precision or default_precision(checkpoint, kind, provider)
    check_precision(checkpoint, kind, precision, provider)
    cache = checked_cache(kind, precision, options.cache, provider)
    prefill = checked_prefill(kind, precision, options.prefill, provider)
    # A GGUF file was checked when its header was read.
    if checkpoint.gguf is not None:
        return ExportPlan(kind, precision, cache, threshold, provider, prefill=prefill)
    check_architecture(provider, checkpoint.name, checkpoint.architecture.name)
    check_kind(checkpoint, kind)
    max_length(checkpoint)
    embedder = embedder_facts(checkpoint) if kind is Kind.EMBEDDER else None
    cross_encoder = None
    if kind is Kind.RERANKER:
        cross_encoder = checked_cross_encoder(checkpoint)
        check_head(provider, checkpoint.name, pooled=cross_encoder.form is Form.MODULES)
    elif kind is Kind.DECODER:
        generation_defaults(checkpoint)
        if provider is Provider.CUDA:
            check_attention(checkpoint.name, checkpoint.architecture, checkpoint.config)
    return ExportPlan(kind, precision, cache, threshold, provider, embedder, cross_encoder, prefill)


def check_for_catalog(name: str, options: ExportOptions) -> None:
    """Raise InputError for options that do not go with the kind of a catalog's model, before anything is downloaded.

    Other models' kinds are known from their files.
    """
    spec = load_catalog().get(name)
    if spec is None:
        return
    kind = options.kind or spec.kind
    _checked_threshold(kind, options.thresholds)
    check_supported(options.provider, kind, options.precision)


def _checked_threshold(kind: Kind, given: Mapping[Kind, float | None]) -> float | None:
    """The threshold for this kind; raises InputError when one for another kind is given."""
    for other, threshold in given.items():
        if threshold is not None and other is not kind:
            raise InputError(
                f"`{_THRESHOLD_OPTIONS[other]}` is for {other.value}s, and this is {kind.articled}",
                hint=f"use `--{_THRESHOLD_OPTIONS[kind].replace('_', '-')}`",
            )
    return given[kind]


def default_precision(checkpoint: Checkpoint, kind: Kind, provider: Provider = Provider.CPU) -> Precision:
    """What graphs for this provider usually come in; on the CPU, the blocks of a quantized file, or the catalog's.

    Quantizing weights again that are quantized already loses much more than keeping them: see `docs/export.md`.
    """
    precisions = SUPPORT[provider].precisions[kind]
    if Precision.SOURCE in precisions and checkpoint.block_types:
        return Precision.SOURCE
    if provider is Provider.CPU and checkpoint.spec is not None:
        return checkpoint.spec.precision
    return precisions[0]


def check_precision(
    checkpoint: Checkpoint, kind: Kind, precision: Precision, provider: Provider = Provider.CPU
) -> None:
    """Raise InputError for a precision that models of this kind, or from this source, are not exported to."""
    check_supported(provider, kind, precision)
    if precision is not Precision.SOURCE:
        return
    if not checkpoint.block_types:
        without = "comes in none" if checkpoint.gguf is None else "has no weights in blocks"
        others = (one for one in SUPPORT[provider].precisions[kind] if one is not Precision.SOURCE)
        raise InputError(
            f"`source` keeps the blocks of a GGUF file, and `{checkpoint.name}` {without}",
            hint=f"choose one of {', '.join(f'`{one.value}`' for one in others)}",
        )
    _check_blocks(checkpoint)


def _check_blocks(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedModelError for blocks that cannot be kept as they are."""
    unknown = sorted(checkpoint.block_types - BLOCK_READERS.keys())
    if unknown:
        kinds = " and ".join(f"`{kind}`" for kind in unknown)
        raise UnsupportedModelError(
            f"`{checkpoint.name}` has weights of the type {kinds}, so its own precision cannot be kept",
            hint=f"supported: {', '.join(f'`{kind}`' for kind in BLOCK_READERS)}; "
            "`--precision int8` or `int4` quantizes any weights again",
        )


def checked_cache(
    kind: Kind, precision: Precision, cache: CacheType | None, provider: Provider = Provider.CPU
) -> CacheType:
    """The type of the KV cache; raises InputError for one that the kind, precision or provider does not have."""
    if kind is not Kind.DECODER:
        if cache is not None:
            raise InputError(f"`cache` is for decoders, and this is {kind.articled}", hint="leave out `--cache`")
        return CacheType.FLOAT32
    caches = SUPPORT[provider].caches
    if cache is None or cache in caches[precision]:
        return cache or caches[precision][0]
    (only,) = caches[precision]
    what = f"`{precision.value}`" if provider is Provider.CPU else f"a graph for `{provider.value}`"
    others = ", ".join(f"`{one.value}`" for one, types in caches.items() if cache in types)
    raise InputError(
        f"{what} has a {only.value} KV cache only",
        hint=f"leave out `--cache`, or choose one of {others}" if others else "leave out `--cache`",
    )


def checked_prefill(
    kind: Kind, precision: Precision, prefill: Precision | None, provider: Provider = Provider.CPU
) -> bool:
    """Whether a decoder gets an 8-bit graph for prompts; raises InputError where it cannot have one."""
    if prefill is None:
        return False
    hint = "leave out `--prefill`"
    if prefill is not Precision.INT8:
        raise InputError(f"`prefill` must be `int8`, not `{prefill.value}`", hint=f"{hint}, or choose `int8`")
    if kind is not Kind.DECODER:
        raise InputError(f"`prefill` is for decoders, and this is {kind.articled}", hint=hint)
    if provider is not Provider.CPU:
        raise InputError(
            f"an 8-bit graph for prompts is for the CPU, and this graph is for `{provider.value}`",
            hint=f"{hint}, or use `--provider cpu`",
        )
    if precision not in PREFILL_PRECISIONS:
        others = ", ".join(f"`{one.value}`" for one in PREFILL_PRECISIONS)
        raise InputError(
            f"a graph in `{precision.value}` has no 8-bit graph for prompts",
            hint=f"{hint}, or choose one of {others}",
        )
    return True
