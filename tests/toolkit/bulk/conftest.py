from __future__ import annotations

from pathlib import Path

import pytest

from ortkit import Bundle
from tests import tiny_bundles

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sleeps", "while", "knots", "dry"]


@pytest.fixture(scope="session")
def small_embedder(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An embedder of 8 dimensions and 64 tokens, whose tokenizer adds no special tokens."""
    return tiny_bundles.write_embedder(tmp_path_factory.mktemp("bulk") / "embedder")


@pytest.fixture(scope="session")
def small_reranker(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundles.write_reranker(tmp_path_factory.mktemp("bulk") / "reranker")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the user's, which is empty."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("ORTKIT_CACHE", str(folder))
    return folder
