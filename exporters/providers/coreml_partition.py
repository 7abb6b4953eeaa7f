"""Whether CoreML takes a whole graph: onnxruntime cuts out each node that it does not, at the cost of copies.

The rules are those of onnxruntime 1.31's CoreML provider for ML programs (`core/providers/coreml/builders`), which no
wheel for Linux contains: they are checked here on the graph as onnxruntime folds it once its shapes are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes import common as passes

from ...runtime.errors import UnsupportedModelError
from ..graph.external_data import save_graph
from ..graph.nodes import constant_of

BATCH, TOKENS = "batch", "tokens"
"""The symbolic dimensions of a graph for CoreML."""
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_CASTS = (*_FLOATS, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL)
_LARGEST_RANK = 5
_LARGEST_RANK_OF_SCALAR_GATHER = 4
_ANY = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Max", "Sqrt", "Erf", "Exp", "Sin", "Cos", "Identity", "Softmax", "Transpose"),
        *("Sigmoid", "Tanh", "Relu", "LeakyRelu", "Gelu", "Softplus", "Elu", "HardSigmoid"),
    }
)
"""Operators that CoreML takes with any float inputs of fixed shapes."""


def check_one_partition(path: Path, *, name: str, texts: int, tokens: int) -> None:
    """Raise UnsupportedModelError where CoreML would not take the whole graph at `path` for so many texts and tokens.

    `name` is the model's, for the message.
    """
    faults = partition_faults(path, texts=texts, tokens=tokens)
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise UnsupportedModelError(
            f"CoreML would not run the whole graph of `{name}`: {faults[0]}{more}",
            hint="use `--provider cpu`",
        )


def partition_faults(path: Path, *, texts: int, tokens: int) -> list[str]:
    """Why CoreML would not take the whole graph, a line for each kind of reason; empty where it would."""
    model = ir.load(path)
    faults = [f"`{node.op_type}` {fault}" for node in model.graph if (fault := _fault_in_float16(node)) is not None]
    with TemporaryDirectory(dir=path.parent) as folder:
        if any(_dtype(value) is ir.DataType.FLOAT16 for value in model.graph.initializers.values()):
            ir.external_data.load_to_model(model)
            path = Path(folder) / "float32.onnx"
            _in_float32(model)
            save_graph(model, path)
        graph = folded(path, texts=texts, tokens=tokens).graph
    faults += [
        f"`{node.op_type}`{'' if node.domain == '' else f' of `{node.domain}`'} {fault}"
        for node in graph
        if (fault := _fault_of(node)) is not None
    ]
    return list(dict.fromkeys(faults))


def folded(path: Path, *, texts: int, tokens: int) -> ir.Model:
    """A float32 graph of fixed shapes as a provider gets it: what depends on the shapes alone is computed."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_free_dimension_override_by_name(BATCH, texts)
    options.add_free_dimension_override_by_name(TOKENS, tokens)
    with TemporaryDirectory(dir=path.parent) as folder:
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        model = ir.load(options.optimized_model_filepath)
        ir.external_data.load_to_model(model)
    # onnxruntime writes the shapes that the model had before.
    passes.ShapeInferencePass()(model)
    return model


def _in_float32(model: ir.Model) -> None:
    """Make a float16 graph one of the same operators in float32.

    Folded as it is, it would have onnxruntime's casts around each operator for which the CPU has no float16 kernel.
    """
    graph = model.graph
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype is ir.DataType.FLOAT16:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in graph:
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT16.value:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT.value)
        for value in node.outputs:
            if value.dtype is ir.DataType.FLOAT16:
                value.type = ir.TensorType(ir.DataType.FLOAT)


def _fault_in_float16(node: ir.Node) -> str | None:
    """Why CoreML does not take a node with its types before folding; None where it does."""
    source = node.inputs[0] if node.inputs else None
    if node.op_type == "Cast" and source is not None and source.is_graph_input():
        return "reads an input of the graph, and CoreML casts computed values only"
    if node.op_type == "Pow" and _dtype(source) is ir.DataType.FLOAT16:
        return "reads float16, and CoreML takes float32"
    return None


def _fault_of(node: ir.Node) -> str | None:
    """Why CoreML does not take a node; None where it does."""
    rule = _RULES.get(node.op_type) if node.domain == "" else None
    if rule is None:
        return "has no CoreML form"
    for value in (*node.inputs, *node.outputs):
        if value is not None and (fault := _fault_of_shape(value)) is not None:
            return fault
    return next(rule(node), None)


def _fault_of_shape(value: ir.Value) -> str | None:
    sizes = _sizes(value)
    if sizes is None:
        return f"has the value `{value.name}`, whose shape is not fixed"
    if len(sizes) > _LARGEST_RANK:
        return f"has {len(sizes)} dimensions, and CoreML at most {_LARGEST_RANK}"
    return "has a dimension of 0" if 0 in sizes else None


