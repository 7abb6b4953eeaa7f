from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from ortkit.exporters.decoder.lazy_model import open_decoder
from ortkit.exporters.decoder.tracing import rebuild
from ortkit.exporters.decoder.weight_only import BlockRecipe, quantize_decoder
from ortkit.exporters.quantization.blockwise import BlockFormat, Rounding, quantize_blockwise
from ortkit.exporters.sources import find_checkpoint
from ortkit.runtime.errors import CheckpointError
from tests.exporters.decoders import FAMILIES, loaded, traced, write_decoder
from tests.seeded_checkpoints import Shape, write_seeded

SMALL = Shape(2, 64, 96, 4, 2, vocabulary=320, window=64, positions=512)
WEIGHTS = "model.safetensors"


def changed(folder: Path, **tensors: torch.Tensor | None) -> Path:
    """Write a small Mistral with other tensors, by names with `__` for dots; None takes one out."""
    write_decoder(folder, "mistral")
    weights = load_file(folder / WEIGHTS)
    for name, tensor in tensors.items():
        full = name.replace("__", ".")
        weights.pop(full, None)
        if tensor is not None:
            weights[full] = tensor
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    return folder


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_weight_is_what_transformers_loads(family: str, tmp_path: Path) -> None:
    decoder = open_decoder(write_decoder(tmp_path, family))
    expected = loaded(tmp_path).state_dict()

    assert sum(parameter.numel() for parameter in decoder.lazy_weights) > 0.9 * sum(
        map(torch.numel, decoder.model.parameters())
    )
    assert all(parameter.is_meta for parameter in decoder.lazy_weights)
    with decoder.with_weights(decoder.model):
        found = decoder.model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_shards_of_every_type_are_read_as_transformers_reads_them(dtype: str, tmp_path: Path) -> None:
    write_seeded(tmp_path, SMALL, dtype=dtype, shard=100_000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    decoder = open_decoder(find_checkpoint(str(tmp_path)))

    with decoder.with_weights(decoder.model):
        expected = loaded(tmp_path).state_dict()
        assert all(torch.equal(found, expected[name]) for name, found in decoder.model.state_dict().items())


def test_blocks_are_those_of_the_weights_that_transformers_loads(tmp_path: Path) -> None:
    """To the bit: merged, transposed, from bf16, and the tied table once."""
    checkpoint = find_checkpoint(str(write_seeded(tmp_path / "c", SMALL, shard=100_000, tie_word_embeddings=True)))
    weights = loaded(tmp_path / "c").state_dict()
    model = traced(checkpoint, tmp_path)
    rebuild(model)

    quantize_decoder(model, BlockRecipe(rounding=Rounding.NEAREST, block_size=32))

    layer = "model.layers.1."
    qkv = torch.cat([weights[f"{layer}self_attn.{part}_proj.weight"] for part in "qkv"])
    down = weights[f"{layer}mlp.down_proj.weight"]
    found = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    for name, weight in (
        (f"{layer}self_attn.q_proj.weight_transposed_merged", qkv),
        (f"{layer}mlp.down_proj.weight_transposed", down),
        ("model.embed_tokens.weight_transposed", weights["model.embed_tokens.weight"]),
    ):
        expected = quantize_blockwise(weight.T.numpy(), BlockFormat(4, 32, symmetric=False))
        assert np.array_equal(found[f"{name}_levels"], expected.packed_levels)
        assert np.array_equal(found[f"{name}_scales"], expected.scales)
        assert np.array_equal(found[f"{name}_zeros"], expected.packed_zeros)
    assert sum(array.shape[0] == 320 and array.dtype == np.uint8 and array.ndim == 3 for array in found.values()) == 2


def test_a_model_saved_without_its_head_is_found(tmp_path: Path) -> None:
    write_decoder(tmp_path, "llama, tied")
    weights = load_file(tmp_path / WEIGHTS)
    save_file({name.removeprefix("model."): weight for name, weight in weights.items()}, tmp_path / WEIGHTS)

    decoder = open_decoder(find_checkpoint(str(tmp_path)))

    with decoder.with_weights(decoder.model):
        assert torch.equal(decoder.model.lm_head.weight, weights["model.embed_tokens.weight"])


def test_tensors_of_no_use_are_passed_over(tmp_path: Path) -> None:
    write_decoder(tmp_path, "llama, tied")
    weights = load_file(tmp_path / WEIGHTS)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    save_file(weights, tmp_path / WEIGHTS)

    open_decoder(find_checkpoint(str(tmp_path)))


def test_masks_that_gpt_2_is_published_with_are_passed_over(tmp_path: Path) -> None:
    write_decoder(tmp_path, "gpt2")
    weights = load_file(tmp_path / WEIGHTS)
    for layer in range(2):
        weights[f"transformer.h.{layer}.attn.bias"] = torch.tril(torch.ones(512, 512)).view(1, 1, 512, 512)
    save_file(weights, tmp_path / WEIGHTS)

    open_decoder(find_checkpoint(str(tmp_path)))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"model__layers__1__mlp__down_proj__weight": None},
            "lacks 1 of the weights that its config.json promises, such as `model.layers.1.mlp.down_proj.weight`",
        ),
        (
            {"model__layers__0__self_attn__q_proj__bias": torch.zeros(128)},
            "holds 1 weights that its config.json says nothing of, such as `model.layers.0.self_attn.q_proj.bias`",
        ),
        (
            {"model__norm__weight": torch.zeros(63)},
            "`model.norm.weight` has the shape (63,), and its config.json promises (64,)",
        ),
        (
            {"model__norm__weight": torch.zeros(64, dtype=torch.float64)},
            "`model.norm.weight` is of the type `F64`",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_refused(
    tensors: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    folder = changed(tmp_path, **tensors)

    with pytest.raises(CheckpointError) as caught:
        open_decoder(find_checkpoint(str(folder)))

    assert caught.value.message.startswith(("in `", "`"))
    assert str(folder) in caught.value.message
    assert caught.value.message.endswith(message)
    assert caught.value.exit_code == 7


def test_nothing_large_is_read_to_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_decoder(tmp_path / "c", "qwen3")
    sizes = []
    read = "ortkit.exporters.checkpoint.safetensors_reader.StoredTensor.flat"
    from ortkit.exporters.checkpoint.safetensors_reader import StoredTensor

    flat = StoredTensor.flat
    monkeypatch.setattr(read, lambda tensor, first, count: (sizes.append(count), flat(tensor, first, count))[1])

    model = traced(checkpoint, tmp_path)
    rebuild(model)

    assert max(sizes) <= 64
    assert isinstance(model, ir.Model)
