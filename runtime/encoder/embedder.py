"""Texts to embeddings, with a bundle of kind embedder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from ..arguments import checked_integer, takes_keywords, without_none
from ..bundle.bundle import TOKENIZER
from ..bundle.folder import BundleFolder
from ..bundle.graph_io import INPUT_IDS
from ..bundle.manifest import EmbedderFacts, Golden, Kind, Layout
from ..bundle.records import choice
from ..errors import BundleError, InputError, TextError, TextTooLongError
from ..session.closing import ClosableModel
from ..text.tokenizer import NO_TOKENS, NO_TOKENS_HINT, LongTexts, TokenizedText, Tokenizer, checked_text, stack_ids
from .base import CHUNK, Encoder, TruncationWarning, characters, graph_feeds
from .batching import in_chunks, numbered, run_all
from .buckets import Bucket
from .dense import Dense, width_before
from .embedding_types import VectorType, checked_ranges, unit_ranges
from .embeddings import CheckedOptions, Embeddings, EmbeddingsBuilder, Row
from .options import EmbedOptions
from .pooling import pool
from .shared_batches import EmbedCall, SharedCall, SharedRow

_QUERY_PROMPTS = ("query",)
_PASSAGE_PROMPTS = ("document", "passage", "corpus")
"""Prompt names, in the order in which sentence-transformers' `encode_query` and `encode_document` look them up."""


