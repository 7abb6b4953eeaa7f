"""Passes over a decoder's traced graph: fuse it to the few, fast operators that onnxruntime has for decoders.

Every pass matches the structure of the graph, never node names, and leaves alone what it does not recognize.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import numpy as np
import onnx_ir as ir

from ...runtime.bundle.graph_io import LOGIT_POSITIONS
from ..graph.embedding import embedding_table
from ..graph.nodes import (
    ORT_DOMAIN,
    array_of,
    constant,
    constant_of,
    insert,
    insert_node,
    linear_of,
    only_user,
    replace,
    required,
)
from ..graph.passes import RMS_NORM, ROW_WISE, after
from ..graph.streamed_tensor import StreamedTensor
from .group_query_attention import GROUP_QUERY_ATTENTION

_SKIP_NORM = "SkipSimplifiedLayerNormalization"
_ELEMENT_WISE = frozenset({"Sigmoid", "Div", "Sub", "Pow", "Cast", "Neg", "Exp", "Erf"})
"""Operators of activation functions, besides those of ROW_WISE."""
_SWAP_HEADS_AND_TOKENS = (0, 2, 1, 3)
"""The permutation between (batch, tokens, heads, size) and (batch, heads, tokens, size)."""
QUERY, KEY, VALUE, PAST_KEY, _PAST_VALUE = range(5)
"""Positions of GroupQueryAttention's inputs."""


def attentions(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type == GROUP_QUERY_ATTENTION]


def drop_head_reshapes(graph: ir.Graph) -> None:
    """Remove the reshapes and transposes that split and rejoin heads around the attention."""
    for attention in attentions(graph):
        for place in (QUERY, KEY, VALUE):
            joined = required(attention.inputs[place])
            found = _rows_before_heads(joined)
            if found is None:
                continue
            rows, norm = found
            if norm is None:
                replace(joined, rows)
            else:
                replace(joined, _insert_head_norm(graph, rows, norm, attention))
        _drop_output_reshapes(attention)


def _rows_before_heads(joined: ir.Value) -> tuple[ir.Value, ir.Node | None] | None:
    """Return the rows whose heads were split and rejoined to make a value, and the head norm in between, if any.

    A Reshape of a Reshape keeps the order of its elements; what stands in between must keep it too.
    """
    width = _last_size(joined)
    node = joined.producer()
    if node is None or node.op_type != "Reshape" or width is None:
        return None
    norm, turned = None, False
    node = required(node.inputs[0]).producer()
    while node is not None and node.op_type != "Reshape":
        if node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == _SWAP_HEADS_AND_TOKENS:
            turned = not turned
        elif node.op_type == RMS_NORM and norm is None:
            norm = node
        else:
            return None
        node = required(node.inputs[0]).producer()
    rows = node.inputs[0] if node is not None else None
    return (rows, norm) if rows is not None and _last_size(rows) == width and not turned else None


