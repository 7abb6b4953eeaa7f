from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from ortkit import CheckpointError, UnsupportedModelError
from ortkit.exporters.encoder.tracing import load_model, rebuild, trace
from ortkit.exporters.sources import find_checkpoint
from tests.encoder_checkpoints import edit_config


def test_weights_that_are_missing_are_not_made_up(tiny_checkpoint: Path) -> None:
    path = tiny_checkpoint / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, path, {"format": "pt"})

    with pytest.raises(CheckpointError, match=r"lacks 1 of the weights .* such as `encoder\.layer\.1\.output\.dense"):
        load_model(find_checkpoint(str(tiny_checkpoint)))


def test_more_layers_than_weights(tiny_checkpoint: Path) -> None:
    edit_config(tiny_checkpoint, num_hidden_layers=3)

    with pytest.raises(CheckpointError, match=r"lacks 16 of the weights that its config\.json promises"):
        load_model(find_checkpoint(str(tiny_checkpoint)))


@pytest.mark.parametrize("changes", [{"intermediate_size": 100}, {"num_attention_heads": 5}, {"hidden_act": "nothing"}])
def test_weights_that_do_not_fit_the_config(tiny_checkpoint: Path, changes: dict) -> None:
    edit_config(tiny_checkpoint, **changes)

    message = "cannot be loaded|has the shape .* and its config.json promises"
    with pytest.raises(CheckpointError, match=message):
        load_model(find_checkpoint(str(tiny_checkpoint)))


def test_a_graph_that_is_not_rebuilt_whole_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a config asks for operators that no pass knows."""
    monkeypatch.setattr("ortkit.exporters.encoder.tracing.run_on_rows", lambda _: False)
    found = find_checkpoint(str(tiny_checkpoint))

    with pytest.raises(UnsupportedModelError, match="traces to a graph that is not that of a supported `bert`"):
        rebuild(trace(load_model(found), tmp_path), found)
