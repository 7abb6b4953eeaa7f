"""The last layer of a classifier, computed for the first token of each text only: its head reads no other."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.attention import Heads, attend, heads_shape, merged_product
from exporters.graph import first_rows, is_row_wise
from exporters.nodes import (
    ORT_DOMAIN,
    Linear,
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
)


def narrow_last_layer(graph: ir.Graph, heads: int) -> None:
    """Compute of the last layer what the first tokens need: all keys and values, one query a text, one row of the rest.

    For a graph that `run_on_rows` has changed. One stays as it is where a bias is added to the scores, or where the
    head reads more than the first tokens.
    """
    pick = next((node for node, _ in batch_alone(graph).uses() if node.op_type == "Slice"), None)
    softmax = next((node for node in reversed(list(graph)) if node.op_type == "Softmax"), None)
    if pick is None or softmax is None:
        return
    last = LastLayer(graph, heads, softmax, pick)
    narrowed = last.first_tokens(required(pick.inputs[0])) if last.qkv is not None else None
    if narrowed is not None:
        replace(pick.outputs[0], narrowed)


class LastLayer:
    """The layer around the last attention of a graph, and its values for first tokens only."""

    def __init__(self, graph: ir.Graph, heads: int, softmax: ir.Node, pick: ir.Node) -> None:
        """`pick` is the node that takes the first rows of the layer's result."""
        self.graph = graph
        self.heads = heads
        self.pick = pick
        self.scores = required(softmax.inputs[0]).producer()
        self.softmax = softmax
        self.qkv = self.product_of_scores()
        self.narrowed: dict[ir.Value, ir.Value] = {}

    def product_of_scores(self) -> Linear | None:
        """The product of queries, keys and values; None where the scores are not theirs alone."""
        if self.scores is None or (self.scores.domain, self.scores.op_type) != (ORT_DOMAIN, "FusedMatMul"):
            return None
        return merged_product(required(self.scores.inputs[0]))

    def first_tokens(self, value: ir.Value) -> ir.Value | None:
        """The first rows of a value of this layer, (batch, width), computed for them alone; None where that fails."""
        if value not in self.narrowed:
            found = self.computed(value)
            if found is None:
                return None
            self.narrowed[value] = found
        return self.narrowed[value]

    def computed(self, value: ir.Value) -> ir.Value | None:
        qkv = required(self.qkv)
        if value is qkv.input:
            return first_rows(self.graph, value, self.pick)
        node = value.producer()
        if node is not None and node.op_type == "Reshape" and node.inputs[1] is rows_of(self.graph, self.width):
            return self.context() if self.is_context(value) else None
        if node is None or not is_row_wise(node) or len(node.outputs) != 1:
            return None
        inputs = []
        for part in node.inputs:
            small = part if part is None or array_of(part) is not None else self.first_tokens(part)
            if small is None and part is not None:
                return None
            inputs.append(small)
        same = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()))
        return insert_node(self.pick, same).outputs[0]

    @property
    def width(self) -> int:
        return int(required(self.qkv).weight.shape[1]) // 3

    def is_context(self, value: ir.Value) -> bool:
        """Whether a value is what this layer's attention gives."""
        weighted = only_user(self.softmax.outputs[0], "FusedMatMul")
        back = only_user(weighted.outputs[0], "Transpose") if weighted is not None else None
        return back is not None and required(value.producer()).inputs[0] is back.outputs[0]

    def context(self) -> ir.Value:
        """What the first tokens take from all tokens of their text, (batch, width)."""
        graph, qkv, width = self.graph, required(self.qkv), self.width
        first = required(self.first_tokens(qkv.input))
        parts = [("query", first, slice(0, width)), ("key_value", qkv.input, slice(width, None))]
        query, key_value = (
            insert_linear(self.pick, rows, f"{qkv.name}_{name}", qkv.weight[:, columns], qkv.bias[columns])
            for name, rows, columns in parts
        )
        split = insert_node(self.pick, ir.node("Split", [key_value], {"axis": -1, "num_outputs": 2}, num_outputs=2))
        one_query = constant(graph, "one_query", np.array([1, -1, self.heads, width // self.heads], np.int64))
        shape = heads_shape(graph, self.heads, width // self.heads)
        key, value = (insert(self.pick, "Reshape", [part, shape]) for part in split.outputs)
        scale = required(self.scores).attributes["alpha"].as_float()
        attended = attend(Heads(insert(self.pick, "Reshape", [query, one_query]), key, value, scale), ())
        for node in attended:
            insert_node(self.pick, node)
        return insert(self.pick, "Reshape", [attended[-1].outputs[0], rows_of(graph, width)])
