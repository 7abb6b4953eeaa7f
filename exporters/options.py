"""The options of an export, and the plan that follows from them and the checkpoint: kind, precision, cache, threshold.

Nothing here reads weights, so a plan that cannot be carried out is refused before they are downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..runtime.bundle.manifest import CacheType, EmbedderFacts, Kind, Precision, Provider
from ..runtime.errors import InputError, UnsupportedModelError
from .checkpoint.catalog import load_catalog
from .checkpoint.checkpoint import Checkpoint
from .checkpoint.cross_encoder import check_cross_encoder
from .checkpoint.generation_config import generation_defaults
from .checkpoint.kind import check_kind, kind_of, max_length
from .encoder.config import embedder_facts
from .gguf.block_formats import BLOCK_READERS

PRECISIONS = {
    Kind.EMBEDDER: (Precision.FP32, Precision.INT8),
    Kind.RERANKER: (Precision.FP32, Precision.INT8),
    Kind.DECODER: (Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT4, Precision.SOURCE),
}
"""What each kind is exported to."""
HALF_CACHES = (Precision.INT8, Precision.INT4, Precision.SOURCE)
"""The precisions with which the cache alone may be float16."""
THRESHOLD_OPTIONS = {Kind.EMBEDDER: "min_cosine", Kind.RERANKER: "min_tau", Kind.DECODER: "max_kl"}
"""The option that sets the accuracy threshold, by kind."""


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export; None where the model decides."""

    kind: Kind | None
    precision: Precision | None
    cache: CacheType | None
    thresholds: Mapping[Kind, float | None]
    """Accuracy that a bundle must reach, by the kind of model that the measure is for."""
    provider: Provider = Provider.CPU


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


def plan_export(checkpoint: Checkpoint, options: ExportOptions) -> ExportPlan:
    """Plan the export of a checkpoint, whose weights need not be on local disk.

    Raises InputError for options that do not go together, UnsupportedModelError and CheckpointError for a model that
    cannot be exported as that kind.
    """
    kind = kind_of(checkpoint, options.kind)
    threshold = _checked_threshold(kind, options.thresholds)
    precision = options.precision or default_precision(checkpoint, kind)
    check_precision(checkpoint, kind, precision)
    cache = checked_cache(kind, precision, options.cache)
    # A GGUF file was checked when its header was read.
    if checkpoint.gguf is not None:
        return ExportPlan(kind, precision, cache, threshold, options.provider)
    check_kind(checkpoint, kind)
    max_length(checkpoint)
    embedder = embedder_facts(checkpoint) if kind is Kind.EMBEDDER else None
    if kind is Kind.RERANKER:
        check_cross_encoder(checkpoint)
    elif kind is Kind.DECODER:
        generation_defaults(checkpoint)
    return ExportPlan(kind, precision, cache, threshold, options.provider, embedder)


def check_for_catalog(name: str, options: ExportOptions) -> None:
    """Raise InputError for options that do not go with the kind of a catalog's model, before anything is downloaded.

    Other models' kinds are known from their files.
    """
    spec = load_catalog().get(name)
    if spec is None:
        return
    kind = options.kind or spec.kind
    _checked_threshold(kind, options.thresholds)
    if options.precision is not None:
        _check_precision_of(kind, options.precision, PRECISIONS[kind])


def _checked_threshold(kind: Kind, given: Mapping[Kind, float | None]) -> float | None:
    """The threshold for this kind; raises InputError when one for another kind is given."""
    for other, threshold in given.items():
        if threshold is not None and other is not kind:
            raise InputError(
                f"`{THRESHOLD_OPTIONS[other]}` is for {other.value}s, and this is {kind.articled}",
                hint=f"use `--{THRESHOLD_OPTIONS[kind].replace('_', '-')}`",
            )
    return given[kind]


def default_precision(checkpoint: Checkpoint, kind: Kind) -> Precision:
    """The file's own blocks, where it is quantized; else what the catalog says, or what a model of this kind is for.

    Quantizing weights again that are quantized already loses much more than keeping them: see `docs/export.md`.
    """
    if checkpoint.block_types and kind is Kind.DECODER:
        return Precision.SOURCE
    if checkpoint.spec is not None:
        return checkpoint.spec.precision
    return Precision.INT4 if kind is Kind.DECODER else Precision.INT8


def check_precision(checkpoint: Checkpoint, kind: Kind, precision: Precision) -> None:
    """Raise InputError for a precision that models of this kind, or from this source, are not exported to."""
    known = [one for one in PRECISIONS[kind] if one is not Precision.SOURCE or checkpoint.block_types]
    if precision is Precision.SOURCE and precision in PRECISIONS[kind] and precision not in known:
        without = "comes in none" if checkpoint.gguf is None else "has no weights in blocks"
        raise InputError(
            f"`source` keeps the blocks of a GGUF file, and `{checkpoint.name}` {without}",
            hint=_choices_of(known),
        )
    if precision is Precision.SOURCE:
        check_blocks(checkpoint)
    _check_precision_of(kind, precision, known)


def _check_precision_of(kind: Kind, precision: Precision, known: Sequence[Precision]) -> None:
    if precision not in known:
        raise InputError(f"{kind.value}s are not exported to `{precision.value}`", hint=_choices_of(known))


def _choices_of(known: Sequence[Precision]) -> str:
    return f"choose one of {', '.join(f'`{one.value}`' for one in known)}"


def check_blocks(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedModelError for blocks that cannot be kept as they are."""
    unknown = sorted(checkpoint.block_types - BLOCK_READERS.keys())
    if unknown:
        kinds = " and ".join(f"`{kind}`" for kind in unknown)
        raise UnsupportedModelError(
            f"`{checkpoint.name}` has weights of the type {kinds}, so its own precision cannot be kept",
            hint=f"supported: {', '.join(f'`{kind}`' for kind in BLOCK_READERS)}; "
            "`--precision int8` or `int4` quantizes any weights again",
        )


def checked_cache(kind: Kind, precision: Precision, cache: CacheType | None) -> CacheType:
    """The type of the KV cache; raises InputError for one that the kind or the precision does not have."""
    if cache is not None and kind is not Kind.DECODER:
        raise InputError(f"`cache` is for decoders, and this is {kind.articled}", hint="leave out `--cache`")
    if precision is Precision.FP16:
        if cache is CacheType.FLOAT32:
            raise InputError(
                "`fp16` stores everything in float16, the KV cache too",
                hint="leave out `--cache`",
            )
        return CacheType.FLOAT16
    if cache is CacheType.FLOAT16 and precision not in HALF_CACHES:
        choices = ", ".join(f"`{one.value}`" for one in HALF_CACHES)
        raise InputError(f"`{precision.value}` has a float32 KV cache only", hint=f"choose one of {choices}, or `fp16`")
    return cache or CacheType.FLOAT32
