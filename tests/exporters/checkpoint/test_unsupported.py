from __future__ import annotations

from pathlib import Path

import pytest

from ortkit.exporters.sources import find_checkpoint
from ortkit.exporters.checkpoint.unsupported import check_unread
from ortkit import UnsupportedModelError
from tests.encoder_checkpoints import edit_config
from tests.exporters.decoder_checkpoints import change_json, write_checkpoint, write_json

FORMS = (
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ({"quant_method": "gptq", "bits": 4}, "gptq"),
    ({"quant_method": "awq", "bits": 4}, "awq"),
    ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8"),
    ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ({"quant_method": "modelopt", "quant_algo": "FP8"}, "modelopt"),
    ({"bits": 4}, "None"),
    ("int8", "int8"),
)


def refusal(folder: Path) -> UnsupportedModelError:
    """What `ortkit export` says, with no weights in the folder: none are needed to say it."""
    for path in folder.glob("model*.safetensors"):
        path.unlink()
    with pytest.raises(UnsupportedModelError) as caught:
        find_checkpoint(str(folder))
    assert caught.value.exit_code == 10
    return caught.value


@pytest.fixture(params=["encoder", "decoder"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "decoder":
        return write_checkpoint(tmp_path / "tiny")
    target: Path = request.getfixturevalue("tiny_checkpoint")
    return target.rename(tmp_path / "tiny")


@pytest.mark.parametrize(("settings", "method"), FORMS)
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_weights_that_are_packed(key: str, settings: object, method: str) -> None:
    for encoder in (False, True):
        with pytest.raises(UnsupportedModelError) as caught:
            check_unread("org/model", {"model_type": "bert", key: settings}, encoder=encoder)
        assert caught.value.message == (
            f"`org/model` is published quantized (`{key}` in config.json: `{method}`), and ortkit reads weights in "
            "16 or 32 bits only"
        )


def test_a_checkpoint_of_packed_weights(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "gptq"})

    found = refusal(folder)

    assert found.message.startswith("`tiny` is published quantized (`quantization_config` in config.json: `gptq`)")
    assert found.hint == "export the model in 16 or 32 bits that it was made from; `--precision` quantizes it"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("hf_quant_config.json", {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}),
        ("quantize_config.json", {"bits": 4, "group_size": 128}),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 128}),
        ("quantize_config.json", []),
    ],
)
def test_a_file_that_says_so(folder: Path, file: str, content: object) -> None:
    write_json(folder / file, content)

    assert refusal(folder).message == (
        f"`tiny` is published quantized (`{file}`), and ortkit reads weights in 16 or 32 bits only"
    )


def test_what_transformers_js_says_of_the_onnx_files_beside_the_weights(folder: Path) -> None:
    write_json(folder / "quantize_config.json", {"per_channel": True, "reduce_range": True, "per_model_config": {}})
    edit_config(folder, **{"transformers.js_config": {"dtype": "q8"}})

    find_checkpoint(str(folder))


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_beside_the_weights(folder: Path, file: str) -> None:
    (folder / file).write_text("{}")

    found = refusal(folder)

    assert found.message == (
        f"`tiny` is an adapter, or has one beside its weights (`{file}`), which ortkit does not apply"
    )
    assert found.hint == "merge it with `merge_and_unload()` of `peft`, save the model, and export that"


def test_an_adapter_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "org/base"})
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")

    assert "(`adapter_config.json`)" in refusal(tmp_path).message


@pytest.mark.parametrize("key", ["vision_config", "text_config", "audio_config", "speech_config"])
def test_a_model_of_several_parts(folder: Path, key: str) -> None:
    edit_config(folder, **{key: {"hidden_size": 8}})

    assert refusal(folder).message == f"`tiny` consists of more than ortkit reads: `{key}` in its config.json"


@pytest.mark.parametrize("key", ["is_decoder", "add_cross_attention", "is_encoder_decoder", "tie_encoder_decoder"])
def test_an_encoder_that_is_more(tiny_checkpoint: Path, key: str) -> None:
    edit_config(tiny_checkpoint, **{key: True})

    assert refusal(tiny_checkpoint).message == (
        f"`tiny-bert` has `{key}` set to `True`, and ortkit does not export such a model"
    )


def test_a_decoder_with_an_encoder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    change_json(folder / "config.json", is_encoder_decoder=True)

    assert "has `is_encoder_decoder` set to `True`" in refusal(folder).message


def test_removed_heads(tiny_checkpoint: Path) -> None:
    edit_config(tiny_checkpoint, pruned_heads={"0": [1]})

    assert "has heads removed (`pruned_heads`)" in refusal(tiny_checkpoint).message


def test_code_that_nothing_names_does_no_harm(folder: Path) -> None:
    (folder / "modeling.py").write_text("raise SystemExit")

    find_checkpoint(str(folder))


def test_a_tokenizer_in_code(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.Own", None]})

    assert refusal(folder).message == (
        "`tiny` brings the code of its own tokenizer (`auto_map` in tokenizer_config.json), and ortkit runs no code "
        "from a checkpoint"
    )


def test_weights_in_a_file_of_another_name(folder: Path) -> None:
    """transformers loads that one, and `model.safetensors` beside it may be another model."""
    edit_config(folder, transformers_weights="other.safetensors")

    assert "`transformers_weights` in config.json: `other.safetensors`" in refusal(folder).message


@pytest.mark.parametrize(("key", "value"), [("is_causal", False), ("use_bidirectional_attention", True)])
@pytest.mark.parametrize("model_type", ["qwen3", "llama", "mistral"])
def test_decoders_that_read_in_both_directions(model_type: str, key: str, *, value: bool) -> None:
    """transformers 5 reads these keys, and the version that exports does not know them."""
    with pytest.raises(UnsupportedModelError, match=f"reads texts in both directions .`{key}`"):
        check_unread("org/model", {"model_type": model_type, key: value}, encoder=False)
    for harmless in (not value, None):
        check_unread("org/model", {"model_type": model_type, key: harmless}, encoder=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer_file", "/etc/passwd"),
        ("tokenizer_file", "tokenizer.json"),
        ("fast_tokenizer_files", ["tokenizer.4.0.0.json", "tokenizer.json"]),
    ],
)
def test_a_tokenizer_in_a_file_of_another_name(folder: Path, key: str, value: object) -> None:
    """transformers would read a path from anywhere on this machine, and put what is there in the bundle."""
    change_json(folder / "tokenizer_config.json", **{key: value})

    assert f"names the file of its tokenizer (`{key}` in tokenizer_config.json)" in refusal(folder).message


def test_the_usual_name_of_a_tokenizer(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.json"])

    assert find_checkpoint(str(folder)).name == "tiny"
