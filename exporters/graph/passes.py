"""What is done to a traced graph: fold, drop what whole texts do not need, merge, let it run on rows of tokens.

Every pass finds its place by the shape of the graph, never by a node's name, and leaves everything else as it is.
"""

from __future__ import annotations

from itertools import groupby

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import common as passes
from onnxscript import rewriter
from onnxscript.rewriter.rules import common as rules

from .nodes import Linear, array_of, constant, insert, insert_linear, insert_node, linears, only_user, replace, required
from .streamed_tensor import side_by_side

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

_REWRITINGS = rewriter.RewriteRuleSet(
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
        rewritten = rewriter.RewritePass(_REWRITINGS)(model)
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


def after(value: ir.Value) -> ir.Node:
    """The node that follows the one which makes a value."""
    producer = required(value.producer())
    nodes = list(required(value.graph))
    return nodes[nodes.index(producer) + 1]


# Not a rule of onnxscript, whose own (0.7) expects Reciprocal where PyTorch's exporter writes Div, and makes
# RMSNormalization of opset 23. Tried on 48 norms: a pattern of ours in its language finds all, in 52 ms instead of 8,
# but names the values otherwise, so that the bytes of every bundle with such norms would change for nothing.
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
    """Merge linear layers that read one value, such as query, key and value, into one and split its result."""
    found = sorted(linears(graph), key=lambda linear: linear.input.name or "")
    for _, group in groupby(found, key=lambda linear: linear.input):
        parts = list(group)
        if len(parts) > 1:
            _merge(graph, parts)


def _merge(graph: ir.Graph, parts: list[Linear]) -> None:
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


def is_row_wise(node: ir.Node) -> bool:
    """Whether an operator treats each row alike when rows have lost a dimension before the last."""
    if node.op_type == "Slice":
        axes = array_of(node.inputs[3])
        return axes is not None and axes.tolist() == [-1]
    return node.op_type in ROW_WISE and node.attributes.get_int("axis", -1) == -1
