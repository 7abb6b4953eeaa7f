from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ortkit import Kind, UnsupportedModelError
from ortkit.exporters.providers.position_tables import MASKED, Reach, table_of_differences
from tests.encoder_checkpoints import TINY_CONFIGS, write_checkpoint
from tests.exporters.providers.test_cuda_encoder import compare

LENGTH = 3000
"""More than are run: the rest of a table is extended."""
HEADS = {"jina-bert": {"num_attention_heads": 12}}
"""As in the real one, with slopes other than powers of two."""


def differences(tokens: int) -> NDArray[np.int64]:
    """Query minus key position, (tokens, tokens)."""
    return np.arange(tokens)[:, np.newaxis] - np.arange(tokens)


def alibi(tokens: int) -> NDArray[np.float32]:
    # The second is not a power of two, as for 12 heads: its multiples are rounded.
    slopes = np.array([-0.5, -(2**-0.5), -(2**-8)], np.float32)[:, np.newaxis, np.newaxis]
    return np.asarray(np.abs(differences(tokens)).astype(np.float32) * slopes)


def window(tokens: int) -> NDArray[np.float32]:
    return np.where(np.abs(differences(tokens)) <= 300, np.float32(0), np.finfo(np.float32).min)[np.newaxis]


def causal(tokens: int) -> NDArray[np.float32]:
    return np.where(differences(tokens) >= 0, np.float32(0), np.finfo(np.float32).min)[np.newaxis]


@pytest.mark.parametrize(("function", "reach"), [(alibi, 0), (window, 300), (causal, 0)])
def test_a_function_of_the_difference_is_extended_to_the_models_limit(
    function: Callable[[int], NDArray[np.float32]], reach: int
) -> None:
    limits = Reach(LENGTH, reach)

    table = table_of_differences((function(5), function(7)), function(limits.trial), limits)

    assert limits.trial < LENGTH
    expected = function(LENGTH)
    found = np.take(table, differences(LENGTH) + LENGTH - 1, axis=-1)
    assert np.array_equal(found, np.where(expected < -1e30, np.float32(MASKED), expected))


def test_what_depends_on_more_than_the_difference() -> None:
    limits = Reach(64)
    products = np.multiply.outer(np.arange(64), np.arange(64)).astype(np.float32)

    with pytest.raises(UnsupportedModelError) as caught:
        table_of_differences((products[:5, :5], products[:7, :7]), products, limits)
    assert caught.value.message == (
        "the traced graph cannot do without the sizes of the batch: what is computed for two positions depends on more "
        "than their difference"
    )
    assert caught.value.hint == "use `--provider cpu`"


def test_a_bias_that_does_not_go_on_as_it_began() -> None:
    limits = Reach(LENGTH)
    squares = np.square(differences(limits.trial)).astype(np.float32)

    with pytest.raises(UnsupportedModelError, match="a bias has another form at long distances"):
        table_of_differences((squares[:5, :5], squares[:7, :7]), squares, limits)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["jina-bert", "modernbert", "nomic_bert", "qwen3"])
def test_models_of_long_texts(architecture: str, checkpoint: Path, tmp_path: Path) -> None:
    """Beyond the tokens that are run for their tables."""
    positions = "n_positions" if architecture == "nomic_bert" else "max_position_embeddings"
    folder = tmp_path / "tiny"
    write_checkpoint(
        folder, checkpoint, architecture, TINY_CONFIGS[architecture] | {positions: 1500} | HEADS.get(architecture, {})
    )
    settings = {"max_seq_length": 1500, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))

    compare(folder, Kind.EMBEDDER, tmp_path)
