from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ortkit.exporters.checkpoint.cross_encoder import read_cross_encoder
from ortkit.exporters.decoder.lazy_model import open_decoder
from ortkit.exporters.encoder.tracing import load_model
from ortkit.exporters.models.loading import load_tokenizer
from ortkit.runtime.bundle.manifest import Kind
from ortkit.runtime.errors import CheckpointError
from tests.encoder_checkpoints import edit_config, write_reranker
from tests.exporters.decoder_checkpoints import change_json, opened, write_checkpoint


def test_a_tokenizer_saved_by_transformers_5(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    before = load_tokenizer(opened(folder))
    path = folder / "tokenizer_config.json"
    change_json(path, tokenizer_class="TokenizersBackend", extra_special_tokens=["<|im_start|>"])

    found = load_tokenizer(opened(folder))

    text = "<|im_start|>user\nWhat is a pump?<|im_end|>"
    assert found(text)["input_ids"] == before(text)["input_ids"]
    assert (found.bos_token_id, found.eos_token_id) == (before.bos_token_id, before.eos_token_id)
    assert found.chat_template == before.chat_template
    assert "<|im_start|>" in found.all_special_tokens


NO_SUCH_TOKEN = {
    "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "OtherTokenizer"}),
        ("tokenizer.json", {"model": {"type": "Other"}}),
        ("tokenizer.json", {"added_tokens": None}),
        ("tokenizer_config.json", {"model_input_names": 3}),
        ("tokenizer_config.json", {"truncation_side": "middle"}),
        # `tokenizers` panics on it, which is not an Exception in Python.
        ("tokenizer.json", {"post_processor": {"type": "TemplateProcessing"} | NO_SUCH_TOKEN}),
    ],
)
def test_a_tokenizer_that_transformers_cannot_load(file: str, changes: dict, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    change_json(folder / file, **changes)

    with pytest.raises(CheckpointError, match=r"^the tokenizer of `tiny` cannot be loaded: ") as caught:
        load_tokenizer(opened(folder))
    assert caught.value.exit_code == 7


def weights_of(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a checkpoint."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def refusal(folder: Path, kind: Kind = Kind.EMBEDDER) -> str:
    checkpoint = opened(folder)
    with pytest.raises(CheckpointError) as caught:
        load_model(checkpoint, read_cross_encoder(checkpoint) if kind is Kind.RERANKER else None)
    assert caught.value.exit_code == 7
    return caught.value.message


QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [QUERY, "embeddings.LayerNorm.bias", "embeddings.word_embeddings.weight"])
def test_an_encoder_with_a_number_that_is_none(tiny_checkpoint: Path, name: str, value: float) -> None:
    weights_of(tiny_checkpoint, lambda weights: weights[name].view(-1)[-1:].fill_(value))

    assert refusal(tiny_checkpoint).endswith(f"are damaged: `{name}` holds NaN or infinite numbers")


@pytest.mark.parametrize("name", [QUERY, "embeddings.LayerNorm.bias", "embeddings.position_embeddings.weight"])
def test_an_encoder_without_a_weight_that_it_computes_with(tiny_checkpoint: Path, name: str) -> None:
    weights_of(tiny_checkpoint, lambda weights: weights.pop(name))

    assert refusal(tiny_checkpoint) == (
        f"`{tiny_checkpoint}` lacks 1 of the weights that its config.json promises, such as `{name}`"
    )


def test_the_pooler_of_an_embedder_may_be_missing(tiny_checkpoint: Path) -> None:
    """Nothing reads it; what transformers makes of it is random, and here it is 0."""

    def drop(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if name.startswith("pooler.")]:
            del weights[name]

    weights_of(tiny_checkpoint, drop)

    model = load_model(opened(tiny_checkpoint))
    assert not model.pooler.dense.weight.any()


@pytest.mark.parametrize("architecture", ["deberta-v2", "bert", "modernbert"])
def test_the_pooler_of_a_classifier_may_not(checkpoint: Path, architecture: str, tmp_path: Path) -> None:
    """transformers gives it random numbers: each export would be another model."""
    write_reranker(tmp_path / "tiny", checkpoint, architecture)
    poolers = {"deberta-v2": "pooler", "bert": "bert.pooler", "modernbert": "head"}
    pooler = f"{poolers[architecture]}.dense.weight"
    weights_of(tmp_path / "tiny", lambda weights: weights.pop(pooler))

    assert refusal(tmp_path / "tiny", Kind.RERANKER).endswith(
        f"lacks 1 of the weights that its config.json promises, such as `{pooler}`"
    )


@pytest.mark.parametrize(
    "name",
    [
        f"{QUERY.removesuffix('.weight')}.lora_A.default.weight",
        "encoder.layer.2.output.dense.weight",
        "colbert_linear.weight",
        "linear.weight",
        "pooler.extra.weight",
    ],
)
def test_tensors_that_would_be_left_out(tiny_checkpoint: Path, name: str) -> None:
    weights_of(tiny_checkpoint, lambda weights: weights.setdefault(name, torch.zeros(4, 48)))

    assert refusal(tiny_checkpoint) == (
        f"`{tiny_checkpoint}` holds 1 weights that its config.json says nothing of, such as `{name}`"
    )


def test_the_head_of_the_training_may_stay(tiny_checkpoint: Path) -> None:
    """As published with most: an embedder that was made from one which predicts masked words."""

    def add(weights: dict[str, torch.Tensor]) -> None:
        weights["cls.predictions.bias"] = torch.zeros(30522)
        weights["cls.seq_relationship.weight"] = torch.zeros(2, 48)
        weights["embeddings.position_ids"] = torch.arange(64)[None]

    weights_of(tiny_checkpoint, add)

    load_model(opened(tiny_checkpoint))


def test_a_tensor_of_another_shape(tiny_checkpoint: Path) -> None:
    weights_of(tiny_checkpoint, lambda weights: weights.update({QUERY: torch.zeros(48, 47)}))

    assert refusal(tiny_checkpoint) == (
        f"in `{tiny_checkpoint}`, `{QUERY}` has the shape (48, 47), and its config.json promises (48, 48)"
    )


def test_a_tensor_that_is_larger_than_any(tiny_checkpoint: Path) -> None:
    edit_config(tiny_checkpoint, intermediate_size=2**30)
    weights_of(tiny_checkpoint, lambda weights: weights.pop("encoder.layer.0.intermediate.dense.weight"))

    assert refusal(tiny_checkpoint) == (
        "the config.json of `tiny-bert` promises `encoder.layer.0.intermediate.dense.weight` in the shape "
        "(1073741824, 48), and none of its tensors is as large"
    )


def test_weights_that_are_whole_numbers(tiny_checkpoint: Path) -> None:
    weights_of(tiny_checkpoint, lambda weights: weights.update({QUERY: torch.ones(48, 48, dtype=torch.int8)}))

    assert refusal(tiny_checkpoint) == f"in `{tiny_checkpoint}`, `{QUERY}` is of the type `I8`"


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("layer_norm_eps", "1e-12", "a number, not `'1e-12'`"),
        ("layer_norm_eps", [1e-12], "a number, not `[1e-12]`"),
        ("layer_norm_eps", float("nan"), "a number, not `nan`"),
        ("layer_norm_eps", True, "a number, not `True`"),
        ("intermediate_size", 96.0, "an integer from 0 to 2147483647, not `96.0`"),
        ("intermediate_size", 10**12, "an integer from 0 to 2147483647, not `1000000000000`"),
        ("num_attention_heads", -1, "an integer from 0 to 2147483647, not `-1`"),
        ("num_attention_heads", "4", "an integer from 0 to 2147483647, not `'4'`"),
        ("hidden_act", 3, "a string, not `3`"),
        ("use_cache", "yes", "true or false, not `'yes'`"),
        ("classifier_dropout", "0.1", "a number, not `'0.1'`"),
    ],
)
def test_a_setting_of_another_type(tiny_checkpoint: Path, key: str, value: object, wanted: str) -> None:
    edit_config(tiny_checkpoint, **{key: value})

    assert refusal(tiny_checkpoint) == f"`{key}` in the config.json of `tiny-bert` must be {wanted}"


