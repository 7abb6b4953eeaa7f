from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from ortkit.exporters.encoder.tracing import load_model, rebuild, trace
from ortkit.exporters.graph.attention import merge_attention
from ortkit.exporters.graph.flatten import (
    assume_whole_texts,
    drop_token_types,
    give_tokens_first,
    rows_at_products,
    run_on_rows,
    shapes_from_ids,
)
from ortkit.exporters.graph.nodes import batch_and_length, constant, linears
from ortkit.exporters.graph.passes import (
    RMS_NORM,
    drop_unused_inputs,
    fold_constants,
    fuse_rms_norms,
    merge_products,
    tidy,
)
from ortkit.exporters.sources import find_checkpoint
from tests.exporters.graphs import WIDTH, make_model, run, token_rows

IDS = np.random.default_rng(2).integers(1000, 20000, size=(3, 11))


@pytest.fixture(scope="module")
def traced(tiny_checkpoint_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ir.Model, np.ndarray]:
    """The small BERT as Optimum traces it, and what PyTorch gives for IDS."""
    model = load_model(find_checkpoint(str(tiny_checkpoint_base)))
    with torch.inference_mode():
        expected = model(input_ids=torch.from_numpy(IDS)).last_hidden_state.numpy()
    return trace(model, tmp_path_factory.mktemp("trace")), expected


def fresh(traced: tuple[ir.Model, np.ndarray]) -> ir.Model:
    return ir.from_proto(ir.to_proto(traced[0]))


FULL = {"input_ids": IDS, "attention_mask": np.ones_like(IDS), "token_type_ids": np.zeros_like(IDS)}


def test_each_pass_keeps_the_result(traced: tuple[ir.Model, np.ndarray]) -> None:
    model = fresh(traced)

    def check(expected: np.ndarray = traced[1]) -> None:
        tidy(model)
        found = run(ir.from_proto(ir.to_proto(model)), **FULL)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 2e-5

    check()
    fold_constants(model)
    check()
    drop_token_types(model.graph)
    check()
    assert merge_attention(model.graph, heads=4) == 2
    tidy(model)
    assert run_on_rows(model.graph)
    check(traced[1].swapaxes(0, 1))
    drop_unused_inputs(model.graph)
    assert [value.name for value in model.graph.inputs] == ["input_ids"]
    check(traced[1].swapaxes(0, 1))


def test_a_rebuilt_encoder_has_no_shape_chains_left(
    tiny_checkpoint_base: Path, traced: tuple[ir.Model, np.ndarray]
) -> None:
    model = fresh(traced)
    rebuild(model, find_checkpoint(str(tiny_checkpoint_base)))
    kinds = [node.op_type for node in model.graph]

    assert kinds.count("Shape") == 1
    assert kinds.count("Softmax") == kinds.count("Split") == 2
    assert kinds.count("FusedMatMul") == 2 * 2
    assert len(list(linears(model.graph))) == 2 * 4, "merged QKV, attention output, up, down"


def test_the_mask_goes_only_where_nothing_else_is_added(traced: tuple[ir.Model, np.ndarray]) -> None:
    """A bias beside the mask, such as relative positions, must stay."""
    model = fresh(traced)
    fold_constants(model)
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    add = softmax.inputs[0].producer()
    bias = ir.val("bias", const_value=ir.tensor(np.full((1, 1, 1, 1), 2, np.float32), name="bias"))
    model.graph.register_initializer(bias)
    positions = ir.node("Mul", [ir.node("Add", [add.inputs[1], bias]).outputs[0], bias])
    model.graph.insert_before(add, [positions.inputs[0].producer(), positions])
    cast = ir.node("Cast", [next(value for value in model.graph.inputs if value.name == "input_ids")], {"to": 1})
    shape = ir.node("ReduceMean", [cast.outputs[0]], {"keepdims": 1})
    mixed = ir.node("Mul", [positions.outputs[0], shape.outputs[0]])
    model.graph.insert_before(add, [cast, shape, mixed])
    add.replace_input_with(1, mixed.outputs[0])
    expected = run(ir.from_proto(ir.to_proto(model)), **FULL)

    assert merge_attention(model.graph, heads=4) == 2
    tidy(model)
    assert run_on_rows(model.graph)
    assert np.abs(run(model, **FULL) - expected.swapaxes(0, 1)).max() < 2e-5


