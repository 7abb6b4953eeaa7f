"""What is done to a traced graph: fold, drop what whole texts do not need, merge, let it run on rows of tokens.

Every pass finds its place by the shape of the graph, never by a node's name, and leaves alone what it does not know.
"""

from __future__ import annotations

from itertools import groupby

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import common as passes
from onnxscript import rewriter
from onnxscript.rewriter.rules import common as rules

from exporters.nodes import (
    ATTENTION_MASK,
    POSITION_IDS,
    Linear,
    array_of,
    batch_alone,
    batch_and_length,
    constant,
    graph_input,
    insert,
    insert_linear,
    insert_node,
    length_and_batch,
    linears,
    only_user,
    replace,
    required,
    rows_of,
    token_count,
)
from exporters.stored_tensors import side_by_side
from runtime.graph_io import TOKEN_TYPE_IDS

# Operators that treat each token's row on its own, whatever dimensions stand before the last.
ROW_WISE = frozenset(
    {
        *("MatMul", "Add", "Mul", "LayerNormalization", "Gelu", "Tanh", "Relu", "Split"),
        # What other activations are made of.
        *("Clip", "Div", "Elu", "Erf", "Exp", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Neg", "Pow", "Selu"),
        *("Sigmoid", "Softplus", "Sqrt", "Sub"),
    }
)
LARGE = 2**17
"""More elements than a norm has."""
RMS_NORM = "SimplifiedLayerNormalization"
"""onnxruntime's operator for a layer norm that does not subtract the mean."""

REWRITINGS = rewriter.RewriteRuleSet(
    [
        *rules.mul_by_1_rule.commute(),
        *rules.add_0_rule.commute(),
        rules.sub_0_rule,
        rules.div_by_1_rule,
        rules.collapse_slice_rule,
        rules.no_op_cast_rule,
        rules.flatten_to_reshape_rule,
        rules.unsqueeze_unsqueeze_rule,
        rules.remove_optional_bias_from_gemm_rule,
    ]
)


def fold_constants(model: ir.Model) -> None:
    """Compute once what does not depend on the input, and drop what changes nothing.

    What `onnxscript.optimizer.optimize` does, with the few of its rewritings that a traced encoder gives rise to: it
    tries forty on every node, and took longer than the trace.
    """
    for _ in range(2):
        folded = onnxscript.optimizer.fold_constants(model, onnx_shape_inference=True)
        rewritten = rewriter.RewritePass(REWRITINGS)(model)
        passes.RemoveUnusedNodesPass()(model)
        if not (folded.modified or rewritten.modified):
            break
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)


def fold_small_constants(model: ir.Model) -> None:
    """Note the sizes of values, and compute once what does not depend on the input and is small, as norms' weights are.

    `fold_constants` does more by trying rewritings on every node.
    """
    onnxscript.optimizer.fold_constants(
        model, onnx_shape_inference=True, input_size_limit=LARGE, output_size_limit=LARGE
    )
    passes.IdentityEliminationPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    tidy(model)


def tidy(model: ir.Model) -> None:
    """Drop nodes, initializers and names that nothing reads any more."""
    passes.RemoveUnusedNodesPass()(model)
    passes.DeduplicateInitializersPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    model.graph.sort()


def drop_unused_inputs(graph: ir.Graph) -> None:
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)


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


def after(value: ir.Value) -> ir.Node:
    """The node that follows the one which makes a value."""
    producer = required(value.producer())
    nodes = list(required(value.graph))
    return nodes[nodes.index(producer) + 1]


def fuse_rms_norms(graph: ir.Graph) -> None:
    """Make one operator of `x / sqrt(mean(x * x) + epsilon) * weight` over the last axis."""
    for square in list(graph):
        if square.op_type != "Pow" or float(np.max(array_of(square.inputs[1]) or 0)) != 2:
            continue
        chain = [square]
        for op_type in ("ReduceMean", "Add", "Sqrt", "Div", "Mul", "Mul"):
            user = only_user(chain[-1].outputs[0], op_type)
            if user is None:
                break
            chain.append(user)
        else:
            _, mean, add, _, _, scaled, weighted = chain
            vectors = required(square.inputs[0])
            weight = next((value for value in weighted.inputs if array_of(value) is not None), None)
            axes, epsilon = array_of(mean.inputs[1]), array_of(add.inputs[1])
            if (
                weight is None
                or epsilon is None
                or axes is None
                or axes.tolist() != [-1]
                or vectors not in scaled.inputs
            ):
                continue
            attributes = {"axis": -1, "epsilon": float(epsilon), "stash_type": 1}
            replace(weighted.outputs[0], insert(weighted, RMS_NORM, [vectors, weight], attributes))


