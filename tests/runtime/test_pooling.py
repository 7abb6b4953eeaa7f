import numpy as np
import pytest
import torch
from sentence_transformers.models import Pooling as ReferencePooling

from runtime import Pooling
from runtime.pooling import cosines, normalize, pool

REFERENCE_MODES = {
    Pooling.CLS: "cls",
    Pooling.MEAN: "mean",
    Pooling.MAX: "max",
    Pooling.LAST_TOKEN: "lasttoken",
}


@pytest.mark.parametrize("pooling", list(Pooling))
def test_pooling_is_that_of_sentence_transformers(pooling: Pooling) -> None:
    tokens = np.random.default_rng(3).normal(size=(4, 9, 16)).astype(np.float32)
    reference = ReferencePooling(16, pooling_mode=REFERENCE_MODES[pooling])
    features = {"token_embeddings": torch.from_numpy(tokens), "attention_mask": torch.ones(4, 9)}

    expected = reference(features)["sentence_embedding"].numpy()

    assert np.abs(pool(tokens, pooling) - expected).max() < 1e-6


def test_normalizing_is_that_of_torch_even_for_zeros() -> None:
    vectors = np.random.default_rng(4).normal(size=(5, 16)).astype(np.float32)
    vectors[2] = 0
    expected = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1).numpy()

    assert np.abs(normalize(vectors) - expected).max() < 1e-6


def test_cosines_are_those_of_torch() -> None:
    these, those = np.random.default_rng(5).normal(size=(2, 7, 16)).astype(np.float32)
    expected = torch.nn.functional.cosine_similarity(torch.from_numpy(these), torch.from_numpy(those)).numpy()

    assert np.abs(cosines(these, those) - expected).max() < 1e-6
