"""Rank documents by relevance to a query, with a bundle of kind reranker (a cross-encoder)."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from ..arguments import checked_integer, takes_keywords, without_none
from ..bundle.bundle import TOKENIZER
from ..bundle.folder import BundleFolder
from ..bundle.graph_io import INPUT_IDS, TOKEN_TYPE_IDS
from ..bundle.manifest import Golden, Kind, Scores
from ..bundle.records import choice
from ..errors import BundleError, InputError, TextError, TextTooLongError
from ..session.closing import ClosableModel
from ..text.pair_tokenizer import Pair, PairTokenizer, TokenizedPair
from ..text.tokenizer import NO_TOKENS, NO_TOKENS_HINT, LongTexts, checked_text
from .base import Encoder, TruncationWarning, characters, graph_feeds
from .batching import in_chunks, numbered, run_all
from .buckets import Bucket
from .golden import pair_of
from .options import PairOptions, RankOptions
from .ranking import Document, OpenRanking, Ranked, Ranking, score
from .searches import PairScores, Search, pairs_of, rankings_of
from .shared_batches import RankCall, SharedRow

_PAIR_CHUNK = 512
"""Pairs that a stream scores before it yields their scores."""


class Reranker(Encoder, ClosableModel):
    """A cross-encoder: scores how relevant documents are to a query. Thread-safe.

    On the CPU a pair has the same score, bit for bit, alone or in any batch, in any order, with any number of workers.
    Rerankers of the same bundle share its weights.

    Documents and pairs are any iterable. These keywords (`RankOptions`, and `text`) are the same for all methods:

    - `scores`: the activation of the logits: `raw`, `sigmoid`, or `softmax` over the labels of a pair; default: the
      publisher's. It never changes the order.
    - `label`: the label to rank by, for models with several.
    - `long`: pairs over the model's limit. `truncate`: as the publisher's library does, the longer of the two first;
      `error`: raise TextTooLongError before anything of the chunk is computed.
    - `text`: a function from a document to its text, for documents that are not strings, such as
      `lambda record: record["body"]`.
    - `batch_tokens`: largest number of tokens in one run of the graph; default: what suits the provider.

    `rank` returns the documents and warns of truncated ones (TruncationWarning); `rank_many` does so for several
    queries, and `rank_many_with_report` yields each ranking with a report once it is complete. `score`,
    `score_with_report` and `stream` are the same for pairs.

    Raises InputError for an invalid option, query or document, and for an empty query. An empty document has a score;
    TextError, a subclass, is raised for a pair without any token, not even special tokens (CrossEncoder fails too).
    """

    def __init__(
        self,
        bundle: BundleFolder | str | os.PathLike[str],
        *,
        workers: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        """Open a bundle; `workers` is how many batches run at once, by default one per usable CPU core or GPU.

        `max_memory` limits the memory of this process, in bytes, or the GPU memory of a bundle for CUDA; default: the
        environment variable ORTKIT_MAX_MEMORY, or none. Batches become smaller; what does not fit is refused before it
        runs, and scores do not change. Raises NotFoundError, BundleError for a damaged bundle, WrongKindError,
        ProviderError and OutOfMemoryError.
        """
        super().__init__(
            bundle,
            kind=Kind.RERANKER,
            inputs=(INPUT_IDS, TOKEN_TYPE_IDS),
            workers=workers,
            max_memory=max_memory,
        )
        self._bound_memory(self.tokenizer.tokenizer, None)
        self._compare_first_use(None if self._buckets is None else self._buckets.first)

    def _open_tokenizer(self) -> None:
        manifest = self.bundle.manifest
        if manifest.reranker is None or not manifest.reranker.labels:
            raise BundleError(f"the manifest of `{self.bundle.path}` has no labels in its section `reranker`")
        self.facts = manifest.reranker
        """Labels and default activation, from the manifest."""
        self.tokenizer = PairTokenizer(
            self.bundle.file(TOKENIZER), manifest.tokenizer, self.facts.pair, typed=TOKEN_TYPE_IDS in manifest.inputs
        )

    @takes_keywords(RankOptions)
    def rank(
        self,
        query: str,
        documents: Iterable[Document],
        *,
        text: Callable[[Document], str] | None = None,
        **options: Unpack[RankOptions],
    ) -> list[Ranked[Document]]:
        """Rank documents for a query: the best `top_n`, or all, best first, ties in input order.

        Documents are read lazily, and with `top_n` only the best are kept in memory. Warns of truncated documents and
        of a truncated query (TruncationWarning).

            >>> [best] = reranker.rank("a brown fox", ["The quick brown fox", "Knots for wet rope"], top_n=1)
            >>> best.document == ["The quick brown fox", "Knots for wet rope"][best.index]
            True
        """
        [ranking] = self.rank_many_with_report([(query, documents)], text=text, **options)
        queries = int(ranking.query_dropped > 0)
        _warn_of_cuts(len(ranking.truncated), ranking.documents, self.max_length, queries=queries)
        return ranking.ranked

    @takes_keywords(RankOptions)
    def rank_many(
        self,
        searches: Iterable[Search[Document]],
        *,
        text: Callable[[Document], str] | None = None,
        **options: Unpack[RankOptions],
    ) -> list[list[Ranked[Document]]]:
        """Rank the documents of several queries, given as (query, documents), as `rank` does.

        Pairs of all queries share batches.

            >>> searches = [("a fox", ["The quick brown fox", "a dog"]), ("a dog", ["and the dog sleeps"])]
            >>> [len(ranked) for ranked in reranker.rank_many(searches)]
            [2, 1]
        """
        rankings = list(self.rank_many_with_report(searches, text=text, **options))
        cut = sum(len(ranking.truncated) for ranking in rankings)
        queries = sum(ranking.query_dropped > 0 for ranking in rankings)
        _warn_of_cuts(cut, sum(ranking.documents for ranking in rankings), self.max_length, queries=queries)
        return [ranking.ranked for ranking in rankings]

    @takes_keywords(RankOptions)
    def rank_many_with_report(
        self,
        searches: Iterable[Search[Document]],
        *,
        text: Callable[[Document], str] | None = None,
        progress: Callable[[int], None] | None = None,
        **options: Unpack[RankOptions],
    ) -> Iterator[Ranking[Document]]:
        """Rank any number of searches in bounded memory: yields each ranking with a report once it is complete.

        `progress` is called after each batch with its number of pairs, on a worker thread.

            >>> [ranking] = reranker.rank_many_with_report([("a fox", ["The quick brown fox", "a dog"])])
            >>> ranking.documents, ranking.truncated
            (2, ())
        """
        self._check_open()
        given = without_none(options)
        top_n = checked_integer(given["top_n"], "top_n") if "top_n" in given else None
        chosen, place = self._checked_scores(given.get("scores")), self._place_of(given.get("label"))
        of_pairs: PairOptions = {"long": given.get("long"), "batch_tokens": given.get("batch_tokens")}
        rankings: deque[OpenRanking[Document]] = deque()
        pairs = pairs_of(searches, rankings, lambda: OpenRanking(top_n, label=place, scores=chosen), text)
        return rankings_of(self.stream(pairs, progress=progress, **of_pairs), rankings)

    @takes_keywords(PairOptions)
    def score(
        self,
        pairs: Iterable[Pair],
        *,
        scores: Scores | str | None = None,
        **options: Unpack[PairOptions],
    ) -> NDArray[np.float64]:
        """Score pairs of a query and a document: float64 (pairs,), or (pairs, labels) for models with several labels.

        The default activation is the publisher's. Warns of truncated pairs (TruncationWarning).

            >>> reranker.score([("a fox", "The quick brown fox"), ("a fox", "a dog")]).shape
            (2,)
        """
        chosen = self._checked_scores(scores)
        found = self.score_with_report(pairs, **options)
        _warn_of_cuts(len(found.truncated), len(found.tokens), self.max_length)
        result = score(found.logits, chosen)
        return result[:, 0] if len(self.facts.labels) == 1 else result

    @takes_keywords(PairOptions)
    def score_with_report(
        self,
        pairs: Iterable[Pair],
        *,
        progress: Callable[[int], None] | None = None,
        **options: Unpack[PairOptions],
    ) -> PairScores:
        """Score pairs of a query and a document: logits, with token counts instead of a warning.

        `progress` is called after each batch with its number of pairs, on a worker thread.

            >>> reranker.score_with_report([("a fox", "The quick brown fox")]).logits.dtype
            dtype('float32')
        """
        _check_pairs(pairs)
        return self._run(list(pairs), *self._checked_options(options), progress)

    def scores_of(
        self, found: PairScores, *, scores: Scores | str | None = None, label: str | None = None
    ) -> NDArray[np.float64]:
        """The scores of a label, float64 (pairs,), from the logits of `score_with_report` or `stream`.

        >>> reranker.scores_of(reranker.score_with_report([("a fox", "The quick brown fox")])).shape
        (1,)
        """
        return score(found.logits, self._checked_scores(scores))[:, self._place_of(label)]

    @takes_keywords(PairOptions)
    def stream(
        self,
        pairs: Iterable[Pair],
        *,
        chunk: int = _PAIR_CHUNK,
        progress: Callable[[int], None] | None = None,
        **options: Unpack[PairOptions],
    ) -> Iterator[PairScores]:
        """Score any number of pairs in bounded memory: yields the result of `score_with_report` for each `chunk` pairs.

        Where `pairs` raises, the scores of the pairs before are yielded first.

            >>> [found.logits.shape for found in reranker.stream((("a fox", f"text {n}") for n in range(3)), chunk=2)]
            [(2, 1), (1, 1)]
        """
        self._check_open()
        _check_pairs(pairs)
        chunk = checked_integer(chunk, "chunk")
        long, batch_tokens = self._checked_options(options)
        chunks = in_chunks(pairs, chunk, size=_characters_of, most=self.chunk_characters)
        return (self._run(some, long, batch_tokens, progress, before=before) for before, some in numbered(chunks))

    def open_call(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        scores: Scores | str | None = None,
        label: str | None = None,
        long: LongTexts | str | None = None,
    ) -> RankCall:
        """Tokenize a search for batches that are shared with other calls (`shared_batches.py`); raises as `rank` does.

        >>> call = reranker.open_call("a fox", ["The quick brown fox"])
        >>> reranker.run_batch(reranker.next_batch(call.rows))
        >>> [ranked.index for ranked in call.result().ranked]
        [0]
        """
        self._check_open()
        most = None if top_n is None else checked_integer(top_n, "top_n")
        chosen, place = self._checked_scores(scores), self._place_of(label)
        checked_long, _ = self._checked_options({"long": long})
        rankings: deque[OpenRanking[str]] = deque()
        searches = [(query, documents)]
        pairs = list(pairs_of(searches, rankings, lambda: OpenRanking(most, label=place, scores=chosen), None))
        return RankCall(rankings[0], self._tokenized(pairs, checked_long), len(self.facts.labels))

    def _run_rows(self, rows: list[SharedRow]) -> None:
        calls = [cast("RankCall", row.call) for row in rows]
        found = self._logits([call.pairs[row.row] for call, row in zip(calls, rows, strict=True)], None)
        self._check_finite(found)
        for call, row, logits in zip(calls, rows, found, strict=True):
            call.logits[row.row] = logits

    def _run(
        self,
        pairs: list[Pair],
        long: LongTexts,
        batch_tokens: int,
        progress: Callable[[int], None] | None,
        *,
        before: int = 0,
        bucket: Bucket | None = None,
    ) -> PairScores:
        """Score pairs; messages number them after the `before` pairs of earlier chunks.

        Batches are padded to a bucket that is no less than `bucket`.
        """
        self._check_open()
        for index, pair in enumerate(pairs, before):
            _check_pair(pair, index)
        tokenized = self._tokenized(pairs, long, before)
        logits = np.empty((len(pairs), len(self.facts.labels)), np.float32)

        def run_batch(batch: list[int]) -> None:
            found = self._logits([tokenized[index] for index in batch], bucket)
            self._check_finite(found)
            logits[batch] = found
            if progress is not None:
                progress(len(batch))

        def tokens_of(index: int) -> int:
            return len(tokenized[index].ids)

        groups = self._batches(range(len(pairs)), batch_tokens, length=tokens_of)
        run_all(lambda batch: self._budget.run(run_batch, batch, length=tokens_of), groups, self.workers)
        return PairScores(
            logits=logits,
            tokens=np.array([len(pair.ids) for pair in tokenized], np.int64),
            dropped=np.array([pair.dropped for pair in tokenized], np.int64),
            query_dropped=np.array([pair.query_dropped for pair in tokenized], np.int64),
        )

    def _tokenized(self, pairs: list[Pair], long: LongTexts, before: int = 0) -> list[TokenizedPair]:
        tokenized = self.tokenizer.tokenize(pairs, before=before)
        _refuse_empty(tokenized, before)
        if long is LongTexts.ERROR:
            self._refuse_long(tokenized, before)
        self._check_memory((len(pair.ids) for pair in tokenized), "pair", before)
        return tokenized

    def _check_finite(self, logits: NDArray[np.float32]) -> None:
        if not np.isfinite(logits).all():
            raise BundleError(
                f"the graph `{self.session.path}` gives logits that are not finite numbers",
                hint="run `ortkit verify` on the bundle, and export it again if it fails",
            )

    def _golden_output(self, golden: Golden, bucket: Bucket | None) -> NDArray[np.float32]:
        return self._run([pair_of(golden)], LongTexts.TRUNCATE, self.batch_tokens, None, bucket=bucket).logits

    def _logits(self, batch: Sequence[TokenizedPair], bucket: Bucket | None) -> NDArray[np.float32]:
        """The logits of a batch (pairs, labels)."""
        labels = len(self.facts.labels)
        if self._buckets is None:
            feeds = graph_feeds(self.tokenizer.feeds(batch), self.bundle.manifest)
            with self._reserved(len(batch), len(batch[0].ids)):
                return self.session.run(feeds, (len(batch), labels))
        padded = self._buckets.pad([self.tokenizer.feeds([pair]) for pair in batch], least=bucket or (1, 1))
        if bucket is None:
            self._compare_first_use(padded.bucket)
        return self.session.run(padded.feeds, (padded.bucket[0], labels))[: len(batch)]

    def __repr__(self) -> str:
        labels = len(self.facts.labels)
        facts = f"{self.bundle.manifest.precision.value}, {labels} label{'s' if labels > 1 else ''}"
        return (
            f"<Reranker {str(self.bundle.path)!r}: {facts}, {self.workers} workers{', closed' if self._closed else ''}>"
        )

    def _checked_options(self, options: Mapping[str, Any]) -> tuple[LongTexts, int]:
        """How pairs over the model's limit are treated, and the number of tokens in one run of the graph."""
        given = without_none(options)
        long = choice(LongTexts, given.get("long", LongTexts.TRUNCATE), "long")
        if long is LongTexts.MEAN:
            raise InputError("`mean` is not supported for rerankers", hint="use `truncate` or `error`")
        return long, self._checked_batch_tokens(given.get("batch_tokens"))

    def _checked_scores(self, scores: Scores | str | None) -> Scores:
        chosen = self.facts.scores if scores is None else choice(Scores, scores, "scores")
        if chosen is Scores.SOFTMAX and len(self.facts.labels) == 1:
            raise InputError(
                "`softmax` needs several labels, and the model has one",
                hint="for scores between 0 and 1, use `sigmoid`",
            )
        return chosen

    def _place_of(self, label: str | None) -> int:
        """The column of the logits to rank by."""
        labels = self.facts.labels
        named = ", ".join(f"`{known}`" for known in labels)
        if label is None:
            if len(labels) > 1:
                raise InputError(
                    f"the model has {len(labels)} labels, and `label` is missing", hint=f"supported: {named}"
                )
            return 0
        if checked_text(label, "`label`") not in labels:
            raise InputError(f"the model has no label `{label}`", hint=f"supported: {named}")
        return labels.index(label)

    def _refuse_long(self, tokenized: Sequence[TokenizedPair], before: int) -> None:
        long = tuple(index for index, pair in enumerate(tokenized) if pair.dropped or pair.query_dropped)
        if long:
            pair = tokenized[long[0]]
            total = len(pair.ids) + pair.dropped + pair.query_dropped
            raise TextTooLongError(
                f"pair {before + long[0]} has {total} tokens, and the model's limit is {self.max_length}",
                hint='split the document, or truncate it: `long="truncate"`',
                texts=long,
            )


