from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ortkit.exporters.checkpoint.safetensors_reader import LONGEST
from ortkit.exporters.sources import find_checkpoint
from ortkit import CheckpointError, OrtkitError, UnsupportedModelError
from tests.encoder_checkpoints import edit_config
from tests.exporters.decoder_checkpoints import write_checkpoint

INDEX = "model.safetensors.index.json"


def refusal(folder: Path, error: type[OrtkitError] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        find_checkpoint(str(folder))
    assert type(caught.value) is error
    return caught.value.message


def cut(folder: Path, *, move: str | None = None, drop: str | None = None, double: str | None = None) -> None:
    """The weights in two shards; one tensor may lie in the other one than the index says, in none, or in both."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    places = {name: names[number % 2] for number, name in enumerate(sorted(weights))}
    for shard in names:
        held = {
            name: weight
            for name, weight in weights.items()
            if name != drop and (name == double or (places[name] == shard) is not (name == move))
        }
        save_file(held, folder / shard, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_shards_that_fit_their_index(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    cut(folder)

    find_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"move": "model.norm.weight"},
            "their index has `model.norm.weight` in `model-0000\\d-of-00002.safetensors`, and it is in `model-0000\\d",
        ),
        ({"drop": "model.norm.weight"}, "has `model.norm.weight` in `model-.*`, and no shard holds it"),
        ({"double": "model.norm.weight"}, "`model.norm.weight` is in `model-00001.*` and in `model-00002"),
    ],
)
def test_shards_that_do_not(tmp_path: Path, change: dict, message: str) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    cut(folder, **change)

    with pytest.raises(CheckpointError, match=f"^the weights are damaged: .*{message}") as caught:
        find_checkpoint(str(folder))
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**6}, "promises 1000000 layers (`num_hidden_layers`), and its weights are"),
        ({"num_hidden_layers": 10**12}, "promises 1000000000000 layers"),
        ({"vocab_size": 10**12}, "has `vocab_size` set to 1000000000000, and none of its tensors is of that size"),
        ({"hidden_size": 47}, "has `hidden_size` set to 47, and none of its tensors is of that size"),
        ({"hidden_size": "48"}, "`hidden_size` in the config.json of `tiny-bert` must be a positive integer, not `48`"),
        ({"num_hidden_layers": -1}, "must be a positive integer, not `-1`"),
        ({"num_hidden_layers": 2.0}, "must be a positive integer, not `2.0`"),
        ({"vocab_size": None}, "must be a positive integer, not `None`"),
        ({"vocab_size": True}, "must be a positive integer, not `True`"),
        ({"vocab_size": [5] * 1000}, "must be a positive integer, not `[5, 5, 5"),
    ],
)
def test_sizes_that_the_tensors_have_not(tiny_checkpoint: Path, changes: dict, message: str) -> None:
    edit_config(tiny_checkpoint, **changes)

    found = refusal(tiny_checkpoint)
    assert message in found
    assert len(found) < 200


def test_the_same_of_a_decoder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "gpt2")
    edit_config(folder, n_layer=10**9)

    assert "promises 1000000000 layers (`n_layer`)" in refusal(folder)


def test_more_positions_than_any_model_has(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    edit_config(folder, max_position_embeddings=LONGEST + 1)

    assert refusal(folder, UnsupportedModelError) == (
        "`tiny` has `max_position_embeddings` set to 4194305, and ortkit exports models of at most 4194304 positions"
    )


def test_weights_in_8_bits(tiny_checkpoint: Path) -> None:
    weights = load_file(tiny_checkpoint / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, tiny_checkpoint / "model.safetensors", metadata={"format": "pt"})

    assert refusal(tiny_checkpoint, UnsupportedModelError) == (
        f"`{name}` in the weights `model.safetensors` is of the type `F8_E4M3`, which only code for quantized models "
        "reads"
    )


@pytest.mark.parametrize("stated", ["tf", "flax"])
def test_weights_for_another_library(tiny_checkpoint: Path, stated: str) -> None:
    path = tiny_checkpoint / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": stated})

    assert refusal(tiny_checkpoint, UnsupportedModelError) == (
        f"the weights `model.safetensors` are stored for `{stated}` and not for PyTorch"
    )


@pytest.mark.parametrize("padding", [None, 30522, -1, "1", True])
def test_a_padding_token_from_which_positions_are_counted(tiny_checkpoint: Path, padding: object) -> None:
    edit_config(tiny_checkpoint, model_type="roberta", pad_token_id=padding)

    assert refusal(tiny_checkpoint) == (
        f"`pad_token_id` in the config.json of `tiny-bert` must be the id of a token, not `{padding}`"
    )


@pytest.mark.parametrize("padding", [99999, "0", 1.0])
def test_a_padding_token_beyond_the_vocabulary(tiny_checkpoint: Path, padding: object) -> None:
    edit_config(tiny_checkpoint, pad_token_id=padding)

    assert f"must be the id of a token, not `{padding}`" in refusal(tiny_checkpoint)
