"""Batches of fixed shapes (buckets), for providers that compile a graph for each shape: padding and what masks it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..bundle.folder import BundleFolder
from ..bundle.graph_io import BIAS
from ..bundle.manifest import Buckets
from ..errors import BundleError

Item = TypeVar("Item")
Bucket = tuple[int, int]
"""Texts and tokens."""

PADDED_TOKENS = 4096
"""Tokens in one run of a bucket of several texts, with padding; longer texts run alone."""
MASKED = np.float32(-10_000)
"""Added to the attention scores of padding: float16 holds it, and its exponential is 0 in float32."""
_MOST_SIZES = 16
"""Sizes of buckets, of which each may get a session: more than any export makes."""
_MOST_TEXTS = 64
"""Far more texts than any export's bucket has: buffers of this size are allocated."""
_PAD_ID = 0
"""The token id of padding. It is masked, so that any id of the vocabulary does."""


@dataclass(frozen=True)
class PaddedBatch:
    """The inputs of a graph for a batch that was padded to a bucket."""

    feeds: dict[str, NDArray[Any]]
    bucket: Bucket
    lengths: tuple[int, ...]
    """Tokens of each text of the batch, without the texts that fill the bucket."""


class BucketChoice:
    """The buckets of a bundle, checked: the smallest one for a batch, and batches that fill them."""

    def __init__(self, buckets: Buckets, *, max_length: int, path: Path) -> None:
        """Raises BundleError for buckets that are out of order, or do not hold a text of `max_length` tokens.

        `path` is the bundle's, for messages.
        """
        self.buckets = buckets
        self.path = path
        for name, sizes in (("tokens", buckets.tokens), ("texts", buckets.texts)):
            if not 0 < len(sizes) <= _MOST_SIZES or list(sizes) != sorted(set(sizes)):
                raise BundleError(
                    f"`buckets.{name}` in the manifest of `{path}` must be 1 to {_MOST_SIZES} ascending numbers, not "
                    f"{list(sizes[: _MOST_SIZES + 1])}"
                )
        if buckets.texts[-1] > _MOST_TEXTS:
            raise BundleError(
                f"the largest bucket in the manifest of `{path}` has {buckets.texts[-1]} texts, and the "
                f"limit is {_MOST_TEXTS}"
            )
        if buckets.tokens[-1] < max_length:
            raise BundleError(
                f"the largest bucket in the manifest of `{path}` has {buckets.tokens[-1]} tokens, and the model's "
                f"limit is {max_length}"
            )

    @classmethod
    def of(cls, bundle: BundleFolder) -> BucketChoice | None:
        """The buckets of a bundle; None where its graph takes any shape. Raises BundleError as the constructor does."""
        manifest = bundle.manifest
        if manifest.buckets is None:
            return None
        return cls(manifest.buckets, max_length=manifest.tokenizer.max_length, path=bundle.path)

    def smallest(self, texts: int, tokens: int) -> Bucket:
        """The smallest bucket that holds so many texts of at most so many tokens; raises BundleError without one."""
        found = tuple(
            next((size for size in sizes if size >= wanted), None)
            for sizes, wanted in ((self.buckets.texts, texts), (self.buckets.tokens, tokens))
        )
        if found[0] is None or found[1] is None:
            raise BundleError(f"no bucket in the manifest of `{self.path}` holds {texts} texts of {tokens} tokens")
        return found[0], found[1]

    def batches(self, items: Iterable[Item], batch_tokens: int, *, length: Callable[[Item], int]) -> list[list[Item]]:
        """Group items by the bucket that their length needs, the longest first; each group fits one bucket.

        A group has several items only where a bucket for them has at most `batch_tokens` tokens with its padding.
        """
        by_tokens: dict[int, list[Item]] = {}
        for item in sorted(items, key=length, reverse=True):
            by_tokens.setdefault(self.smallest(1, length(item))[1], []).append(item)
        groups = []
        for tokens, same in by_tokens.items():
            count = max((texts for texts in self.buckets.texts if texts * tokens <= batch_tokens), default=1)
            groups += _split(same, count)
        return groups

    def pad(self, rows: Sequence[Mapping[str, NDArray[np.int64]]], *, least: Bucket = (1, 1)) -> PaddedBatch:
        """Pad the inputs of texts, each (1, tokens), to the smallest bucket that holds them, at least to `least`."""
        texts, tokens = least
        return pad_to(self.smallest(max(texts, len(rows)), max(tokens, *map(_tokens_of, rows))), rows)

    @property
    def first(self) -> Bucket:
        """The smallest bucket, which is opened first."""
        return self.buckets.texts[0], self.buckets.tokens[0]


def _split(items: list[Item], count: int) -> list[list[Item]]:
    """Lists of at most `count` items; none has a single one where others have more, which would need another bucket."""
    groups = [items[start : start + count] for start in range(0, len(items), count)]
    if count > 2 and len(groups) > 1 and len(groups[-1]) == 1:
        groups[-1].insert(0, groups[-2].pop())
    return groups


def pad_to(bucket: Bucket, rows: Sequence[Mapping[str, NDArray[np.int64]]]) -> PaddedBatch:
    """Pad the inputs of texts, each (1, tokens), to a bucket that holds them.

    Places for further texts are filled with the shortest one.
    """
    texts, tokens = bucket
    lengths = [_tokens_of(row) for row in rows]
    filled = [*rows, *[rows[lengths.index(min(lengths))]] * (texts - len(rows))]
    feeds: dict[str, NDArray[Any]] = {}
    for name in rows[0]:
        feeds[name] = np.full(bucket, _PAD_ID, np.int64)
        for target, row in zip(feeds[name], filled, strict=True):
            target[: row[name].shape[1]] = row[name][0]
    bias = np.full((texts, 1, 1, tokens), MASKED, np.float32)
    for target, row in zip(bias, filled, strict=True):
        target[..., : _tokens_of(row)] = 0
    return PaddedBatch({**feeds, BIAS: bias}, bucket, tuple(lengths))


def _tokens_of(row: Mapping[str, NDArray[np.int64]]) -> int:
    return len(next(iter(row.values()))[0])
