"""Split documents into chunks of the embedder's length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...runtime.encoder.embedder import Embedder
from .documents.document import Document, Place


@dataclass(frozen=True)
class Chunk:
    """A part of a document that gets one embedding."""

    text: str
    """As in the document; shown, and given to an LLM."""
    title: str
    place: Place
    context: str = ""
    """Title and headings, shortened to leave room for the text."""

    @property
    def embedded_text(self) -> str:
        """The context above the text, within the model's length."""
        return f"{self.context}\n{self.text}" if self.context else self.text


@dataclass(frozen=True)
class ChunkSettings:
    """How documents are split; chunks of other settings are not comparable, so a change means a new build."""

    max_tokens: int
    """Tokens of `embedded_text`, including special tokens and the passage prompt."""
    overlap: int
    """Tokens of the text that are repeated in the next chunk under the same heading."""
    version: int = 1
    """Of the readers and the chunker: another version makes other chunks of the same files."""


class Chunker:
    """Splits documents into chunks, by the embedder's own tokenizer: at passages, then sentences, then tokens."""

    def __init__(self, embedder: Embedder, *, max_tokens: int | None = None, overlap: int | None = None) -> None:
        raise NotImplementedError(embedder, max_tokens, overlap)

    settings: ChunkSettings

    def chunks(self, document: Document) -> Iterator[Chunk]:
        """The chunks of a document, in order; raises UnreadableFileError as its passages do."""
        raise NotImplementedError(document)
