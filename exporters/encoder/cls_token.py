"""[CLS]-only last layer, and 16-bit activations for [CLS] rows, of classifiers whose head reads [CLS] tokens.

All that one token takes from the others are their keys and values. So the last layer runs for first tokens only, and
in int8 first tokens can have rows of their own through all layers, with finer activations at little cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph.attention import Heads, MergedAttention, attend, merged_attention
from ..graph.flatten import first_rows
from ..graph.nodes import (
    array_of,
    batch_alone,
    constant,
    insert,
    insert_linear,
    insert_node,
    only_user,
    replace,
    required,
    rows_of,
    values_after,
)
from ..graph.passes import after, is_row_wise

Rows = dict[ir.Value, ir.Value]
"""A value for all tokens (tokens * batch, width) -> the same for first tokens only (batch, width)."""


@dataclass(frozen=True, eq=False)
class Path:
    """The way of the first tokens from the embedding to the last layer."""

    pick: ir.Node
    """What takes their rows from the rows that the last layer reads."""
    start: ir.Value
    """The rows of the embedded tokens."""
    target: ir.Value
    """The rows that the last layer reads."""
    needed: set[ir.Value]
    """The values between the two whose first rows decide those of the target."""
    last: MergedAttention
    """That of the last layer."""


@dataclass(frozen=True, eq=False)
class FirstTokens:
    """Rows of first tokens apart from those of all tokens."""

    origins: dict[ir.Value, ir.Value]
    """Rows that were put in (batch, width) -> the same for all tokens (tokens * batch, width)."""
    alone: set[ir.Value]
    """All values that are about first tokens only."""


def narrow_last_layer(graph: ir.Graph) -> None:
    """Compute of the last layer what the first tokens need: all keys and values, one query a text, one row of the rest.

    For a graph that `run_on_rows` has changed. One stays as it is where a bias is added to the scores, or where the
    head reads more than the first tokens.
    """
    pick = _pick_of_first_rows(graph)
    attentions = _merged_attentions(graph)
    if pick is None or not attentions:
        return
    last = attentions[-1]
    start, target = last.product.input, required(pick.inputs[0])
    needed = _needed_for(target, start)
    if needed is None:
        return
    rows = {start: first_rows(graph, start, after(start))}
    for node in _in_order(graph, needed):
        output = node.outputs[0]
        attention = merged_attention(output)
        if attention is None:
            _copy_for_first_rows(node, rows)
        else:
            rows[output] = _context_of_first_queries(graph, attention, rows[start], after(output))
    replace(pick.outputs[0], rows[target])
    _drop_queries(last)


def follow_first_tokens(graph: ir.Graph) -> FirstTokens:
    """Compute the rows of first tokens apart from the rest in all layers; attentions mix those with the rest.

    For a graph in which `path_of_first_tokens` finds one.
    """
    path = required(path_of_first_tokens(graph))
    rows = {path.start: first_rows(graph, path.start, after(path.start))}
    for node in _in_order(graph, path.needed):
        output = node.outputs[0]
        attention = merged_attention(output)
        if attention is None:
            _copy_for_first_rows(node, rows)
        else:
            _put_first_rows(graph, attention, rows[attention.product.input])
            rows[output] = first_rows(graph, output, after(output))
    replace(path.pick.outputs[0], rows[path.target])
    _put_first_rows(graph, path.last, rows[path.target])
    origins = {first: value for value, first in rows.items()}
    return FirstTokens(origins, {*origins, *values_after(graph, [rows[path.target]])})


def path_of_first_tokens(graph: ir.Graph) -> Path | None:
    """The way that first tokens take, in a graph whose last layer `narrow_last_layer` has changed; None elsewhere."""
    pick = _pick_of_first_rows(graph)
    attentions = _merged_attentions(graph)
    if pick is None or not attentions:
        return None
    target = required(pick.inputs[0])
    start = embedded(target)
    needed = _needed_for(target, start)
    if needed is None or attentions[-1].product.input is not target:
        return None
    return Path(pick, start, target, needed, attentions[-1])


def _pick_of_first_rows(graph: ir.Graph) -> ir.Node | None:
    """The node that takes the first tokens' rows from those of all tokens."""
    return next((node for node, _ in batch_alone(graph).uses() if node.op_type == "Slice"), None)


def _merged_attentions(graph: ir.Graph) -> list[MergedAttention]:
    return [found for node in graph if (found := merged_attention(node.outputs[0])) is not None]


