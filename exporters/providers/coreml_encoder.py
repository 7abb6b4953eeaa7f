"""Rebuild a traced encoder for CoreML: one partition, fixed shapes, padding masked by a float input.

The traced graph is batch first, and its attention is MatMul, Softmax and MatMul already. What depends on shapes alone
(positions, rotary angles, windows, causal masks, relative distances) stays as traced: onnxruntime computes it once when
the shapes are fixed, and CoreML sees constants. What is changed is what depends on token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.bundle.graph_io import BIAS, INPUT_IDS, TOKEN_TYPE_IDS
from ...runtime.bundle.manifest import Manifest, Precision
from ...runtime.errors import UnsupportedModelError
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.kind import required_int
from ..graph.external_data import LARGEST_PROTOBUF, weights_bytes
from ..graph.flatten import assume_whole_texts, drop_token_types, rows_at_products, set_head_apart
from ..graph.nodes import (
    array_of,
    batch_and_length,
    constant,
    graph_input,
    insert,
    insert_node,
    linears,
    only_user,
    replace,
    required,
    values_of_texts,
)
from ..graph.passes import drop_unused_inputs, fold_constants, is_row_wise, merge_products, tidy
from .coreml_padding import MINUS_ONE, ONE, add_bias_input, mask_attention, number_positions, read_last_token
from .coreml_partition import BATCH, TOKENS

_DIMENSIONS_OF_PARTS, _PARTS_AXIS = 5, 2
"""Of (batch, tokens, parts, heads, size), as some models see the product of query, key and value."""


def rebuild_for_coreml(traced: ir.Model, checkpoint: Checkpoint, manifest: Manifest) -> None:
    """Turn a traced encoder into one that CoreML can run whole, on padded batches of fixed shapes.

    It reads `input_ids` (batch, tokens), for pairs with token types also `token_type_ids`, and `bias`
    (batch, 1, 1, tokens); an embedder gives token embeddings (batch, tokens, width), a reranker logits (batch, labels).

    Raises UnsupportedModelError for weights that do not fit the graph's own file.
    """
    graph = traced.graph
    reranker = manifest.reranker
    fold_constants(traced)
    check_size(traced, manifest)
    if reranker is None or reranker.pair.document_type == 0:
        drop_token_types(graph)
    set_head_apart(graph)
    bias = add_bias_input(graph)
    mask_attention(graph, bias, plain=checkpoint.architecture.merged_attention)
    assume_whole_texts(graph)
    if checkpoint.architecture.positions_after_padding:
        number_positions(graph)
    if reranker is not None and checkpoint.architecture.reads_last_token:
        read_last_token(graph, bias)
    heads = required_int(checkpoint, checkpoint.architecture.heads)
    _split_heads_apart(graph, heads)
    _repeat_heads(graph, checkpoint.config.get("num_key_value_heads", heads), heads)
    merge_products(graph)
    rows_at_products(graph)
    _transpose_weights(graph)
    _stay_on_rows(graph)
    _use_supported_operators(graph)
    tidy(traced)
    drop_unused_inputs(graph)
    _name_dimensions(graph)
    inputs = [INPUT_IDS, *([TOKEN_TYPE_IDS] if graph_input(graph, TOKEN_TYPE_IDS) is not None else []), BIAS]
    if [value.name for value in graph.inputs] != inputs:
        raise UnsupportedModelError(f"`{checkpoint.name}` traces to a graph that is not that of an encoder")


def check_size(model: ir.Model, manifest: Manifest) -> None:
    """Raise UnsupportedModelError for weights that do not fit the graph's own file."""
    size = weights_bytes(model) // (2 if manifest.precision is Precision.FP16 else 1)
    if size > LARGEST_PROTOBUF:
        raise UnsupportedModelError(
            f"`{manifest.name}` has {size / 1e9:.1f} GB of weights, and a graph for CoreML holds at most "
            f"{LARGEST_PROTOBUF / 1e9:.1f} GB: onnxruntime's CoreML provider does not read external data reliably",
            hint="use `--provider cpu`",
        )


