from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from ortkit.exporters.encoder.calibration import Calibration
from ortkit.exporters.encoder.tracing import load_model, rebuild, trace
from ortkit.exporters.graph.nodes import linears
from ortkit.exporters.quantization.gptq import quantize_weight
from ortkit.exporters.sources import find_checkpoint

TEXTS = [np.random.default_rng(3).integers(1000, 20000, (1, tokens)) for tokens in (5, 9, 30, *[7] * 20)]


@pytest.fixture(scope="module")
def graph(tiny_checkpoint_base: Path, tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    found = find_checkpoint(str(tiny_checkpoint_base))
    model = trace(load_model(found), tmp_path_factory.mktemp("trace"))
    rebuild(model, found)
    return model


@pytest.fixture(scope="module")
def calibration(graph: ir.Model) -> Calibration:
    return Calibration(graph, ({"input_ids": ids} for ids in TEXTS))


def test_it_sees_what_pytorch_gives_the_layer(
    graph: ir.Model, calibration: Calibration, tiny_checkpoint_base: Path
) -> None:
    """The second layer's products of queries, keys and values, over more texts than are taken at once."""
    model = load_model(find_checkpoint(str(tiny_checkpoint_base)))
    rows = []
    model.encoder.layer[1].attention.self.query.register_forward_pre_hook(lambda _, given: rows.append(given[0][0]))
    with torch.inference_mode():
        for ids in TEXTS:
            model(input_ids=torch.from_numpy(ids))
    expected = torch.cat(rows).numpy()
    name = list(linears(graph.graph))[4].input.name

    assert np.abs(calibration.peaks[name] - np.abs(expected).max(axis=0)).max() < 1e-4
    assert np.abs(calibration.moments[name] - expected.T @ expected).max() < 1e-2


def test_the_graph_gives_afterwards_what_it_gave_before(graph: ir.Model, calibration: Calibration) -> None:
    assert len(calibration.peaks) == 8
    assert len(graph.graph.outputs) == 1


def test_a_matrix_is_rounded_for_its_input_and_once(graph: ir.Model, calibration: Calibration) -> None:
    first, second = list(linears(graph.graph))[:2]
    divisors = np.linspace(0.5, 2, 48, dtype=np.float32)
    moments = calibration.moments[first.input.name] / np.outer(divisors, divisors)
    expected = quantize_weight(first.weight * divisors[:, np.newaxis], moments)

    found = calibration.quantize(first.input.name, first.weight * divisors[:, np.newaxis], divisors=divisors)
    again = calibration.quantize(first.input.name, first.weight * divisors[:, np.newaxis], divisors=divisors)
    other = calibration.quantize(second.input.name, first.weight)

    assert np.array_equal(found.values, expected.values)
    assert not np.array_equal(found.values, quantize_weight(first.weight * divisors[:, np.newaxis]).values)
    assert again is found
    assert other is not calibration.quantize(first.input.name, first.weight)
