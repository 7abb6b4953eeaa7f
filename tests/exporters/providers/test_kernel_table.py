from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from ortkit import Bundle
from ortkit.runtime.bundle.bundle import GRAPH
from tests.decoders import LAYERS, write_decoder
from tests.exporters.providers.cuda_rules import broken_rules
from tests.exporters.providers.kernel_table import Row, condensed, missing_kernels, value_types

HALF, FLOAT, INT64 = ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.INT64
HIDDEN = 64


def model_of(nodes: list[ir.Node], inputs: list[ir.Value], constants: list[ir.Value], *, opset: int = 20) -> ir.Model:
    imports = {"": opset, "com.microsoft": 1}
    graph = ir.Graph(
        inputs, nodes[-1].outputs[:1], nodes=nodes, initializers=constants, opset_imports=imports, name="g"
    )
    for number, node in enumerate(nodes):
        node.name = f"{node.op_type.lower()}_{number}"
        for place, output in enumerate(node.outputs):
            output.name = f"{node.name}_{place}"
    return ir.Model(graph, ir_version=10)


def of(kind: ir.DataType, name: str, *shape: int | str) -> ir.Value:
    return ir.val(name, kind, shape)


def weight(name: str, array: np.ndarray) -> ir.Value:
    return ir.val(name, const_value=ir.tensor(array, name=name))


def attention_of(kind: ir.DataType) -> ir.Model:
    """Embeddings by Gather, one attention, the result in float32."""
    ids = of(INT64, "input_ids", "texts", "tokens")
    table = weight("table", np.zeros((50, HIDDEN), kind.numpy()))
    rows = ir.node("Gather", [table, ids])
    attention = ir.node("MultiHeadAttention", [rows.outputs[0]] * 3, {"num_heads": 4}, domain="com.microsoft")
    return model_of([rows, attention, ir.node("Cast", attention.outputs, {"to": FLOAT})], [ids], [table])


@pytest.mark.parametrize("kind", [FLOAT, HALF])
def test_no_kernel_is_missing(kind: ir.DataType) -> None:
    assert missing_kernels(attention_of(kind)) == []


def test_types_are_inferred_through_onnxruntimes_own_operators() -> None:
    types = value_types(attention_of(HALF))

    assert types == {"input_ids": "int64", "table": "float16", "gather_0_0": "float16"} | {
        "multiheadattention_1_0": "float16",
        "cast_2_0": "float",
    }


@pytest.mark.parametrize(("opset", "missing"), [(21, []), (22, ["Elu(22) `elu_0`: float -> float"])])
def test_an_open_range_of_versions_is_for_its_first_alone(opset: int, missing: list[str]) -> None:
    # CUDA's kernel of Elu is that of version 6, and opset 22 has a newer one.
    x = of(FLOAT, "x", 1, 4)

    assert missing_kernels(model_of([ir.node("Elu", [x])], [x], [], opset=opset)) == missing


def test_rows_are_united_where_they_differ_in_one_parameter() -> None:
    def row(first: str, second: str, last: int = 2**31 - 1) -> Row:
        return "CUDAExecutionProvider", "", "Op", (13, last), {"T": [f"tensor({first})"], "U": [f"tensor({second})"]}

    assert condensed([row("float", "int32"), row("float16", "int32"), row("double", "int32")]) == {
        "Op": [(13, None, {"T": ["float", "float16"], "U": ["int32"]})]
    }
    assert condensed([row("float", "int32"), row("float16", "int64"), row("float16", "int32", last=16)]) == {
        "Op": [(13, None, {"T": ["float"], "U": ["int32"]}), (13, None, {"T": ["float16"], "U": ["int64"]})]
    }


def test_an_int8_encoder_lacks_its_matmuls(reranker_bundle: Bundle) -> None:
    missing = missing_kernels(ir.load(reranker_bundle.path / GRAPH))

    assert {line.split("(")[0] for line in missing} == {"com.microsoft.MatMulIntegerToFloat"}


def test_a_decoder_with_a_float32_cache_lacks_its_attention(tmp_path: Path) -> None:
    bundle, _ = write_decoder(tmp_path / "decoder")
    missing = missing_kernels(ir.load(bundle.path / GRAPH))

    assert len(missing) == LAYERS
    assert all(line.startswith("com.microsoft.GroupQueryAttention(1) `") for line in missing)
    assert all("float, float, int32, int32, float, float -> float, float, float" in line for line in missing)


