"""Rotary settings as transformers 5 writes them, against the models that transformers 4 makes of its own names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ortkit.exporters.models.loading import load_config
from ortkit.exporters.checkpoint.rope_config import with_known_names
from ortkit.exporters.decoder.lazy_model import open_decoder
from ortkit.runtime.errors import CheckpointError, UnsupportedModelError
from tests.encoder_checkpoints import write_tiny_checkpoint
from tests.exporters.decoder_checkpoints import change_json, opened, write_checkpoint

MERGED = {"rope_theta": None, "rope_scaling": None, "partial_rotary_factor": None, "rope_local_base_freq": None}
"""What transformers 5 does not write any more."""
DEFAULT = {"rope_type": "default"}


def as_version_5(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings of a config of transformers 4, as `rope_parameters`."""
    if config["model_type"] == "gemma3_text":
        scaling = config.get("rope_scaling") or DEFAULT
        return {
            "full_attention": {"rope_theta": config["rope_theta"], **scaling},
            "sliding_attention": {"rope_theta": config["rope_local_base_freq"], **DEFAULT},
        }
    scaling = dict(config.get("rope_scaling") or DEFAULT)
    if "type" in scaling:
        scaling["rope_type"] = scaling.pop("type")
        scaling["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    part = config.get("partial_rotary_factor")
    return {"rope_theta": config["rope_theta"], **scaling} | ({} if part is None else {"partial_rotary_factor": part})


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"rope_theta": 5e5}),
        ("mistral", {"rope_theta": 1e6}),
        ("qwen2", {"rope_theta": 1e6}),
        ("qwen3", {"rope_theta": 1e6}),
        ("gemma2", {}),
        ("gemma3_text", {}),
        ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        ("phi3", {}),
        ("phi3, partly rotated", {}),
        ("smollm3", {"rope_theta": 5e6}),
        ("granite", {"rope_theta": 1e7}),
    ],
)
def test_a_decoder_saved_by_transformers_5_is_the_one_that_was_saved(
    family: str, changes: dict, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "tiny", family, **changes)
    before = load_config(opened(folder)).to_dict()
    said = as_version_5(json.loads((folder / "config.json").read_text()))
    expected = open_decoder(opened(folder))

    change_json(folder / "config.json", **MERGED, rope_parameters=said)

    assert load_config(opened(folder)).to_dict() == before
    found = open_decoder(opened(folder))
    # The frequencies themselves, which every layer rotates by.
    for (name, one), (_, other) in zip(expected.model.named_buffers(), found.model.named_buffers(), strict=True):
        assert torch.equal(one, other), name


def test_an_encoder_saved_by_transformers_5(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    write_tiny_checkpoint(folder, checkpoint, "modernbert")
    change_json(folder / "config.json", local_rope_theta=160000.0)
    before = load_config(opened(folder)).to_dict()

    said = {
        "full_attention": {"rope_theta": 160000.0, **DEFAULT},
        "sliding_attention": {"rope_theta": 160000.0, **DEFAULT},
    }
    layers = [f"{kind}_attention" for kind in ("full", "sliding", "sliding", "full", "sliding")]
    gone = {"global_rope_theta": None, "local_rope_theta": None}
    change_json(folder / "config.json", **gone, rope_parameters=said, layer_types=layers)

    found = load_config(opened(folder)).to_dict()
    assert {name: found[name] for name in before} == before


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("olmo2", {"rope_theta": 5e5, "rope_type": "default"}),
        ("llama", {"rope_theta": 5e5, "partial_rotary_factor": 0.5}),
        ("llama", {"rope_type": "default"}),
        ("gemma3_text", {"rope_theta": 1e6}),
        ("gemma3_text", {"full_attention": {"rope_theta": 1e6}, "sliding_attention": 3}),
        (
            "modernbert",
            {
                "full_attention": {"rope_theta": 1.6e5, "rope_type": "linear", "factor": 2},
                "sliding_attention": {"rope_theta": 1e4},
            },
        ),
    ],
    ids=str,
)
def test_settings_that_transformers_4_could_not_be_told(model_type: str, said: dict) -> None:
    with pytest.raises(UnsupportedModelError, match=r"^`tiny` has `rope_parameters` set to .* for such a model\n"):
        with_known_names("tiny", {"model_type": model_type, "rope_parameters": said})


def test_layers_that_reach_further_than_a_period_says() -> None:
    said = {kind: {"rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")}
    config = {"model_type": "modernbert", "rope_parameters": said, "layer_types": ["sliding_attention"] * 3}

    with pytest.raises(UnsupportedModelError, match="`rope_parameters`"):
        with_known_names("tiny", config)


@pytest.mark.parametrize("said", [3, [], {}, "rope"], ids=str)
def test_rotary_settings_that_are_none(said: object) -> None:
    with pytest.raises(CheckpointError, match=r"^`rope_parameters` in the config\.json of `tiny` must be an object$"):
        with_known_names("tiny", {"model_type": "llama", "rope_parameters": said})


def test_a_config_of_transformers_4_stays_as_it_is() -> None:
    config = {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": None}

    assert with_known_names("tiny", config) == config
    assert with_known_names("tiny", config | {"rope_parameters": None}) == config
