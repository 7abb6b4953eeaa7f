"""What is done to the traced graph of a decoder: as few operators as onnxruntime has for it, in their fastest form.

Every pass finds its place by the shape of the graph, never by a node's name, and leaves alone what it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import numpy as np
import onnx_ir as ir

from exporters.graph import RMS_NORM, ROW_WISE, after
from exporters.grouped_attention import GROUPED_ATTENTION
from exporters.nodes import (
    ORT_DOMAIN,
    array_of,
    constant,
    constant_of,
    graph_input,
    insert,
    insert_node,
    linear_of,
    only_user,
    replace,
    required,
)
from exporters.stored_tensors import StreamedTensor
from runtime.graph_io import INPUT_IDS, LOGIT_POSITIONS

SKIP_NORM = "SkipSimplifiedLayerNormalization"
ELEMENT_WISE = frozenset({"Sigmoid", "Div", "Sub", "Pow", "Cast", "Neg", "Exp", "Erf"})
"""Beside those of ROW_WISE, what activations are made of."""
HEADS_AND_TOKENS = (0, 2, 1, 3)
"""The transposition between (batch, tokens, heads, size) and (batch, heads, tokens, size)."""
QUERY, KEY, VALUE, PAST_KEY, PAST_VALUE = range(5)
"""The places of the attention's inputs."""


def attentions(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type == GROUPED_ATTENTION]


def drop_head_shapes(graph: ir.Graph) -> None:
    """Let the attention read and give (batch, tokens, heads * size) where the trace splits the heads and joins them."""
    for attention in attentions(graph):
        for place in (QUERY, KEY, VALUE):
            joined = required(attention.inputs[place])
            found = rows_before_heads(joined)
            if found is None:
                continue
            rows, norm = found
            if norm is None:
                replace(joined, rows)
            else:
                replace(joined, norm_of_heads(graph, rows, norm, attention))
        rows_after_heads(attention)


def rows_before_heads(joined: ir.Value) -> tuple[ir.Value, ir.Node | None] | None:
    """The rows whose heads were split and joined again to make a value, and the norm that each head had in between.

    A Reshape of a Reshape holds the same numbers in the same order; what stands between must leave that order.
    """
    width = last_size(joined)
    node = joined.producer()
    if node is None or node.op_type != "Reshape" or width is None:
        return None
    norm, turned = None, False
    node = required(node.inputs[0]).producer()
    while node is not None and node.op_type != "Reshape":
        if node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == HEADS_AND_TOKENS:
            turned = not turned
        elif node.op_type == RMS_NORM and norm is None:
            norm = node
        else:
            return None
        node = required(node.inputs[0]).producer()
    rows = node.inputs[0] if node is not None else None
    return (rows, norm) if rows is not None and last_size(rows) == width and not turned else None


