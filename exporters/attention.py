"""Multi-head self-attention, found in a traced graph and computed in fewer and faster operators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.graph import (
    ATTENTION_MASK,
    ORT_DOMAIN,
    Linear,
    array_of,
    batch_and_length,
    constant,
    insert,
    insert_node,
    linear_before,
    only_user,
    replace,
    required,
)


@dataclass(frozen=True, eq=False)
class Attention:
    """Multi-head self-attention as eager PyTorch code traces it."""

    query: Linear
    key: Linear
    value: Linear
    scale: float
    added: tuple[ir.Value, ...]
    """What is added to the scaled scores: the mask, a bias for relative positions."""
    softmax: ir.Node
    context: ir.Node
    """The Reshape that brings the heads back together."""


def merge_attention(graph: ir.Graph, heads: int) -> int:
    """Compute query, key and value in one product and split them by one Transpose; returns how many layers it did.

    `heads` is the number of attention heads, keys and values having as many as queries. The attention mask goes where
    the graph is made for batches without padding: it would add zeros, at a fifth of the time of the whole.
    """
    matches = [match_attention(node) for node in graph if node.op_type == "Softmax"]
    found = [match for match in matches if match is not None]
    for match in found:
        replace(match.context.outputs[0], attention_by_hand(graph, match, heads))
    return len(found)


def attention_by_hand(graph: ir.Graph, match: Attention, heads: int) -> ir.Value:
    """Insert the merged attention before the traced one; returns the context, (batch, tokens, width)."""
    parts = (match.query, match.key, match.value)
    width = match.query.weight.shape[1]
    before = match.softmax
    batch = batch_and_length(graph)
    weight = constant(graph, f"{match.query.name}_qkv", np.concatenate([part.weight for part in parts], axis=1))
    bias = constant(graph, f"{match.query.name}_qkv_bias", np.concatenate([part.bias for part in parts]))
    split = constant(graph, "split_heads", np.array([3, heads, width // heads], np.int64))
    merged = constant(graph, "merged_heads", np.array([width], np.int64))

    qkv = insert(before, "Add", [insert(before, "MatMul", [match.query.input, weight]), bias])
    qkv = insert(before, "Reshape", [qkv, insert(before, "Concat", [batch, split], {"axis": 0})])
    qkv = insert(before, "Transpose", [qkv], {"perm": [2, 0, 3, 1, 4]})
    query, key, value = insert_node(
        before, ir.node("Split", [qkv], {"axis": 0, "num_outputs": 3}, num_outputs=3)
    ).outputs
    scores = insert(before, "FusedMatMul", [query, key], {"transB": 1, "alpha": match.scale}, domain=ORT_DOMAIN)
    for term in match.added:
        if not comes_from_mask_only(term):
            scores = insert(before, "Add", [scores, term])
    context = insert(before, "MatMul", [insert(before, "Softmax", [scores], {"axis": -1}), value])
    context = insert(before, "Transpose", [context], {"perm": [0, 1, 3, 2, 4]})
    return insert(before, "Reshape", [context, insert(before, "Concat", [batch, merged], {"axis": 0})])


def match_attention(softmax: ir.Node) -> Attention | None:
    """The attention around a Softmax: `softmax(q @ k / c + mask) @ v`, heads split by Reshape and Transpose."""
    scores = required(softmax.inputs[0]).producer()
    added = []
    while scores is not None and scores.op_type == "Add":
        added.append(required(scores.inputs[1]))
        scores = required(scores.inputs[0]).producer()
    if scores is None or scores.op_type not in ("Div", "Mul"):
        return None
    factor = array_of(scores.inputs[1])
    product = required(scores.inputs[0]).producer()
    weighted = only_user(softmax.outputs[0], "MatMul")
    if factor is None or factor.size != 1 or product is None or product.op_type != "MatMul" or weighted is None:
        return None
    back = only_user(weighted.outputs[0], "Transpose")
    context = only_user(back.outputs[0], "Reshape") if back is not None else None
    query = split_heads(product.inputs[0], (0, 2, 1, 3))
    key = split_heads(product.inputs[1], (0, 2, 3, 1))
    value = split_heads(weighted.inputs[1], (0, 2, 1, 3))
    if context is None or query is None or key is None or value is None:
        return None
    if not (query.input is key.input is value.input):
        return None
    number = float(factor.reshape(())[()])
    scale = 1 / number if scores.op_type == "Div" else number
    return Attention(query, key, value, scale, tuple(reversed(added)), softmax, context)


def split_heads(value: ir.Value | None, permutation: tuple[int, ...]) -> Linear | None:
    """The projection behind a Reshape and a Transpose that split it into heads."""
    transpose = required(value).producer()
    if transpose is None or transpose.op_type != "Transpose":
        return None
    if tuple(transpose.attributes["perm"].as_ints()) != permutation:
        return None
    reshape = required(transpose.inputs[0]).producer()
    if reshape is None or reshape.op_type != "Reshape":
        return None
    return linear_before(reshape.inputs[0])


def comes_from_mask_only(value: ir.Value) -> bool:
    """Whether nothing but the attention mask decides a value: then it is zero where no token is masked."""
    if value.is_graph_input():
        return value.name == ATTENTION_MASK
    producer = value.producer()
    if producer is None:
        return False
    computed = [part for part in producer.inputs if part is not None and array_of(part) is None]
    return bool(computed) and all(comes_from_mask_only(part) for part in computed)
