from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers.util import cos_sim, dot_score
from sentence_transformers.util.quantization import quantize_embeddings as published

from ortkit import InputError, Metric, VectorType, embedding_ranges, quantize_embeddings, similarity
from ortkit.runtime.encoder.embedding_types import unit_ranges
from ortkit.runtime.encoder.pooling import cosines, normalize


def vectors_of(count: int, seed: int = 1) -> NDArray[np.float32]:
    return normalize(np.random.default_rng(seed).normal(size=(count, 96)).astype(np.float32))


@pytest.mark.parametrize("dtype", [VectorType.BINARY, VectorType.UBINARY, VectorType.INT8, VectorType.FLOAT32])
def test_conversions_are_those_of_sentence_transformers_bit_for_bit(dtype: VectorType) -> None:
    sample = vectors_of(500)
    ranges = embedding_ranges(sample)
    for given in (None, ranges):
        expected = published(sample, dtype.value, ranges=given, calibration_embeddings=sample)
        found = quantize_embeddings(sample, dtype, ranges=ranges)

        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)


def test_float16_is_the_nearest() -> None:
    sample = vectors_of(20)
    found = quantize_embeddings(sample, VectorType.FLOAT16)

    assert found.dtype == np.float16
    assert np.array_equal(found, torch.from_numpy(sample).half().numpy())


@pytest.mark.parametrize("dtype", list(VectorType))
def test_a_single_vector_is_quantized_as_in_a_batch(dtype: VectorType) -> None:
    vectors = vectors_of(3)
    ranges = embedding_ranges(vectors)

    single = quantize_embeddings(vectors[1], dtype, ranges=ranges)
    np.testing.assert_array_equal(single, quantize_embeddings(vectors, dtype, ranges=ranges)[1])


@pytest.mark.parametrize(
    ("vectors", "found"),
    [(np.zeros((2, 8), np.int8), "int8 of shape (2, 8)"), (np.float32(1), "float32 of shape ()"), (None, "object of")],
)
def test_what_cannot_be_quantized(vectors: NDArray, found: str) -> None:
    with pytest.raises(InputError, match=f"`vectors` must be floats \\(texts, dimension\\), not {re.escape(found)}"):
        quantize_embeddings(vectors, "binary")


def test_values_out_of_range_are_clipped() -> None:
    ranges = np.array([[-1, -1], [1, 1]], np.float32)
    found = quantize_embeddings(np.array([[-1.2, 1.2], [-9, 9]], np.float32), VectorType.INT8, ranges=ranges)

    assert found.tolist() == [[-128, 127]] * 2


def test_vectors_of_other_floats() -> None:
    for given in (np.float16, np.float32, np.float64):
        found = quantize_embeddings(np.ones((2, 8), given), "float32")
        assert (found.dtype, found.tolist()) == (np.float32, [[1.0] * 8] * 2)


def test_a_constant_component() -> None:
    sample = np.array([[0.5, 0], [0.5, 255]], np.float32)

    assert quantize_embeddings(sample, VectorType.INT8, ranges=embedding_ranges(sample)).tolist() == [
        [-128, -128],
        [-128, 127],
    ]


def test_a_dimension_that_fills_no_whole_number_of_bytes() -> None:
    vector = np.array([[1, -1, 1, 0, 0, 0, 0, 0, 1, 1]], np.float32)

    assert quantize_embeddings(vector, VectorType.UBINARY).tolist() == [[0b10100000, 0b11000000]]
    assert quantize_embeddings(vector, VectorType.BINARY).tolist() == [[0b10100000 - 128, 0b11000000 - 128]]


def test_unit_ranges_hold_what_unit_vectors_hold() -> None:
    for dimension in (3, 384):
        sample = normalize(np.random.default_rng(2).normal(size=(300, dimension)).astype(np.float32))
        ranges = unit_ranges(dimension)
        assert (sample >= ranges[0]).all()
        assert (sample <= ranges[1]).all()
        # The middle of each step, which truncation rounds down to.
        back = (
            (quantize_embeddings(sample, VectorType.INT8, ranges=ranges) + np.float32(128.5))
            * (ranges[1] - ranges[0])
            / 255
        )
        assert cosines((back + ranges[0]).astype(np.float32), sample).min() > 0.999


