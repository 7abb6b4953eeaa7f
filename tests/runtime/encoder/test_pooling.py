import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling as ReferencePooling

from ortkit import InputError, Pooling
from ortkit.runtime.encoder.pooling import cosines, normalize, pool, pool_chunks

REFERENCE_MODES = {
    Pooling.CLS: "cls",
    Pooling.MEAN: "mean",
    Pooling.MAX: "max",
    Pooling.LAST_TOKEN: "lasttoken",
    Pooling.WEIGHTED_MEAN: "weightedmean",
    Pooling.MEAN_SQRT: "mean_sqrt_len_tokens",
}
MIXTURES = [(Pooling.MEAN, Pooling.CLS), (Pooling.MAX, Pooling.LAST_TOKEN, Pooling.MEAN_SQRT)]


@pytest.mark.parametrize("skip", [0, 3, 9, 12])
@pytest.mark.parametrize("poolings", [*((pooling,) for pooling in Pooling), *MIXTURES])
def test_pooling_is_that_of_sentence_transformers(poolings: tuple[Pooling, ...], skip: int) -> None:
    """With a prompt of `skip` tokens left out; nothing is left of nine or more."""
    tokens = np.random.default_rng(3).normal(size=(4, 9, 16)).astype(np.float32)
    modes = tuple(REFERENCE_MODES[pooling] for pooling in poolings)
    reference = ReferencePooling(16, pooling_mode=modes, include_prompt=False)
    features = {"token_embeddings": torch.from_numpy(tokens), "attention_mask": torch.ones(4, 9, dtype=torch.int64)}

    expected = reference(features | ({"prompt_length": skip} if skip else {}))["sentence_embedding"].numpy()

    if Pooling.MAX in poolings and skip >= 9:
        assert np.isneginf(expected).any()
        with pytest.raises(InputError, match="a text ends within its prompt, which this model excludes from pooling"):
            pool(tokens.swapaxes(0, 1), poolings, skip=skip)
    else:
        assert np.abs(pool(tokens.swapaxes(0, 1), poolings, skip=skip) - expected).max() < 1e-6


@pytest.mark.parametrize("skip", [0, 5])
@pytest.mark.parametrize("poolings", [*((pooling,) for pooling in Pooling), *MIXTURES])
def test_a_text_is_pooled_to_the_same_bits_alone(poolings: tuple[Pooling, ...], skip: int) -> None:
    tokens = np.random.default_rng(6).normal(size=(37, 5, 48)).astype(np.float32)
    alone = [pool(np.ascontiguousarray(tokens[:, [text]]), poolings, skip=skip) for text in range(5)]

    assert np.array_equal(pool(tokens, poolings, skip=skip), np.concatenate(alone))


def test_chunks_are_weighted_by_their_tokens() -> None:
    """With mean pooling it is the mean over all tokens of the text."""
    tokens = np.random.default_rng(7).normal(size=(12, 1, 16)).astype(np.float32)
    chunks = np.concatenate([pool(tokens[:9], [Pooling.MEAN]), pool(tokens[9:], [Pooling.MEAN])])

    found = pool_chunks(chunks, np.array([9, 3]))

    assert found.dtype == np.float32
    assert np.abs(found - pool(tokens, [Pooling.MEAN])[0]).max() < 1e-6


def test_normalizing_is_that_of_torch_even_for_zeros() -> None:
    vectors = np.random.default_rng(4).normal(size=(5, 16)).astype(np.float32)
    vectors[2] = 0
    expected = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1).numpy()

    assert np.abs(normalize(vectors) - expected).max() < 1e-6


def test_cosines_are_those_of_torch() -> None:
    these, those = np.random.default_rng(5).normal(size=(2, 7, 16)).astype(np.float32)
    expected = torch.nn.functional.cosine_similarity(torch.from_numpy(these), torch.from_numpy(those)).numpy()

    assert np.abs(cosines(these, those) - expected).max() < 1e-6