def norm_of_heads(graph: ir.Graph, rows: ir.Value, norm: ir.Node, before: ir.Node) -> ir.Value:
    """Rows (batch, tokens, heads * size) with every head normed."""
    weight = required(norm.inputs[1])
    size, width = required(last_size(weight)), required(last_size(rows))
    split = constant(graph, f"heads_of_{width}_by_{size}", np.array([0, -1, width // size, size], np.int64))
    joined = constant(graph, f"rows_of_{width}", np.array([0, -1, width], np.int64))
    heads = insert(before, "Reshape", [rows, split])
    normed = insert_node(before, ir.node(RMS_NORM, [heads, weight], norm.attributes)).outputs[0]
    return insert(before, "Reshape", [normed, joined])


def rows_after_heads(attention: ir.Node) -> None:
    """Give the attention's result to the product after it as it is, without splitting its heads in between."""
    last = attended = attention.outputs[0]
    width = attention.attributes.get_int("num_heads", 0) * (last_size(required(attention.inputs[PAST_KEY])) or 0)
    while (reshape := only_user(last, "Reshape")) is not None:
        last = reshape.outputs[0]
    products = [linear_of(use.node) for use in last.uses()]
    if (
        products
        and last is not attended
        and all(product is not None and product.inputs == width for product in products)
    ):
        replace(last, attended)


def last_size(value: ir.Value) -> int | None:
    """The size of a value's last dimension, where it is known."""
    size = value.shape[-1] if value.shape is not None and len(value.shape) else None
    return size if isinstance(size, int) else None


def pack_attention(graph: ir.Graph) -> None:
    """Let the attention read query, key and value as the one product that they are the parts of."""
    for attention in attentions(graph):
        parts = [required(attention.inputs[place]) for place in (QUERY, KEY, VALUE)]
        whole = whole_of(parts)
        if whole is not None:
            attention.replace_input_with(QUERY, whole)
            attention.replace_input_with(KEY, None)
            attention.replace_input_with(VALUE, None)


def whole_of(parts: Sequence[ir.Value]) -> ir.Value | None:
    """The value that is split, along its last axis, into exactly these parts in this order."""
    split = parts[0].producer()
    if split is None or split.op_type != "Split" or tuple(split.outputs) != tuple(parts):
        return None
    return split.inputs[0] if split.attributes.get_int("axis", 0) == -1 else None


def split_where_sliced(graph: ir.Graph) -> None:
    """Make one Split of slices that are, in order, all of a value along its last axis, each part once."""
    for whole in [output for node in graph for output in node.outputs]:
        slices = [node for node, place in whole.uses() if node.op_type == "Slice" and place == 0]
        width = last_size(whole)
        if len(slices) < 2 or width is None:
            continue
        ranges = [range_of(node, width) for node in slices]
        if any(found is None for found in ranges):
            continue
        parts = sorted(zip(map(required, ranges), (node.outputs[0] for node in slices), strict=True), key=itemgetter(0))
        starts, ends = zip(*(found for found, _ in parts), strict=True)
        if starts != (0, *ends[:-1]) or ends[-1] != width:
            continue
        sizes = constant(graph, f"{whole.name}_widths", np.array(ends, np.int64) - np.array(starts, np.int64))
        split = insert_node(after(whole), ir.node("Split", [whole, sizes], {"axis": -1}, num_outputs=len(parts)))
        for output, (_, part) in zip(split.outputs, parts, strict=True):
            output.shape, output.type = part.shape, part.type
            replace(part, output)


def range_of(node: ir.Node, width: int) -> tuple[int, int] | None:
    """The first and the past-the-last index of what a Slice takes of a last axis `width` long; None for others."""
    bounds = [array_of(value) for value in node.inputs[1:]]
    numbers = [int(bound.item()) for bound in bounds if bound is not None and bound.size == 1]
    if len(numbers) != len(bounds) or len(numbers) not in (3, 4):
        return None
    start, end, axis, *steps = numbers
    last = len(required(required(node.inputs[0]).shape)) - 1
    return (start, min(end, width)) if axis in (-1, last) and steps in ([], [1]) else None


def pick_early(graph: ir.Graph) -> None:
    """Pick the positions that logits are wanted for where the last layer's attention has given its result, not after.

    What comes then treats each token on its own, so the other tokens need not come along.
    """
    pick = next((node for node in graph if is_pick(node)), None)
    if pick is None:
        return
    region: set[ir.Node] = {pick}
    for node in reversed(list(graph)):
        users = {use.node for output in node.outputs for use in output.uses()}
        given = any(output.is_graph_output() for output in node.outputs)
        if users and not given and users <= region and treats_rows_alike(node):
            region.add(node)
    picked: dict[ir.Value, ir.Value] = {}
    positions = required(pick.inputs[1])
    made_inside = {output for node in region for output in node.outputs}
    for node in [node for node in graph if node in region and node is not pick]:
        for place, value in enumerate(node.inputs):
            if value is None or value in made_inside or constant_of(value) is not None:
                continue
            if value not in picked:
                picked[value] = insert(node, "Gather", [value, positions], {"axis": 1})
            node.replace_input_with(place, picked[value])
        for output in node.outputs:
            # What was noted while tracing has all tokens.
            output.shape = None
    if picked:
        replace(pick.outputs[0], required(pick.inputs[0]))
        graph.remove(pick, safe=True)


def is_pick(node: ir.Node) -> bool:
    """Whether a node picks the tokens that logits are wanted for."""
    positions = node.inputs[1] if node.op_type == "Gather" else None
    return (
        positions is not None
        and positions.is_graph_input()
        and positions.name == LOGIT_POSITIONS
        and node.attributes.get_int("axis", 0) == 1
    )


def treats_rows_alike(node: ir.Node) -> bool:
    """Whether an operator does the same to every token's row, with constants that are the same for all rows."""
    constants = [tuple(found.shape) for found in map(constant_of, node.inputs) if found is not None]
    if node.op_type == "MatMul":
        return constant_of(node.inputs[0]) is None and [len(shape) for shape in constants] == [2]
    known = node.op_type in ROW_WISE or node.op_type in ELEMENT_WISE or node.op_type == RMS_NORM
    unsaid = 0 if node.op_type == "Split" else -1
    return (
        known
        and node.attributes.get_int("axis", unsaid) == -1
        and all(len(shape) < 2 or shape[-2] == 1 for shape in constants)
    )


def fuse_skip_norms(graph: ir.Graph) -> None:
    """Make one operator of an Add and the norm of its result, which gives the sum as well."""
    for norm in list(graph):
        add = required(norm.inputs[0]).producer() if norm.op_type == RMS_NORM else None
        if add is None or add.op_type != "Add" or any(constant_of(value) is not None for value in add.inputs):
            continue
        total = add.outputs[0]
        skip = ir.node(
            SKIP_NORM,
            [*add.inputs, norm.inputs[1]],
            {"epsilon": norm.attributes.get_float("epsilon", 1e-5)},
            domain=ORT_DOMAIN,
            num_outputs=4,
        )
        insert_node(add, skip)
        for unused in skip.outputs[1:3]:
            unused.name = ""
        replace(norm.outputs[0], skip.outputs[0])
        graph.remove(norm, safe=True)
        replace(total, skip.outputs[3])
        graph.remove(add, safe=True)


def state_outputs(graph: ir.Graph) -> None:
    """Note that what each attention gives of the cache has the sizes of what it reads of it, and not more."""
    for attention in attentions(graph):
        attended, *presents = attention.outputs
        attended.shape = None
        for present, place in zip(presents, (PAST_KEY, PAST_VALUE), strict=True):
            past = required(attention.inputs[place])
            present.shape, present.type = past.shape, past.type


def output_is_tied(graph: ir.Graph) -> bool:
    """Whether the matrix (width, vocabulary) of the output product holds the numbers of the embedding's table."""
    product = output_product(graph)
    matrix = constant_of(product.inputs[1]) if product is not None else None
    table = constant_of(embedding_of(graph))
    if matrix is None or table is None or tuple(matrix.shape) != tuple(table.shape)[::-1]:
        return False
    if isinstance(matrix, StreamedTensor) and isinstance(table, StreamedTensor):
        return matrix.is_transpose_of(table)
    return np.array_equal(matrix.numpy(), table.numpy().T)


def share_embedding(graph: ir.Graph) -> bool:
    """Let a tied output product multiply by the embedding's table as it stands in the file, (vocabulary, width).

    Returns whether it did. To be done last: what replaces products of constant matrices does not find this one.
    """
    if not output_is_tied(graph):
        return False
    table, product = required(embedding_of(graph)), required(output_product(graph))
    inputs = [product.inputs[0], table]
    replace(product.outputs[0], insert(product, "FusedMatMul", inputs, {"transB": 1}, domain=ORT_DOMAIN))
    graph.remove(product, safe=True)
    return True


def embedding_of(graph: ir.Graph) -> ir.Value | None:
    """The table of the tokens' vectors, (vocabulary, width)."""
    ids = graph_input(graph, INPUT_IDS)
    gathers = [use.node for use in ids.uses()] if ids is not None else []
    return next((node.inputs[0] for node in gathers if node.op_type == "Gather"), None)


def output_product(graph: ir.Graph) -> ir.Node | None:
    """The product with a constant matrix that the logits come from."""
    node = graph.outputs[0].producer()
    while node is not None and (node.op_type != "MatMul" or constant_of(node.inputs[1]) is None):
        computed = [value for value in node.inputs if constant_of(value) is None]
        node = required(computed[0]).producer() if len(computed) == 1 else None
    return node
