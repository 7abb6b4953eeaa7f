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
from ...runtime.encoder.buckets import MASKED
from ...runtime.errors import UnsupportedModelError
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.kind import required_int
from ..graph.external_data import LARGEST_PROTOBUF, weights_bytes
from ..graph.nodes import (
    array_of,
    batch_and_length,
    constant,
    constant_of,
    graph_input,
    insert,
    insert_node,
    linears,
    only_user,
    replace,
    required,
    token_count,
    values_of_texts,
)
from ..graph.passes import drop_unused_inputs, fold_constants, is_row_wise, merge_products, tidy
from .attention import comes_from_mask_only
from .coreml_partition import BATCH, TOKENS
from .flatten import assume_whole_texts, drop_token_types, is_one_token, rows_at_products, set_head_apart

NOT_PADDING = "not_padding"
"""The table of which token ids are not the padding token."""
_ONE, _MINUS_ONE = ("one", np.array(1, np.float32)), ("minus_one", np.array(-1, np.float32))
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
    split_heads_apart(graph, heads)
    repeat_heads(graph, checkpoint.config.get("num_key_value_heads", heads), heads)
    merge_products(graph)
    rows_at_products(graph)
    transpose_weights(graph)
    stay_on_rows(graph)
    use_supported_operators(graph)
    tidy(traced)
    drop_unused_inputs(graph)
    name_dimensions(graph)
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
            drop_traced_mask(scores)
        else:
            limit_traced_mask(graph, scores)
        softmax.replace_input_with(0, insert(softmax, "Add", [softmax.inputs[0], bias]))


def drop_traced_mask(scores: ir.Value) -> None:
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


def limit_traced_mask(graph: ir.Graph, scores: ir.Value) -> None:
    """Let a traced mask be no lower than what masks padding, which float16 holds; it may be the lowest float32."""
    of_texts = values_of_texts(graph)
    lowest = constant(graph, "lowest_mask", np.array(MASKED, np.float32))
    node = scores.producer()
    while node is not None and node.op_type == "Add":
        mask = required(node.inputs[1])
        if mask not in of_texts or comes_from_mask_only(mask):
            node.replace_input_with(1, insert(node, "Max", [mask, lowest]))
        node = required(node.inputs[0]).producer()


def padding_of(graph: ir.Graph, padding: int, before: ir.Node) -> ir.Value:
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
        gather = gather_after(node)
        padding = required(compared_id(required(node.inputs[0])))
        counted = padding_of(graph, padding, gather)
        numbers = positions_of(graph, gather)
        column = insert(gather, "Unsqueeze", [numbers, constant(graph, "axis_1", np.array([1], np.int64))])
        until = insert(gather, "LessOrEqual", [column, numbers])
        triangle = insert(gather, "Cast", [until], {"to": ir.DataType.FLOAT.value})
        number = insert(gather, "Mul", [insert(gather, "MatMul", [counted, triangle]), counted])
        first = constant(graph, "padding_position", np.array(padding, np.float32))
        shifted = insert(gather, "Add", [number, first])
        gather.replace_input_with(1, insert(gather, "Cast", [shifted], {"to": ir.DataType.INT64.value}))


def gather_after(node: ir.Node) -> ir.Node:
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
            padding = compared_id(required(node.inputs[1]))
        else:
            continue
        picked = node.outputs[0]
        while (reshape := only_user(picked, "Reshape")) is not None:
            picked = reshape.outputs[0]
        replace(picked, last_tokens(graph, tokens, bias, padding, required(picked.producer())))


def last_tokens(graph: ir.Graph, tokens: ir.Value, bias: ir.Value, padding: int | None, before: ir.Node) -> ir.Value:
    """The embeddings (batch, width) of the last tokens that are not padding, of all (batch, tokens, width).

    `padding` is the id of a token that does not count either.
    """
    one, minus_one = (constant(graph, *number) for number in (_ONE, _MINUS_ONE))
    axis = constant(graph, "axis_1", np.array([1], np.int64))
    numbers = positions_of(graph, before)
    counts = insert(before, "Relu", [insert(before, "Add", [bias, one])])
    counts = insert(before, "Squeeze", [counts, constant(graph, "axes_1_2", np.array([1, 2], np.int64))])
    if padding is not None:
        counts = insert(before, "Mul", [counts, padding_of(graph, padding, before)])
    last = insert(before, "ReduceMax", [insert(before, "Mul", [counts, numbers]), axis], {"keepdims": 1})
    apart = insert(before, "Sub", [numbers, last])
    distance = insert(before, "Max", [apart, insert(before, "Mul", [apart, minus_one])])
    chosen = insert(before, "Relu", [insert(before, "Sub", [one, distance])])
    picked = insert(before, "MatMul", [insert(before, "Unsqueeze", [chosen, axis]), tokens])
    return insert(before, "Squeeze", [picked, axis])