class Embedder(Encoder, ClosableModel):
    """An embedding model: converts texts to embeddings. Thread-safe.

    On the CPU a text has the same embedding, bit for bit, alone or in any batch, in any order, with any number of
    workers. Embedders of the same bundle share its weights.

        >>> with Embedder(embedder_bundle) as embedder:
        ...     embedder.embed(["The pump does not start", "Knots for wet rope"]).shape
        (2, 384)

    Texts are any iterable of strings. These keywords (`EmbedOptions`, and `prompt`) are the same for all methods:

    - `prompt`: name of one of the model's prompts; default: the model's default prompt, if it has one.
    - `dim`: truncate embeddings to this many components; they are normalized again where the model normalizes.
    - `dtype`: `float32`, `float16`, `int8`, or packed bits in int8 (`binary`) or uint8 (`ubinary`).
    - `ranges`: float32 (2, dimension), the range of int8 for each component, from `embedding_ranges(vectors)`. Default,
      for models that normalize: fixed ranges for unit vectors. They never depend on the texts of the call.
    - `long`: texts over the model's limit. `truncate`; `error`: raise TextTooLongError before anything is computed;
      `mean`: average the embeddings of chunks, weighted by tokens, before normalization.
    - `batch_tokens`: largest number of tokens in one run of the graph; default: what suits the provider.

    `embed` returns the embeddings and warns of truncated texts (TruncationWarning). `embed_with_report` returns token
    counts as well, and `stream` yields such reports chunk by chunk, for more texts than fit in memory.

    Raises InputError for an invalid option or text before anything is computed. TextError, a subclass, names all texts
    of the call that have no tokens, not even special tokens, and so no embedding (as in sentence-transformers). Most
    tokenizers add special tokens, with which an empty text has an embedding.
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
        runs, and results do not change. Raises NotFoundError, BundleError for a damaged bundle, WrongKindError,
        ProviderError and OutOfMemoryError.
        """
        super().__init__(bundle, kind=Kind.EMBEDDER, inputs=(INPUT_IDS,), workers=workers, max_memory=max_memory)
        manifest = self.bundle.manifest
        if manifest.embedder is None:
            raise BundleError(f"the manifest of `{self.bundle.path}` has no section `embedder`")
        self.facts = manifest.embedder
        """Pooling, prompts and dimensions, from the manifest."""
        self._dense = tuple(Dense(self.bundle.file(facts.file), facts) for facts in self.facts.dense)
        self._unpooled = unpooled_tokens(self.facts)
        pooled = width_before(self._dense, self.facts.dimension)
        self._width, rest = divmod(pooled, len(self.facts.poolings))
        if rest:
            raise BundleError(
                f"the manifest of `{self.bundle.path}` has {len(self.facts.poolings)} poolings, which cannot have the "
                f"same size in embeddings of {pooled} components"
            )
        if self.session.width is not None:
            self._check_width(self.session.width)
        self._bound_memory(self.tokenizer.tokenizer, self._width)
        self._compare_first_use(None if self._buckets is None else self._buckets.first)

    def _open_tokenizer(self) -> None:
        self.tokenizer = Tokenizer(self.bundle.file(TOKENIZER), self.bundle.manifest.tokenizer)

    @takes_keywords(EmbedOptions)
    def embed(
        self,
        texts: str | Iterable[str],
        *,
        prompt: str | None = None,
        **options: Unpack[EmbedOptions],
    ) -> NDArray[Any]:
        """Embed texts: (texts, dimension), float32 by default, in input order; (dimension,) for a single string.

        Warns of truncated texts (TruncationWarning).

            >>> embedder.embed(["hello", "world"]).shape
            (2, 384)
            >>> embedder.embed("hello").shape
            (384,)
        """
        single = isinstance(texts, str)
        chosen = self._checked_options(self._prefix(prompt), options)
        vectors = self._warned(self._run([texts] if isinstance(texts, str) else texts, chosen))
        return np.asarray(vectors[0]) if single else vectors

    @takes_keywords(EmbedOptions)
    def embed_query(self, query: str, **options: Unpack[EmbedOptions]) -> NDArray[Any]:
        """Embed one search query with the model's prompt for queries, if it has one: (dimension,).

        As in sentence-transformers' `encode_query`, there is no fallback to the default prompt.

            >>> embedder.embed_query("water pump broken").shape
            (384,)
        """
        if not isinstance(query, str):
            raise InputError(
                f"`query` must be one string, not {type(query).__name__}",
                hint="embed several with `embed(queries, prompt=...)`",
            )
        chosen = self._checked_options(self._first_prompt(_QUERY_PROMPTS), options)
        return np.asarray(self._warned(self._run([query], chosen))[0])

    @takes_keywords(EmbedOptions)
    def embed_passages(
        self, passages: Iterable[str], *, progress: Callable[[int], None] | None = None, **options: Unpack[EmbedOptions]
    ) -> NDArray[Any]:
        """Embed passages to search in with the model's prompt for them, if it has one: (passages, dimension).

        The prompt is the first of `document`, `passage` and `corpus` that is not empty. sentence-transformers'
        `encode_document` intends the same, but adds an empty `document` to every model, which hides the other two.
        `progress` is as of `embed_with_report`.

            >>> embedder.embed_passages(["The pump does not start", "Knots for wet rope"]).shape
            (2, 384)
        """
        chosen = self._checked_options(self.passage_prefix, options)
        return self._warned(self._run(passages, chosen, progress=progress, name="passages"))

    def embed_tokenized(
        self,
        passages: Sequence[TokenizedText],
        *,
        progress: Callable[[int], None] | None = None,
        batch_tokens: int | None = None,
    ) -> NDArray[np.float32]:
        """Embed passages that `tokenizer` has tokenized with `passage_prefix`: float32 (passages, dimension).

        What it truncated, it has reported. `progress` is as of `embed_with_report`. Raises InputError for other objects
        than its texts.

        >>> passages = embedder.tokenizer.tokenize(["The pump does not start"], prefix=embedder.passage_prefix)
        >>> embedder.embed_tokenized(passages).shape
        (1, 384)
        """
        if not isinstance(passages, (list, tuple)) or not all(isinstance(one, TokenizedText) for one in passages):
            raise InputError(
                "`passages` must be a list of TokenizedText", hint="texts are embedded by `embed_passages(texts)`"
            )
        chosen = self._checked_options(self.passage_prefix, {"batch_tokens": batch_tokens})
        return self._run_tokenized(passages, chosen, progress=progress).vectors

    @takes_keywords(EmbedOptions)
    def embed_with_report(
        self,
        texts: Iterable[str],
        *,
        prompt: str | None = None,
        progress: Callable[[int], None] | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings:
        """Embed texts as `embed` does, and report token counts and truncated texts instead of warning.

        `progress` is called after each batch with its number of texts, or chunks of long texts, on a worker thread.

            >>> report = embedder.embed_with_report(["hello", "world"])
            >>> report.vectors.shape, report.dropped.tolist()
            ((2, 384), [0, 0])
        """
        chosen = self._checked_options(self._prefix(prompt), options)
        return self._run(texts, chosen, progress=progress)

    @takes_keywords(EmbedOptions)
    def stream(
        self,
        texts: Iterable[str],
        *,
        prompt: str | None = None,
        chunk: int = CHUNK,
        **options: Unpack[EmbedOptions],
    ) -> Iterator[Embeddings]:
        """Embed any number of texts in bounded memory: yields the result of `embed_with_report` for each `chunk` texts.

        Where `texts` raises, the embeddings of the texts before are yielded first. With `long="error"`, nothing of a
        chunk with a long text is computed.

            >>> [report.vectors.shape for report in embedder.stream((f"line {n}" for n in range(5)), chunk=2)]
            [(2, 384), (2, 384), (1, 384)]
        """
        _check_texts(texts, "texts")
        chunk = checked_integer(chunk, "chunk")
        chosen = self._checked_options(self._prefix(prompt), options)
        chunks = in_chunks(texts, chunk, size=characters, most=self.chunk_characters)
        return (self._run(some, chosen, before=before) for before, some in numbered(chunks))

    def open_call(
        self,
        texts: Iterable[str],
        *,
        prompt: str | None = None,
        dim: int | None = None,
        long: LongTexts | str | None = None,
    ) -> EmbedCall:
        """Tokenize texts for batches that are shared with other calls (`shared_batches.py`); raises as `embed` does.

        >>> call = embedder.open_call(["hello", "world"])
        >>> embedder.run_batch(embedder.next_batch(call.rows))
        >>> call.result().vectors.shape
        (2, 384)
        """
        options = self._checked_options(self._prefix(prompt), {"dim": dim, "long": long})
        return EmbedCall(*self._rows_of(self._tokenized(listed(texts, "texts"), options), options))

    def open_query_call(self, query: str, *, long: LongTexts | str | None = None) -> EmbedCall:
        """Tokenize one search query as `embed_query` does, for batches that are shared with other calls.

        >>> call = embedder.open_query_call("water pump broken")
        >>> embedder.run_batch(embedder.next_batch(call.rows))
        >>> call.result().vectors.shape
        (1, 384)
        """
        options = self._checked_options(self._first_prompt(_QUERY_PROMPTS), {"long": long})
        return EmbedCall(*self._rows_of(self._tokenized([query], options), options))

    def count_tokens(self, texts: Iterable[str], *, prompt: str | None = None) -> NDArray[np.int64]:
        """Count the tokens of each text before truncation, including special tokens and prompt: int64 (texts,).

        >>> embedder.count_tokens(["The quick brown fox", "dog"]).dtype
        dtype('int64')
        """
        self._check_open()
        return np.array(list(self.tokenizer.count(listed(texts, "texts"), prefix=self._prefix(prompt))), np.int64)

    def __repr__(self) -> str:
        facts = f"{self.bundle.manifest.precision.value}, dimension {self.dimension}, {self.workers} workers"
        return f"<Embedder {str(self.bundle.path)!r}: {facts}{', closed' if self._closed else ''}>"

    @property
    def dimension(self) -> int:
        """Components of an embedding, before `dim` truncates it."""
        return self.facts.dimension

    @property
    def passage_prefix(self) -> str:
        """What `embed_passages` puts before each passage; empty without such a prompt.

        >>> embedder.passage_prefix
        ''
        """
        return self._first_prompt(_PASSAGE_PROMPTS)

    def _check_width(self, found: int) -> None:
        """Raise BundleError where the graph's token embeddings have another size than the manifest says."""
        if found != self._width:
            raise BundleError(
                f"the graph `{self.session.path}` gives embeddings of {found} components, and the manifest says "
                f"{self._width}"
            )

    def _prefix(self, prompt: str | None) -> str:
        """The prefix of every text with the prompt of this name."""
        name = self.facts.default_prompt if prompt is None else checked_text(prompt, "`prompt`")
        if name is None:
            return ""
        if name not in self.facts.prompts and prompt is None:
            raise BundleError(f"the manifest of `{self.bundle.path}` has no prompt `{name}`, its `default_prompt`")
        if name not in self.facts.prompts:
            known = ", ".join(f"`{known}`" for known in self.facts.prompts) or "none"
            raise InputError(f"the model has no prompt `{name}`", hint=f"supported: {known}")
        return self.facts.prompts[name]

    def _first_prompt(self, names: Sequence[str]) -> str:
        """The first of these prompts that is not empty."""
        return next((prompt for name in names if (prompt := self.facts.prompts.get(name))), "")

    def _checked_options(self, prefix: str, options: Mapping[str, Any]) -> CheckedOptions:
        """Check the options of a call; raises InputError for the first that is not valid."""
        self._check_open()
        given = without_none(options)
        width = checked_integer(given.get("dim", self.dimension), "dim", least=None)
        if not 1 <= width <= self.dimension:
            raise InputError(f"`dim` must be from 1 to {self.dimension}, the model's dimension, not {width}")
        stored = choice(VectorType, given.get("dtype", VectorType.FLOAT32), "dtype")
        ranges = given.get("ranges")
        if stored is VectorType.INT8:
            default = unit_ranges(width) if self.facts.normalize else None
            ranges = checked_ranges(default if ranges is None else ranges, width)
        elif ranges is not None:
            raise InputError(f'`ranges` need `dtype="int8"`, and `dtype` is {stored.value}')
        return CheckedOptions(
            prefix=prefix,
            dim=width,
            dtype=stored,
            ranges=ranges,
            dense=self._dense,
            skip=self._unpooled.get(prefix, 0),
            long=choice(LongTexts, given.get("long", LongTexts.TRUNCATE), "long"),
            batch_tokens=self._checked_batch_tokens(given.get("batch_tokens")),
            normalize=self.facts.normalize,
        )

    def _run(
        self,
        texts: Iterable[str],
        options: CheckedOptions,
        *,
        before: int = 0,
        progress: Callable[[int], None] | None = None,
        name: str = "texts",
        bucket: Bucket | None = None,
    ) -> Embeddings:
        """Embed texts; messages number them after the `before` texts of earlier chunks.

        Batches are padded to a bucket that is no less than `bucket`.
        """
        tokenized = self._tokenized(listed(texts, name), options, before)
        return self._run_tokenized(tokenized, options, before=before, progress=progress, bucket=bucket)

    def _run_tokenized(
        self,
        tokenized: Sequence[TokenizedText],
        options: CheckedOptions,
        *,
        before: int = 0,
        progress: Callable[[int], None] | None = None,
        bucket: Bucket | None = None,
    ) -> Embeddings:
        results, rows = self._rows_of(tokenized, options, before)

        def run_batch(batch: list[Row]) -> None:
            results.add(batch, self._pooled([row.ids for row in batch], options.skip, bucket))
            if progress is not None:
                progress(len(batch))

        groups = self._batches(rows, options.batch_tokens, length=_tokens_of)
        run_all(lambda batch: self._budget.run(run_batch, batch, length=_tokens_of), groups, self.workers)
        return results.embeddings()

    def _tokenized(self, texts: Sequence[str], options: CheckedOptions, before: int = 0) -> list[TokenizedText]:
        return self.tokenizer.tokenize(texts, prefix=options.prefix, long=options.long, before=before)

    def _rows_of(
        self, tokenized: Sequence[TokenizedText], options: CheckedOptions, before: int = 0
    ) -> tuple[EmbeddingsBuilder, list[Row]]:
        """The rows to run for tokenized texts, and what collects their results."""
        _refuse_empty(tokenized, before)
        if options.long is LongTexts.ERROR:
            self._refuse_long(tokenized, before)
        self._check_memory((max(map(len, text.chunks)) for text in tokenized), "text", before)
        results = EmbeddingsBuilder(len(tokenized), options)
        return results, list(results.rows(tokenized))

    def _run_rows(self, rows: list[SharedRow]) -> None:
        pooled = self._pooled([row.ids for row in rows], rows[0].call.skip, None)
        places: dict[SharedCall, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row.call, []).append(place)
        for call, own in places.items():
            cast("EmbedCall", call).builder.add([rows[place].row for place in own], pooled[own])

    def _golden_output(self, golden: Golden, bucket: Bucket | None) -> NDArray[np.float32]:
        return self._run([golden.text], self._checked_options(self._prefix(None), {}), bucket=bucket).vectors

    def _pooled(self, rows: Sequence[NDArray[np.int64]], skip: int, bucket: Bucket | None) -> NDArray[np.float32]:
        """The pooled embeddings of a batch (texts, poolings * width)."""
        if self._buckets is None:
            vectors = self._token_embeddings(stack_ids(rows))
            # A graph need not state its output size.
            self._check_width(vectors.shape[-1])
            return pool(vectors, self.facts.poolings, skip=skip)
        padded = self._buckets.pad([{INPUT_IDS: ids[np.newaxis]} for ids in rows], least=bucket or (1, 1))
        if bucket is None:
            self._compare_first_use(padded.bucket)
        vectors = self.session.run(padded.feeds, (*padded.bucket, None))
        self._check_width(vectors.shape[-1])
        texts = zip(vectors, padded.lengths, strict=False)
        whole = [pool(text[:length, np.newaxis], self.facts.poolings, skip=skip) for text, length in texts]
        return np.concatenate(whole)

    def _token_embeddings(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The token embeddings (tokens, texts, width) of token ids (texts, tokens)."""
        texts, tokens = ids.shape
        feeds = graph_feeds({INPUT_IDS: ids}, self.bundle.manifest)
        with self._reserved(texts, tokens):
            if self.bundle.manifest.layout is Layout.TOKENS_FIRST:
                return self.session.run(feeds, (tokens, texts, None))
            return self.session.run(feeds, (texts, tokens, None)).swapaxes(0, 1)

    def _refuse_long(self, tokenized: Sequence[TokenizedText], before: int) -> None:
        long = tuple(index for index, text in enumerate(tokenized) if text.dropped)
        if long:
            text = tokenized[long[0]]
            raise TextTooLongError(
                f"text {before + long[0]} has {text.total} tokens, and the model's limit is {self.max_length}",
                hint='split it, truncate it (`long="truncate"`), or average its chunks (`long="mean"`)',
                texts=long,
            )

    def _warned(self, embeddings: Embeddings) -> NDArray[Any]:
        """The embeddings; warns where texts were truncated."""
        if embeddings.dropped.any():
            warnings.warn(
                truncation_message(len(embeddings.truncated), len(embeddings.tokens), self.max_length),
                TruncationWarning,
                # Points to the caller of `embed`, past `takes_keywords`.
                stacklevel=4,
            )
        return embeddings.vectors


def _tokens_of(row: Row) -> int:
    return len(row.ids)


def unpooled_tokens(facts: EmbedderFacts) -> dict[str, int]:
    """Text of a prompt -> number of leading tokens that pooling excludes; raises BundleError."""
    found = {}
    for name, tokens in facts.unpooled_tokens.items():
        if name not in facts.prompts or tokens < 0:
            raise BundleError(
                f"`embedder.unpooled_tokens` in `manifest.json` is not valid: `{name}` with {tokens} tokens"
            )
        found[facts.prompts[name]] = tokens
    return found


def _refuse_empty(tokenized: Sequence[TokenizedText], before: int) -> None:
    """Raise TextError for texts without tokens, which have no embedding."""
    empty = tuple(index for index, text in enumerate(tokenized) if not text.tokens)
    if empty:
        raise TextError(f"text {before + empty[0]} {NO_TOKENS}", hint=NO_TOKENS_HINT, texts=empty, fault=NO_TOKENS)


def _check_texts(texts: object, name: str) -> None:
    """Raise InputError for anything but an iterable of texts; a string is an iterable of its characters."""
    if isinstance(texts, str):
        raise InputError(
            f"`{name}` must be several strings, not one", hint=f"for one text, pass a list: `[{name[:-1]}]`"
        )
    if not isinstance(texts, Iterable) or isinstance(texts, (bytes, bytearray, Mapping)):
        raise InputError(f"`{name}` must be an iterable of strings, not {type(texts).__name__}")


def listed(texts: Iterable[str], name: str) -> Sequence[str]:
    """The texts as a list; raises as `_check_texts` does. The tokenizer checks the texts themselves."""
    _check_texts(texts, name)
    return texts if isinstance(texts, (list, tuple)) else list(texts)


def truncation_message(cut: int, total: int, max_length: int) -> str:
    return f"{cut} of {total} texts {'was' if cut == 1 else 'were'} longer than {max_length} tokens and cut there"