def _split_heads_apart(graph: ir.Graph, heads: int) -> None:
    """Take query, key and value from a product by a Split, where a trace picks them from five dimensions.

    CoreML picks from four dimensions at most.
    """
    for transpose in [node for node in graph if node.op_type == "Transpose"]:
        order = list(transpose.attributes["perm"].as_ints())
        reshape = required(transpose.inputs[0]).producer()
        if len(order) != _DIMENSIONS_OF_PARTS or reshape is None or reshape.op_type != "Reshape":
            continue
        product = required(reshape.inputs[0])
        width = None if product.shape is None else product.shape[-1]
        parts = _size_asked_for(reshape, _PARTS_AXIS)
        picks = _picks_of(transpose.outputs[0], order.index(_PARTS_AXIS))
        if not isinstance(width, int) or parts is None or picks is None:
            continue
        split = ir.node("Split", [product], {"axis": -1, "num_outputs": parts}, num_outputs=parts)
        insert_node(reshape, split)
        into_heads = constant(graph, f"into_{heads}_heads", np.array([0, 0, heads, width // parts // heads], np.int64))
        kept = [axis - (axis > _PARTS_AXIS) for axis in order if axis != _PARTS_AXIS]
        for picked, part in picks.items():
            before = required(picked.producer())
            headed = insert(before, "Reshape", [split.outputs[part], into_heads])
            replace(picked, insert(before, "Transpose", [headed], {"perm": kept}))


def _size_asked_for(reshape: ir.Node, axis: int) -> int | None:
    """The constant size that a Reshape asks for along an axis; None where it is computed."""
    shape = reshape.inputs[1]
    concat = required(shape).producer()
    if concat is not None and concat.op_type == "Concat" and len(concat.inputs) > axis:
        found = array_of(concat.inputs[axis])
        return int(found[0]) if found is not None and found.shape == (1,) else None
    found = array_of(shape)
    return int(found[axis]) if found is not None and len(found) > axis else None


def _picks_of(value: ir.Value, axis: int) -> dict[ir.Value, int] | None:
    """What a Gather, or a Split and Squeeze, picks of a value along an axis, with its index; None for other users."""
    picks: dict[ir.Value, int] = {}
    for node, _ in value.uses():
        if node.attributes.get_int("axis", 0) != axis:
            return None
        if node.op_type == "Gather" and (index := array_of(node.inputs[1])) is not None and index.shape == ():
            picks[node.outputs[0]] = int(index)
        elif node.op_type == "Split":
            squeezed = [only_user(output, "Squeeze") for output in node.outputs]
            picks |= {user.outputs[0]: index for index, user in enumerate(squeezed) if user is not None}
            if None in squeezed:
                return None
        else:
            return None
    return picks


def _repeat_heads(graph: ir.Graph, own: int, heads: int) -> None:
    """Repeat the `own` heads of keys and values (grouped-query attention) by a Gather; CoreML has no Expand."""
    of_texts = values_of_texts(graph)
    for expand in [node for node in graph if node.op_type == "Expand" and node.outputs[0] in of_texts]:
        unsqueeze = required(expand.inputs[0]).producer()
        reshape = only_user(expand.outputs[0], "Reshape")
        if unsqueeze is None or unsqueeze.op_type != "Unsqueeze" or reshape is None:
            continue
        indices = constant(graph, f"heads_{own}_to_{heads}", np.repeat(np.arange(own), heads // own).astype(np.int64))
        replace(reshape.outputs[0], insert(reshape, "Gather", [unsqueeze.inputs[0], indices], {"axis": 1}))


def _transpose_weights(graph: ir.Graph) -> None:
    """Make a Gemm with a transposed weight of each product of rows and a weight, as CoreML stores weights."""
    for linear in list(linears(graph)):
        inputs = [linear.input, transposed(graph, linear.name, linear.weight)]
        if linear.bias_add is not None:
            inputs.append(constant(graph, f"{linear.name}_bias_1d", linear.bias))
        replace(linear.output, insert(linear.matmul, "Gemm", inputs, {"transB": 1}))
    for node in [node for node in graph if node.op_type == "Gemm"]:
        weight = array_of(node.inputs[1])
        if weight is not None and not node.attributes.get_int("transB", 0):
            name = required(node.inputs[1]).name or "matrix"
            node.replace_input_with(1, transposed(graph, name, np.asarray(weight, np.float32)))
            node.attributes["transB"] = ir.AttrInt64("transB", 1)


def transposed(graph: ir.Graph, name: str, weight: NDArray[np.float32]) -> ir.Value:
    """A weight (inputs, outputs) as the constant (outputs, inputs)."""
    return constant(graph, f"{name}_transposed", np.ascontiguousarray(weight.T))


def _stay_on_rows(graph: ir.Graph) -> None:
    """Let what treats each token on its own work on rows (batch * tokens, width) between two products.

    Otherwise each has a Reshape before it and one behind it.
    """
    sizes = batch_and_length(graph)
    rows: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type == "Reshape":
            source, shape = required(node.inputs[0]), array_of(node.inputs[1])
            concat = required(node.inputs[1]).producer()
            if shape is not None and shape.shape == (2,) and shape[0] == -1:
                if source in rows:
                    replace(node.outputs[0], rows[source])
                else:
                    rows[source] = node.outputs[0]
            elif concat is not None and concat.op_type == "Concat" and concat.inputs[0] is sizes:
                rows[node.outputs[0]] = source
        elif _can_run_on_rows(node, rows):
            inputs = [value if value is None else rows.get(value, value) for value in node.inputs]
            attributes = list(node.attributes.values())
            same = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=len(node.outputs))
            insert_node(node, same)
            any_width = constant(graph, "any_width", np.array([-1], np.int64))
            for old, new in zip(node.outputs, same.outputs, strict=True):
                new.type = old.type
                apart = insert(node, "Reshape", [new, insert(node, "Concat", [sizes, any_width], {"axis": 0})])
                apart.type = old.type
                replace(old, apart)
                rows[apart] = new


def _can_run_on_rows(node: ir.Node, rows: Mapping[ir.Value, ir.Value]) -> bool:
    """Whether an operator treats each token on its own, and all that it reads is there in rows, or the same for all."""
    constants = [array for value in node.inputs if (array := array_of(value)) is not None]
    computed = [value for value in node.inputs if value is not None and array_of(value) is None]
    return (
        is_row_wise(node)
        and bool(computed)
        and all(value in rows for value in computed)
        and all(array.ndim <= 1 for array in constants)
    )


def _use_supported_operators(graph: ir.Graph) -> None:
    """Compute with CoreML's operators what others compute in what depends on texts."""
    of_texts = values_of_texts(graph)
    for node in list(graph):
        rewrite = _REWRITES.get(node.op_type)
        if rewrite is not None and any(output in of_texts for output in node.outputs):
            rewrite(graph, node)


def _negate(graph: ir.Graph, node: ir.Node) -> None:
    if node.outputs[0].dtype is ir.DataType.FLOAT:
        replace(node.outputs[0], insert(node, "Mul", [node.inputs[0], constant(graph, *MINUS_ONE)]))


def invert(graph: ir.Graph, node: ir.Node) -> None:
    """Divide: CoreML's inverse adds 1e-4 to what it divides by."""
    replace(node.outputs[0], insert(node, "Div", [constant(graph, *ONE), node.inputs[0]]))


_REWRITES: dict[str, Callable[[ir.Graph, ir.Node], None]] = {"Neg": _negate, "Reciprocal": invert}
"""Operator that CoreML lacks -> what puts others in its place."""


def _name_dimensions(graph: ir.Graph) -> None:
    """Name the symbolic dimensions of inputs and outputs, and forget what was noted of others while tracing."""
    kept = {*graph.inputs, *graph.outputs}
    for node in graph:
        for value in node.outputs:
            if value not in kept:
                value.shape = None
    for value in graph.inputs:
        if value.name != BIAS:
            value.shape = ir.Shape([BATCH, TOKENS])
    output = graph.outputs[0]
    width = required(output.shape)[-1]
    output.shape = ir.Shape([BATCH, TOKENS, width] if len(required(output.shape)) == 3 else [BATCH, width])
