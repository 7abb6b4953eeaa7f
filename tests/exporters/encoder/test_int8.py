from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from ortkit.exporters.encoder.calibration import Calibration
from ortkit.exporters.encoder.tracing import load_model, rebuild, trace
from ortkit.exporters.graph.passes import tidy
from ortkit.exporters.graph.nodes import linears
from ortkit.exporters.encoder.int8 import GELU_FLOOR, Recipe, quantize_encoder, smooth_contexts
from ortkit.exporters.sources import find_checkpoint
from tests.encoder_checkpoints import write_tiny_checkpoint
from tests.exporters.graphs import WIDTH, make_model, run, token_rows

IDS = np.random.default_rng(9).integers(0, 50, size=(1, 40))


def quantize(model: ir.Model, recipe: Recipe = Recipe()) -> None:  # noqa: B008 - it is frozen
    quantize_encoder(model, Calibration(model, [{"input_ids": IDS}]), recipe)


def chain(kind: str) -> ir.Model:
    """Token rows, then an operator of `kind`, then a product with a bias; all on (tokens, width)."""
    rng = np.random.default_rng(1)
    ids, table, gather = token_rows()
    shape = ir.val("shape", const_value=ir.tensor(np.array([-1, WIDTH], np.int64), name="shape"))
    one = ir.val("ones", const_value=ir.tensor(np.ones(WIDTH, np.float32), name="ones"))
    weight = ir.val("weight", const_value=ir.tensor(rng.normal(size=(WIDTH, 16)).astype(np.float32), name="weight"))
    bias = ir.val("bias", const_value=ir.tensor(rng.normal(size=16).astype(np.float32), name="bias"))
    rows = ir.node("Reshape", [gather.outputs[0], shape])
    inputs = [rows.outputs[0], one] if kind == "LayerNormalization" else [rows.outputs[0]]
    before = ir.node(kind, inputs, {"axis": -1} if kind == "LayerNormalization" else {})
    product = ir.node("MatMul", [before.outputs[0], weight])
    add = ir.node("Add", [product.outputs[0], bias])
    nodes = [gather, rows, before, product, add]
    return make_model(nodes, [ids], add.outputs[0], [table, shape, one, weight, bias])


@pytest.mark.parametrize(
    ("kind", "scheme"), [("LayerNormalization", "smoothed"), ("Gelu", "shifted"), ("Tanh", "per token")]
)
def test_a_quantized_product_is_close_to_the_exact_one(kind: str, scheme: str) -> None:
    model = chain(kind)
    expected = run(model, input_ids=IDS)
    quantize(model)
    tidy(model)
    kinds = [node.op_type for node in model.graph]

    found = run(model, input_ids=IDS)

    error = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"{scheme}: largest error {error:.4f} of the largest value")
    assert error < 0.02
    assert kinds.count("MatMulIntegerToFloat") == 1
    assert not list(linears(model.graph))
    assert ("ReduceMax" in kinds) == (scheme != "smoothed")
    assert ("Floor" in kinds) == (scheme == "shifted")


@pytest.mark.parametrize("kind", ["Gelu", "Tanh"])
def test_a_token_does_not_depend_on_its_neighbours(kind: str) -> None:
    model = chain(kind)
    quantize(model)
    tidy(model)

    together = run(model, input_ids=IDS)
    alone = np.concatenate([run(model, input_ids=IDS[:, [column]]) for column in range(IDS.shape[1])])

    assert np.array_equal(together, alone)


@pytest.mark.parametrize("kind", ["LayerNormalization", "Gelu", "Tanh"])
def test_rows_of_zeros_give_the_bias(kind: str) -> None:
    model = chain(kind)
    table = model.graph.initializers["table"]
    table.const_value = ir.tensor(np.zeros((50, WIDTH), np.float32), name="table")
    expected = run(model, input_ids=IDS)
    quantize(model)
    tidy(model)

    found = run(model, input_ids=IDS)

    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize(
    ("architecture", "per_token"), [("bert", 2), ("distilbert", 2), ("mpnet", 2), ("jina-bert", 2)]
)
def test_only_what_needs_it_has_a_scale_for_each_token(
    architecture: str, per_token: int, checkpoint: Path, tmp_path: Path
) -> None:
    """In each of the two layers the product after the activation, not those after layer norms and attentions."""
    write_tiny_checkpoint(tmp_path / "tiny", checkpoint, architecture)
    found = find_checkpoint(str(tmp_path / "tiny"))
    model = trace(load_model(found), tmp_path)
    rebuild(model, found)
    expected = run(ir.from_proto(ir.to_proto(model)), input_ids=IDS)
    quantize(model)
    tidy(model)
    kinds = [node.op_type for node in model.graph]

    assert kinds.count("ReduceMax") == per_token
    assert kinds.count("MatMulIntegerToFloat") == 2 * 4
    error = np.abs(run(model, input_ids=IDS) - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.05


def test_contexts_shrink_by_shrinking_the_values_that_are_mixed(tiny_checkpoint_base: Path, tmp_path: Path) -> None:
    """Before anything is rounded, moving the factors changes the result by no more than float32 rounds."""
    found = find_checkpoint(str(tiny_checkpoint_base))
    model = trace(load_model(found), tmp_path)
    rebuild(model, found)
    before = Calibration(model, [{"input_ids": IDS}]).peaks
    expected = run(ir.from_proto(ir.to_proto(model)), input_ids=IDS)

    divisors = smooth_contexts(model.graph, Calibration(model, [{"input_ids": IDS}]), Recipe())

    assert len(divisors) == 2
    after = Calibration(model, [{"input_ids": IDS}]).peaks
    for context, smoothing in divisors.items():
        assert after[context.name] == pytest.approx(before[context.name] / smoothing, rel=1e-4)
        assert smoothing.max() > 1.1 * smoothing.min()
    assert np.abs(run(model, input_ids=IDS) - expected).max() < 1e-5


def test_the_floor_of_gelu_is_below_all_that_gelu_gives() -> None:
    import torch

    lowest = torch.nn.functional.gelu(torch.linspace(-5, 5, 1_000_001, dtype=torch.float64)).min().item()

    assert -GELU_FLOOR <= lowest < -GELU_FLOOR + 1e-4


def test_word_vectors_are_stored_in_eight_bits() -> None:
    model = chain("Tanh")
    quantize(model)
    tidy(model)
    gathers = [node for node in model.graph if node.op_type == "Gather"]

    assert [node.inputs[0].const_value.numpy().dtype for node in gathers] == [np.int8, np.float32]
    assert "table" not in model.graph.initializers
