"""Texts to embeddings, with a bundle of kind embedder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.bundle import TOKENIZER
from ..bundle.folder import BundleFolder
from ..bundle.graph_io import INPUT_IDS
from ..bundle.manifest import EmbedderFacts, Kind
from ..bundle.records import choice
from ..errors import BundleError, InputError, TextError, TextTooLongError
from ..session.closing import Closable
from ..text.tokenizer import NO_TOKENS, NO_TOKENS_HINT, LongTexts, TokenizedText, Tokenizer, stack_ids
from .base import BATCH_TOKENS, CHUNK, CHUNK_CHARACTERS, Encoder, TruncationWarning, characters, checked_batch_tokens
from .batching import batches, in_chunks, numbered, run_all
from .dense import Dense, width_before
from .embedding_types import VectorType, checked_ranges, unit_ranges
from .embeddings import Embeddings, Piece, Request, Results
from .pooling import pool

QUERY_PROMPTS = ("query",)
PASSAGE_PROMPTS = ("document", "passage", "corpus")
"""Names of prompts in the order in which sentence-transformers' `encode_query` and `encode_document` look for them."""


class Embedder(Encoder, Closable):
    """An embedding model: turns texts into vectors. Opened once, used from one thread or many.

    The same text gives the same bits, alone or in any batch, in any order, with any number of workers. Embedders of the
    same bundle share its weights.

    These keywords are the same wherever texts are embedded:

    - `prompt` names one of the model's prompts; without it the model's default prompt is used, if it has one.
    - `dim` keeps that many components of each vector, normalized again where the model normalizes.
    - `dtype` is how vectors are stored: float32, float16, int8, or bits packed in int8 (binary) or uint8 (ubinary).
    - `ranges`, float32 (2, dimension), are what int8 covers: those of `embedding_ranges(vectors)`, or by default, for a
      model that normalizes, the fixed ones of `unit_ranges`. They never depend on the texts of the call.
    - `long` is what happens to a text longer than the model reads: `truncate` cuts it, `error` raises TextTooLongError
      before anything is computed, `mean` reads it in chunks and pools their vectors, weighted by tokens, before the
      result is normalized.
    - `batch_tokens` bounds the tokens in one run of the graph.

    Texts are any iterable of strings. `embed` returns the vectors and warns of texts that were cut; `embed_with_report`
    returns them with token counts instead; `stream` does so chunk by chunk, for more texts than fit in memory.

    InputError is raised for an option or a text that cannot be used, before anything is computed. A text of which the
    tokenizer makes no token, special tokens included, has no vector, as in sentence-transformers: TextError names it,
    and all such texts of the call. Most tokenizers add special tokens, with which an empty text has a vector.
    """

    def __init__(self, bundle: BundleFolder | str | os.PathLike[str], *, workers: int | None = None) -> None:
        """Open a bundle; `workers` is how many batches run at once, by default one for each usable core.

        Raises NotFoundError, BundleError for a bundle that is damaged or of another kind, and OutOfMemoryError.
        """
        super().__init__(bundle, kind=Kind.EMBEDDER, inputs=(INPUT_IDS,), workers=workers)
        manifest = self.bundle.manifest
        if manifest.embedder is None:
            raise BundleError(f"the manifest of `{self.bundle.path}` does not say how tokens become a vector")
        self.facts = manifest.embedder
        self.tokenizer = Tokenizer(self.bundle.file(TOKENIZER), manifest.tokenizer)
        self._dense = tuple(Dense(self.bundle.file(facts.file), facts) for facts in self.facts.dense)
        self._unpooled = unpooled_tokens(self.facts)
        pooled = width_before(self._dense, self.facts.dimension)
        self._width, rest = divmod(pooled, len(self.facts.poolings))
        if rest:
            raise BundleError(
                f"the manifest of `{self.bundle.path}` has vectors of {pooled} components pooled in "
                f"{len(self.facts.poolings)} ways, of which each must give as many"
            )
        if self.session.width is not None:
            self._check_width(self.session.width)

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        prompt: str | None = None,
        dim: int | None = None,
        dtype: VectorType | str = VectorType.FLOAT32,
        ranges: NDArray[np.float32] | None = None,
        long: LongTexts | str = LongTexts.TRUNCATE,
        batch_tokens: int = BATCH_TOKENS,
    ) -> NDArray[Any]:
        """Embed texts: (texts, dimension), float32 unless `dtype` says otherwise, in the order given.

        A single string gives one vector (dimension,). Texts that are cut are reported with a TruncationWarning.

            >>> embedder.embed(["hello", "world"]).shape
            (2, 384)
            >>> embedder.embed("hello").shape
            (384,)
        """
        single = isinstance(texts, str)
        request = self._checked_request(
            self._prefix(prompt), dim=dim, dtype=dtype, ranges=ranges, long=long, batch_tokens=batch_tokens
        )
        vectors = self._warned(self._run([texts] if isinstance(texts, str) else texts, request))
        return np.asarray(vectors[0]) if single else vectors

    def embed_query(
        self,
        query: str,
        *,
        dim: int | None = None,
        dtype: VectorType | str = VectorType.FLOAT32,
        ranges: NDArray[np.float32] | None = None,
        long: LongTexts | str = LongTexts.TRUNCATE,
    ) -> NDArray[Any]:
        """Embed one search query with the model's prompt for queries, or without one: (dimension,).

        Like sentence-transformers' `encode_query`, it does not fall back to the default prompt.

            >>> embedder.embed_query("water pump broken").shape
            (384,)
        """
        if not isinstance(query, str):
            raise InputError(
                f"`query` must be one string, not {type(query).__name__}",
                hint="embed several with `embed(queries, prompt=...)`",
            )
        request = self._checked_request(
            self._first_prompt(QUERY_PROMPTS), dim=dim, dtype=dtype, ranges=ranges, long=long
        )
        return np.asarray(self._warned(self._run([query], request))[0])

    def embed_passages(
        self,
        passages: Iterable[str],
        *,
        dim: int | None = None,
        dtype: VectorType | str = VectorType.FLOAT32,
        ranges: NDArray[np.float32] | None = None,
        long: LongTexts | str = LongTexts.TRUNCATE,
        batch_tokens: int = BATCH_TOKENS,
    ) -> NDArray[Any]:
        """Embed passages to be searched with the model's prompt for them, or without one: (passages, dimension).

        The prompt is the first of `document`, `passage` and `corpus` that is not empty. sentence-transformers'
        `encode_document` means the same, but gives every model an empty `document` that hides the other two.

            >>> embedder.embed_passages(["The pump does not start", "Knots for wet rope"]).shape
            (2, 384)
        """
        request = self._checked_request(
            self._first_prompt(PASSAGE_PROMPTS),
            dim=dim,
            dtype=dtype,
            ranges=ranges,
            long=long,
            batch_tokens=batch_tokens,
        )
        return self._warned(self._run(passages, request, name="passages"))

    def embed_with_report(
        self,
        texts: Iterable[str],
        *,
        prompt: str | None = None,
        dim: int | None = None,
        dtype: VectorType | str = VectorType.FLOAT32,
        ranges: NDArray[np.float32] | None = None,
        long: LongTexts | str = LongTexts.TRUNCATE,
        batch_tokens: int = BATCH_TOKENS,
        progress: Callable[[int], None] | None = None,
    ) -> Embeddings:
        """Embed texts as `embed` does, and report token counts and cuts instead of warning.

        `progress` is called after each batch with the number of texts, or chunks of long ones, in it, from the thread
        that ran it.

            >>> report = embedder.embed_with_report(["hello", "world"])
            >>> report.vectors.shape, report.dropped.tolist()
            ((2, 384), [0, 0])
        """
        request = self._checked_request(
            self._prefix(prompt), dim=dim, dtype=dtype, ranges=ranges, long=long, batch_tokens=batch_tokens
        )
        return self._run(texts, request, progress=progress)

    def stream(
        self,
        texts: Iterable[str],
        *,
        prompt: str | None = None,
        dim: int | None = None,
        dtype: VectorType | str = VectorType.FLOAT32,
        ranges: NDArray[np.float32] | None = None,
        long: LongTexts | str = LongTexts.TRUNCATE,
        batch_tokens: int = BATCH_TOKENS,
        chunk: int = CHUNK,
    ) -> Iterator[Embeddings]:
        """Embed any number of texts in bounded memory: what `embed_with_report` gives for each `chunk` of them in turn.

        When `texts` raises, the vectors of what it gave before come first. With `long="error"` nothing of the chunk
        that holds a long text is computed.

            >>> [report.vectors.shape for report in embedder.stream((f"line {n}" for n in range(5)), chunk=2)]
            [(2, 384), (2, 384), (1, 384)]
        """
        check_texts(texts, "texts")
        if chunk < 1:
            raise InputError(f"`chunk` must be at least 1, not {chunk}")
        request = self._checked_request(
            self._prefix(prompt), dim=dim, dtype=dtype, ranges=ranges, long=long, batch_tokens=batch_tokens
        )
        chunks = in_chunks(texts, chunk, size=characters, most=CHUNK_CHARACTERS)
        return (self._run(some, request, before=before) for before, some in numbered(chunks))

    def count_tokens(self, texts: Iterable[str], *, prompt: str | None = None) -> NDArray[np.int64]:
        """How many tokens each text has before it is cut, special tokens and prompt included: int64 (texts,).

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
        """Of the vectors, before `dim` shortens them."""
        return self.facts.dimension

    def _check_width(self, found: int) -> None:
        """Raise BundleError where the graph gives wider or narrower vectors than the manifest says."""
        if found != self._width:
            raise BundleError(
                f"the graph `{self.session.path}` gives vectors of {found} components, and by the manifest it should "
                f"give {self._width}"
            )

    def _prefix(self, prompt: str | None) -> str:
        """The text that the prompt of this name puts before every text."""
        name = self.facts.default_prompt if prompt is None else prompt
        if name is None:
            return ""
        if name not in self.facts.prompts and prompt is None:
            raise BundleError(f"the manifest of `{self.bundle.path}` has no prompt `{name}`, its own default")
        if name not in self.facts.prompts:
            known = ", ".join(f"`{known}`" for known in self.facts.prompts) or "none"
            raise InputError(f"the model has no prompt `{name}`", hint=f"it has: {known}")
        return self.facts.prompts[name]

    def _first_prompt(self, names: Sequence[str]) -> str:
        """The first prompt of these names that is not empty."""
        return next((prompt for name in names if (prompt := self.facts.prompts.get(name))), "")

    def _checked_request(
        self,
        prefix: str,
        *,
        dim: int | None,
        dtype: VectorType | str,
        ranges: NDArray[np.float32] | None,
        long: LongTexts | str,
        batch_tokens: int = BATCH_TOKENS,
    ) -> Request:
        """Check the options of a call; raises InputError for the first that cannot be used."""
        self._check_open()
        width = self.dimension if dim is None else dim
        if not 1 <= width <= self.dimension:
            raise InputError(f"`dim` must be from 1 to {self.dimension}, which the model's vectors have, not {dim}")
        stored = choice(VectorType, dtype, "dtype")
        if stored is VectorType.INT8:
            default = unit_ranges(width) if self.facts.normalize else None
            ranges = checked_ranges(default if ranges is None else ranges, width)
        elif ranges is not None:
            raise InputError(f"`ranges` are for int8, and `dtype` is {stored.value}")
        return Request(
            prefix=prefix,
            dim=width,
            dtype=stored,
            ranges=ranges,
            dense=self._dense,
            skip=self._unpooled.get(prefix, 0),
            long=choice(LongTexts, long, "long"),
            batch_tokens=checked_batch_tokens(batch_tokens),
            normalize=self.facts.normalize,
        )

    def _run(
        self,
        texts: Iterable[str],
        request: Request,
        *,
        before: int = 0,
        progress: Callable[[int], None] | None = None,
        name: str = "texts",
    ) -> Embeddings:
        """Embed texts; messages count them from the `before` texts of earlier chunks on."""
        texts = listed(texts, name)
        results = Results(len(texts), request)

        def run_batch(batch: list[Piece]) -> None:
            ids = stack_ids([piece.ids for piece in batch])
            vectors = self.session.run({INPUT_IDS: ids}, (ids.shape[1], ids.shape[0], None))
            # A graph need not say its width before it runs.
            self._check_width(vectors.shape[-1])
            results.take(batch, pool(vectors, self.facts.poolings, skip=request.skip))
            if progress is not None:
                progress(len(batch))

        tokenized = self.tokenizer.tokenize(texts, prefix=request.prefix, long=request.long, before=before)
        refuse_empty(tokenized, before)
        if request.long is LongTexts.ERROR:
            self._refuse_long(tokenized, before)
        run_all(run_batch, batches(results.pieces(tokenized), request.batch_tokens, length=length), self.workers)
        return results.embeddings()

    def _refuse_long(self, tokenized: Sequence[TokenizedText], before: int) -> None:
        long = tuple(index for index, text in enumerate(tokenized) if text.dropped)
        if long:
            text = tokenized[long[0]]
            raise TextTooLongError(
                f"text {before + long[0]} has {text.tokens + text.dropped} tokens, and the model reads "
                f"{self.max_length}",
                hint='split it, or let it be cut or read in chunks: `long="truncate"` or `long="mean"`',
                texts=long,
            )

    def _warned(self, embeddings: Embeddings) -> NDArray[Any]:
        """The vectors, after a warning when texts were cut."""
        if embeddings.dropped.any():
            warnings.warn(
                truncation_message(len(embeddings.truncated), len(embeddings.tokens), self.max_length),
                TruncationWarning,
                # The line that called `embed`, which called this.
                stacklevel=3,
            )
        return embeddings.vectors


def unpooled_tokens(facts: EmbedderFacts) -> dict[str, int]:
    """The text of a prompt -> how many tokens of a text with it are left out of pooling; raises BundleError."""
    found = {}
    for name, tokens in facts.unpooled_tokens.items():
        if name not in facts.prompts or tokens < 0:
            raise BundleError(
                f"`embedder.unpooled_tokens` in `manifest.json` is not valid: `{name}` with {tokens} tokens"
            )
        found[facts.prompts[name]] = tokens
    return found


def refuse_empty(tokenized: Sequence[TokenizedText], before: int) -> None:
    """Raise TextError for texts without tokens, which have no vector."""
    empty = tuple(index for index, text in enumerate(tokenized) if not text.tokens)
    if empty:
        raise TextError(f"text {before + empty[0]} {NO_TOKENS}", hint=NO_TOKENS_HINT, texts=empty, fault=NO_TOKENS)


def length(piece: Piece) -> int:
    return len(piece.ids)


def check_texts(texts: object, name: str) -> None:
    """Raise InputError for what is not several texts; a string is an iterable too, of its characters."""
    if isinstance(texts, str):
        raise InputError(
            f"`{name}` must be several strings, not one", hint=f"for one text, pass a list: `[{name[:-1]}]`"
        )
    if not isinstance(texts, Iterable) or isinstance(texts, (bytes, bytearray, Mapping)):
        raise InputError(f"`{name}` must be an iterable of strings, not {type(texts).__name__}")


def listed(texts: Iterable[str], name: str) -> Sequence[str]:
    """The texts in a list; raises as `check_texts` does. What they hold is checked by the tokenizer."""
    check_texts(texts, name)
    return texts if isinstance(texts, (list, tuple)) else list(texts)


def truncation_message(cut: int, total: int, max_length: int) -> str:
    return f"{cut} of {total} texts {'was' if cut == 1 else 'were'} longer than {max_length} tokens and cut there"
