from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ortkit.exporters.decoder.gguf_blocks import keep_gguf_blocks
from ortkit.exporters.decoder.weight_only import BlockRecipe, quantize_decoder
from ortkit.exporters.graph.nodes import linears
from ortkit.exporters.graph.passes import tidy
from ortkit.exporters.quantization.blockwise import BlockFormat, BlockMatrix, Rounding, StoredMatrix, quantize_blockwise
from ortkit.runtime.errors import UnsupportedModelError
from tests.exporters.graph_runs import moments_by_graph, prompts
from tests.exporters.graphs import make_model, widen

VOCABULARY, WIDTH, INNER = 300, 96, 160
IDS = np.random.default_rng(3).integers(0, VOCABULARY, 700)


def constant(name: str, array: np.ndarray) -> ir.Value:
    return ir.val(name, const_value=ir.tensor(array, name=name))


def weights(*, tied: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    shapes = {"up": (WIDTH, INNER), "gate": (WIDTH, INNER), "down": (INNER, WIDTH)}
    # Inputs that differ in size and go together, so that it matters how a matrix is rounded.
    table = rng.normal(size=(VOCABULARY, 12)) @ rng.normal(size=(12, WIDTH)) * np.exp(rng.normal(size=WIDTH))
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    found = {name: 3 * rng.normal(size=shape) / np.sqrt(shape[0]) for name, shape in shapes.items()} | {"table": table}
    found["output"] = table.T if tied else rng.normal(size=(WIDTH, VOCABULARY)) / np.sqrt(WIDTH)
    return {name: np.ascontiguousarray(array, np.float32) for name, array in found.items()}


def decoder(given: dict[str, np.ndarray]) -> ir.Model:
    """A graph with a decoder's inputs and a layer without attention: embeddings, up and gate, down, logits."""
    inputs = [
        ir.val("input_ids", ir.DataType.INT64, ["batch", "tokens"]),
        ir.val("last_positions", ir.DataType.INT32, ["batch"]),
        ir.val("total_length", ir.DataType.INT32, []),
        ir.val("logit_positions", ir.DataType.INT64, ["some"]),
        ir.val("past.0.key", ir.DataType.FLOAT, ["batch", 2, "capacity", 8]),
        ir.val("past.0.value", ir.DataType.FLOAT, ["batch", 2, "capacity", 8]),
    ]
    constants = {name: constant(name, array) for name, array in given.items()}
    nodes = [ir.node("Gather", [constants["table"], inputs[0]])]

    def put(op_type: str, *given: ir.Value, **attributes: float) -> ir.Value:
        nodes.append(ir.node(op_type, given, attributes))
        return nodes[-1].outputs[0]

    vectors = nodes[0].outputs[0]
    up, gate = (put("MatMul", vectors, constants[name]) for name in ("up", "gate"))
    both = put("Mul", up, put("Sigmoid", gate))
    rows = put("Add", vectors, put("MatMul", both, constants["down"]))
    some = put("Gather", rows, inputs[3], axis=1)
    # Capped, as Gemma's logits are: the output product is not the last node.
    logits = put("Tanh", put("MatMul", some, constants["output"]))
    logits.name, logits.dtype = "logits", ir.DataType.FLOAT
    return make_model(nodes, inputs, logits, list(constants.values()))


def in_float32(model: ir.Model) -> ir.Model:
    """The graph with products whose activations are not rounded, and with float32 scales."""
    for node in model.graph:
        node.attributes.pop("accuracy_level", None)
    widen(model)
    return model


def logits_of(model: ir.Model, ids: np.ndarray = IDS[:40]) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    (feeds,) = prompts(model.graph, ids.tolist(), length=len(ids))
    return session.run(["logits"], feeds)[0]


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def stored_in_blocks(given: dict[str, np.ndarray], recipe: BlockRecipe) -> dict[str, np.ndarray]:
    """What the recipe makes of the weights by rounding to nearest, without what pads them."""
    tied = np.array_equal(given["table"].T, given["output"])

    def stored(weight: np.ndarray, form: BlockFormat) -> np.ndarray:
        inputs, outputs = weight.shape
        return quantize_blockwise(weight, form).dequantized()[:inputs, :outputs]

    found = {name: stored(given[name], recipe.form) for name in ("up", "gate", "down")}
    found["output"] = stored(given["output"], recipe.output_form)
    found["table"] = found["output"].T if tied else stored(given["table"].T, recipe.form).T
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "recipe",
    [
        BlockRecipe(rounding=Rounding.NEAREST),
        BlockRecipe(symmetric=True, rounding=Rounding.NEAREST),
        BlockRecipe(block_size=128, rounding=Rounding.NEAREST),
        BlockRecipe(block_size=64, rounding=Rounding.NEAREST, output_bits=8),
        BlockRecipe(bits=8, rounding=Rounding.NEAREST, output_bits=8, symmetric=True),
        BlockRecipe(rounding=Rounding.NEAREST, symmetric=True, cuda=True),
        BlockRecipe(rounding=Rounding.NEAREST, output_bits=8, symmetric=True, cuda=True),
    ],
    ids=str,
)
def test_the_graph_computes_with_the_dequantized_weights(recipe: BlockRecipe, *, tied: bool) -> None:
    given = weights(tied=tied)
    model = decoder(given)

    quantize_decoder(model, recipe)
    tidy(model)

    expected = logits_of(decoder(stored_in_blocks(given, recipe)))
    assert not np.allclose(expected, logits_of(decoder(given)), atol=1e-3)
    if not recipe.cuda:
        assert np.abs(logits_of(model) - expected).mean() < 0.03
    assert np.abs(logits_of(in_float32(model)) - expected).max() < 1e-5
    assert kinds(model).count("MatMulNBits") == 4
    assert kinds(model).count("GatherBlockQuantized") == 1
    assert not list(linears(model.graph))
    rows = recipe.output_form.padded_outputs(VOCABULARY)
    tables = [name for name, value in model.graph.initializers.items() if value.shape and value.shape[0] == rows]
    assert len([name for name in tables if name.endswith("_levels")]) == (1 if tied else 2)