@pytest.mark.parametrize(
    "changes", [{"hidden_act": "no_such_thing"}, {"num_attention_heads": 5}, {"num_attention_heads": 0}]
)
def test_settings_that_transformers_makes_no_model_of(tiny_checkpoint: Path, changes: dict) -> None:
    edit_config(tiny_checkpoint, **changes)

    assert refusal(tiny_checkpoint).startswith(f"`{tiny_checkpoint}` cannot be loaded: ")


@pytest.mark.parametrize(
    "changes", [{"rope_theta": "10000"}, {"head_dim": "16"}, {"rms_norm_eps": None}, {"sliding_window": {}}]
)
def test_a_decoders_settings(tmp_path: Path, changes: dict) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    edit_config(folder, **changes)

    with pytest.raises(CheckpointError) as caught:
        open_decoder(opened(folder))
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    "changes",
    [
        {"torchscript": True},
        {"output_hidden_states": True, "output_attentions": True},
        {"return_dict": False},
        {"chunk_size_feed_forward": 4},
        {"eos_token_id": [1, 2], "pad_token_id": None, "attention_probs_dropout_prob": 0},
    ],
)
def test_how_results_are_handed_over_is_no_part_of_a_model(tiny_checkpoint: Path, changes: dict) -> None:
    edit_config(tiny_checkpoint, **changes)

    found = load_model(opened(tiny_checkpoint))(input_ids=torch.tensor([[101, 2023, 102]]))

    assert list(found) == ["last_hidden_state", "pooler_output"]