def compared_id(value: ir.Value) -> int | None:
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


def split_heads_apart(graph: ir.Graph, heads: int) -> None:
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
        parts = size_asked_for(reshape, _PARTS_AXIS)
        picks = picks_of(transpose.outputs[0], order.index(_PARTS_AXIS))
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


def size_asked_for(reshape: ir.Node, axis: int) -> int | None:
    """The constant size that a Reshape asks for along an axis; None where it is computed."""
    shape = reshape.inputs[1]
    concat = required(shape).producer()
    if concat is not None and concat.op_type == "Concat" and len(concat.inputs) > axis:
        found = array_of(concat.inputs[axis])
        return int(found[0]) if found is not None and found.shape == (1,) else None
    found = array_of(shape)
    return int(found[axis]) if found is not None and len(found) > axis else None


def picks_of(value: ir.Value, axis: int) -> dict[ir.Value, int] | None:
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


def repeat_heads(graph: ir.Graph, own: int, heads: int) -> None:
    """Repeat the `own` heads of keys and values (grouped-query attention) by a Gather; CoreML has no Expand."""
    of_texts = values_of_texts(graph)
    for expand in [node for node in graph if node.op_type == "Expand" and node.outputs[0] in of_texts]:
        unsqueeze = required(expand.inputs[0]).producer()
        reshape = only_user(expand.outputs[0], "Reshape")
        if unsqueeze is None or unsqueeze.op_type != "Unsqueeze" or reshape is None:
            continue
        indices = constant(graph, f"heads_{own}_to_{heads}", np.repeat(np.arange(own), heads // own).astype(np.int64))
        replace(reshape.outputs[0], insert(reshape, "Gather", [unsqueeze.inputs[0], indices], {"axis": 1}))


def transpose_weights(graph: ir.Graph) -> None:
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


def stay_on_rows(graph: ir.Graph) -> None:
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
        elif can_run_on_rows(node, rows):
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


def can_run_on_rows(node: ir.Node, rows: Mapping[ir.Value, ir.Value]) -> bool:
    """Whether an operator treats each token on its own, and all that it reads is there in rows, or the same for all."""
    constants = [array for value in node.inputs if (array := array_of(value)) is not None]
    computed = [value for value in node.inputs if value is not None and array_of(value) is None]
    return (
        is_row_wise(node)
        and bool(computed)
        and all(value in rows for value in computed)
        and all(array.ndim <= 1 for array in constants)
    )


def use_supported_operators(graph: ir.Graph) -> None:
    """Compute with CoreML's operators what others compute in what depends on texts."""
    of_texts = values_of_texts(graph)
    for node in list(graph):
        rewrite = _REWRITES.get(node.op_type)
        if rewrite is not None and any(output in of_texts for output in node.outputs):
            rewrite(graph, node)


def negate(graph: ir.Graph, node: ir.Node) -> None:
    if node.outputs[0].dtype is ir.DataType.FLOAT:
        replace(node.outputs[0], insert(node, "Mul", [node.inputs[0], constant(graph, *_MINUS_ONE)]))


def invert(graph: ir.Graph, node: ir.Node) -> None:
    """Divide: CoreML's inverse adds 1e-4 to what it divides by."""
    replace(node.outputs[0], insert(node, "Div", [constant(graph, *_ONE), node.inputs[0]]))


_REWRITES: dict[str, Callable[[ir.Graph, ir.Node], None]] = {"Neg": negate, "Reciprocal": invert}
"""Operator that CoreML lacks -> what puts others in its place."""


def name_dimensions(graph: ir.Graph) -> None:
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