def test_rows_are_left_alone_when_an_operator_would_see_the_difference() -> None:
    ids, table, gather = token_rows()
    weight = ir.val("weight", const_value=ir.tensor(np.eye(WIDTH, dtype=np.float32), name="weight"))
    product = ir.node("MatMul", [gather.outputs[0], weight])
    over_tokens = ir.node("Softmax", [product.outputs[0]], {"axis": 1})
    model = make_model([gather, product, over_tokens], [ids], over_tokens.outputs[0], [table, weight])
    expected = run(model, input_ids=IDS % 50)

    assert not run_on_rows(model.graph)
    assert np.array_equal(run(model, input_ids=IDS % 50), expected)


def test_what_asks_for_a_layer_norms_shape_is_told_by_the_ids() -> None:
    ids, table, gather = token_rows()
    one = ir.val("ones", const_value=ir.tensor(np.ones(WIDTH, np.float32), name="ones"))
    norm = ir.node("LayerNormalization", [gather.outputs[0], one], {"axis": -1})
    norm.outputs[0].shape = ir.Shape(["batch", "tokens", WIDTH])
    shape = ir.node("Shape", [norm.outputs[0]])
    as_number = ir.node("Cast", [shape.outputs[0]], {"to": 1})
    model = make_model([gather, norm, shape, as_number], [ids], as_number.outputs[0], [table, one])
    expected = run(model, input_ids=IDS % 50)

    shapes_from_ids(model.graph)
    tidy(model)

    assert run(model, input_ids=IDS % 50).tolist() == expected.tolist() == [3, 11, WIDTH]
    assert "LayerNormalization" not in {node.op_type for node in model.graph}


def test_a_graph_without_products_does_not_run_on_rows() -> None:
    ids, table, gather = token_rows()

    assert not run_on_rows(make_model([gather], [ids], gather.outputs[0], [table]).graph)


def test_a_graph_that_is_not_on_rows_gives_tokens_first_too() -> None:
    ids, table, gather = token_rows()
    twice = ir.node("Add", [gather.outputs[0], gather.outputs[0]])
    model = make_model([gather, twice], [ids], twice.outputs[0], [table])
    expected = run(model, input_ids=IDS % 50)

    give_tokens_first(model.graph)

    assert np.array_equal(run(model, input_ids=IDS % 50), expected.swapaxes(0, 1))


def test_an_attention_of_another_shape_is_left_alone() -> None:
    ids, table, gather = token_rows()
    softmax = ir.node("Softmax", [gather.outputs[0]], {"axis": -1})
    model = make_model([gather, softmax], [ids], softmax.outputs[0], [table])

    assert merge_attention(model.graph, heads=2) == 0


def value_of(name: str, array: np.ndarray) -> ir.Value:
    return ir.val(name, const_value=ir.tensor(array, name=name))


def test_mask_and_positions_come_from_the_ids() -> None:
    """What is left reads the ids alone and gives what a mask of ones and counted positions would give."""
    ids, table, gather = token_rows()
    mask = ir.val("attention_mask", ir.DataType.INT64, ["batch", "tokens"])
    positions = ir.val("position_ids", ir.DataType.INT64, ["batch", "tokens"])
    total = ir.node("Add", [mask, positions])
    output = ir.node("Add", [total.outputs[0], ids])
    model = make_model([gather, total, output], [ids, mask, positions], output.outputs[0], [table])

    assume_whole_texts(model.graph)
    tidy(model)
    drop_unused_inputs(model.graph)

    assert [value.name for value in model.graph.inputs] == ["input_ids"]
    assert np.array_equal(run(model, input_ids=IDS), IDS + 1 + np.arange(11))


@pytest.mark.parametrize("swapped", [False, True])
def test_a_norm_by_the_root_mean_square_becomes_one_operator(*, swapped: bool) -> None:
    ids, table, gather = token_rows()
    vectors = gather.outputs[0]
    two, one = value_of("two", np.array(2, np.float32)), value_of("one", np.array(1, np.float32))
    axes, epsilon = value_of("axes", np.array([-1])), value_of("epsilon", np.array(1e-6, np.float32))
    weight = value_of("weight", np.arange(1, WIDTH + 1, dtype=np.float32))
    square = ir.node("Pow", [vectors, two])
    mean = ir.node("ReduceMean", [square.outputs[0], axes], {"keepdims": 1})
    root = ir.node("Sqrt", [ir.node("Add", [mean.outputs[0], epsilon]).outputs[0]])
    inverse = ir.node("Div", [one, root.outputs[0]])
    scaled = ir.node("Mul", [vectors, inverse.outputs[0]])
    factors = [scaled.outputs[0], weight]
    weighted = ir.node("Mul", factors[::-1] if swapped else factors)
    nodes = [gather, square, mean, root.inputs[0].producer(), root, inverse, scaled, weighted]
    model = make_model(nodes, [ids], weighted.outputs[0], [table, two, one, axes, epsilon, weight])
    expected = run(model, input_ids=IDS % 50)

    fuse_rms_norms(model.graph)
    tidy(model)

    assert [node.op_type for node in model.graph] == ["Gather", RMS_NORM]
    assert np.abs(run(model, input_ids=IDS % 50) - expected).max() < 1e-5


