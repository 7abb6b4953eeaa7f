"""An encoder's graph for CUDA: onnxruntime's MultiHeadAttention and RotaryEmbedding, and no operator on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.bundle.graph_io import INPUT_IDS, POSITIONS, TOKEN_TYPE_IDS
from ...runtime.bundle.manifest import Manifest
from ...runtime.errors import UnsupportedModelError
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.kind import required_int
from ..graph.nodes import ORT_DOMAIN, array_of, constant, insert, insert_node, required
from ..graph.passes import drop_unused_inputs, tidy
from .batch_sizes import CPU_INSTEAD
from .texts_first import SelfAttention, TextsFirst, fuse_attention, texts_first

_ATTENTION = "MultiHeadAttention"
_ROTARY = "RotaryEmbedding"
OPERATORS = frozenset(
    {
        *(_ATTENTION, _ROTARY, "MatMul", "Gemm", "Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Abs", "Neg", "Erf", "Exp"),
        *("LayerNormalization", "SimplifiedLayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "ReduceMax"),
        *("ReduceL2", "LpNormalization", "Gelu", "Tanh", "Sigmoid", "Relu", "Elu", "Selu", "LeakyRelu", "HardSigmoid"),
        *("HardSwish", "Softplus", "Softsign", "Clip", "Min", "Max", "Where", "Equal", "Not", "And", "Or", "Cast"),
        *("CumSum", "Gather", "GatherElements", "GatherND", "Split", "Slice", "Concat", "Reshape", "Transpose"),
        *("Unsqueeze", "Squeeze", "Expand", "Identity"),
    }
)
"""Operators with CUDA kernels for float32 and float16, and for the integers that ids are computed in."""


def rebuild_for_cuda(
    traced: ir.Model, checkpoint: Checkpoint, manifest: Manifest, *, scratch: Path | None = None
) -> None:
    """Turn a traced encoder into the float32 graph for CUDA.

    It reads token ids (texts, tokens), token types where pairs have them, and `positions` (tokens,) where something
    depends on them; it gives token embeddings (texts, tokens, width), or a reranker's logits (texts, labels).

    Raises UnsupportedModelError where a part of the graph has no form for CUDA.
    """
    found = texts_first(traced, checkpoint, manifest, scratch=scratch)
    writer = _Writer(found)
    layers = required_int(checkpoint, checkpoint.architecture.layers)
    if fuse_attention(found, writer.write) != layers:
        raise _unsupported(checkpoint, "the attention of a layer is not plain softmax attention")
    tidy(traced)
    drop_unused_inputs(traced.graph)
    _check_operators(traced.graph, checkpoint)
    names = [value.name for value in traced.graph.inputs]
    typed = manifest.reranker is not None and manifest.reranker.pair.document_type != 0
    wanted = [INPUT_IDS, *([TOKEN_TYPE_IDS] if typed else [])]
    if names not in (wanted, [*wanted, POSITIONS]):
        raise _unsupported(checkpoint, f"it has the inputs {names}")


def _check_operators(graph: ir.Graph, checkpoint: Checkpoint) -> None:
    """Raise UnsupportedModelError for an operator that onnxruntime's CUDA provider does not run."""
    for node in graph:
        if node.op_type not in OPERATORS:
            raise _unsupported(checkpoint, f"it has the operator `{node.op_type}`")


def _unsupported(checkpoint: Checkpoint, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"`{checkpoint.name}` traces to a graph that is not supported on CUDA: {reason}", hint=CPU_INSTEAD
    )


@dataclass(frozen=True)
class Rotation:
    """`vectors * cos + rotate_half(vectors) * sin`, as a traced graph computes it."""

    vectors: ir.Value
    """(texts, heads, tokens, width)"""
    cos: NDArray[np.float32]
    sin: NDArray[np.float32]
    """(length, width / 2)"""


