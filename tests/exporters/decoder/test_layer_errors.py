from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from ortkit.exporters.decoder.tracing import rebuild
from ortkit.exporters.decoder.layer_errors import layer_errors, states_after_layers
from tests.exporters.decoders import FAMILIES, exported, loaded, token_ids, traced, write_decoder

IDS = token_ids(90)


def states_of(model: torch.nn.Module, layers: int) -> list[np.ndarray]:
    """Hidden states after each layer, by hooks on PyTorch's layers."""
    found: list[np.ndarray] = []

    def note(_module: object, _given: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        found.append((output[0] if isinstance(output, tuple) else output)[0].numpy())

    for layer in model.model.layers:
        layer.register_forward_hook(note)
    with torch.inference_mode():
        model(torch.from_numpy(IDS)[None], use_cache=False)
    assert len(found) == layers
    return found


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_hidden_states_are_found_in_every_family(family: str, tmp_path: Path) -> None:
    model, graph = exported(tmp_path, family, num_hidden_layers=2)
    ir.save(graph, tmp_path / "model.onnx")
    expected = states_of(model, 2)

    errors = layer_errors(tmp_path / "model.onnx", IDS.tolist(), expected)

    assert len(errors) == 2
    assert max(errors) < 1e-5
    assert not list(tmp_path.glob("layers.*"))
    shifted = [expected[0] * 1.25, expected[1]]
    assert layer_errors(tmp_path / "model.onnx", IDS.tolist(), shifted)[0] == pytest.approx(0.2, abs=1e-4)


def test_a_graph_whose_layers_are_not_known_tells_nothing(tmp_path: Path) -> None:
    graph = traced(write_decoder(tmp_path / "c", "llama"), tmp_path)
    rebuild(graph)
    first = next(node for node in graph.graph if node.op_type == "SkipSimplifiedLayerNormalization")
    first.op_type = "Other"

    assert states_after_layers(graph.graph) == []
    assert loaded(tmp_path / "c").config.num_hidden_layers == 2
