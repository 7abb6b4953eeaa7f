from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from ortkit.exporters.decoder.work_folder import EXACT, WorkFolder
from ortkit.exporters.graph.array_store import Made


def made() -> Made:
    return Made({"content": np.arange(4, dtype=np.float32)})


def never() -> Made:
    raise AssertionError("what is stored must not be made again")


def graph_with(*tensors: ir.TensorProtocol) -> ir.Model:
    values = [ir.Value(name=f"w{number}", const_value=tensor) for number, tensor in enumerate(tensors)]
    return ir.Model(ir.Graph([], [], nodes=[], initializers=values), ir_version=10)


def test_weights_of_other_recipes_are_deleted_and_measurements_stay(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    work.measurements("trials").keep("a", made)
    for name in "ab":
        work.weights(name).keep("layer", made)

    work.delete_weights_except("b")

    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["b"]
    again = WorkFolder(tmp_path)
    assert again.weights("b").keep("layer", never).array("content").tolist() == [0, 1, 2, 3]
    assert again.measurements("trials").keep("a", never).array("content").tolist() == [0, 1, 2, 3]
    assert not work.weights("a").entries


def test_a_store_is_opened_once(tmp_path: Path) -> None:
    """Its bytes are hashed when it is opened."""
    work = WorkFolder(tmp_path)

    assert work.weights("a") is work.weights("a")
    assert work.measurements("trials") is work.measurements("trials")


def test_the_store_of_a_graphs_weights(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    (first,), (second,) = (work.weights(name).keep("layer", made).arrays.values() for name in "ab")
    small = ir.tensor(np.zeros(2, np.float32))

    assert work.weights_of(graph_with(small, first)) is work.weights("a")
    assert work.weights_of(graph_with(small)) is work.weights(EXACT)
    with pytest.raises(ValueError, match=r"the graph's weights are in several files: a, b"):
        work.weights_of(graph_with(first, second))


def test_what_a_killed_export_left_in_scratch_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "left").mkdir(parents=True)

    with WorkFolder(tmp_path).scratch() as folder:
        assert [path.name for path in (tmp_path / "scratch").iterdir()] == [folder.name]
    assert not folder.exists()