def _sizes(value: ir.Value) -> tuple[int, ...] | None:
    found = constant_of(value)
    shape = value.shape if found is None else found.shape
    sizes = None if shape is None else tuple(size for size in shape if isinstance(size, int))
    return sizes if shape is not None and sizes is not None and len(sizes) == len(shape) else None


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    if value is None:
        return None
    found = constant_of(value)
    return value.dtype if found is None else found.dtype


def _float_input(node: ir.Node) -> Iterator[str]:
    if _dtype(node.inputs[0]) not in _FLOATS:
        yield f"reads {_dtype(node.inputs[0])}, and CoreML takes floats"


def _constant_inputs(node: ir.Node, first: int) -> Iterator[str]:
    for place, value in enumerate(node.inputs[first:], first):
        if value is not None and constant_of(value) is None:
            yield f"has a computed input {place}, which must be constant"


def _with_constants(first: int) -> Callable[[ir.Node], Iterator[str]]:
    """The rule of operators whose inputs from `first` on must be constants."""

    def rule(node: ir.Node) -> Iterator[str]:
        yield from _float_input(node)
        yield from _constant_inputs(node, first)

    return rule


def _cast(node: ir.Node) -> Iterator[str]:
    if _dtype(node.inputs[0]) not in _CASTS or _dtype(node.outputs[0]) not in _CASTS:
        yield f"casts {_dtype(node.inputs[0])} to {_dtype(node.outputs[0])}"


def _concat(node: ir.Node) -> Iterator[str]:
    yield from _float_input(node)
    if len(node.inputs) < 2:
        yield "joins a single value"


def _gather(node: ir.Node) -> Iterator[str]:
    if _dtype(node.inputs[0]) not in (*_FLOATS, ir.DataType.INT64):
        yield f"reads {_dtype(node.inputs[0])}"
    data, indices = (_sizes(value) or () for value in node.inputs if value is not None)
    if indices == () and len(data) > _LARGEST_RANK_OF_SCALAR_GATHER:
        yield f"picks one part of {len(data)} dimensions, and CoreML takes at most {_LARGEST_RANK_OF_SCALAR_GATHER}"


def _gemm(node: ir.Node) -> Iterator[str]:
    yield from _float_input(node)
    yield from _constant_inputs(node, 1)
    attributes = node.attributes
    if (
        attributes.get_int("transA", 0)
        or attributes.get_float("alpha", 1.0) != 1
        or attributes.get_float("beta", 1.0) != 1
    ):
        yield "has transA, alpha or beta"
    if attributes.get_int("transB", 0) != 1:
        # CoreML stores (outputs, inputs): it transposes any other weight at each opening, and float32 ones only.
        yield "has a weight that is not transposed"


def _matmul(node: ir.Node) -> Iterator[str]:
    yield from _float_input(node)
    if any(value is not None and len(_sizes(value) or ()) < 2 for value in node.inputs):
        yield "reads a vector"


def _normalization(node: ir.Node) -> Iterator[str]:
    yield from _float_input(node)
    yield from _constant_inputs(node, 1)
    if node.attributes.get_int("stash_type", 1) != 1 or len([value for value in node.outputs if value.uses()]) > 1:
        yield "has another stash_type than 1, or several outputs"


def _pow(node: ir.Node) -> Iterator[str]:
    if {_dtype(value) for value in node.inputs} != {ir.DataType.FLOAT}:
        yield "reads other types than float32"


def _reshape(node: ir.Node) -> Iterator[str]:
    yield from _float_input(node)
    yield from _constant_inputs(node, 1)
    if node.attributes.get_int("allowzero", 0):
        yield "has allowzero"


def _slice(node: ir.Node) -> Iterator[str]:
    if _dtype(node.inputs[0]) not in (*_FLOATS, ir.DataType.INT64):
        yield f"reads {_dtype(node.inputs[0])}"
    yield from _constant_inputs(node, 1)


def _split(node: ir.Node) -> Iterator[str]:
    yield from _float_input(node)
    yield from _constant_inputs(node, 1)
    if len(node.outputs) < 2:
        yield "has a single output"


_RULES: dict[str, Callable[[ir.Node], Iterator[str]]] = {
    **dict.fromkeys(_ANY, _float_input),
    **dict.fromkeys(
        ("ReduceSum", "ReduceMean", "ReduceMax", "Squeeze", "Unsqueeze", "Clip", "Tile"), _with_constants(1)
    ),
    "Cast": _cast,
    "Concat": _concat,
    "Gather": _gather,
    "Gemm": _gemm,
    "LayerNormalization": _normalization,
    "MatMul": _matmul,
    "Pow": _pow,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
}
"""Operator -> what else CoreML asks of a node. `Reciprocal` is none of them: CoreML adds 1e-4 to what it divides by."""
