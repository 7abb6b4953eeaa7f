from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ortkit import BundleError
from ortkit.runtime.bundle.manifest import Buckets
from ortkit.runtime.encoder.buckets import BucketChoice


def choice_of(tokens: Sequence[int] = (4, 8), texts: Sequence[int] = (1, 3), *, max_length: int = 8) -> BucketChoice:
    return BucketChoice(Buckets(tuple(tokens), tuple(texts)), max_length=max_length, path=Path("bundle"))


@pytest.mark.parametrize(
    ("texts", "tokens", "bucket"),
    [(1, 1, (1, 4)), (1, 4, (1, 4)), (1, 5, (1, 8)), (2, 3, (3, 4)), (3, 8, (3, 8))],
)
def test_the_smallest_bucket_that_holds_a_batch(texts: int, tokens: int, bucket: tuple[int, int]) -> None:
    assert choice_of().smallest(texts, tokens) == bucket


@pytest.mark.parametrize(("texts", "tokens"), [(4, 4), (1, 9)])
def test_a_batch_that_no_bucket_holds(texts: int, tokens: int) -> None:
    with pytest.raises(
        BundleError, match=f"no bucket in the manifest of `bundle` holds {texts} texts of {tokens} tokens"
    ) as caught:
        choice_of().smallest(texts, tokens)

    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    ("tokens", "texts", "message"),
    [
        ((4, 7), (1, 3), "the largest bucket in the manifest of `bundle` has 7 tokens, and the model's limit is 8"),
        ((8, 4), (1, 3), "`buckets.tokens` in the manifest of `bundle` must be ascending, not [8, 4]"),
        ((4, 8), (3, 3), "`buckets.texts` in the manifest of `bundle` must be ascending, not [3, 3]"),
        ((4, 8), (), "`buckets.texts` in the manifest of `bundle` must be ascending, not []"),
    ],
)
def test_buckets_of_a_damaged_manifest(tokens: tuple[int, ...], texts: tuple[int, ...], message: str) -> None:
    with pytest.raises(BundleError, match=re.escape(message)) as caught:
        choice_of(tokens, texts)

    assert caught.value.exit_code == 7


def test_batches_fill_buckets_and_lose_nothing() -> None:
    lengths = [1, 8, 3, 5, 4, 2, 7]

    groups = choice_of().batches(range(len(lengths)), 24, length=lambda index: lengths[index])

    assert [[lengths[index] for index in group] for group in groups] == [[8, 7, 5], [4, 3, 2], [1]]


def test_texts_run_alone_where_a_bucket_of_several_is_over_the_budget() -> None:
    groups = choice_of().batches([8, 7, 3, 3], 12, length=lambda length: length)

    assert groups == [[8], [7], [3, 3]]


def test_a_padded_batch() -> None:
    rows = [
        {"input_ids": np.array([[5, 6, 7]]), "token_type_ids": np.array([[0, 1, 1]])},
        {"input_ids": np.array([[8]]), "token_type_ids": np.array([[1]])},
    ]

    padded = choice_of().pad(rows)

    assert padded.bucket == (3, 4)
    assert padded.lengths == (3, 1)
    assert list(padded.feeds) == ["input_ids", "token_type_ids", "bias"]
    # The shortest text fills the place that is left.
    assert padded.feeds["input_ids"].tolist() == [[5, 6, 7, 0], [8, 0, 0, 0], [8, 0, 0, 0]]
    assert padded.feeds["token_type_ids"].tolist() == [[0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert padded.feeds["bias"].dtype == np.float32
    assert padded.feeds["bias"].shape == (3, 1, 1, 4)
    masked = -10_000
    assert padded.feeds["bias"][:, 0, 0].tolist() == [[0, 0, 0, masked], *[[0, masked, masked, masked]] * 2]
