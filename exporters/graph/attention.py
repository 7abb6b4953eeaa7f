"""Multi-head self-attention, found in a traced graph and computed in fewer and faster operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .nodes import (
    ATTENTION_MASK,
    ORT_DOMAIN,
    Linear,
    array_of,
    constant,
    insert,
    insert_linear,
    insert_node,
    length_and_batch,
    linear_before,
    only_user,
    replace,
    required,
    rows_of,
    token_count,
)

WHOLE = 1024
"""Up to this many tokens the scores of all pairs are held at once."""
BLOCK = 256
"""Queries whose scores are held at once in longer texts."""


@dataclass(frozen=True, eq=False)
class Attention:
    """Multi-head self-attention as eager PyTorch code traces it."""

    query: Linear
    key: Linear
    value: Linear
    scale: float
    added: tuple[ir.Value, ...]
    """What is added to the scaled scores beside the mask: a bias for relative positions."""
    softmax: ir.Node
    context: ir.Node
    """The Reshape that brings the heads back together."""


@dataclass(frozen=True, eq=False)
class Heads:
    """Queries, keys and values, each (tokens, batch, heads, width of a head), and the scale of their products."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    scale: float


@dataclass(frozen=True, eq=False)
class MergedAttention:
    """An attention that `merge_attention` put in, with nothing added to its scores."""

    product: Linear
    """The product of queries, keys and values, or of keys and values where queries have a product of their own."""
    split: ir.Node
    """What takes them apart."""
    heads: Heads
    count: int
    """How many heads there are."""

    @property
    def width(self) -> int:
        return int(self.product.weight.shape[1]) // len(self.split.outputs)


@dataclass(frozen=True, eq=False)
class Distances:
    """A bias that falls with the distance of two tokens (ALiBi, Press et al. 2022, arXiv:2108.12409)."""

    tokens: ir.Value
    is_short: ir.Value
    """Whether the texts have at most WHOLE tokens."""
    bias: ir.Value
    """(heads, tokens, tokens) for short texts, empty for longer ones, for which it would not fit into memory."""
    slopes: ir.Value
    """(heads, 1, 1), negative."""


def merge_attention(graph: ir.Graph, heads: int, *, slopes: Sequence[float] | None = None) -> int:
    """Compute query, key and value in one matmul, and heads without transposing them; returns how many layers it did.

    The attention that it puts in reads and gives rows of tokens, [CLS] tokens first, so that the
    product over a head finds its rows at a constant distance: `run_on_rows` must follow.

    `heads` is the number of attention heads, keys and values having as many as queries. The attention mask goes where
    the graph is made for batches without padding: it would add zeros, at a fifth of the time of the whole.

    `slopes`, one for each head, say that what is added to the scores is minus the distance of two tokens times the
    head's slope, and have it computed without holding more than BLOCK rows of the scores of a long text in memory.
    """
    matches = [_match_attention(node) for node in graph if node.op_type == "Softmax"]
    found = [match for match in matches if match is not None and (slopes is None or len(match.added) == 1)]
    distances = _distances_of(graph, slopes) if slopes is not None and found else None
    for match in found:
        replace(match.context.outputs[0], _attention_by_hand(graph, match, heads, distances))
    return len(found)


