"""Encoders on a device whose memory does not hold a whole batch: smaller batches, and the same results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ortkit import Embedder, OutOfMemoryError, Reranker
from ortkit.runtime.session.session import Session
from tests.tiny_bundles import write_embedder, write_reranker

TEXTS = [f"the fox {word} the dog" for word in ("sees", "hears", "meets", "likes", "fears")] * 4 + ["fox"]


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Let runs of more tokens than given fail for want of memory; returns the tokens of those that succeed."""

    def limit(tokens: int) -> list[int]:
        done: list[int] = []
        run = Session.run

        def within(self: Session, feeds: Mapping[str, np.ndarray], *arguments: Any, **options: Any) -> np.ndarray:
            size = feeds["input_ids"].size
            if size > tokens:
                raise OutOfMemoryError("there is too little GPU memory to run `model.onnx`", hint="of the GPU")
            done.append(size)
            return run(self, feeds, *arguments, **options)

        monkeypatch.setattr(Session, "run", within)
        return done

    return limit


def test_the_bits_do_not_depend_on_the_memory(tmp_path: Path, limited: Callable[[int], list[int]]) -> None:
    embedder, reranker = write_embedder(tmp_path / "embedder"), write_reranker(tmp_path / "reranker")
    pairs = [("fox", text) for text in TEXTS]
    vectors, scores = Embedder(embedder).embed(TEXTS), Reranker(reranker).score(pairs)
    most = 2 * int(Reranker(reranker).score_with_report(pairs).tokens.max())

    done = limited(most)
    assert np.array_equal(Embedder(embedder, workers=1).embed(TEXTS), vectors)
    assert np.array_equal(Reranker(reranker, workers=2).score(pairs), scores)
    assert most // 2 <= max(done) <= most


def test_a_text_that_does_not_fit_is_named_by_its_length(tmp_path: Path, limited: Callable[[int], list[int]]) -> None:
    embedder = Embedder(write_embedder(tmp_path / "embedder"), workers=1)
    long = "the quick brown fox jumps over the lazy dog"
    tokens = int(embedder.count_tokens([long])[0])
    limited(tokens - 1)

    with pytest.raises(OutOfMemoryError) as caught:
        embedder.embed(["fox", long, long])
    assert caught.value.message == (
        f"a text of {tokens} tokens does not fit in memory, even alone: there is too little GPU memory to run "
        "`model.onnx`"
    )
    assert caught.value.exit_code == 9
    assert embedder.embed(["fox"]).shape == (1, 8)
