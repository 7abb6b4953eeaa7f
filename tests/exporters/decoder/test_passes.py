"""The passes on decoders' graphs, on graphs that almost have what they look for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ortkit.exporters.decoder.passes import fuse_skip_norms, gather_positions_early, output_is_tied, slices_to_split
from ortkit.exporters.graph.passes import RMS_NORM
from tests.exporters.graphs import WIDTH, make_model, run, token_rows

IDS = np.random.default_rng(2).integers(0, 50, size=(2, 7))
POSITIONS = np.array([6, 1])


def constant(name: str, array: np.ndarray) -> ir.Value:
    return ir.val(name, const_value=ir.tensor(array, name=name))


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def sliced(ranges: list[tuple[int, int]], *, step: int = 1) -> tuple[ir.Model, np.ndarray]:
    """A graph that joins slices of token vectors, and what it gives."""
    ids, table, gather = token_rows()
    gather.outputs[0].shape = ir.Shape(["batch", "tokens", WIDTH])
    numbers = {number: constant(f"number_{number}", np.array([number])) for number in {*sum(ranges, ()), -1, step}}
    slices = [
        ir.node("Slice", [gather.outputs[0], numbers[start], numbers[end], numbers[-1], numbers[step]])
        for start, end in ranges
    ]
    joined = ir.node("Concat", [node.outputs[0] for node in slices], {"axis": -1})
    model = make_model([gather, *slices, joined], [ids], joined.outputs[0], [table, *numbers.values()])
    return model, run(model, input_ids=IDS)


@pytest.mark.parametrize("ranges", [[(0, 3), (3, WIDTH)], [(0, 2), (2, 5), (5, 2**63 - 1)], [(5, WIDTH), (0, 5)]])
def test_slices_of_all_of_a_value_are_one_split(ranges: list[tuple[int, int]]) -> None:
    model, expected = sliced(ranges)

    slices_to_split(model.graph)

    assert np.array_equal(run(model, input_ids=IDS), expected)
    joined = next(node for node in model.graph if node.op_type == "Concat")
    assert {value.producer().op_type for value in joined.inputs} == {"Split"}


@pytest.mark.parametrize("ranges", [[(0, 3), (4, WIDTH)], [(0, 5), (3, WIDTH)], [(0, 3), (3, WIDTH - 1)], [(0, WIDTH)]])
def test_other_slices_are_left_alone(ranges: list[tuple[int, int]]) -> None:
    model, expected = sliced(ranges)

    slices_to_split(model.graph)

    assert "Split" not in kinds(model)
    assert np.array_equal(run(model, input_ids=IDS), expected)


def test_slices_that_leave_some_out_are_left_alone() -> None:
    model, _ = sliced([(0, 4), (4, WIDTH)], step=2)

    slices_to_split(model.graph)

    assert "Split" not in kinds(model)


def picked(op_type: str, attributes: dict[str, int] | None = None) -> tuple[ir.Model, np.ndarray]:
    """A graph that multiplies, does one thing, and picks positions of what comes out, and what it gives."""
    ids, table, gather = token_rows()
    positions = ir.val("logit_positions", ir.DataType.INT64, ["logits"])
    matrix = constant("matrix", np.random.default_rng(3).normal(size=(WIDTH, WIDTH)).astype(np.float32))
    product = ir.node("MatMul", [gather.outputs[0], matrix])
    done = ir.node(op_type, [product.outputs[0]], attributes or {})
    total = ir.node("Add", [done.outputs[0], gather.outputs[0]])
    pick = ir.node("Gather", [total.outputs[0], positions], {"axis": 1})
    model = make_model([gather, product, done, total, pick], [ids, positions], pick.outputs[0], [table, matrix])
    return model, run(model, input_ids=IDS, logit_positions=POSITIONS)


def test_positions_are_picked_before_what_treats_tokens_alike() -> None:
    model, expected = picked("Sigmoid")

    gather_positions_early(model.graph)

    assert kinds(model)[:3] == ["Gather", "Gather", "MatMul"]
    assert np.array_equal(run(model, input_ids=IDS, logit_positions=POSITIONS), expected)


def test_positions_are_picked_after_what_mixes_tokens() -> None:
    model, expected = picked("Softmax", {"axis": 1})

    gather_positions_early(model.graph)

    assert kinds(model)[:3] == ["Gather", "MatMul", "Softmax"]
    assert np.array_equal(run(model, input_ids=IDS, logit_positions=POSITIONS), expected)


def test_what_others_read_too_keeps_all_its_tokens() -> None:
    model, _ = picked("Sigmoid")
    sigmoid = next(node for node in model.graph if node.op_type == "Sigmoid")
    model.graph.outputs.append(sigmoid.outputs[0])
    sigmoid.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)

    gather_positions_early(model.graph)

    assert kinds(model)[:3] == ["Gather", "MatMul", "Sigmoid"]
    assert run(model, input_ids=IDS, logit_positions=POSITIONS).shape == (2, 2, WIDTH)


def test_a_bias_before_a_norm_is_no_skip() -> None:
    ids, table, gather = token_rows()
    bias, weight = (constant(name, np.ones(WIDTH, np.float32)) for name in ("bias", "weight"))
    add = ir.node("Add", [gather.outputs[0], bias])
    norm = ir.node(RMS_NORM, [add.outputs[0], weight], {"axis": -1, "epsilon": 1e-5, "stash_type": 1})
    model = make_model([gather, add, norm], [ids], norm.outputs[0], [table, bias, weight])

    fuse_skip_norms(model.graph)

    assert kinds(model) == ["Gather", "Add", RMS_NORM]


def test_an_output_product_with_one_other_number_is_not_tied() -> None:
    ids, table, gather = token_rows()
    matrix = table.const_value.numpy().T.copy()
    matrix[3, 40] += 1e-6
    product = ir.node("MatMul", [gather.outputs[0], constant("matrix", matrix)])
    model = make_model([gather, product], [ids], product.outputs[0], [table, product.inputs[1]])

    assert not output_is_tied(model.graph)
    matrix[3, 40] = table.const_value.numpy()[40, 3]
    assert output_is_tied(model.graph)
