"""The result of embedding texts, and how it is collected from batches that run on several threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from ..text.tokenizer import LongTexts, TokenizedText
from .dense import Dense
from .embedding_types import STORED, VectorType, quantize_embeddings, stored_width
from .pooling import normalize, pool_chunks, shorten


@dataclass(frozen=True)
class Embeddings:
    """Embeddings with a report: token counts, truncated texts, and chunks of long texts."""

    vectors: NDArray[Any]
    """(texts, dimension) or (texts, dim) of type `dtype`; packed bits have an eighth of the columns."""
    tokens: NDArray[np.int64]
    """(texts,): number of tokens that the model read, including special tokens."""
    dropped: NDArray[np.int64]
    """(texts,): number of tokens that were truncated."""
    chunks: NDArray[np.int64]
    """(texts,): number of chunks; more than 1 only for long texts with `LongTexts.MEAN`."""
    over_budget: int
    """Number of texts, or chunks of texts, with more than `batch_tokens` tokens, which ran alone."""
    ranges: NDArray[np.float32] | None
    """(2, dimension): the ranges of int8 embeddings; None for other types."""

    def __repr__(self) -> str:
        texts, vectors = len(self.tokens), f"{self.vectors.dtype} {self.vectors.shape}"
        return f"<Embeddings of {texts} texts: {vectors}, {len(self.truncated)} truncated>"

    @property
    def truncated(self) -> list[int]:
        """Indices of truncated texts."""
        return [int(index) for index in np.flatnonzero(self.dropped)]

    @property
    def split(self) -> list[int]:
        """Indices of texts with more than one chunk."""
        return [int(index) for index in np.flatnonzero(self.chunks > 1)]


@dataclass(frozen=True)
class CheckedOptions:
    """Checked options of a call."""

    prefix: str
    dim: int
    dtype: VectorType
    ranges: NDArray[np.float32] | None
    long: LongTexts
    batch_tokens: int
    dense: tuple[Dense, ...]
    normalize: bool
    skip: int = 0
    """Number of leading tokens of each text that pooling excludes."""

    def postprocess(self, pooled: NDArray[np.float32]) -> NDArray[Any]:
        """Dense layers, truncation to `dim`, normalization and quantization of pooled embeddings (texts, width)."""
        for layer in self.dense:
            pooled = layer.apply(pooled)
        if self.dim < pooled.shape[1]:
            pooled = shorten(pooled, self.dim)
        if self.normalize:
            pooled = normalize(pooled)
        if not np.isfinite(pooled).all():
            raise BundleError(
                "the bundle gives vectors that are not finite numbers",
                hint="run `ortkit verify` on it, and export it again if it fails",
            )
        return quantize_embeddings(pooled, self.dtype, ranges=self.ranges)


class Row(NamedTuple):
    """A row of a batch: a text, or a chunk of a long one."""

    text: int
    chunk: int
    ids: NDArray[np.int64]


class EmbeddingsBuilder:
    """Collects the results of batches. `add` may be called from several threads: each writes its own rows."""

    def __init__(self, count: int, options: CheckedOptions) -> None:
        self.options = options
        self.vectors = np.empty((count, stored_width(options.dim, options.dtype)), STORED[options.dtype])
        self.tokens, self.dropped, self.chunks = np.zeros((3, count), np.int64)
        self.over_budget = 0
        self.long: dict[int, list[tuple[int, NDArray[np.float32]]]] = {}
        """Text with several chunks -> number of tokens and pooled embedding (width,) of each chunk."""

    def rows(self, tokenized: Iterable[TokenizedText]) -> Iterator[Row]:
        """The rows to run for all texts of the call, in order."""
        for index, text in enumerate(tokenized):
            self.tokens[index] = text.tokens
            self.dropped[index] = text.dropped
            self.chunks[index] = len(text.chunks)
            if len(text.chunks) > 1:
                self.long[index] = [(len(ids), np.empty(0, np.float32)) for ids in text.chunks]
            for number, ids in enumerate(text.chunks):
                self.over_budget += len(ids) > self.options.batch_tokens
                yield Row(index, number, ids)

    def add(self, batch: Sequence[Row], pooled: NDArray[np.float32]) -> None:
        """Add the pooled embeddings (rows, width) of a batch."""
        if not any(row.text in self.long for row in batch):
            self.vectors[[row.text for row in batch]] = self.options.postprocess(pooled)
            return
        for place, row in enumerate(batch):
            if row.text in self.long:
                # A copy: a view would keep the whole batch in memory.
                pooled_tokens = max(len(row.ids) - self.options.skip, 1)
                self.long[row.text][row.chunk] = (pooled_tokens, pooled[place].copy())
            else:
                self.vectors[row.text] = self.options.postprocess(pooled[place : place + 1])[0]

    def embeddings(self) -> Embeddings:
        """The result, after all batches ran."""
        for index, chunks in self.long.items():
            tokens, vectors = zip(*chunks, strict=True)
            pooled = pool_chunks(np.stack(vectors), np.array(tokens))
            self.vectors[index] = self.options.postprocess(pooled[np.newaxis])[0]
        return Embeddings(
            vectors=self.vectors,
            tokens=self.tokens,
            dropped=self.dropped,
            chunks=self.chunks,
            over_budget=self.over_budget,
            ranges=self.options.ranges,
        )