def test_ranges_that_cannot_be_used() -> None:
    sample = vectors_of(3)
    good = embedding_ranges(sample)
    for ranges, message, hint in [
        (
            None,
            "int8 needs the ranges of the components",
            "compute them from sample vectors with `embedding_ranges(vectors)`",
        ),
        (good[:, :5], "`ranges` must have the shape (2, 96), not (2, 5)", None),
        ("good", "`ranges` must be numbers of the shape (2, 96), not str", None),
        ([[0.0], [0.0, 1.0]], "`ranges` must be numbers of the shape (2, 96), not list", None),
        (good[::-1], "`ranges` must be finite numbers, the lowest values in the first row", None),
        (good * np.float32(np.nan), "`ranges` must be finite numbers, the lowest values in the first row", None),
    ]:
        with pytest.raises(InputError) as caught:
            quantize_embeddings(sample, VectorType.INT8, ranges=ranges)
        assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize("shape", [(0, 96), (96,)])
def test_ranges_of_an_empty_sample(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        embedding_ranges(np.zeros(shape, np.float32))
    assert caught.value.message == f"`vectors` must be sample embeddings (texts, dimension), not {shape}"


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ("hello", "`vectors` must be floats (texts, dimension), not <U5 of shape ()"),
        ([[0.5], [0.5, 1.0]], "`vectors` must be floats (texts, dimension), all of one dimension"),
        (np.zeros((2, 96), np.int8), "`vectors` must be floats (texts, dimension), not int8 of shape (2, 96)"),
    ],
)
def test_what_is_not_vectors(vectors: object, message: str) -> None:
    for function in (embedding_ranges, lambda given: quantize_embeddings(given, "float16")):
        with pytest.raises(InputError) as caught:
            function(vectors)
        assert caught.value.message == message


def test_similarities_are_those_of_sentence_transformers() -> None:
    these, those = vectors_of(5) * 3, vectors_of(7, seed=2)

    assert np.abs(similarity(these, those) - cos_sim(these, those).numpy()).max() < 1e-6
    assert np.abs(similarity(these, those, metric=Metric.DOT) - dot_score(these, those).numpy()).max() < 1e-5
    assert similarity(these[0], those).shape == (1, 7)


def test_int8_vectors_are_compared_as_numbers_without_overflow() -> None:
    ranges = unit_ranges(96)
    these, those = vectors_of(5), vectors_of(7, seed=2)
    small = [quantize_embeddings(vectors, VectorType.INT8, ranges=ranges) for vectors in (these, those)]

    assert np.abs(similarity(*small) - similarity(these, those)).max() < 0.03


@pytest.mark.parametrize("dtype", [VectorType.BINARY, VectorType.UBINARY])
def test_hamming_is_the_cosine_of_signs(dtype: VectorType) -> None:
    these, those = vectors_of(5), vectors_of(7, seed=2)
    expected = cos_sim(np.sign(these), np.sign(those)).numpy()

    found = similarity(quantize_embeddings(these, dtype), quantize_embeddings(those, dtype), metric="hamming")

    assert np.abs(found - expected).max() < 1e-6


def test_vectors_that_cannot_be_compared() -> None:
    sample = vectors_of(2)
    packed = np.packbits(sample > 0, axis=1)
    for arguments, metric, message in [
        ((sample, sample[:, :5]), "dot", "vectors of different dimensions, 96 and 5, cannot be compared"),
        ((sample, sample), "hamming", "`hamming` needs packed bits (int8 or uint8), not float32"),
        ((sample, packed), "dot", "vectors of different dimensions, 96 and 12, cannot be compared"),
        (
            (packed, packed),
            "cosine",
            "`cosine` cannot compare packed bits, and only these have the type uint8",
        ),
        ((None, sample), "cosine", "`a` must be numbers (n, dimension), not object of shape ()"),
        ((sample, [[1.0], [1.0, 2.0]]), "cosine", "`b` must be vectors of one dimension"),
        ((sample, sample), "euclid", "`metric` must be one of cosine, dot, hamming, not `euclid`"),
    ]:
        with pytest.raises(InputError) as caught:
            similarity(*arguments, metric=metric)
        assert caught.value.message == message
        assert caught.value.exit_code == 2
