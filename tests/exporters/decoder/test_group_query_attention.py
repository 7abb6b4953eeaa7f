from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ortkit import UnsupportedModelError
from ortkit.exporters.decoder.config import cache_sizes, context_length
from ortkit.exporters.decoder.group_query_attention import (
    ATTENTION_NAME,
    DecoderOnnxConfig,
    DecoderPatcher,
    check_rotation,
    use_rotary_tables,
)
from ortkit.exporters.decoder.lazy_model import LazyDecoder
from ortkit.exporters.decoder.tracing import trace
from tests.exporters.decoders import LONGROPE, TINY, tiny_config, tiny_decoder


def test_a_context_is_as_long_as_the_config_says() -> None:
    assert context_length(tiny_config("llama")) == 512
    assert context_length(tiny_config("qwen2")) == 512, "yarn has one table"


def test_a_context_ends_where_longrope_would_take_other_angles() -> None:
    assert context_length(tiny_config("phi3")) == 256
    assert context_length(tiny_config("phi3", max_position_embeddings=128)) == 128


@pytest.mark.parametrize(("family", "head_size"), [("llama", 16), ("qwen3", 32), ("phi3", 16)])
def test_the_sizes_of_the_cache(family: str, head_size: int) -> None:
    sizes = cache_sizes(tiny_config(family))

    assert (sizes.layers, sizes.heads, sizes.kv_heads, sizes.head_size) == (2, 4, 2, head_size)


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
def test_tables_are_what_the_rotary_module_gives(family: str) -> None:
    """Scaled angles and scaled values among them."""
    rotary = tiny_decoder(family).model.rotary_emb
    cos, sin = rotary(torch.zeros(1), torch.arange(200)[None])

    use_rotary_tables(rotary, 200)

    half = cos.shape[-1] // 2
    assert torch.equal(rotary.cos_table, cos[0, :, :half])
    assert torch.equal(rotary.cos_table, cos[0, :, half:])
    assert torch.equal(rotary.sin_table, sin[0, :, :half])
    if family != "llama":
        assert np.abs(rotary.cos_table.numpy()).max() > 1.05, "yarn and longrope make the vectors longer"


def test_longrope_stays_with_the_short_factors() -> None:
    rotary = tiny_decoder("phi3").model.rotary_emb
    use_rotary_tables(rotary, 256)

    angles = 1 / (10000 ** (np.arange(8) / 8) * np.array(LONGROPE["short_factor"]))
    expected = np.cos(255 * angles) * rotary.attention_scaling
    assert np.abs(rotary.cos_table[255].numpy() - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("family", "changes", "size"),
    [
        ("llama", {"head_dim": 24}, 24),
        ("llama", {"head_dim": 8}, 8),
        ("phi3, partly rotated", {"partial_rotary_factor": 0.75}, 24),
    ],
)
def test_heads_that_onnxruntime_does_not_rotate(family: str, changes: dict, size: int) -> None:
    check_rotation(tiny_decoder(family))

    with pytest.raises(UnsupportedModelError) as caught:
        check_rotation(tiny_decoder(family, **changes))
    assert caught.value.exit_code == 10
    assert caught.value.message == (
        f"the model rotates {size} dimensions of each head, and onnxruntime's attention supports multiples of 16 only"
    )


def other_decoder(model_type: str) -> Any:
    """An unsupported family."""
    config = transformers.AutoConfig.for_model(model_type, **TINY, head_dim=16)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def test_heads_whose_numbers_are_rotated_in_pairs(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        trace(LazyDecoder(other_decoder("helium"), {}), tmp_path)
    assert caught.value.message == (
        "`HeliumForCausalLM` does not rotate the first half of a head against the second; other rotary layouts are not "
        "supported"
    )


def test_queries_that_are_normed_after_they_are_rotated(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        trace(LazyDecoder(other_decoder("hunyuan_v1_dense"), {}), tmp_path)
    assert caught.value.message == (
        "`HunYuanDenseV1ForCausalLM` changes queries or keys between their rotation and the attention; "
        "onnxruntime's attention rotates them last"
    )
    assert ATTENTION_NAME not in ALL_ATTENTION_FUNCTIONS


def test_what_is_registered_is_taken_back_when_tracing_fails() -> None:
    model = tiny_decoder("llama")
    rotate = transformers.models.llama.modeling_llama.apply_rotary_pos_emb

    with (
        pytest.raises(ZeroDivisionError),
        DecoderPatcher(DecoderOnnxConfig(model.config, context_length=64), model),
    ):
        assert ATTENTION_NAME in ALL_ATTENTION_FUNCTIONS
        assert model.config._attn_implementation == ATTENTION_NAME
        assert transformers.models.llama.modeling_llama.apply_rotary_pos_emb != rotate
        1 / 0  # noqa: B018

    assert ATTENTION_NAME not in ALL_ATTENTION_FUNCTIONS
    assert model.config._attn_implementation == "eager"
    assert transformers.models.llama.modeling_llama.apply_rotary_pos_emb is rotate
    assert not hasattr(model.model.rotary_emb, "cos_table")
