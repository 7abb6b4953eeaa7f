"""Texts to vectors, with a bundle of kind embedder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.batching import batches, run_all, usable_cores
from runtime.bundle import GRAPH, TOKENIZER, Bundle
from runtime.errors import BundleError, InputError, TextTooLongError
from runtime.manifest import Kind
from runtime.pooling import normalize, pool, shorten
from runtime.session import Session
from runtime.tokenizer import TokenizedText, Tokenizer

INPUT_IDS = "input_ids"
"""The one input of an embedder's graph: batches are not padded, so there is nothing to mask."""
BATCH_TOKENS = 512
"""Tokens in one run of the graph: more is not faster on a CPU, and its activations stay in the cache."""


class TruncationWarning(UserWarning):
    """Texts were longer than the model reads and were cut."""


@dataclass(frozen=True)
class Embeddings:
    """Vectors, and what happened on the way to them."""

    vectors: NDArray[np.float32]
    """(texts, dimension), or (texts, dim) where vectors were shortened."""
    tokens: NDArray[np.int64]
    """(texts,): how many tokens of each text the model read, special tokens included."""
    dropped: NDArray[np.int64]
    """(texts,): how many tokens were cut off each text."""

    @property
    def truncated(self) -> list[int]:
        """The indices of the texts that were cut."""
        return [int(index) for index in np.flatnonzero(self.dropped)]


class Embedder:
    """Turns texts into vectors; opened once, used from one thread or many.

    The same text gives the same bits, alone or in any batch, in any order, with any number of workers.
    """

    def __init__(self, bundle: Bundle | str | os.PathLike[str], *, workers: int | None = None) -> None:
        """Open a bundle; `workers` is how many batches run at once, by default one for each usable core."""
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        manifest = self.bundle.manifest
        if manifest.kind is not Kind.EMBEDDER or manifest.embedder is None:
            raise BundleError(
                f"`{self.bundle.path}` is a {manifest.kind.value}, not an embedder",
                hint=f"`edgekit inspect {self.bundle.path}` shows what it is for",
            )
        if workers is not None and workers < 1:
            raise InputError(f"`workers` must be at least 1, not {workers}")
        if manifest.inputs != (INPUT_IDS,):
            raise BundleError(f"`{self.bundle.path}` wants the inputs {list(manifest.inputs)}, not `{INPUT_IDS}` alone")
        self.facts = manifest.embedder
        self.workers = workers or usable_cores()
        self.tokenizer = Tokenizer(self.bundle.file(TOKENIZER), manifest.tokenizer)
        self.session = Session(self.bundle.file(GRAPH), provider=manifest.provider, inputs=manifest.inputs)

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        dim: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        truncate: bool = True,
    ) -> NDArray[np.float32]:
        """Embed texts: float32 (texts, dimension), in the order given.

        `prompt` names one of the model's prompts; without it the model's default prompt is used, if it has one.
        `dim` keeps that many components of each vector, normalized again where the model normalizes.
        A text longer than the model reads is cut, with a TruncationWarning; `truncate=False` makes it a
        TextTooLongError.
        """
        embeddings = self.embed_with_report(texts, prompt=prompt, dim=dim, batch_tokens=batch_tokens, truncate=truncate)
        if embeddings.truncated:
            warnings.warn(
                truncation_message(len(embeddings.truncated), len(texts), self.max_length),
                TruncationWarning,
                stacklevel=2,
            )
        return embeddings.vectors

    def embed_with_report(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        dim: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        truncate: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> Embeddings:
        """Embed texts as `embed` does, and report token counts and cuts instead of warning.

        `progress` is called after each batch with the number of texts in it, from the thread that ran it.
        """
        if isinstance(texts, str):
            raise InputError(
                "`texts` must be a list of strings", hint="for one text, pass a list of one: `embed([text])`"
            )
        if batch_tokens < 1:
            raise InputError(f"`batch_tokens` must be at least 1, not {batch_tokens}")
        width = self.dimension if dim is None else dim
        if not 1 <= width <= self.dimension:
            raise InputError(f"`dim` must be from 1 to {self.dimension}, which the model's vectors have, not {dim}")
        prefix = self.prefix(prompt)
        tokenized = self.tokenizer.tokenize([prefix + text for text in texts] if prefix else texts)
        if not truncate:
            self.refuse_long(tokenized)
        vectors = np.empty((len(tokenized), width), np.float32)

        def run(indices: list[int]) -> None:
            ids = np.stack([tokenized[index].ids for index in indices])
            pooled = shorten(pool(self.session.run({INPUT_IDS: ids}), self.facts.pooling), width)
            vectors[indices] = normalize(pooled) if self.facts.normalize else pooled
            if progress is not None:
                progress(len(indices))

        run_all(run, batches([len(text.ids) for text in tokenized], batch_tokens), self.workers)
        return Embeddings(
            vectors,
            np.array([len(text.ids) for text in tokenized], np.int64),
            np.array([text.dropped for text in tokenized], np.int64),
        )

    @property
    def dimension(self) -> int:
        return self.facts.dimension

    @property
    def max_length(self) -> int:
        """In tokens, special tokens included."""
        return self.bundle.manifest.tokenizer.max_length

    def prefix(self, prompt: str | None) -> str:
        """The text that the prompt of this name puts before every text."""
        name = self.facts.default_prompt if prompt is None else prompt
        if name is None:
            return ""
        if name not in self.facts.prompts:
            known = ", ".join(f"`{known}`" for known in self.facts.prompts) or "none"
            raise InputError(f"the model has no prompt `{name}`", hint=f"it has: {known}")
        return self.facts.prompts[name]

    def refuse_long(self, tokenized: Sequence[TokenizedText]) -> None:
        for index, text in enumerate(tokenized):
            if text.dropped:
                raise TextTooLongError(
                    f"text {index} has {len(text.ids) + text.dropped} tokens, and the model reads {self.max_length}",
                    hint="split it, or let it be cut",
                )


def truncation_message(cut: int, total: int, max_length: int) -> str:
    return f"{cut} of {total} texts {'was' if cut == 1 else 'were'} longer than {max_length} tokens and cut there"
