"""Runs of `ortkit embed --output` that are killed, and the names of what they leave."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ortkit import Embedder, Embeddings


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Killed(BaseException):
    """Simulates the end of the process."""


def break_after(monkeypatch: pytest.MonkeyPatch, chunks: int) -> list[int]:
    """Raise Killed after some chunks; returns the sizes of the embedded ones."""
    embedded: list[int] = []
    real = Embedder.embed_with_report

    def counted(self: Embedder, texts: Sequence[str], **options: object) -> Embeddings:
        if len(embedded) == chunks:
            raise Killed
        if texts:
            embedded.append(len(texts))
        return real(self, texts, **options)

    monkeypatch.setattr(Embedder, "embed_with_report", counted)
    return embedded
