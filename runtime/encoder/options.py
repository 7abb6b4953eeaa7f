"""Keyword options of embedders and rerankers, shared by their methods; None is the default."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import Scores
from ..text.tokenizer import LongTexts
from .embedding_types import VectorType


class EmbedOptions(TypedDict, total=False):
    """Keyword options of `embed`, `embed_query`, `embed_passages`, `embed_with_report` and `stream` of `Embedder`."""

    dim: int | None
    """Truncate embeddings to this many components; default: all of them."""
    dtype: VectorType | str | None
    """Type of the embeddings; default: `float32`."""
    ranges: NDArray[np.float32] | None
    """(2, dimension), the range of int8 for each component; default, for models that normalize: that of unit vectors"""
    long: LongTexts | str | None
    """Texts over the model's limit: `truncate`, `error` or `mean`; default: `truncate`."""
    batch_tokens: int | None
    """Largest number of tokens in one run of the graph; default: what suits the provider."""


class PairOptions(TypedDict, total=False):
    """Keyword options of all methods of `Reranker` that score pairs."""

    long: LongTexts | str | None
    """Pairs over the model's limit: `truncate` or `error`; default: `truncate`."""
    batch_tokens: int | None
    """Largest number of tokens in one run of the graph; default: what suits the provider."""


class RankOptions(PairOptions, total=False):
    """Keyword options of `rank`, `rank_many` and `rank_many_with_report` of `Reranker`."""

    top_n: int | None
    """How many of the best documents to return; default: all."""
    scores: Scores | str | None
    """Activation of the logits: `raw`, `sigmoid` or `softmax`; default: the publisher's."""
    label: str | None
    """Label to rank by, for models with several."""