def _insert_head_norm(graph: ir.Graph, rows: ir.Value, norm: ir.Node, before: ir.Node) -> ir.Value:
    """Insert a norm of every head of rows (batch, tokens, heads * size)."""
    weight = required(norm.inputs[1])
    size, width = required(_last_size(weight)), required(_last_size(rows))
    split = constant(graph, f"heads_of_{width}_by_{size}", np.array([0, -1, width // size, size], np.int64))
    joined = constant(graph, f"rows_of_{width}", np.array([0, -1, width], np.int64))
    heads = insert(before, "Reshape", [rows, split])
    normed = insert_node(before, ir.node(RMS_NORM, [heads, weight], norm.attributes)).outputs[0]
    return insert(before, "Reshape", [normed, joined])


def _drop_output_reshapes(attention: ir.Node) -> None:
    """Connect the attention's output to the output projection without the reshapes in between."""
    last = attended = attention.outputs[0]
    width = attention.attributes.get_int("num_heads", 0) * (_last_size(required(attention.inputs[PAST_KEY])) or 0)
    while (reshape := only_user(last, "Reshape")) is not None:
        last = reshape.outputs[0]
    layers = [linear_of(use.node) for use in last.uses()]
    if layers and last is not attended and all(layer is not None and layer.inputs == width for layer in layers):
        replace(last, attended)


def _last_size(value: ir.Value) -> int | None:
    """Return the size of a value's last dimension, None where it is dynamic."""
    size = value.shape[-1] if value.shape is not None and len(value.shape) else None
    return size if isinstance(size, int) else None


def pack_qkv(graph: ir.Graph) -> None:
    """Feed the attention with packed QKV where query, key and value are the parts of one matmul."""
    for attention in attentions(graph):
        parts = [required(attention.inputs[place]) for place in (QUERY, KEY, VALUE)]
        whole = _split_source(parts)
        if whole is not None:
            attention.replace_input_with(QUERY, whole)
            attention.replace_input_with(KEY, None)
            attention.replace_input_with(VALUE, None)


def _split_source(parts: Sequence[ir.Value]) -> ir.Value | None:
    """Return the value that a Split along the last axis cuts in exactly these parts, in this order."""
    split = parts[0].producer()
    if split is None or split.op_type != "Split" or tuple(split.outputs) != tuple(parts):
        return None
    return split.inputs[0] if split.attributes.get_int("axis", 0) == -1 else None


def slices_to_split(graph: ir.Graph) -> None:
    """Replace Slices that together cover a value's last axis by one Split."""
    for whole in [output for node in graph for output in node.outputs]:
        slices = [node for node, place in whole.uses() if node.op_type == "Slice" and place == 0]
        width = _last_size(whole)
        if len(slices) < 2 or width is None:
            continue
        ranges = [_slice_range(node, width) for node in slices]
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


def _slice_range(node: ir.Node, width: int) -> tuple[int, int] | None:
    """Return the start and end of a Slice of the last axis, `width` long; None for other Slices."""
    bounds = [array_of(value) for value in node.inputs[1:]]
    numbers = [int(bound.item()) for bound in bounds if bound is not None and bound.size == 1]
    if len(numbers) != len(bounds) or len(numbers) not in (3, 4):
        return None
    start, end, axis, *steps = numbers
    last = len(required(required(node.inputs[0]).shape)) - 1
    return (start, min(end, width)) if axis in (-1, last) and steps in ([], [1]) else None


def gather_positions_early(graph: ir.Graph) -> None:
    """Gather the logit positions right after the last layer's attention.

    All later operators are token-wise, so they need not compute the other tokens.
    """
    pick = next((node for node in graph if _is_position_gather(node)), None)
    if pick is None:
        return
    region: set[ir.Node] = {pick}
    for node in reversed(list(graph)):
        users = {use.node for output in node.outputs for use in output.uses()}
        given = any(output.is_graph_output() for output in node.outputs)
        if users and not given and users <= region and _is_token_wise(node):
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
            # The traced shape has all tokens.
            output.shape = None
    if picked:
        replace(pick.outputs[0], required(pick.inputs[0]))
        graph.remove(pick, safe=True)


def _is_position_gather(node: ir.Node) -> bool:
    """Whether a node gathers the logit positions."""
    positions = node.inputs[1] if node.op_type == "Gather" else None
    return (
        positions is not None
        and positions.is_graph_input()
        and positions.name == LOGIT_POSITIONS
        and node.attributes.get_int("axis", 0) == 1
    )


def _is_token_wise(node: ir.Node) -> bool:
    """Whether an operator is token-wise, with constants that are the same for all tokens."""
    constants = [tuple(found.shape) for found in map(constant_of, node.inputs) if found is not None]
    if node.op_type == "MatMul":
        return constant_of(node.inputs[0]) is None and [len(shape) for shape in constants] == [2]
    known = node.op_type in ROW_WISE or node.op_type in _ELEMENT_WISE or node.op_type == RMS_NORM
    default = 0 if node.op_type == "Split" else -1
    return (
        known
        and node.attributes.get_int("axis", default) == -1
        and all(len(shape) < 2 or shape[-2] == 1 for shape in constants)
    )


def fuse_skip_norms(graph: ir.Graph) -> None:
    """Fuse each residual Add and the norm of its result into SkipSimplifiedLayerNormalization."""
    for norm in list(graph):
        add = required(norm.inputs[0]).producer() if norm.op_type == RMS_NORM else None
        if add is None or add.op_type != "Add" or any(constant_of(value) is not None for value in add.inputs):
            continue
        total = add.outputs[0]
        skip = ir.node(
            _SKIP_NORM,
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


def set_cache_shapes(graph: ir.Graph) -> None:
    """Give each attention's present cache the shape of its past cache."""
    for attention in attentions(graph):
        attended, *presents = attention.outputs
        attended.shape = None
        for present, place in zip(presents, (PAST_KEY, _PAST_VALUE), strict=True):
            past = required(attention.inputs[place])
            present.shape, present.type = past.shape, past.type


def output_is_tied(graph: ir.Graph) -> bool:
    """Whether the LM head (width, vocabulary) is the transposed embedding table."""
    matmul = output_matmul(graph)
    matrix = constant_of(matmul.inputs[1]) if matmul is not None else None
    table = constant_of(embedding_table(graph))
    if matrix is None or table is None or tuple(matrix.shape) != tuple(table.shape)[::-1]:
        return False
    if isinstance(matrix, StreamedTensor) and isinstance(table, StreamedTensor):
        return matrix.is_transpose_of(table)
    return np.array_equal(matrix.numpy(), table.numpy().T)


def share_embedding(graph: ir.Graph) -> bool:
    """Let a tied LM head multiply by the embedding table as it is stored, (vocabulary, width).

    Returns whether it did. Run it last: passes that replace MatMuls of constant matrices do not find this one.
    """
    if not output_is_tied(graph):
        return False
    table, matmul = required(embedding_table(graph)), required(output_matmul(graph))
    inputs = [matmul.inputs[0], table]
    replace(matmul.outputs[0], insert(matmul, "FusedMatMul", inputs, {"transB": 1}, domain=ORT_DOMAIN))
    graph.remove(matmul, safe=True)
    return True


def output_matmul(graph: ir.Graph) -> ir.Node | None:
    """Return the MatMul with a constant matrix that the logits come from."""
    node = graph.outputs[0].producer()
    while node is not None and (node.op_type != "MatMul" or constant_of(node.inputs[1]) is None):
        computed = [value for value in node.inputs if constant_of(value) is None]
        node = required(computed[0]).producer() if len(computed) == 1 else None
    return node
