"""Mask padding in a graph for CoreML, by its input `bias`, and leave padding out of positions and of the last token."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...runtime.bundle.graph_io import BIAS, INPUT_IDS
from ...runtime.encoder.buckets import MASKED
from ..graph.attention import comes_from_mask_only
from ..graph.flatten import is_one_token
from ..graph.nodes import (
    array_of,
    constant,
    constant_of,
    graph_input,
    insert,
    only_user,
    replace,
    required,
    token_count,
    values_of_texts,
)
from .coreml_partition import BATCH, TOKENS

NOT_PADDING = "not_padding"
"""The table of which token ids are not the padding token."""
ONE, MINUS_ONE = ("one", np.array(1, np.float32)), ("minus_one", np.array(-1, np.float32))


def add_bias_input(graph: ir.Graph) -> ir.Value:
    """Add the input that masks padding: float32 (batch, 1, 1, tokens), 0 or -10,000."""
    bias = ir.val(BIAS, ir.DataType.FLOAT, [BATCH, 1, 1, TOKENS])
    graph.inputs.append(bias)
    return bias


def mask_attention(graph: ir.Graph, bias: ir.Value, *, plain: bool) -> None:
    """Add `bias` to the scores of every attention.

    `plain` says that the traced mask hides padding only, so that it goes; others hide what is too far away, or later,
    too, and become constants.
    """
    for softmax in [node for node in graph if node.op_type == "Softmax"]:
        scores = required(softmax.inputs[0])
        if plain:
            _drop_traced_mask(scores)
        else:
            _limit_traced_mask(graph, scores)
        softmax.replace_input_with(0, insert(softmax, "Add", [softmax.inputs[0], bias]))


def _drop_traced_mask(scores: ir.Value) -> None:
    """Drop what the attention mask alone adds to scores, or hides of them: no token of a whole text is masked."""
    node = scores.producer()
    while node is not None and node.op_type in ("Add", "Where"):
        if node.op_type == "Where":
            kept = required(node.inputs[2])
            mask_only = comes_from_mask_only(required(node.inputs[0])) and array_of(node.inputs[1]) is not None
        else:
            kept = required(node.inputs[0])
            mask_only = comes_from_mask_only(required(node.inputs[1]))
        if mask_only:
            replace(node.outputs[0], kept)
        node = kept.producer()


def _limit_traced_mask(graph: ir.Graph, scores: ir.Value) -> None:
    """Let a traced mask be no lower than what masks padding, which float16 holds; it may be the lowest float32."""
    of_texts = values_of_texts(graph)
    lowest = constant(graph, "lowest_mask", np.array(MASKED, np.float32))
    node = scores.producer()
    while node is not None and node.op_type == "Add":
        mask = required(node.inputs[1])
        if mask not in of_texts or comes_from_mask_only(mask):
            node.replace_input_with(1, insert(node, "Max", [mask, lowest]))
        node = required(node.inputs[0]).producer()


def _padding_of(graph: ir.Graph, padding: int, before: ir.Node) -> ir.Value:
    """1 for each token id but `padding`, for which it is 0: float32 (batch, tokens)."""
    ids = required(graph_input(graph, INPUT_IDS))
    tables = [node.inputs[0] for node, _ in ids.uses() if node.op_type == "Gather" and node.inputs[1] is ids]
    vocabulary = int(required(constant_of(tables[0])).shape.numpy()[0])
    table = np.ones(vocabulary, np.float32)
    table[padding] = 0
    return insert(before, "Gather", [constant(graph, NOT_PADDING, table), ids])


def number_positions(graph: ir.Graph) -> None:
    """Count tokens that are not the padding token by a matmul, as RoBERTa numbers positions; CoreML has no CumSum."""
    for node in [node for node in graph if node.op_type == "CumSum"]:
        gather = _gather_after(node)
        padding = required(_compared_id(required(node.inputs[0])))
        counted = _padding_of(graph, padding, gather)
        numbers = positions_of(graph, gather)
        column = insert(gather, "Unsqueeze", [numbers, constant(graph, "axis_1", np.array([1], np.int64))])
        until = insert(gather, "LessOrEqual", [column, numbers])
        triangle = insert(gather, "Cast", [until], {"to": ir.DataType.FLOAT.value})
        number = insert(gather, "Mul", [insert(gather, "MatMul", [counted, triangle]), counted])
        first = constant(graph, "padding_position", np.array(padding, np.float32))
        shifted = insert(gather, "Add", [number, first])
        gather.replace_input_with(1, insert(gather, "Cast", [shifted], {"to": ir.DataType.INT64.value}))


def _gather_after(node: ir.Node) -> ir.Node:
    """The Gather from a constant table whose indices a node gives."""
    waiting = [node]
    while waiting:
        user = waiting.pop()
        if user.op_type == "Gather" and constant_of(user.inputs[0]) is not None:
            return user
        waiting.extend(following for output in user.outputs for following, _ in output.uses())
    raise ValueError("nothing reads a table by the positions")


def positions_of(graph: ir.Graph, before: ir.Node) -> ir.Value:
    """The positions 0, 1, ... of the tokens as float32 (tokens,)."""
    zero, one = constant(graph, "zero", np.array(0, np.int64)), constant(graph, "one_int64", np.array(1, np.int64))
    numbers = insert(before, "Range", [zero, token_count(graph), one])
    return insert(before, "Cast", [numbers], {"to": ir.DataType.FLOAT.value})


def read_last_token(graph: ir.Graph, bias: ir.Value) -> None:
    """Let a classifier read each text's last token by a matmul with 1 for that token and 0 for the others.

    A trace takes the last place, which is padding in a padded batch, or looks for the last token that is not the
    padding token, by operators on integers that CoreML does not have.
    """
    of_texts = values_of_texts(graph)
    for node in [node for node in graph if node.op_type == "Gather" and node.inputs[0] in of_texts]:
        if is_one_token(node) and array_of(node.inputs[1]) == -1:
            tokens, padding = required(node.inputs[0]), None
        elif node.inputs[1] in of_texts:
            # From rows (batch * tokens, width), by numbers that are computed from the token ids.
            tokens = required(required(required(node.inputs[0]).producer()).inputs[0])
            padding = _compared_id(required(node.inputs[1]))
        else:
            continue
        picked = node.outputs[0]
        while (reshape := only_user(picked, "Reshape")) is not None:
            picked = reshape.outputs[0]
        replace(picked, _last_tokens(graph, tokens, bias, padding, required(picked.producer())))


def _last_tokens(graph: ir.Graph, tokens: ir.Value, bias: ir.Value, padding: int | None, before: ir.Node) -> ir.Value:
    """The embeddings (batch, width) of the last tokens that are not padding, of all (batch, tokens, width).

    `padding` is the id of a token that does not count either.
    """
    one, minus_one = (constant(graph, *number) for number in (ONE, MINUS_ONE))
    axis = constant(graph, "axis_1", np.array([1], np.int64))
    numbers = positions_of(graph, before)
    counts = insert(before, "Relu", [insert(before, "Add", [bias, one])])
    counts = insert(before, "Squeeze", [counts, constant(graph, "axes_1_2", np.array([1, 2], np.int64))])
    if padding is not None:
        counts = insert(before, "Mul", [counts, _padding_of(graph, padding, before)])
    last = insert(before, "ReduceMax", [insert(before, "Mul", [counts, numbers]), axis], {"keepdims": 1})
    apart = insert(before, "Sub", [numbers, last])
    distance = insert(before, "Max", [apart, insert(before, "Mul", [apart, minus_one])])
    chosen = insert(before, "Relu", [insert(before, "Sub", [one, distance])])
    picked = insert(before, "MatMul", [insert(before, "Unsqueeze", [chosen, axis]), tokens])
    return insert(before, "Squeeze", [picked, axis])


def _compared_id(value: ir.Value) -> int | None:
    """The id with which the token ids are compared to compute a value; None where they are not."""
    waiting, seen = [value], {value}
    while waiting:
        producer = waiting.pop().producer()
        if producer is None:
            continue
        of_ids = any(other is not None and other.name == INPUT_IDS for other in producer.inputs)
        compared = next((array_of(other) for other in producer.inputs if array_of(other) is not None), None)
        if producer.op_type == "Equal" and of_ids and compared is not None:
            return int(compared.reshape(())[()])
        new = {other for other in producer.inputs if other is not None} - seen
        waiting.extend(new)
        seen |= new
    return None
