"""What is known of an index, of an update of it, and of its progress."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from .chunks import ChunkSettings
from .folder import FolderRules, SkippedFile


@dataclass(frozen=True)
class IndexFacts:
    """What an index was built from, and its size."""

    path: Path
    format: int
    """Version of the format on disk."""
    generation: int
    """Rises by one with each update that changed something."""
    folder: Path
    """The indexed folder."""
    bundle: str
    """Name of the embedder's bundle."""
    digest: str
    """Its digest (`BundleFolder.digest`)."""
    dimension: int
    files: int
    chunks: int
    built: datetime
    """When this generation was published (UTC)."""
    chunking: ChunkSettings
    rules: FolderRules
    """Which files of the folder are read."""
    size: int
    """Bytes on disk."""


@dataclass(frozen=True)
class UpdateReport:
    """What `Index.build` did."""

    added: int
    """Files that were not in the index."""
    changed: int
    """Files whose content changed."""
    removed: int
    """Files that are no longer in the folder, or have no text any more."""
    unchanged: int
    chunks: int
    """Chunks in the index now."""
    embedded: int
    """Chunks that were embedded."""
    reused: int
    """Chunks of added and changed files whose text was embedded before."""
    skipped: tuple[SkippedFile, ...]
    """Files that could not be read, with the reason."""
    partly_read: tuple[SkippedFile, ...]
    """Files of which some records were left out because they are not valid, with how many and the first fault."""
    rules_changed: bool
    """Whether other rules were given than the index had; it has them now."""
    resumed: bool
    """Whether the work of an interrupted run was used."""
    wrote: bool
    """Whether a new generation was published: not where nothing changed."""
    seconds: float


@dataclass(frozen=True)
class IndexProgress:
    """How far `Index.build` is; all numbers are of this run."""

    files: int
    """Files looked at."""
    of_files: int
    """Files found in the folder."""
    chunks: int
    """Chunks of added and changed files."""
    embedded: int
    """Chunks embedded so far; the others' embeddings are known."""