def _attention_by_hand(graph: ir.Graph, match: Attention, heads: int, distances: Distances | None) -> ir.Value:
    """Insert the merged attention before the traced one; returns the context, (tokens * batch, width)."""
    parts = (match.query, match.key, match.value)
    width = match.query.weight.shape[1]
    before = match.softmax
    weight = np.concatenate([part.weight for part in parts], axis=1)
    bias = np.concatenate([part.bias for part in parts])

    qkv = insert_linear(before, match.query.input, f"{match.query.name}_qkv", weight, bias)
    apart = insert_node(before, ir.node("Split", [qkv], {"axis": -1, "num_outputs": 3}, num_outputs=3)).outputs
    shape = _heads_shape(graph, heads, width // heads)
    query, key, value = (insert(before, "Reshape", [part, shape]) for part in apart)
    split_up = Heads(query, key, value, match.scale)
    if distances is None:
        for node in attend(split_up, match.added):
            insert_node(before, node)
        context = node.outputs[0]
    else:
        context = insert_node(before, _attend_with_distances(graph, split_up, distances, match.query.name)).outputs[0]
    return insert(before, "Reshape", [context, rows_of(graph, width)])


def _heads_shape(graph: ir.Graph, heads: int, width: int) -> ir.Value:
    """The shape (tokens, batch, heads, width), computed once at the head of the graph."""
    split = constant(graph, "split_heads", np.array([heads, width], np.int64))
    known = next((node for node, _ in split.uses()), None)
    if known is not None:
        return known.outputs[0]
    texts = length_and_batch(graph)
    shape = ir.node("Concat", [texts, split], {"axis": 0})
    graph.insert_after(required(texts.producer()), [shape])
    return shape.outputs[0]


def attend(heads: Heads, added: Sequence[ir.Value]) -> list[ir.Node]:
    """The nodes of `softmax(query @ key * scale + added) @ value`, in order; (queries, batch, heads, width of a head).

    `transBatch` is onnxruntime's word for a matrix whose rows lie before the dimensions of the batch.
    """
    attributes = {"transBatchA": 1, "transBatchB": 1, "transB": 1, "alpha": heads.scale}
    nodes = [ir.node("FusedMatMul", [heads.query, heads.key], attributes, domain=ORT_DOMAIN)]
    for term in added:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], term]))
    nodes.append(ir.node("Softmax", [nodes[-1].outputs[0]], {"axis": -1}))
    nodes.append(ir.node("FusedMatMul", [nodes[-1].outputs[0], heads.value], {"transBatchB": 1}, domain=ORT_DOMAIN))
    nodes.append(ir.node("Transpose", [nodes[-1].outputs[0]], {"perm": [2, 0, 1, 3]}))
    return nodes


def _distances_of(graph: ir.Graph, slopes: Sequence[float]) -> Distances:
    """Insert the bias of short texts at the head of the graph, where all layers share it."""
    tokens = token_count(graph)
    zero, one = constant(graph, "zero", np.array(0, np.int64)), constant(graph, "one_int64", np.array(1, np.int64))
    falling = -np.array(slopes, np.float32)[:, np.newaxis, np.newaxis]
    negative = constant(graph, "negative_slopes", falling)
    longest = constant(graph, "longest_short_text", np.array(WHOLE, np.int64))
    is_short = ir.node("LessOrEqual", [tokens, longest])
    counted = ir.node("Where", [is_short.outputs[0], tokens, zero])
    columns = numbers(graph, zero, counted.outputs[0], one, axis=0)
    rows = ir.node("Unsqueeze", [columns[1].outputs[0], constant(graph, "axis_1", np.array([1], np.int64))])
    bias = _bias_nodes(rows.outputs[0], columns[-1].outputs[0], negative)
    graph.insert_after(required(tokens.producer()), [is_short, counted, *columns, rows, *bias])
    return Distances(tokens, is_short.outputs[0], bias[-1].outputs[0], negative)


def numbers(graph: ir.Graph, start: ir.Value, end: ir.Value, one: ir.Value, *, axis: int) -> list[ir.Node]:
    """The nodes of the numbers from `start` to before `end` as float32, along the other axis of two than `axis`."""
    counted = ir.node("Range", [start, end, one])
    cast = ir.node("Cast", [counted.outputs[0]], {"to": ir.DataType.FLOAT.value})
    axes = constant(graph, f"axis_{axis}", np.array([axis], np.int64))
    return [counted, cast, ir.node("Unsqueeze", [cast.outputs[0], axes])]


def _bias_nodes(rows: ir.Value, columns: ir.Value, negative_slopes: ir.Value) -> list[ir.Node]:
    """The nodes of the bias of queries at `rows` (rows, 1) for keys at `columns` (1, tokens): (heads, rows, tokens)."""
    difference = ir.node("Sub", [rows, columns])
    distance = ir.node("Abs", [difference.outputs[0]])
    return [difference, distance, ir.node("Mul", [distance.outputs[0], negative_slopes])]


def _attend_with_distances(graph: ir.Graph, heads: Heads, distances: Distances, name: str) -> ir.Node:
    """An If that attends over all pairs of a short text at once, and over BLOCK queries at a time of a long one."""
    short = attend(heads, [distances.bias])
    long = _attend_in_blocks(graph, heads, distances, name)
    branches = {
        "then_branch": _branch([], short, [short[-1].outputs[0]], f"{name}_short"),
        "else_branch": _branch([], long, [long[-1].outputs[0]], f"{name}_long"),
    }
    return ir.node("If", [distances.is_short], branches)


