"""The results of one call: what was asked for, what comes in from several threads, and what is given back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .dense import Dense
from ..errors import BundleError
from .pooling import normalize, pool_chunks, shorten
from ..text.tokenizer import LongTexts, TokenizedText
from .embedding_types import STORED, VectorType, quantize_embeddings, stored_width


@dataclass(frozen=True)
class Embeddings:
    """Embeddings with a report: token counts, what was truncated, and how long texts were read."""

    vectors: NDArray[Any]
    """(texts, dimension) or (texts, dim), of the type that was asked for; bits are packed, eight in a number."""
    tokens: NDArray[np.int64]
    """(texts,): how many tokens of each text the model read, special tokens included."""
    dropped: NDArray[np.int64]
    """(texts,): how many tokens were cut off each text."""
    chunks: NDArray[np.int64]
    """(texts,): in how many chunks each text was read; more than 1 only for long texts with `LongTexts.MEAN`."""
    over_budget: int
    """How many texts, or chunks of one, have more tokens than a batch may have, and ran alone."""
    ranges: NDArray[np.float32] | None
    """(2, dimension): the ranges by which int8 vectors are stored; None for other types."""

    def __repr__(self) -> str:
        texts, vectors = len(self.tokens), f"{self.vectors.dtype} {self.vectors.shape}"
        return f"<Embeddings of {texts} texts: {vectors}, {len(self.truncated)} truncated>"

    @property
    def truncated(self) -> list[int]:
        """The indices of the texts that were cut."""
        return [int(index) for index in np.flatnonzero(self.dropped)]

    @property
    def split(self) -> list[int]:
        """The indices of the texts that were read in more than one chunk."""
        return [int(index) for index in np.flatnonzero(self.chunks > 1)]


@dataclass(frozen=True)
class Request:
    """The options of a call, checked: how its texts are read and its vectors finished."""

    prefix: str
    dim: int
    dtype: VectorType
    ranges: NDArray[np.float32] | None
    long: LongTexts
    batch_tokens: int
    dense: tuple[Dense, ...]
    normalize: bool
    skip: int = 0
    """Tokens at the beginning of each text that are left out of pooling."""

    def finish(self, pooled: NDArray[np.float32]) -> NDArray[Any]:
        """Pooled vectors (texts, width), through the layers after pooling, shortened, normalized, stored as asked."""
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


class Piece(NamedTuple):
    """What goes through the graph as one row: a text, or a chunk of a long one."""

    text: int
    chunk: int
    ids: NDArray[np.int64]


class Results:
    """What comes in while a call runs; `take` may be called from several threads, since each writes its own rows."""

    def __init__(self, count: int, request: Request) -> None:
        self.request = request
        self.vectors = np.empty((count, stored_width(request.dim, request.dtype)), STORED[request.dtype])
        self.tokens, self.dropped, self.chunks = np.zeros((3, count), np.int64)
        self.over_budget = 0
        self.long: dict[int, list[tuple[int, NDArray[np.float32]]]] = {}
        """For each text that is read in chunks, the tokens and the pooled vector (dimension,) of each."""

    def pieces(self, tokenized: Iterable[TokenizedText]) -> Iterator[Piece]:
        """What has to run for these texts, all of the call in order."""
        for index, text in enumerate(tokenized):
            self.tokens[index] = text.tokens
            self.dropped[index] = text.dropped
            self.chunks[index] = len(text.chunks)
            if len(text.chunks) > 1:
                self.long[index] = [(len(ids), np.empty(0, np.float32)) for ids in text.chunks]
            for number, ids in enumerate(text.chunks):
                self.over_budget += len(ids) > self.request.batch_tokens
                yield Piece(index, number, ids)

    def take(self, batch: Sequence[Piece], pooled: NDArray[np.float32]) -> None:
        """Keep the pooled vectors (pieces, dimension) of a batch."""
        if not any(piece.text in self.long for piece in batch):
            self.vectors[[piece.text for piece in batch]] = self.request.finish(pooled)
            return
        for row, piece in enumerate(batch):
            if piece.text in self.long:
                # A copy, so that the whole batch is not kept for one row of it.
                pooled_tokens = max(len(piece.ids) - self.request.skip, 1)
                self.long[piece.text][piece.chunk] = (pooled_tokens, pooled[row].copy())
            else:
                self.vectors[piece.text] = self.request.finish(pooled[row : row + 1])[0]

    def embeddings(self) -> Embeddings:
        """All of them, when everything has run."""
        for index, chunks in self.long.items():
            tokens, vectors = zip(*chunks, strict=True)
            pooled = pool_chunks(np.stack(vectors), np.array(tokens))
            self.vectors[index] = self.request.finish(pooled[np.newaxis])[0]
        return Embeddings(
            vectors=self.vectors,
            tokens=self.tokens,
            dropped=self.dropped,
            chunks=self.chunks,
            over_budget=self.over_budget,
            ranges=self.request.ranges,
        )
