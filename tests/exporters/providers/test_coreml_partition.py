from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ortkit.exporters.providers.coreml_partition import partition_faults

SQUARE = np.eye(4, dtype=np.float32)


def faults_of(
    tmp_path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, np.ndarray] | None = None,
    *,
    output: int = TensorProto.FLOAT,
    rank: int = 3,
) -> list[str]:
    """What is wrong with a graph of `ids` (batch, tokens) and `rows` (batch, tokens, 4) that gives `y`."""
    made = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", "tokens", 4]),
        ],
        [helper.make_tensor_value_info("y", output, [None] * rank)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    path = tmp_path / "tiny.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return partition_faults(path, texts=2, tokens=6)


def node(op_type: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op_type, list(inputs), ["y"], **attributes)


def test_sizes_are_folded(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["ids"], ["sizes"]),
        helper.make_node("Concat", ["sizes", "four"], ["shape"], axis=0),
        helper.make_node("Reshape", ["rows", "flat"], ["matrix"]),
        helper.make_node("Gemm", ["matrix", "weight"], ["product"], transB=1),
        node("Reshape", "product", "shape"),
    ]

    assert not faults_of(tmp_path, nodes, {"four": np.array([4]), "flat": np.array([-1, 4]), "weight": SQUARE})


@pytest.mark.parametrize(
    ("made", "constants", "fault"),
    [
        (node("Neg", "rows"), {}, "`Neg` has no CoreML form"),
        (node("Reciprocal", "rows"), {}, "`Reciprocal` has no CoreML form"),
        (node("Cast", "ids", to=TensorProto.FLOAT), {}, "`Cast` reads an input of the graph"),
        (node("Add", "ids", "ids"), {}, "`Add` reads INT64, and CoreML takes floats"),
        (node("Unsqueeze", "rows", "axes"), {"axes": np.array([0, 1, 2])}, "`Unsqueeze` has 6 dimensions"),
        (node("Pow", "rows", "two"), {"two": np.array(2)}, "`Pow` reads other types than float32"),
        (node("Slice", "rows", "zero", "zero"), {"zero": np.array([0])}, "`Slice` has a dimension of 0"),
    ],
)
def test_what_coreml_does_not_take(
    tmp_path: Path, made: onnx.NodeProto, constants: dict[str, np.ndarray], fault: str
) -> None:
    output = TensorProto.INT64 if made.op_type == "Add" else TensorProto.FLOAT
    rank = {"Unsqueeze": 6, "Cast": 2, "Add": 2}.get(made.op_type, 3)

    [found] = faults_of(tmp_path, [made], constants, output=output, rank=rank)

    assert fault in found


@pytest.mark.parametrize(
    ("attributes", "constant", "fault"),
    [
        ({}, True, "`Gemm` has a weight that is not transposed"),
        ({"transB": 1, "alpha": 0.5}, True, "`Gemm` has transA, alpha or beta"),
        ({"transB": 1}, False, "`Gemm` has a computed input 1, which must be constant"),
    ],
)
def test_a_gemm_that_coreml_does_not_take(tmp_path: Path, attributes: dict, *, constant: bool, fault: str) -> None:
    nodes = [
        helper.make_node("Reshape", ["rows", "flat"], ["matrix"]),
        helper.make_node("Gemm", ["matrix", "weight" if constant else "matrix"], ["y"], **attributes),
    ]

    assert faults_of(tmp_path, nodes, {"flat": np.array([-1, 4]), "weight": SQUARE}, rank=2) == [fault]


def test_a_layer_norm_with_a_computed_scale(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["rows", "axes"], ["scale"], keepdims=0),
        node("LayerNormalization", "rows", "scale"),
    ]

    [found] = faults_of(tmp_path, nodes, {"axes": np.array([0, 1])})

    assert found == "`LayerNormalization` has a computed input 1, which must be constant"