def _attend_in_blocks(graph: ir.Graph, heads: Heads, distances: Distances, name: str) -> list[ir.Node]:
    """The nodes of a Loop over blocks of queries, and of what cuts the queries into blocks and joins the contexts."""
    zero, one = constant(graph, "zero", np.array(0, np.int64)), constant(graph, "one_int64", np.array(1, np.int64))
    block = constant(graph, "block", np.array(BLOCK, np.int64))
    first = constant(graph, "axis_0", np.array([0], np.int64))

    negative = ir.node("Neg", [distances.tokens])
    extra = ir.node("Mod", [negative.outputs[0], block])
    extra_1d = ir.node("Unsqueeze", [extra.outputs[0], first])
    pads_before = constant(graph, "pads_before_tokens", np.zeros(4, np.int64))
    pads_after = constant(graph, "pads_after_tokens", np.zeros(3, np.int64))
    pads = ir.node("Concat", [pads_before, extra_1d.outputs[0], pads_after], {"axis": 0})
    padded = ir.node("Pad", [heads.query, pads.outputs[0]])
    total = ir.node("Add", [distances.tokens, extra.outputs[0]])
    count = ir.node("Div", [total.outputs[0], block])
    columns = numbers(graph, zero, distances.tokens, one, axis=0)

    iteration = ir.val(f"{name}_iteration", ir.DataType.INT64, [])
    goes_on = ir.val(f"{name}_goes_on", ir.DataType.BOOL, [])
    start = ir.node("Mul", [iteration, block])
    end = ir.node("Add", [start.outputs[0], block])
    start_1d, end_1d = (ir.node("Unsqueeze", [node.outputs[0], first]) for node in (start, end))
    queries = ir.node("Slice", [padded.outputs[0], start_1d.outputs[0], end_1d.outputs[0], first])
    rows = numbers(graph, start.outputs[0], end.outputs[0], one, axis=1)
    bias = _bias_nodes(rows[-1].outputs[0], columns[-1].outputs[0], distances.slopes)
    some = Heads(queries.outputs[0], heads.key, heads.value, heads.scale)
    attended = attend(some, [bias[-1].outputs[0]])
    still = ir.node("Identity", [goes_on])
    body = _branch(
        [iteration, goes_on],
        [start, end, start_1d, end_1d, queries, *rows, *bias, *attended, still],
        [still.outputs[0], attended[-1].outputs[0]],
        f"{name}_block",
    )
    always = constant(graph, "always", np.array([True]).reshape(()))
    loop = ir.node("Loop", [count.outputs[0], always], {"body": body})

    # (blocks, block, batch, heads, width) -> (tokens, batch, heads, width)
    rest = ir.node("Shape", [heads.value], {"start": 1})
    shape = ir.node("Concat", [constant(graph, "all_tokens", np.array([-1], np.int64)), rest.outputs[0]], {"axis": 0})
    joined = ir.node("Reshape", [loop.outputs[0], shape.outputs[0]])
    tokens_1d = ir.node("Unsqueeze", [distances.tokens, first])
    cut = ir.node("Slice", [joined.outputs[0], first, tokens_1d.outputs[0], first])
    before = [negative, extra, extra_1d, pads, padded, total, count, *columns]
    return [*before, loop, rest, shape, joined, tokens_1d, cut]


def _branch(inputs: list[ir.Value], nodes: list[ir.Node], outputs: list[ir.Value], name: str) -> ir.Graph:
    """A graph inside a graph, its values named so that none hides one of the graph around it."""
    for number, node in enumerate(nodes):
        for output in node.outputs:
            output.name = f"{name}_{number}"
    return ir.Graph(inputs, outputs, nodes=nodes, name=name)


