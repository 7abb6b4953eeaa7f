"""Calls whose texts or pairs share batches with those of other calls: for a server, whose requests have few each.

A call is opened with its rows tokenized, `Encoder.next_batch` picks rows of any calls that run together,
`Encoder.run_batch` runs them, and the result of a call is that of `embed_with_report` or `rank`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..text.pair_tokenizer import TokenizedPair
from .embeddings import Embeddings, EmbeddingsBuilder, Row
from .ranking import OpenRanking, Ranking


@dataclass(frozen=True, eq=False)
class SharedRow:
    """A text, a chunk of one, or a pair, which waits to run."""

    call: SharedCall
    row: Any
    """What the call knows it by."""
    ids: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        return len(self.ids)


@dataclass(eq=False)
class SharedCall:
    """A call in progress."""

    rows: list[SharedRow] = field(default_factory=list)
    """What has to run, in order."""
    skip: int = 0
    """Number of leading tokens that pooling excludes; only rows with the same number run together."""

    @property
    def tokens(self) -> int:
        """Number of tokens that the model reads."""
        return sum(row.tokens for row in self.rows)


class EmbedCall(SharedCall):
    """The texts of a call of `Embedder.open_call`."""

    def __init__(self, builder: EmbeddingsBuilder, rows: Sequence[Row]) -> None:
        super().__init__(skip=builder.options.skip)
        self.builder = builder
        self.rows = [SharedRow(self, row, row.ids) for row in rows]

    def result(self) -> Embeddings:
        """The embeddings, after all rows ran."""
        return self.builder.embeddings()


class RankCall(SharedCall):
    """The query and the documents of a call of `Reranker.open_call`."""

    def __init__(self, ranking: OpenRanking[str], pairs: Sequence[TokenizedPair], labels: int) -> None:
        super().__init__()
        self.pairs = pairs
        self.logits = np.empty((len(pairs), labels), np.float32)
        self.rows = [SharedRow(self, place, pair.ids) for place, pair in enumerate(pairs)]
        self._ranking = ranking

    def result(self) -> Ranking[str]:
        """The ranking, after all rows ran; call it once."""
        for logits, pair in zip(self.logits, self.pairs, strict=True):
            self._ranking.take(logits, dropped=pair.dropped, query_dropped=pair.query_dropped)
        return self._ranking.ranking()
