"""DeBERTa's disentangled attention with texts and heads as two axes, as other attentions have them.

The trace has them as one axis, (texts * heads, tokens, width), whose size no constant shape gives. The terms for
relative positions (He et al. 2020, arXiv:2006.03654) pick a column for each pair of tokens with GatherElements.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graph.nodes import constant, replace, required
from .batch_sizes import SAMPLES, Arrays, BatchSizes, Shape, Sizes, unsupported
from .position_tables import Reach, Tables, table_of_differences

_GATHER = "GatherElements"


def separate_heads(sizes: BatchSizes, tables: Tables, reach: Reach) -> None:
    """Keep texts and heads apart in a graph that merges them; leaves other graphs alone.

    Raises UnsupportedModelError where what reads both at once is not known.
    """
    graph = sizes.graph
    merges = [node for node in graph if _merges(node, sizes)]
    if not merges:
        return
    heads = sizes.shapes[required(merges[0].inputs[0])][0][1]
    merged = {value for value, shapes in sizes.shapes.items() if _is_merged(shapes, heads)}
    static = [
        (node, place)
        for node, place in sizes.frontier()
        if node.op_type in ("MatMul", _GATHER) and _any_in(node, merged)
    ]
    samples = sizes.run_samples(required(node.inputs[place]) for node, place in static)
    indices = [required(node.inputs[place]) for node, place in static if node.op_type == _GATHER]
    trials = sizes.run(indices, Sizes(1, reach.trial))
    for node, place in static:
        value = required(node.inputs[place])
        if node.op_type == "MatMul":
            made = constant(graph, f"{value.name}_of_heads", _of_heads(samples[value], heads))
        else:
            made = _index(tables, samples[value], trials[value], heads, reach)
        node.replace_input_with(place, made)
    for node in list(graph):
        if node.op_type == "Transpose" and _any_in(node, merged) and len(node.attributes["perm"].as_ints()) == 3:
            order = node.attributes["perm"].as_ints()
            node.attributes["perm"] = ir.AttrInt64s("perm", [0, *(axis + 1 for axis in order)])
        elif node.op_type == _GATHER and _any_in(node, merged):
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
    for node in [node for node in graph if _merges(node, sizes) or _splits(node, sizes, heads)]:
        replace(node.outputs[0], required(node.inputs[0]))
        graph.remove(node, safe=True)
    for value in merged:
        value.shape = None
        if value in sizes.shapes:
            sizes.shapes[value] = tuple(
                (one.texts, heads, *shape[1:]) for one, shape in zip(SAMPLES, sizes.shapes[value], strict=True)
            )


def _is_merged(shapes: tuple[Shape, ...], heads: int) -> bool:
    """Whether a value has an axis of texts * heads and two others."""
    return all(len(shape) == 3 and shape[0] == one.texts * heads for one, shape in zip(SAMPLES, shapes, strict=True))


def _merges(node: ir.Node, sizes: BatchSizes) -> bool:
    """Whether a Reshape makes (texts * heads, tokens, width) of (texts, heads, tokens, width)."""
    source = sizes.shapes.get(required(node.inputs[0])) if node.op_type == "Reshape" else None
    target = sizes.shapes.get(node.outputs[0])
    if source is None or target is None:
        return False
    return all(
        len(before) == 4 and after == (before[0] * before[1], *before[2:])
        for before, after in zip(source, target, strict=True)
    )


def _any_in(node: ir.Node, values: set[ir.Value]) -> bool:
    return any(value in values for value in node.inputs)


def _splits(node: ir.Node, sizes: BatchSizes, heads: int) -> bool:
    """Whether a Reshape takes texts and heads apart again."""
    source = sizes.shapes.get(required(node.inputs[0])) if node.op_type == "Reshape" else None
    return source is not None and _is_merged(source, heads)


def _of_heads(samples: Arrays, heads: int) -> NDArray[np.generic]:
    """What is the same for every text, for the heads of one: (heads, ...)."""
    first = samples[0][:heads]
    for array in samples:
        if not np.array_equal(array, np.tile(first, (len(array) // heads, *(1,) * (array.ndim - 1)))):
            raise unsupported("a table of relative positions depends on the texts")
    return first


def _index(tables: Tables, samples: Arrays, trial: NDArray[np.generic], heads: int, reach: Reach) -> ir.Value:
    """The columns that pairs of tokens pick: int32 (texts, heads, tokens, tokens)."""
    for array in (*samples, trial):
        if not np.array_equal(array, np.broadcast_to(array[0], array.shape)):
            raise unsupported("relative positions depend on the texts or heads")
    table = table_of_differences(tuple(array[0] for array in samples), trial[0], reach)
    return tables.for_texts_and_heads(table, heads)
