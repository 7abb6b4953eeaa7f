"""What is asked of an export, and what is to be made then: a kind of model, its precision, its cache, how close.

Nothing here reads weights, so that all of it is refused before they are downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from exporters.checkpoint import Checkpoint
from exporters.cross_encoder import check_cross_encoder
from exporters.facts import embedder_facts
from exporters.generation import generation_defaults
from exporters.kind import check_kind, kind_of, max_length
from exporters.stored_blocks import BLOCK_READERS
from runtime.errors import InputError, UnsupportedModelError
from runtime.manifest import CacheType, Kind, Precision

PRECISIONS = {
    Kind.EMBEDDER: (Precision.FP32, Precision.INT8),
    Kind.RERANKER: (Precision.FP32, Precision.INT8),
    Kind.DECODER: (Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT4, Precision.SOURCE),
}
"""What each kind is exported to."""
HALF_CACHES = (Precision.INT8, Precision.INT4, Precision.SOURCE)
"""The precisions with which the cache alone may be float16."""
BARS = {Kind.EMBEDDER: "min_cosine", Kind.RERANKER: "min_tau", Kind.DECODER: "max_kl"}
"""What says how close to PyTorch a bundle must come."""


@dataclass(frozen=True)
class Asked:
    """What the user says of an export; None where the model is to decide."""

    kind: Kind | None
    precision: Precision | None
    cache: CacheType | None
    bars: Mapping[Kind, float | None]
    """How close to PyTorch a bundle must come, by the kind of model that this is a measure for."""

    def choose(self, checkpoint: Checkpoint) -> Choice:
        """What is to be made of a checkpoint, of which only the weights may not be there yet.

        Raises InputError for what does not go together, UnsupportedModelError and CheckpointError for a model that is
        not exported as that kind.
        """
        kind = kind_of(checkpoint, self.kind)
        bar = checked_bar(kind, self.bars)
        precision = self.precision or default_precision(checkpoint, kind)
        check_precision(checkpoint, kind, precision)
        cache = checked_cache(kind, precision, self.cache)
        # What a GGUF file says was checked when it was found.
        if checkpoint.gguf is None:
            check_kind(checkpoint, kind)
            max_length(checkpoint)
            if kind is Kind.EMBEDDER:
                embedder_facts(checkpoint)
            elif kind is Kind.RERANKER:
                check_cross_encoder(checkpoint)
            else:
                generation_defaults(checkpoint)
        return Choice(kind, precision, cache, bar)


@dataclass(frozen=True)
class Choice:
    """What an export makes."""

    kind: Kind
    precision: Precision
    cache: CacheType
    """The type of a decoder's keys and values."""
    bar: float | None
    """How close to PyTorch the bundle must come, in the measure of its kind."""


def checked_bar(kind: Kind, given: Mapping[Kind, float | None]) -> float | None:
    """The bar for this kind; raises InputError when the one for another kind is given."""
    for other, bar in given.items():
        if bar is not None and other is not kind:
            raise InputError(
                f"`{BARS[other]}` is for {other.value}s, and this is {kind.articled}",
                hint=f"use `--{BARS[kind].replace('_', '-')}`",
            )
    return given[kind]


def default_precision(checkpoint: Checkpoint, kind: Kind) -> Precision:
    """The file's own blocks, where it is quantized; else what the catalog says, or what a model of this kind is for.

    Rounding weights anew that are in blocks already costs much more than keeping them: see `docs/export.md`.
    """
    if checkpoint.block_types and kind is Kind.DECODER:
        return Precision.SOURCE
    if checkpoint.spec is not None:
        return checkpoint.spec.precision
    return Precision.INT4 if kind is Kind.DECODER else Precision.INT8


def check_precision(checkpoint: Checkpoint, kind: Kind, precision: Precision) -> None:
    """Raise InputError for a precision that models of this kind, or from this source, are not exported to."""
    known = [one for one in PRECISIONS[kind] if one is not Precision.SOURCE or checkpoint.block_types]
    choices = ", ".join(f"`{one.value}`" for one in known)
    if precision is Precision.SOURCE and precision in PRECISIONS[kind] and precision not in known:
        without = "comes in none" if checkpoint.gguf is None else "has no weights in blocks"
        raise InputError(
            f"`source` keeps the blocks of a GGUF file, and `{checkpoint.name}` {without}",
            hint=f"choose one of {choices}",
        )
    if precision is Precision.SOURCE:
        check_blocks(checkpoint)
    if precision not in known:
        raise InputError(f"{kind.value}s are not exported to `{precision.value}`", hint=f"choose one of {choices}")


def check_blocks(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedModelError for blocks that cannot be kept as they are."""
    unknown = sorted(checkpoint.block_types - BLOCK_READERS.keys())
    if unknown:
        kinds = " and ".join(f"`{kind}`" for kind in unknown)
        raise UnsupportedModelError(
            f"`{checkpoint.name}` has weights of the type {kinds}, so its own precision cannot be kept",
            hint=f"kept are {', '.join(f'`{kind}`' for kind in BLOCK_READERS)}; "
            "`--precision int8` or `int4` rounds any weights anew",
        )


def checked_cache(kind: Kind, precision: Precision, cache: CacheType | None) -> CacheType:
    """The type of keys and values; raises InputError for one that the kind or the precision does not have."""
    if cache is not None and kind is not Kind.DECODER:
        raise InputError(f"`cache` is for decoders, and this is {kind.articled}", hint="leave out `--cache`")
    if precision is Precision.FP16:
        if cache is CacheType.FLOAT32:
            raise InputError(
                "`fp16` has everything in float16, keys and values too, and not in `float32`",
                hint="leave out `--cache`",
            )
        return CacheType.FLOAT16
    if cache is CacheType.FLOAT16 and precision not in HALF_CACHES:
        choices = ", ".join(f"`{one.value}`" for one in HALF_CACHES)
        raise InputError(
            f"`{precision.value}` has keys and values in float32 only", hint=f"choose one of {choices}, or `fp16`"
        )
    return cache or CacheType.FLOAT32