def test_subgraphs_are_not_passed_over() -> None:
    then, other = (
        ir.Graph([], node.outputs, nodes=[node], name=name)
        for name in ("then", "other")
        for node in [ir.node("Constant", [], {"value": ir.tensor(np.zeros(2, np.float32))})]
    )
    for graph in (then, other):
        graph.outputs[0].name = f"{graph.name}_constant"
        graph.outputs[0].type, graph.outputs[0].shape = ir.TensorType(FLOAT), ir.Shape([2])
    condition = of(ir.DataType.BOOL, "condition")
    model = model_of([ir.node("If", [condition], {"then_branch": then, "else_branch": other})], [condition], [])

    assert missing_kernels(model) == ["If(19) `if_0`: bool -> float, has subgraphs"]
    assert broken_rules(model) == ["If `if_0`: works in the host's memory"]


def linear(*, width: int, columns: int, bits: int = 4, block: int = 32, zero_points: bool = False) -> ir.Model:
    x = of(HALF, "x", 1, width)
    blocks = -(-width // block)
    constants = [
        weight("weight", np.zeros((columns, blocks, block * bits // 8), np.uint8)),
        weight("scales", np.zeros(columns * blocks, np.float16)),
    ]
    if zero_points:
        constants.append(weight("zero_points", np.zeros(columns * -(-blocks * bits // 8), np.uint8)))
    facts = {"K": width, "N": columns, "bits": bits, "block_size": block}
    return model_of([ir.node("MatMulNBits", [x, *constants], facts, domain="com.microsoft")], [x], constants)


@pytest.mark.parametrize(
    ("model", "rules"),
    [
        (linear(width=64, columns=64), []),
        (linear(width=64, columns=32, bits=8), []),
        (linear(width=64, columns=96), ["N 96 is not a multiple of 64"]),
        (linear(width=64, columns=48, bits=8), ["N 48 is not a multiple of 32"]),
        (linear(width=48, columns=64), ["K 48 is not a multiple of 32"]),
        (linear(width=64, columns=64, block=64), ["block_size 64 is not 32"]),
        (linear(width=64, columns=64, zero_points=True), ["has zero points"]),
    ],
)
def test_matmuls_are_aligned(model: ir.Model, rules: list[str]) -> None:
    assert broken_rules(model) == [f"MatMulNBits `matmulnbits_0`: {rule}" for rule in rules]
    assert missing_kernels(model) == []


@pytest.mark.parametrize(("axis", "rules"), [(1, []), (0, ["quantize_axis 0 is not the last of 2"])])
def test_embeddings_are_quantized_along_the_last_axis(axis: int, rules: list[str]) -> None:
    ids = of(INT64, "ids", "tokens")
    table = weight("table", np.zeros((64, 64), ir.DataType.UINT4.numpy()))
    scales = weight("scales", np.zeros((64, 2) if axis else (2, 64), np.float16))
    facts = {"gather_axis": 0, "quantize_axis": axis, "block_size": 32}
    node = ir.node("GatherBlockQuantized", [table, ids, scales], facts, domain="com.microsoft")

    assert [rule.split(": ")[1] for rule in broken_rules(model_of([node], [ids], [table, scales]))] == rules


def test_the_head_size_is_a_multiple_of_eight(tmp_path: Path) -> None:
    bundle, _ = write_decoder(tmp_path / "decoder")
    model = ir.load(bundle.path / GRAPH)
    cache = next(value for value in model.graph.inputs if value.name and value.shape and len(value.shape) == 4)
    assert broken_rules(model) == []
    cache.shape = ir.Shape([1, 2, "length", 12])

    assert [rule.split(": ")[1] for rule in broken_rules(model)] == ["head size 12 is not a multiple of 8"]


def test_shapes_are_not_computed() -> None:
    ids = of(INT64, "input_ids", "texts", "tokens")
    one = weight("one", np.array([1]))
    shape = ir.node("Shape", [ids])
    model = model_of([shape, ir.node("Add", [shape.outputs[0], one])], [ids], [one])

    assert broken_rules(model) == ["Shape `shape_0`: works in the host's memory"]