def test_a_norm_that_is_used_before_its_end_is_left_alone() -> None:
    ids, table, gather = token_rows()
    two, axes = value_of("two", np.array(2, np.float32)), value_of("axes", np.array([-1]))
    square = ir.node("Pow", [gather.outputs[0], two])
    mean = ir.node("ReduceMean", [square.outputs[0], axes], {"keepdims": 1})
    model = make_model([gather, square, mean], [ids], mean.outputs[0], [table, two, axes])

    fuse_rms_norms(model.graph)

    assert [node.op_type for node in model.graph] == ["Gather", "Pow", "ReduceMean"]


def test_products_of_one_value_become_one() -> None:
    rng = np.random.default_rng(4)
    ids, table, gather = token_rows()
    weights = [value_of(f"weight_{width}", rng.normal(size=(WIDTH, width)).astype(np.float32)) for width in (3, 5, 2)]
    bias = value_of("bias", rng.normal(size=5).astype(np.float32))
    products = [ir.node("MatMul", [gather.outputs[0], weight]) for weight in weights]
    add = ir.node("Add", [bias, products[1].outputs[0]])
    parts = [products[0].outputs[0], add.outputs[0], products[2].outputs[0]]
    together = ir.node("Concat", parts, {"axis": -1})
    model = make_model([gather, *products, add, together], [ids], together.outputs[0], [table, *weights, bias])
    expected = run(model, input_ids=IDS % 50)

    merge_products(model.graph)
    tidy(model)

    (linear,) = linears(model.graph)
    assert linear.weight.shape == (WIDTH, 10)
    assert np.abs(run(model, input_ids=IDS % 50) - expected).max() < 1e-5


def test_products_get_rows_and_give_texts_back() -> None:
    ids, table, gather = token_rows()
    weight = value_of("weight", np.eye(WIDTH, 4, dtype=np.float32))
    product = ir.node("MatMul", [gather.outputs[0], weight])
    over_tokens = ir.node("Softmax", [product.outputs[0]], {"axis": 1})
    model = make_model([gather, product, over_tokens], [ids], over_tokens.outputs[0], [table, weight])
    expected = run(model, input_ids=IDS % 50)

    rows_at_products(model.graph)
    tidy(model)

    (linear,) = linears(model.graph)
    assert linear.input.producer().op_type == "Reshape"
    assert np.array_equal(run(model, input_ids=IDS % 50), expected)


def test_a_bias_belongs_to_its_product_only_when_it_is_one() -> None:
    ids, table, gather = token_rows()
    weight = ir.val("weight", const_value=ir.tensor(np.ones((WIDTH, 4), np.float32), name="weight"))
    rows = ir.val("rows", const_value=ir.tensor(np.ones((11, 4), np.float32), name="rows"))
    product = ir.node("MatMul", [gather.outputs[0], weight])
    add = ir.node("Add", [product.outputs[0], rows])
    model = make_model([gather, product, add], [ids], add.outputs[0], [table, weight, rows])

    (linear,) = linears(model.graph)
    assert linear.bias_add is None
    assert linear.output is product.outputs[0]
    assert not linear.bias.any()


def test_two_constants_of_one_name_are_a_mistake() -> None:
    ids, table, gather = token_rows()
    graph = make_model([gather], [ids], gather.outputs[0], [table]).graph
    one = constant(graph, "number", np.array(1))

    assert constant(graph, "number", np.array(1)) is one
    for other in (np.array(2), np.array(1, np.float32), np.array([1, 1])):
        with pytest.raises(ValueError, match="the graph has another constant `number`"):
            constant(graph, "number", other)


def test_a_graph_without_token_ids_is_refused() -> None:
    other = ir.val("pixels", ir.DataType.FLOAT, ["n"])
    node = ir.node("Abs", [other])

    with pytest.raises(ValueError, match="the graph has no input `input_ids`"):
        batch_and_length(make_model([node], [other], node.outputs[0], []).graph)
