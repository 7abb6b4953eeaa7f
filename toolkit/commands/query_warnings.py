"""Warnings about queries, as lines of the command."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ..console.terminal import say


@contextmanager
def said_of(noun: str, max_length: int) -> Iterator[None]:
    """Say on stderr that a query, or what `noun` names, was truncated; other warnings stay as they are."""
    from ...runtime.encoder.base import TruncationWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if not issubclass(warning.category, TruncationWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if any(issubclass(warning.category, TruncationWarning) for warning in caught):
        say(f"warning: the {noun} is longer than the embedder's {max_length} tokens, and truncated", err=True)


@contextmanager
def without_truncation_warnings() -> Iterator[None]:
    """Leave out warnings of truncated texts."""
    from ...runtime.encoder.base import TruncationWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        yield