@pytest.mark.parametrize("cuda", [False, True])
def test_each_rounding_is_better_than_the_one_before(*, cuda: bool) -> None:
    given = weights()
    exact = logits_of(decoder(given), IDS[600:])

    def error(rounding: Rounding) -> float:
        model = decoder(given)
        moments = moments_by_graph(model, list(prompts(model.graph, IDS[:600])))
        quantize_decoder(model, BlockRecipe(symmetric=cuda, cuda=cuda, rounding=rounding, output_bits=8), moments)
        return float(np.square(logits_of(in_float32(model), IDS[600:]) - exact).mean())

    nearest, importance, gptq = (error(rounding) for rounding in Rounding)

    print(f"mean squared error: {nearest:.3g}, {importance:.3g}, {gptq:.3g}")
    assert importance < 0.85 * nearest
    assert gptq < 0.7 * importance


def test_gptq_makes_one_pass_per_group_of_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that read the same stay together, and what comes out is the same."""
    found = []
    for at_once in (2**31, 4 * INNER**2):
        monkeypatch.setattr("ortkit.exporters.decoder.weight_only.MOMENTS_AT_ONCE", at_once)
        model = decoder(weights())
        cut: list[int] = []
        moments = moments_by_graph(model, list(prompts(model.graph, IDS[:300])), cut)
        quantize_decoder(model, BlockRecipe(rounding=Rounding.GPTQ), moments)
        found.append((cut, logits_of(model)))

    assert [cut for cut, _ in found] == [[4], [2, 1, 1]]
    assert np.array_equal(found[0][1], found[1][1])


def test_rounding_without_moments_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="importance rounding needs calibration texts"):
        quantize_decoder(decoder(weights()), BlockRecipe())


def random_blocks(outputs: int, inputs: int, bits: int, block: int, *, offsets: bool = False) -> BlockMatrix:
    rng = np.random.default_rng(outputs + inputs + bits)
    shape = (outputs, inputs // block)
    return BlockMatrix(
        inputs,
        bits,
        rng.integers(0, 2**bits, (*shape, block)).astype(np.uint8),
        (rng.normal(size=shape) / 2 ** (bits - 1) / np.sqrt(inputs)).astype(np.float32),
        None,
        (rng.normal(size=shape) / np.sqrt(inputs)).astype(np.float32) if offsets else None,
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("offsets", [False, True])
def test_blocks_of_a_file_are_kept(*, offsets: bool, tied: bool) -> None:
    """One matrix of the graph has the rows of two of the file, turned about, and only one of these has offsets."""
    first = random_blocks(100, WIDTH, 4, 32, offsets=offsets)
    second = random_blocks(INNER - 100, WIDTH, 4, 32)
    gate = random_blocks(INNER, WIDTH, 8, 16)
    mixed = [random_blocks(50, INNER, 4, 32, offsets=offsets), random_blocks(WIDTH - 50, INNER, 8, 16)]
    output = random_blocks(VOCABULARY, WIDTH, 8, 32)
    table = output if tied else random_blocks(VOCABULARY, WIDTH, 4, 32, offsets=offsets)
    stored = [StoredMatrix(blocks.dequantized().T, blocks) for blocks in (first, second, gate, *mixed, output, table)]
    given = {
        "up": np.concatenate([first.dequantized()[:, ::-1], second.dequantized()], axis=1),
        "gate": gate.dequantized(),
        "down": np.concatenate([blocks.dequantized() for blocks in mixed], axis=1),
        "table": table.dequantized().T,
        "output": output.dequantized(),
    }
    model = decoder({name: np.ascontiguousarray(array) for name, array in given.items()})
    expected = logits_of(model)

    keep_gguf_blocks(model, stored)
    tidy(model)

    fast = logits_of(model)
    assert np.abs(logits_of(in_float32(model)) - expected).max() < 1e-5
    assert np.abs(fast - expected).mean() < 0.02
    assert not [node for node in model.graph if node.op_type == "MatMul" and node.inputs[1].name in given]
    forms = [
        (node.attributes["bits"].as_int(), node.attributes["block_size"].as_int())
        for node in model.graph
        if node.op_type == "MatMulNBits"
    ]
    assert forms == [(4, 32), (8, 16), (8, 16), (8, 32)]
    assert len([name for name in model.graph.initializers if name.endswith("_levels")]) == (4 if tied else 5)


def test_sums_of_blocks_are_made_once_for_all_that_read_them() -> None:
    blocks = {name: random_blocks(INNER, WIDTH, 4, 32, offsets=True) for name in ("up", "gate")}
    given = weights() | {name: np.ascontiguousarray(found.dequantized()) for name, found in blocks.items()}
    model = decoder(given)
    expected = logits_of(model)

    keep_gguf_blocks(model, [StoredMatrix(found.dequantized().T, found) for found in blocks.values()])

    assert kinds(model).count("ReduceSum") == 1
    assert kinds(model).count("MatMulNBits") == 2
    assert np.abs(logits_of(in_float32(model)) - expected).max() < 1e-5


def test_rows_of_zeros_are_taken_from_the_matrix_around_them() -> None:
    """Not from the first that has one, whose other form would make the whole matrix larger."""
    wide, narrow = random_blocks(20, WIDTH, 8, 32), random_blocks(INNER, WIDTH, 4, 32)
    wide.scales[:3] = narrow.scales[:3] = 0
    given = weights() | {"up": np.ascontiguousarray(narrow.dequantized())}
    model = decoder(given)

    keep_gguf_blocks(model, [StoredMatrix(found.dequantized().T, found) for found in (wide, narrow)])

    (node,) = [node for node in model.graph if node.op_type == "MatMulNBits"]
    assert node.attributes["bits"].as_int() == 4


@pytest.mark.parametrize("first", [True, False], ids=["the first outputs", "the last ones"])
def test_a_matrix_that_is_only_partly_in_blocks_keeps_both_parts(*, first: bool) -> None:
    """As files have them where the matrices of values are in float16, or those of half of a merged product."""
    blocks = quantize_blockwise(weights()["up"][:, :100], BlockFormat(4, 32, symmetric=True))
    pieces = [blocks.dequantized(), weights()["up"][:, 100:]]
    given = weights() | {"up": np.concatenate(pieces if first else pieces[::-1], axis=1)}
    expected = logits_of(decoder(given))
    model = decoder(given)

    exact = keep_gguf_blocks(model, [StoredMatrix(blocks.dequantized().T, blocks)])

    assert exact == len(list(linears(decoder(given).graph))), "no product is in blocks alone"
    (node,) = [node for node in model.graph if node.op_type == "MatMulNBits"]
    assert node.attributes["N"].as_int() == 100
    assert np.abs(logits_of(in_float32(model)) - expected).max() < 1e-5


def test_outputs_that_are_in_blocks_here_and_there_are_refused() -> None:
    blocks = quantize_blockwise(weights()["up"], BlockFormat(4, 32, symmetric=True))
    mixed = np.where(np.arange(INNER) % 2, blocks.dequantized(), weights()["up"])
    model = decoder(weights() | {"up": np.ascontiguousarray(mixed)})

    with pytest.raises(UnsupportedModelError) as caught:
        keep_gguf_blocks(model, [StoredMatrix(blocks.dequantized().T, blocks)])

    assert (
        caught.value.message
        == f"of the {INNER} outputs of `up`, {INNER // 2} are not quantized, scattered over the matrix"
    )
    assert caught.value.hint == "use `--precision int4`, which quantizes all weights again"
    assert caught.value.exit_code == 10