@dataclass
class _Writer:
    """Writes attention as MultiHeadAttention, which takes (texts, tokens, heads * width)."""

    found: TextsFirst
    parts: dict[tuple[ir.Value, int], tuple[ir.Value, ...]] = field(default_factory=dict)

    @property
    def graph(self) -> ir.Graph:
        return self.found.model.graph

    def write(self, attention: SelfAttention) -> ir.Value:
        """Insert the attention; returns its context."""
        before = attention.before
        parts = (attention.query, attention.key, attention.value)
        inputs: list[ir.Value | None] = [self.rows(part, before) for part in parts]
        if attention.bias is not None:
            inputs += [None, None, attention.bias]
        attributes: dict[str, int | float] = {"num_heads": attention.heads, "scale": attention.scale}
        if attention.causal:
            attributes["unidirectional"] = 1
        return insert(before, _ATTENTION, inputs, attributes, domain=ORT_DOMAIN)

    def rows(self, heads: ir.Value, before: ir.Node) -> ir.Value:
        """(texts, heads, tokens, width) as (texts, tokens, heads * width), not copied where that is there already."""
        rotation = _match_rotation(heads)
        if rotation is not None:
            inputs = [
                self.rows(rotation.vectors, before),
                constant(self.graph, "first_position", np.array([0], np.int64)),
                self._table("cos", rotation.cos),
                self._table("sin", rotation.sin),
            ]
            return insert(before, _ROTARY, inputs, domain=ORT_DOMAIN)
        repeated = _match_repeated(heads)
        if repeated is not None:
            return self._repeat(*repeated, before)
        packed = _match_packed(heads)
        if packed is not None:
            return self._part(*packed, before)
        node = heads.producer()
        if node is not None and node.op_type == "Transpose" and _permutation(node) == (0, 2, 1, 3):
            split = required(node.inputs[0])
            reshape = split.producer()
            merged = required(reshape.inputs[0]) if reshape is not None and reshape.op_type == "Reshape" else None
            if merged is not None and _rank_of(merged, self.found) == 3:
                return merged
        else:
            split = insert(before, "Transpose", [heads], {"perm": [0, 2, 1, 3]})
        return insert(before, "Reshape", [split, self._shape(0, 0, -1)])

    def _repeat(self, heads: ir.Value, count: int, times: int, before: ir.Node) -> ir.Value:
        """Each of `count` heads several times in a row, as grouped queries share them."""
        rows = self.rows(heads, before)
        apart = insert(before, "Reshape", [rows, self._shape(0, 0, count, 1, -1)])
        more = insert(before, "Expand", [apart, self._shape(1, 1, 1, times, 1)])
        return insert(before, "Reshape", [more, self._shape(0, 0, -1)])

    def _part(self, packed: ir.Value, count: int, index: int, before: ir.Node) -> ir.Value:
        """One of the equal parts of (texts, tokens, count * heads * width)."""
        key = (packed, count)
        if key not in self.parts:
            node = ir.node("Split", [packed], {"axis": -1, "num_outputs": count}, num_outputs=count)
            self.parts[key] = tuple(insert_node(before, node).outputs)
        return self.parts[key][index]

    def _table(self, name: str, table: NDArray[np.float32]) -> ir.Value:
        return self.found.tables.held(name, table)

    def _shape(self, *sizes: int) -> ir.Value:
        name = f"shape_{'_'.join(map(str, sizes)).replace('-', 'm')}"
        return constant(self.graph, name, np.array(sizes, np.int64))


def _rank_of(value: ir.Value, found: TextsFirst) -> int | None:
    """How many axes a traced value has; None where it is not known."""
    if value in found.shapes:
        return len(found.shapes[value][0])
    return len(value.shape) if value.shape is not None else None


def _permutation(transpose: ir.Node) -> tuple[int, ...]:
    return tuple(transpose.attributes["perm"].as_ints())


def _match_rotation(heads: ir.Value) -> Rotation | None:
    """The rotation that makes a value, by angles looked up by position; None for any other value."""
    add = heads.producer()
    products = [required(value).producer() for value in add.inputs] if add is not None and add.op_type == "Add" else []
    if len(products) != 2 or any(node is None or node.op_type != "Mul" for node in products):
        return None
    for straight, turned in (products, products[::-1]):
        vectors, cos = _looked_up(required(straight))
        halves, sin = _looked_up(required(turned))
        if vectors is None or halves is None or cos is None or sin is None:
            continue
        half = cos.shape[-1] // 2
        doubled = all(np.array_equal(table[:, :half], table[:, half:]) for table in (cos, sin))
        if doubled and _turns_halves(halves, vectors, half):
            return Rotation(vectors, np.ascontiguousarray(cos[:, :half]), np.ascontiguousarray(sin[:, :half]))
    return None


def _looked_up(product: ir.Node) -> tuple[ir.Value | None, NDArray[np.float32] | None]:
    """What a Mul multiplies by rows of a table (length, width), and the table."""
    for place in (1, 0):
        gather = required(product.inputs[place]).producer()
        if gather is None or gather.op_type != "Gather" or required(gather.inputs[1]).name != POSITIONS:
            continue
        table = array_of(gather.inputs[0])
        if table is not None and table.dtype == np.float32 and table.size == table.shape[-1] * table.shape[-2]:
            return product.inputs[1 - place], table.reshape(table.shape[-2:]).astype(np.float32)
    return None, None