def _match_attention(softmax: ir.Node) -> Attention | None:
    """The attention around a Softmax: `softmax(q @ k / c + mask) @ v`, heads split by Reshape and Transpose.

    The constant c may divide the queries instead, and the mask may choose between the scores and a constant.
    """
    scores = required(softmax.inputs[0]).producer()
    added = []
    while scores is not None and scores.op_type in ("Add", "Where"):
        if scores.op_type == "Where":
            if not comes_from_mask_only(required(scores.inputs[0])) or array_of(scores.inputs[1]) is None:
                return None
            scores = required(scores.inputs[2]).producer()
        else:
            if not comes_from_mask_only(required(scores.inputs[1])):
                added.append(required(scores.inputs[1]))
            scores = required(scores.inputs[0]).producer()
    if scores is None:
        return None
    scale, product = scaled(scores)
    weighted = only_user(softmax.outputs[0], "MatMul")
    if product is None or product.op_type != "MatMul" or weighted is None:
        return None
    query_scale, query_node = scaled(required(product.inputs[0]).producer())
    back = only_user(weighted.outputs[0], "Transpose")
    context = only_user(back.outputs[0], "Reshape") if back is not None else None
    query = _split_heads(query_node, (0, 2, 1, 3))
    key = _split_heads(required(product.inputs[1]).producer(), (0, 2, 3, 1))
    value = _split_heads(required(weighted.inputs[1]).producer(), (0, 2, 1, 3))
    if context is None or query is None or key is None or value is None:
        return None
    if not (query.input is key.input is value.input):
        return None
    return Attention(query, key, value, scale * query_scale, tuple(reversed(added)), softmax, context)


def values_behind(context: ir.Value) -> Linear | None:
    """The product of queries, keys and values whose last columns are the values that a merged attention mixed."""
    node = context.producer()
    while node is not None and node.op_type in ("Reshape", "Transpose", "If"):
        if node.op_type == "If":
            node = node.attributes["then_branch"].as_graph().outputs[0].producer()
        else:
            node = required(node.inputs[0]).producer()
    if node is None or node.op_type != "FusedMatMul":
        return None
    return _merged_product(required(node.inputs[1]))


def merged_attention(context: ir.Value) -> MergedAttention | None:
    """The merged attention whose result, in rows of tokens, is `context`; None for any other value."""
    nodes = []
    value = context
    for op_type in ("Reshape", "Transpose", "FusedMatMul", "Softmax", "FusedMatMul"):
        node = value.producer()
        if node is None or node.op_type != op_type:
            return None
        nodes.append(node)
        value = required(node.inputs[0])
    _, _, weighted, _, scores = nodes
    key = required(scores.inputs[1])
    product = _merged_product(key)
    if product is None:
        return None
    reshape = required(key.producer())
    split = required(required(reshape.inputs[0]).producer())
    sizes = array_of(required(required(reshape.inputs[1]).producer()).inputs[1])
    heads = Heads(value, key, required(weighted.inputs[1]), scores.attributes["alpha"].as_float())
    return MergedAttention(product, split, heads, int(required(sizes)[0]))


def _merged_product(heads: ir.Value) -> Linear | None:
    """The product whose columns were split into parts, of which `heads`, split into heads, is one."""
    head = heads.producer()
    split = required(head.inputs[0]).producer() if head is not None and head.op_type == "Reshape" else None
    return linear_before(split.inputs[0]) if split is not None and split.op_type == "Split" else None


def scaled(node: ir.Node | None) -> tuple[float, ir.Node | None]:
    """The factor that a Div or a Mul by one number applies, and the node before it; 1 and the same node without one."""
    if node is None or node.op_type not in ("Div", "Mul"):
        return 1.0, node
    factor = array_of(node.inputs[1])
    if factor is None or factor.size != 1:
        return 1.0, node
    number = float(factor.reshape(())[()])
    return (1 / number if node.op_type == "Div" else number), required(node.inputs[0]).producer()


def _split_heads(transpose: ir.Node | None, permutation: tuple[int, ...]) -> Linear | None:
    """The projection behind a Reshape and a Transpose that split it into heads."""
    if transpose is None or transpose.op_type != "Transpose":
        return None
    if tuple(transpose.attributes["perm"].as_ints()) != permutation:
        return None
    reshape = required(transpose.inputs[0]).producer()
    if reshape is None or reshape.op_type != "Reshape":
        return None
    return linear_before(reshape.inputs[0])


def comes_from_mask_only(value: ir.Value) -> bool:
    """Whether nothing but the attention mask and sizes decide a value: then nothing is hidden where none is masked."""
    if value.is_graph_input():
        return value.name == ATTENTION_MASK
    producer = value.producer()
    if producer is None:
        return False
    computed = [part for part in producer.inputs if part is not None and array_of(part) is None]
    if producer.op_type in ("Expand", "Reshape"):
        # Their other input is a shape, which adds no content.
        computed = [required(producer.inputs[0])]
    return bool(computed) and all(comes_from_mask_only(part) for part in computed)