def _check_pairs(pairs: object) -> None:
    if not isinstance(pairs, Iterable) or isinstance(pairs, (str, bytes, Mapping)):
        raise InputError(
            f"`pairs` must be an iterable of pairs, not {type(pairs).__name__}",
            hint="`score([(query, document), ...])`",
        )


def _check_pair(pair: object, index: int) -> None:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(f"pair {index} must be a query and a document", hint="`score([(query, document), ...])`")
    if isinstance(pair[0], str) and not pair[0].strip():
        raise InputError(f"the query of pair {index} is empty")


def _refuse_empty(tokenized: Sequence[TokenizedPair], before: int) -> None:
    """Raise TextError for pairs without tokens, which have no score."""
    empty = tuple(index for index, pair in enumerate(tokenized) if not len(pair.ids))
    if empty:
        raise TextError(f"pair {before + empty[0]} {NO_TOKENS}", hint=NO_TOKENS_HINT, texts=empty, fault=NO_TOKENS)


def _characters_of(pair: Pair) -> int:
    """The length of a pair in characters; anything else is refused later, with its index."""
    return sum(map(characters, pair)) if isinstance(pair, (tuple, list)) else 0


def _warn_of_cuts(cut: int, total: int, max_length: int, *, queries: int = 0) -> None:
    # Points to the caller of the public method, past `takes_keywords`.
    if cut:
        warnings.warn(truncation_message(cut, total, max_length), TruncationWarning, stacklevel=4)
    if queries:
        warnings.warn(cut_query_message(queries, max_length), TruncationWarning, stacklevel=4)


def cut_query_message(queries: int, max_length: int) -> str:
    which, pronoun = ("the query was", "it is") if queries == 1 else (f"{queries} queries were", "they are")
    return f"{which} cut: with a document {pronoun} longer than {max_length} tokens"


def truncation_message(cut: int, total: int, max_length: int) -> str:
    verb = "was" if cut == 1 else "were"
    return f"{cut} of {total} documents {verb} longer than {max_length} tokens with the query and cut there"