def merge_products(graph: ir.Graph) -> None:
    """Compute the products that read one value, such as query, key and value, in one product and split its result."""
    found = sorted(linears(graph), key=lambda linear: linear.input.name or "")
    for _, group in groupby(found, key=lambda linear: linear.input):
        parts = list(group)
        if len(parts) > 1:
            merge(graph, parts)


def merge(graph: ir.Graph, parts: list[Linear]) -> None:
    first = parts[0]
    nodes = list(graph)
    # The earliest of them: what reads any of the results comes after it.
    before = min((part.matmul for part in parts), key=nodes.index)
    weight = side_by_side([part.matrix for part in parts])
    biased = any(part.bias_add is not None for part in parts)
    bias = np.concatenate([part.bias for part in parts]) if biased else None
    product = insert_linear(before, first.input, f"{first.name}_merged", weight, bias)
    sizes = constant(graph, f"{first.name}_widths", np.array([part.outputs for part in parts], np.int64))
    split = insert_node(before, ir.node("Split", [product, sizes], {"axis": -1}, num_outputs=len(parts)))
    for part, output in zip(parts, split.outputs, strict=True):
        replace(part.output, output)


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

    Products and quantizers want rows, and the attention of `merge_attention` wants the first tokens of all texts first.
    Only the attention needs to know which row belongs to which text: it reshapes by the shape of the token ids, and its
    result to rows. Does nothing when the graph has an operator that would see the difference.
    """
    first = next(linears(graph), None)
    if first is None:
        return False
    start = first.input
    width = first.inputs
    rows_shape = rows_of(graph, width)
    found = values_in_rows(graph, start, rows_shape)
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
        give_tokens(graph, output, width)
    return True


def values_in_rows(
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
        elif node.inputs and node.inputs[0] in rows and is_first_token(node):
            picks.append(node)
        elif any(value in rows for value in node.inputs) and not (shape is not None and is_by_ids(shape)):
            if not is_row_wise(node):
                return None
            rows.update(node.outputs)
    return rows, picks


def give_tokens(graph: ir.Graph, output: ir.Value, width: int) -> None:
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


def is_first_token(node: ir.Node) -> bool:
    """Whether a node picks the first token of each text from (batch, tokens, width): (batch, width)."""
    return is_one_token(node) and array_of(node.inputs[1]) == 0


def first_rows(graph: ir.Graph, rows: ir.Value, before: ir.Node) -> ir.Value:
    """The first token of each text, (batch, width), of rows (tokens * batch, width) with the first tokens first."""
    zero = constant(graph, "axis_0", np.array([0], np.int64))
    return insert(before, "Slice", [rows, zero, batch_alone(graph), zero])


def set_head_apart(graph: ir.Graph) -> None:
    """Make a Gemm of each product that reads one vector a text, (batch, width), instead of one a token.

    What a classifier's head computes is little and decides its logits, so it is no product to be merged or quantized.
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


def is_by_ids(shape: ir.Value) -> bool:
    """Whether a shape begins with the length and the batch of the token ids."""
    producer = shape.producer()
    graph = shape.graph
    if producer is None or producer.op_type != "Concat" or not isinstance(graph, ir.Graph):
        return False
    return producer.inputs[0] is length_and_batch(graph)


def is_row_wise(node: ir.Node) -> bool:
    """Whether an operator treats each row alike when rows have lost a dimension before the last."""
    if node.op_type == "Slice":
        axes = array_of(node.inputs[3])
        return axes is not None and axes.tolist() == [-1]
    return node.op_type in ROW_WISE and node.attributes.get_int("axis", -1) == -1