def _turns_halves(value: ir.Value, vectors: ir.Value, half: int) -> bool:
    """Whether a value is the second half of vectors, negated, and then their first half."""
    concat = value.producer()
    if concat is None or concat.op_type != "Concat" or len(concat.inputs) != 2:
        return False
    negative, first = required(concat.inputs[0]).producer(), required(concat.inputs[1])
    if negative is None or negative.op_type != "Neg":
        return False
    return _is_half(first, vectors, half, 0) and _is_half(required(negative.inputs[0]), vectors, half, 1)


def _is_half(value: ir.Value, vectors: ir.Value, half: int, which: int) -> bool:
    """Whether a value is the first or the second half of vectors along their last axis."""
    node = value.producer()
    if node is None or node.inputs[0] is not vectors:
        return False
    if node.op_type == "Split":
        sizes = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
        equal = len(node.outputs) == 2 and (sizes is None or sizes.tolist() == [half, half])
        return equal and node.attributes.get_int("axis", 0) in (-1, 3) and node.outputs[which] is value
    bounds = [array_of(part) for part in node.inputs[1:]]
    if node.op_type != "Slice" or len(bounds) < 3 or any(bound is None or bound.size != 1 for bound in bounds):
        return False
    start, end, axis, *step = (int(required(bound).reshape(())) for bound in bounds)
    wanted = start == 0 and end == half if which == 0 else start == half and end >= 2 * half
    return wanted and axis in (-1, 3) and step in ([], [1])


def _match_repeated(heads: ir.Value) -> tuple[ir.Value, int, int] | None:
    """Heads that grouped queries share: the value that is repeated, how many they are, and how often each stands."""
    reshape = heads.producer()
    expand = required(reshape.inputs[0]).producer() if reshape is not None and reshape.op_type == "Reshape" else None
    unsqueeze = required(expand.inputs[0]).producer() if expand is not None and expand.op_type == "Expand" else None
    if reshape is None or expand is None or unsqueeze is None or unsqueeze.op_type != "Unsqueeze":
        return None
    axes, times, target = (array_of(node.inputs[1]) for node in (unsqueeze, expand, reshape))
    if axes is None or times is None or target is None or axes.tolist() != [2]:
        return None
    if times.size != 5 or target.size != 4 or any(times[axis] != 1 for axis in (0, 1, 3, 4)):
        return None
    return required(unsqueeze.inputs[0]), int(target[1]) // int(times[2]), int(times[2])


def _match_packed(heads: ir.Value) -> tuple[ir.Value, int, int] | None:
    """One of queries, keys and values of a merged layer: its output, how many parts it has, and which one this is.

    Reshape makes (texts, tokens, parts, heads, width) of it, Transpose moves the parts elsewhere, and Gather or Split
    with Squeeze takes one of them.
    """
    picked = _picked(heads)
    if picked is None:
        return None
    packed, axis, index = picked
    node = packed.producer()
    if node is None or node.op_type != "Transpose":
        return None
    order = _permutation(node)
    reshape = required(node.inputs[0]).producer()
    sizes = array_of(reshape.inputs[1]) if reshape is not None and reshape.op_type == "Reshape" else None
    if reshape is None or sizes is None or sizes.size != 5 or len(order) != 5:
        return None
    if order[axis] != 2 or [one for one in order if one != 2] != [0, 3, 1, 4]:
        return None
    return required(reshape.inputs[0]), int(sizes[2]), index


def _picked(value: ir.Value) -> tuple[ir.Value, int, int] | None:
    """What one index along an axis was taken of, with the axis and the index."""
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Gather":
        index = array_of(node.inputs[1])
        if index is None or index.shape != ():
            return None
        return required(node.inputs[0]), node.attributes.get_int("axis", 0), int(index)
    split = required(node.inputs[0]).producer() if node.op_type == "Squeeze" else None
    axes = array_of(node.inputs[1]) if split is not None and len(node.inputs) > 1 else None
    if split is None or split.op_type != "Split" or axes is None or axes.size != 1:
        return None
    axis = split.attributes.get_int("axis", 0)
    sizes = array_of(split.inputs[1]) if len(split.inputs) > 1 else None
    if int(axes.reshape(())) != axis or (sizes is not None and set(sizes.tolist()) != {1}):
        return None
    return required(split.inputs[0]), axis, list(split.outputs).index(required(node.inputs[0]))