def embedded(value: ir.Value) -> ir.Value:
    """The rows of the embedded tokens, with which the layers that make `value` begin."""
    while True:
        attention = merged_attention(value)
        node = value.producer()
        if attention is not None:
            value = attention.product.input
        elif node is not None and is_row_wise(node):
            value = _computed_inputs(node)[-1]
        else:
            return value


def _needed_for(target: ir.Value, start: ir.Value) -> set[ir.Value] | None:
    """The values between `start` and `target` whose first rows decide those of `target`.

    None where something between them is neither an attention nor a row of its own.
    """
    needed: set[ir.Value] = set()
    waiting = [target]
    while waiting:
        value = waiting.pop()
        if value is start or value in needed:
            continue
        needed.add(value)
        attention = merged_attention(value)
        node = value.producer()
        if attention is not None:
            waiting.append(attention.product.input)
        elif node is not None and is_row_wise(node) and len(node.outputs) == 1:
            waiting.extend(_computed_inputs(node))
        else:
            return None
    return needed


def _in_order(graph: ir.Graph, values: set[ir.Value]) -> list[ir.Node]:
    """The nodes that make these values, in the order in which the graph runs them."""
    return [node for node in graph if node.outputs[0] in values]


def _computed_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node that are not constants."""
    return [value for value in node.inputs if value is not None and array_of(value) is None]


def _copy_for_first_rows(node: ir.Node, rows: Rows) -> None:
    """Compute of a node's rows the first, right after all of them."""
    inputs = [value if value is None else rows.get(value, value) for value in node.inputs]
    same = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()))
    output = node.outputs[0]
    rows[output] = insert_node(after(output), same).outputs[0]


def _context_of_first_queries(
    graph: ir.Graph, attention: MergedAttention, first: ir.Value, before: ir.Node
) -> ir.Value:
    """What the first tokens take from all tokens of their text, (batch, width), given their rows `first`."""
    product, width, heads = attention.product, attention.width, attention.heads
    weight, bias = product.weight[:, :width], product.bias[:width]
    query = insert_linear(before, first, f"{product.name}_query", weight, bias)
    one_query = constant(graph, "one_query", np.array([1, -1, attention.count, width // attention.count], np.int64))
    attended = attend(Heads(insert(before, "Reshape", [query, one_query]), heads.key, heads.value, heads.scale), ())
    for node in attended:
        insert_node(before, node)
    return insert(before, "Reshape", [attended[-1].outputs[0], rows_of(graph, width)])


def _put_first_rows(graph: ir.Graph, attention: MergedAttention, first: ir.Value) -> None:
    """Let an attention mix what comes of the rows `first` of the first tokens with what comes of all other rows."""
    product, split = attention.product, attention.split
    own = insert_linear(split, first, product.name, product.weight, product.bias)
    # onnxruntime writes them into the product where it lies, and copies nothing else.
    split.replace_input_with(0, insert(split, "ScatterND", [product.output, _first_numbers(graph), own]))


def _first_numbers(graph: ir.Graph) -> ir.Value:
    """The numbers of the first tokens' rows, (batch, 1), computed once at the head of the graph."""
    texts = batch_alone(graph)
    known = next((node for node, _ in texts.uses() if node.op_type == "ConstantOfShape"), None)
    if known is None:
        known = ir.node("ConstantOfShape", [texts], {"value": ir.tensor(np.array([1], np.int64))})
        found = ir.node("NonZero", [known.outputs[0]])
        column = ir.node("Transpose", [found.outputs[0]], {"perm": [1, 0]})
        graph.insert_after(required(texts.producer()), [known, found, column])
        return column.outputs[0]
    return required(only_user(required(only_user(known.outputs[0], "NonZero")).outputs[0], "Transpose")).outputs[0]


def _drop_queries(attention: MergedAttention) -> None:
    """Compute keys and values only in the product of queries, keys and values of an attention."""
    product, width, split = attention.product, attention.width, attention.split
    weight, bias = product.weight[:, width:], product.bias[width:]
    key_value = insert_linear(split, product.input, f"{product.name}_key_value", weight, bias)
    halves = insert_node(split, ir.node("Split", [key_value], {"axis": -1, "num_outputs": 2}, num_outputs=2))
    for old, new in zip(split.outputs[1:], halves.outputs, strict=True):
        replace(old, new)
