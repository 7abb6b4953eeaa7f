"""Rebuild a traced encoder for CoreML: one partition, fixed shapes, padding masked by a float input.

The traced graph is batch first, and its attention is MatMul, Softmax and MatMul already. What depends on shapes alone
(positions, rotary angles, windows, causal masks, relative distances) stays as traced: onnxruntime computes it once when
the shapes are fixed, and CoreML sees constants. What is changed is what depends on token ids.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.bundle.graph_io import BIAS, INPUT_IDS, TOKEN_TYPE_IDS
from ...runtime.bundle.manifest import Buckets, Manifest
from ...runtime.errors import UnsupportedModelError
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.kind import required_int
from ..graph.external_data import LARGEST_PROTOBUF, weights_bytes
from ..graph.nodes import (
    array_of,
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
from ..graph.passes import drop_unused_inputs, fold_constants, merge_products, tidy
from .attention import comes_from_mask_only
from .coreml_partition import BATCH, TOKENS
from .flatten import assume_whole_texts, drop_token_types, is_one_token, rows_at_products, set_head_apart

_BUCKET_TOKENS = (64, 128, 256, 512)
_BUCKET_TEXTS = (1, 8)
_DIMENSIONS_OF_PARTS, _PARTS_AXIS = 5, 2
"""Of (batch, tokens, parts, heads, size), as some models see the product of query, key and value."""


def buckets_for(max_length: int) -> Buckets:
    """The fixed shapes of a model's sessions: powers of two of tokens up to its limit, and texts 1 and 8.

    Few, because CoreML compiles and holds a model for each.
    """
    tokens = [size for size in _BUCKET_TOKENS if size < max_length]
    size = 2 * _BUCKET_TOKENS[-1]
    while size < max_length:
        tokens.append(size)
        size *= 2
    return Buckets((*tokens, max_length), _BUCKET_TEXTS)


def rebuild_for_coreml(traced: ir.Model, checkpoint: Checkpoint, manifest: Manifest) -> None:
    """Turn a traced encoder into one that CoreML can run whole, on padded batches of fixed shapes.

    It reads `input_ids` (batch, tokens), for pairs with token types also `token_type_ids`, and `bias`
    (batch, 1, 1, tokens); an embedder gives token embeddings (batch, tokens, width), a reranker logits (batch, labels).

    Raises UnsupportedModelError for weights that do not fit the graph's own file.
    """
    graph = traced.graph
    reranker = manifest.reranker
    fold_constants(traced)
    if weights_bytes(traced) > LARGEST_PROTOBUF:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` has {weights_bytes(traced) / 1e9:.1f} GB of weights, and a graph for CoreML at most "
            f"{LARGEST_PROTOBUF / 1e9:.1f} GB, because CoreML reads no external data",
            hint="use `--provider cpu`",
        )
    if reranker is None or reranker.pair.document_type == 0:
        drop_token_types(graph)
    set_head_apart(graph)
    bias = add_bias_input(graph)
    mask_attention(graph, bias)
    assume_whole_texts(graph)
    if checkpoint.architecture.positions_after_padding:
        number_positions(graph)
    if reranker is not None and checkpoint.architecture.reads_last_token:
        read_last_token(graph, bias)
    split_heads_apart(graph)
    repeat_heads(graph, required_int(checkpoint, checkpoint.architecture.heads))
    merge_products(graph)
    rows_at_products(graph)
    transpose_weights(graph)
    use_supported_operators(graph)
    tidy(traced)
    drop_unused_inputs(graph)
    name_dimensions(graph)
    inputs = [INPUT_IDS, *([TOKEN_TYPE_IDS] if graph_input(graph, TOKEN_TYPE_IDS) is not None else []), BIAS]
    if [value.name for value in graph.inputs] != inputs:
        raise UnsupportedModelError(f"`{checkpoint.name}` traces to a graph that is not that of an encoder")


def add_bias_input(graph: ir.Graph) -> ir.Value:
    """Add the input that masks padding: float32 (batch, 1, 1, tokens), 0 or -10,000."""
    bias = ir.val(BIAS, ir.DataType.FLOAT, [BATCH, 1, 1, TOKENS])
    graph.inputs.append(bias)
    return bias


def mask_attention(graph: ir.Graph, bias: ir.Value) -> None:
    """Add `bias` to the scores of every attention, in place of the mask that was traced."""
    for softmax in [node for node in graph if node.op_type == "Softmax"]:
        drop_traced_mask(required(softmax.inputs[0]))
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


def padding_of(graph: ir.Graph, padding: int, vocabulary: int, before: ir.Node) -> ir.Value:
    """1 for each token id but `padding`, for which it is 0: float32 (batch, tokens)."""
    table = np.ones(vocabulary, np.float32)
    table[padding] = 0
    ids = required(graph_input(graph, INPUT_IDS))
    return insert(before, "Gather", [constant(graph, "not_padding", table), ids])


def number_positions(graph: ir.Graph) -> None:
    """Count tokens that are not the padding token by a matmul, as RoBERTa numbers positions; CoreML has no CumSum."""
    for node in [node for node in graph if node.op_type == "CumSum"]:
        padding = next((array_of(value) for value in equal_before(node).inputs if array_of(value) is not None), None)
        gather = gather_after(node)
        rows = int(required(constant_of(gather.inputs[0])).shape.numpy()[0])
        first = int(required(padding).reshape(()))
        embedding = next(node for node in graph if is_embedding(node))
        vocabulary = int(required(constant_of(embedding.inputs[0])).shape.numpy()[0])
        counted = padding_of(graph, first, vocabulary, gather)
        numbers = positions_of(graph, gather)
        one = constant(graph, "axis_1", np.array([1], np.int64))
        column = insert(gather, "Unsqueeze", [numbers, one])
        until = insert(gather, "LessOrEqual", [column, numbers])
        triangle = insert(gather, "Cast", [until], {"to": ir.DataType.FLOAT.value})
        total = insert(gather, "MatMul", [counted, triangle])
        number = insert(gather, "Mul", [total, counted])
        offset = constant(graph, "first_position", np.array(first, np.float32))
        shifted = insert(gather, "Add", [number, offset])
        places = insert(gather, "Cast", [shifted], {"to": ir.DataType.INT64.value})
        if rows <= first:
            raise ValueError("a table of positions has more rows than the padding token's id")
        gather.replace_input_with(1, places)


def equal_before(node: ir.Node) -> ir.Node:
    """The Equal that a count starts from."""
    found = node
    while found.op_type != "Equal":
        found = required(required(found.inputs[0]).producer())
    return found


def gather_after(node: ir.Node) -> ir.Node:
    """The Gather from a constant table whose indices a node gives."""
    waiting = [node]
    while waiting:
        user = waiting.pop()
        if user.op_type == "Gather" and constant_of(user.inputs[0]) is not None:
            return user
        waiting.extend(following for output in user.outputs for following, _ in output.uses())
    raise ValueError("nothing reads a table by the positions")


def is_embedding(node: ir.Node) -> bool:
    """Whether a node looks up token ids."""
    ids = node.inputs[1] if node.op_type == "Gather" else None
    return ids is not None and ids.name == INPUT_IDS and ids.is_graph_input()


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
    for node in [node for node in graph if reads_last(node)]:
        one = constant(graph, "one", np.array(1, np.float32))
        minus_one = constant(graph, "minus_one", np.array(-1, np.float32))
        last_axis, middle = (
            constant(graph, "axis_1", np.array([1], np.int64)),
            constant(graph, "axes_1_2", np.array([1, 2])),
        )
        numbers = positions_of(graph, node)
        shown = insert(node, "Relu", [insert(node, "Add", [bias, one])])
        places = insert(node, "Mul", [insert(node, "Squeeze", [shown, middle]), numbers])
        if (padding := compared_id(node)) is not None:
            embedding = next(node for node in graph if is_embedding(node))
            vocabulary = int(required(constant_of(embedding.inputs[0])).shape.numpy()[0])
            places = insert(node, "Mul", [places, padding_of(graph, padding, vocabulary, node)])
        last = insert(node, "ReduceMax", [places, last_axis], {"keepdims": 1})
        apart = insert(node, "Sub", [numbers, last])
        distance = insert(node, "Max", [apart, insert(node, "Mul", [apart, minus_one])])
        chosen = insert(node, "Relu", [insert(node, "Sub", [one, distance])])
        row = insert(node, "Unsqueeze", [chosen, last_axis])
        picked = insert(node, "MatMul", [row, required(node.inputs[0])])
        replace(node.outputs[0], insert(node, "Squeeze", [picked, last_axis]))


def reads_last(node: ir.Node) -> bool:
    """Whether a node picks the last token of each text from (batch, tokens, width)."""
    if node.op_type == "GatherND":
        return True
    return is_one_token(node) and array_of(node.inputs[1]) == -1


def compared_id(node: ir.Node) -> int | None:
    """The token id with which the indices of a GatherND compare the token ids; None for other nodes."""
    waiting = [required(node.inputs[1])] if node.op_type == "GatherND" else []
    while waiting:
        producer = waiting.pop().producer()
        if producer is not None and producer.op_type == "Equal":
            compared = next((array_of(value) for value in producer.inputs if array_of(value) is not None), None)
            if compared is not None and any(value is not None and value.name == INPUT_IDS for value in producer.inputs):
                return int(compared.reshape(()))
        if producer is not None:
            waiting.extend(value for value in producer.inputs if value is not None)
    return None


def split_heads_apart(graph: ir.Graph) -> None:
    """Take query, key and value from a product by a Split, where a trace picks them from five dimensions.

    CoreML picks from four dimensions at most.
    """
    for transpose in [node for node in graph if node.op_type == "Transpose"]:
        reshape = required(transpose.inputs[0]).producer()
        order = transpose.attributes["perm"].as_ints()
        shape = transpose.inputs[0].shape
        if reshape is None or reshape.op_type != "Reshape" or len(order) != _DIMENSIONS_OF_PARTS or shape is None:
            continue
        picks = [node for node, _ in transpose.outputs[0].uses()]
        parts, heads, size = shape[_PARTS_AXIS:]
        if any(pick_of(node, order.index(_PARTS_AXIS)) is None for node in picks):
            continue
        split = ir.node("Split", [reshape.inputs[0]], {"axis": -1, "num_outputs": parts}, num_outputs=parts)
        insert_node(reshape, split)
        into_heads = constant(graph, f"into_heads_{heads}_{size}", np.array([0, 0, heads, size], np.int64))
        kept = [axis - (axis > _PARTS_AXIS) for axis in order if axis != _PARTS_AXIS]
        for pick in picks:
            part = split.outputs[required(pick_of(pick, order.index(_PARTS_AXIS)))]
            headed = insert(pick, "Reshape", [part, into_heads])
            replace(pick.outputs[0], insert(pick, "Transpose", [headed], {"perm": kept}))


def pick_of(node: ir.Node, axis: int) -> int | None:
    """Which part along `axis` a Gather with one constant index picks; None for any other node."""
    index = array_of(node.inputs[1]) if node.op_type == "Gather" else None
    if index is None or index.shape != () or node.attributes.get_int("axis", 0) != axis:
        return None
    return int(index)


def repeat_heads(graph: ir.Graph, heads: int) -> None:
    """Repeat the heads of keys and values (grouped-query attention) by a Gather; CoreML has no Expand."""
    for expand in [node for node in graph if node.op_type == "Expand"]:
        unsqueeze = required(expand.inputs[0]).producer()
        reshape = only_user(expand.outputs[0], "Reshape")
        if unsqueeze is None or unsqueeze.op_type != "Unsqueeze" or reshape is None:
            continue
        source = required(unsqueeze.inputs[0])
        if source.shape is None or len(source.shape) != 4 or not isinstance(source.shape[1], int):
            continue
        own = source.shape[1]
        repeated = np.repeat(np.arange(own), heads // own)
        indices = constant(graph, f"heads_{own}_to_{heads}", repeated.astype(np.int64))
        replace(reshape.outputs[0], insert(reshape, "Gather", [source, indices], {"axis": 1}))


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


def use_supported_operators(graph: ir.Graph) -> None:
    """Compute with CoreML's operators what others compute in what depends on texts."""
    of_texts = values_of_texts(graph)
    for node in list(graph):
        rewrite = _REWRITES.get(node.op_type)
        if rewrite is not None and any(output in of_texts for output in node.outputs):
            rewrite(graph, node)


def negate(graph: ir.Graph, node: ir.Node) -> None:
    minus_one = constant(graph, "minus_one", np.array(-1, np.float32))
    replace(node.outputs[0], insert(node, "Mul", [node.inputs[0], minus_one]))


def invert(graph: ir.Graph, node: ir.Node) -> None:
    """Divide: CoreML's inverse adds 1e-4 to what it divides by."""
    one = constant(graph, "one", np.array(1, np.float32))
    replace(node.outputs[0], insert(node, "Div", [one, node.inputs[0]]))


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
