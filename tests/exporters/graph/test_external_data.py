from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ortkit.exporters.graph.array_store import KeptArrays
from ortkit.exporters.graph.external_data import store_weights, weights_file, write_stored_graph

LARGE = np.arange(512, dtype=np.float32)


def adding(*arrays: np.ndarray) -> ir.Model:
    """A graph that adds constants to its input."""
    value = ir.val("x", ir.DataType.FLOAT, [LARGE.size])
    graph = ir.Graph([value], [], nodes=[], opset_imports={"": 17})
    for number, array in enumerate(arrays):
        constant = ir.Value(name=f"c{number}", const_value=ir.tensor(array))
        graph.initializers[f"c{number}"] = constant
        node = ir.node("Add", [value, constant])
        graph.append(node)
        value = node.outputs[0]
    value.name, value.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(value)
    return ir.Model(graph, ir_version=10)


def test_large_constants_are_stored_and_the_graph_reads_them_beside_it(tmp_path: Path) -> None:
    model, store = adding(LARGE, np.ones(1, np.float32)), KeptArrays(tmp_path / "model.onnx.data")
    assert weights_file(model) is None

    store_weights(model, store)
    assert weights_file(model) == store.path
    (tmp_path / "bundle").mkdir()
    write_stored_graph(model, store.path, tmp_path / "bundle" / "model.onnx")

    assert list(store.entries) == ["c0"]
    assert (tmp_path / "bundle" / "model.onnx.data").read_bytes() == LARGE.tobytes()
    session = ort.InferenceSession(tmp_path / "bundle" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": LARGE})[0].tolist() == (2 * LARGE + 1).tolist()


def test_weights_in_two_files_are_a_mistake(tmp_path: Path) -> None:
    model, other = adding(LARGE, LARGE), adding(LARGE)
    first, second = KeptArrays(tmp_path / "a"), KeptArrays(tmp_path / "b")
    store_weights(other, first)
    model.graph.initializers["c0"].const_value = other.graph.initializers["c0"].const_value
    store_weights(model, second)

    with pytest.raises(ValueError, match=r"the graph's weights are in several files: .*/a, .*/b"):
        weights_file(model)
