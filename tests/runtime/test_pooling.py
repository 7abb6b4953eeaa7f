import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling as ReferencePooling

from runtime import Pooling
from runtime.pooling import cosines, normalize, pool, pool_chunks

REFERENCE_MODES = {
    Pooling.CLS: "cls",
    Pooling.MEAN: "mean",
    Pooling.MAX: "max",
    Pooling.LAST_TOKEN: "lasttoken",
    Pooling.WEIGHTED_MEAN: "weightedmean",
}


@pytest.mark.parametrize("pooling", list(Pooling))
def test_pooling_is_that_of_sentence_transformers(pooling: Pooling) -> None:
    tokens = np.random.default_rng(3).normal(size=(4, 9, 16)).astype(np.float32)
    reference = ReferencePooling(16, pooling_mode=REFERENCE_MODES[pooling])
    features = {"token_embeddings": torch.from_numpy(tokens), "attention_mask": torch.ones(4, 9)}

    expected = reference(features)["sentence_embedding"].numpy()

    assert np.abs(pool(tokens.swapaxes(0, 1), pooling) - expected).max() < 1e-6


@pytest.mark.parametrize("pooling", list(Pooling))
def test_a_text_is_pooled_to_the_same_bits_alone(pooling: Pooling) -> None:
    tokens = np.random.default_rng(6).normal(size=(37, 5, 48)).astype(np.float32)
    alone = [pool(np.ascontiguousarray(tokens[:, [text]]), pooling) for text in range(5)]

    assert np.array_equal(pool(tokens, pooling), np.concatenate(alone))


def test_chunks_are_weighted_by_their_tokens() -> None:
    """With mean pooling it is the mean over all tokens of the text."""
    tokens = np.random.default_rng(7).normal(size=(12, 1, 16)).astype(np.float32)
    chunks = np.concatenate([pool(tokens[:9], Pooling.MEAN), pool(tokens[9:], Pooling.MEAN)])

    found = pool_chunks(chunks, np.array([9, 3]))

    assert found.dtype == np.float32
    assert np.abs(found - pool(tokens, Pooling.MEAN)[0]).max() < 1e-6


def test_normalizing_is_that_of_torch_even_for_zeros() -> None:
    vectors = np.random.default_rng(4).normal(size=(5, 16)).astype(np.float32)
    vectors[2] = 0
    expected = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1).numpy()

    assert np.abs(normalize(vectors) - expected).max() < 1e-6


def test_cosines_are_those_of_torch() -> None:
    these, those = np.random.default_rng(5).normal(size=(2, 7, 16)).astype(np.float32)
    expected = torch.nn.functional.cosine_similarity(torch.from_numpy(these), torch.from_numpy(those)).numpy()

    assert np.abs(cosines(these, those) - expected).max() < 1e-6
