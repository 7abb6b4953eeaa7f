"""Flatten (batch, sequence) to rows: let an encoder's layers run on a 2-D matrix of tokens instead of a 3-D tensor.

Linear layers and quantizers want two dimensions. Only attention needs to know which row belongs to which text.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...runtime.bundle.graph_io import TOKEN_TYPE_IDS
from .nodes import (
    ATTENTION_MASK,
    POSITION_IDS,
    array_of,
    batch_alone,
    batch_and_length,
    constant,
    graph_input,
    insert,
    insert_node,
    length_and_batch,
    linears,
    replace,
    required,
    rows_of,
    token_count,
)
from .passes import after, is_row_wise


def rows_at_products(graph: ir.Graph) -> None:
    """Give every product rows of tokens, (batch * tokens, width), and its result its three dimensions back.

    For graphs in which the layers between the products want three.
    """
    for linear in list(linears(graph)):
        inputs, outputs = linear.inputs, linear.outputs
        before = linear.matmul
        flat = constant(graph, f"rows_{inputs}", np.array([-1, inputs], np.int64))
        rows = insert(before, "Reshape", [linear.input, flat])
        before.replace_input_with(0, rows)
        width = constant(graph, f"width_{outputs}", np.array([outputs], np.int64))
        output = linear.output
        output.shape = None
        following = after(output)
        shape = insert(following, "Concat", [batch_and_length(graph), width], {"axis": 0})
        unflat = insert(following, "Reshape", [output, shape])
        replace(output, unflat)
        required(unflat.producer()).replace_input_with(0, output)


def shapes_from_ids(graph: ir.Graph) -> None:
    """Compute the shape of a layer norm's result, (batch, tokens, width), from the token ids, which are always there.

    What asks for it, such as a bias for relative positions, then does not mind when the layers run on rows.
    """
    for node in list(graph):
        value = node.inputs[0] if node.op_type == "Shape" and not node.attributes else None
        width = value.shape[-1] if value is not None and value.shape is not None and len(value.shape) == 3 else None
        if value is None or not isinstance(width, int) or required(value.producer()).op_type != "LayerNormalization":
            continue
        last = constant(graph, f"width_{width}", np.array([width], np.int64))
        replace(node.outputs[0], insert(node, "Concat", [batch_and_length(graph), last], {"axis": 0}))
        graph.remove(node, safe=True)


def run_on_rows(graph: ir.Graph) -> bool:
    """Let the layers work on (tokens * batch, width) instead of (batch, tokens, width); returns whether they could.

    A graph that gives the vectors of tokens gives (tokens, batch, width) then; one that picks each text's first token,
    as classifiers do, gives what it gave.

    Matmuls and quantizers need rows, and the attention of `merge_attention` needs the [CLS] tokens first.
    Only the attention needs to know which row belongs to which text: it reshapes by the shape of the token ids, and its
    result to rows. Does nothing when the graph has an operator that would see the difference.
    """
    first = next(linears(graph), None)
    if first is None:
        return False
    start = first.input
    width = first.inputs
    rows_shape = rows_of(graph, width)
    found = _values_in_rows(graph, start, rows_shape)
    output = graph.outputs[0]
    if found is None or len(graph.outputs) != 1 or (output not in found[0]) != bool(found[1]):
        return False
    rows, picks = found
    for value in rows - {output}:
        # What was noted while tracing has three dimensions.
        value.shape = None
    swapped = ir.node("Transpose", [start], {"perm": [1, 0, 2]})
    flat = ir.node("Reshape", [swapped.outputs[0], rows_shape])
    replace(start, flat.outputs[0])
    swapped.replace_input_with(0, start)
    graph.insert_after(required(start.producer()), [swapped, flat])
    for pick in picks:
        replace(pick.outputs[0], first_rows(graph, required(pick.inputs[0]), pick))
    if not picks:
        _give_tokens(graph, output, width)
    return True


def _values_in_rows(
    graph: ir.Graph, start: ir.Value, rows_shape: ir.Value
) -> tuple[set[ir.Value], list[ir.Node]] | None:
    """The values that become rows when `start` does, and the nodes that pick first tokens from one of them.

    None where an operator would see the difference.
    """
    rows = {start}
    picks = []
    for node in graph:
        shape = required(node.inputs[1]) if node.op_type == "Reshape" else None
        if shape is rows_shape:
            rows.update(node.outputs)
        elif node.inputs and node.inputs[0] in rows and _is_first_token(node):
            picks.append(node)
        elif any(value in rows for value in node.inputs) and not (shape is not None and _is_by_ids(shape)):
            if not is_row_wise(node):
                return None
            rows.update(node.outputs)
    return rows, picks


def _give_tokens(graph: ir.Graph, output: ir.Value, width: int) -> None:
    """Give rows (tokens * batch, width) as (tokens, batch, width)."""
    last = constant(graph, f"width_{width}", np.array([width], np.int64))
    shape = insert(graph[-1], "Concat", [length_and_batch(graph), last], {"axis": 0})
    unflat = ir.node("Reshape", [output, shape])
    replace(output, unflat.outputs[0])
    unflat.replace_input_with(0, output)
    graph.insert_after(required(output.producer()), [unflat])
    unflat.outputs[0].shape = ir.Shape(["tokens", "batch", width])


def is_one_token(node: ir.Node) -> bool:
    """Whether a node picks one token of each text from (batch, tokens, width): (batch, width)."""
    index = array_of(node.inputs[1]) if node.op_type == "Gather" else None
    return index is not None and index.shape == () and node.attributes.get_int("axis", 0) == 1


def _is_first_token(node: ir.Node) -> bool:
    """Whether a node picks the [CLS] tokens from (batch, tokens, width): (batch, width)."""
    return is_one_token(node) and array_of(node.inputs[1]) == 0


def first_rows(graph: ir.Graph, rows: ir.Value, before: ir.Node) -> ir.Value:
    """The [CLS] tokens, (batch, width), of rows (tokens * batch, width) with the [CLS] tokens first."""
    zero = constant(graph, "axis_0", np.array([0], np.int64))
    return insert(before, "Slice", [rows, zero, batch_alone(graph), zero])


def set_head_apart(graph: ir.Graph) -> None:
    """Make a Gemm of each product that reads one vector a text, (batch, width), instead of one a token.

    What a classifier's head computes is little and decides its logits, so its matmuls are neither merged nor quantized.
    """
    for linear in list(linears(graph)):
        shape, producer = linear.input.shape, linear.input.producer()
        if (shape is not None and len(shape) == 2) or (producer is not None and is_one_token(producer)):
            last = linear.bias_add or linear.matmul
            inputs: list[ir.Value | None] = [linear.input, linear.matmul.inputs[1]]
            if linear.bias_add is not None:
                inputs.append(constant(graph, f"{linear.name}_head_bias", linear.bias))
            replace(last.outputs[0], insert(last, "Gemm", inputs))
            for node in filter(None, (linear.bias_add, linear.matmul)):
                graph.remove(node, safe=True)


def give_tokens_first(graph: ir.Graph) -> None:
    """Let a graph that gives (batch, tokens, width) give (tokens, batch, width), as `run_on_rows` does."""
    output = graph.outputs[0]
    traced = output.shape
    swap = ir.node("Transpose", [output], {"perm": [1, 0, 2]})
    replace(output, swap.outputs[0])
    swap.replace_input_with(0, output)
    graph.insert_after(required(output.producer()), [swap])
    if traced is not None:
        swap.outputs[0].shape = ir.Shape([traced[1], traced[0], traced[2]])


def _is_by_ids(shape: ir.Value) -> bool:
    """Whether a shape begins with the length and the batch of the token ids."""
    producer = shape.producer()
    graph = shape.graph
    if producer is None or producer.op_type != "Concat" or not isinstance(graph, ir.Graph):
        return False
    return producer.inputs[0] is length_and_batch(graph)


def drop_token_types(graph: ir.Graph) -> None:
    """Take the token types out of a graph whose tokens are all of type 0, which saves a Gather over all tokens."""
    token_types = graph_input(graph, TOKEN_TYPE_IDS)
    if token_types is None:
        return
    for gather, _ in list(token_types.uses()):
        table = array_of(gather.inputs[0])
        if gather.op_type == "Gather" and table is not None:
            replace(gather.outputs[0], constant(graph, "token_type_0", table[0]))


def assume_whole_texts(graph: ir.Graph) -> None:
    """Compute the attention mask and the positions from the token ids: no token is masked, the first is at 0."""
    mask = graph_input(graph, ATTENTION_MASK)
    if mask is not None and mask.uses():
        ones = {"value": ir.tensor(np.array([1], np.int64))}
        shape = batch_and_length(graph)
        replace(mask, insert_node(after(shape), ir.node("ConstantOfShape", [shape], ones)).outputs[0])
    positions = graph_input(graph, POSITION_IDS)
    if positions is not None and positions.uses():
        tokens = token_count(graph)
        zero, one = constant(graph, "zero", np.array(0, np.int64)), constant(graph, "one_int64", np.array(1, np.int64))
        following = after(tokens)
        numbers = insert(following, "Range", [zero, tokens, one])
        replace(positions, insert(following, "Unsqueeze", [numbers, constant(graph, "axis_0", np.array([0]))]))
