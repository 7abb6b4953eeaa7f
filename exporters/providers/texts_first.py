"""Encoders on (texts, tokens, width) without Shape, If or Loop: the graph that other providers than the CPU start from.

The number of tokens comes in as the input `positions` where the graph needs it. What a provider computes attention with
is its own: see `fuse_attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...runtime.bundle.graph_io import POSITIONS
from ...runtime.bundle.manifest import Manifest
from ..checkpoint.checkpoint import Checkpoint
from ..graph.attention import scaled
from ..graph.flatten import assume_whole_texts, drop_token_types
from ..graph.nodes import array_of, constant, insert, only_user, replace, required
from ..graph.passes import drop_unused_inputs, fold_constants, fuse_rms_norms, tidy
from .batch_sizes import SAMPLES, BatchSizes, Shape, same_number, unsupported
from .disentangled import separate_heads
from .position_tables import Reach, Tables
from .replace_sizes import replace_sizes


@dataclass(frozen=True, eq=False)
class SelfAttention:
    """Softmax attention as it was traced."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    """Each (texts, heads, tokens, width of a head), keys and values as often as queries."""
    heads: int
    width: int
    """Of a head."""
    scale: float
    bias: ir.Value | None
    """What is added to the scaled scores: (texts or 1, heads or 1, tokens, tokens)."""
    causal: bool
    """Whether each token sees itself and those before it only."""
    before: ir.Node
    """A node before which new ones can stand."""


@dataclass(frozen=True, eq=False)
class TextsFirst:
    """An encoder's graph without sizes."""

    model: ir.Model
    tables: Tables
    shapes: dict[ir.Value, tuple[Shape, ...]]
    """Shapes of traced values at sample sizes."""


def texts_first(
    traced: ir.Model, checkpoint: Checkpoint, manifest: Manifest, *, scratch: Path | None = None
) -> TextsFirst:
    """Make a traced encoder read token ids (texts, tokens) without padding, and `positions`, and compute no sizes.

    It gives token embeddings (texts, tokens, width), and a reranker logits (texts, labels).

    Raises UnsupportedModelError where it depends on the sizes of a batch in a way that is not supported.
    """
    graph = traced.graph
    fold_constants(traced)
    if manifest.reranker is None or manifest.reranker.pair.document_type == 0:
        drop_token_types(graph)
    assume_whole_texts(graph)
    fuse_rms_norms(graph)
    tidy(traced)
    drop_unused_inputs(graph)
    _name_values(graph)
    sizes = BatchSizes(traced, scratch=scratch)
    if _choose_branches(sizes):
        fold_constants(traced)
        _name_values(graph)
        sizes = BatchSizes(traced, scratch=scratch)
    length = manifest.tokenizer.max_length
    tables, reach = Tables(sizes), Reach(length, _window_of(checkpoint, length))
    _pick_own_tokens(sizes)
    _pick_same_token(sizes)
    separate_heads(sizes, tables, reach)
    tidy(traced)
    replace_sizes(sizes, tables, reach)
    tidy(traced)
    _drop_neutral(graph, sizes.shapes)
    _average_tokens(graph, tables)
    tidy(traced)
    _name_axes(graph)
    return TextsFirst(traced, tables, sizes.shapes)


def _name_values(graph: ir.Graph) -> None:
    """Give every value that a node makes a name of its own."""
    values = [value for node in graph for value in node.outputs]
    used = {value.name for value in values}
    free = (name for name in map("value_{}".format, count()) if name not in used)
    for value in values:
        value.name = value.name or next(free)


def _name_axes(graph: ir.Graph) -> None:
    """Name the axes of inputs and outputs whose sizes differ between batches."""
    for value in graph.inputs:
        value.shape = ir.Shape(["tokens"] if value.name == POSITIONS else ["batch", "tokens"])
    output = graph.outputs[0]
    shape = required(output.shape)
    output.shape = ir.Shape(["batch", *(["tokens"] if len(shape) == 3 else []), shape[-1]])


def _choose_branches(sizes: BatchSizes) -> bool:
    """Let the condition of every If be the constant that it is for all batches; returns whether there is any."""
    places = [(node, place) for node, place in sizes.frontier() if node.op_type == "If"]
    conditions = [required(node.inputs[place]) for node, place in places]
    for value, samples in sizes.run_samples(conditions).items():
        if any(bool(array) != bool(samples[0]) for array in samples):
            raise unsupported("a condition depends on them")
        chosen = constant(sizes.graph, f"{value.name}_chosen", np.array(bool(samples[0])))
        for node in [node for node, _ in value.uses() if node.op_type == "If"]:
            # The branch that goes would still count as reading what it reads.
            left = node.attributes["else_branch" if bool(samples[0]) else "then_branch"].as_graph()
            for inner in ir.traversal.RecursiveGraphIterator(left):
                for place in range(len(inner.inputs)):
                    inner.replace_input_with(place, None)
        value.replace_all_uses_with(chosen)
    return bool(places)


def _pick_own_tokens(sizes: BatchSizes) -> None:
    """Let a Gather from the rows of all texts pick a token of each text instead.

    Classifiers pick the last token that is not padding so: (texts * tokens, width) by its number in the text plus the
    number of the text times the number of tokens.
    """
    for node in list(sizes.graph):
        flat = required(node.inputs[0]).producer() if node.op_type == "Gather" else None
        add = required(node.inputs[1]).producer() if flat is not None and flat.op_type == "Reshape" else None
        if flat is None or add is None or add.op_type != "Add" or node.attributes.get_int("axis", 0) != 0:
            continue
        own = [value for value in add.inputs if value in sizes.of_texts]
        starts = [required(value) for value in add.inputs if value not in sizes.of_texts]
        vectors = required(flat.inputs[0])
        if len(own) != 1 or len(starts) != 1 or [len(shape) for shape in sizes.shapes.get(vectors, ())] != [3, 3]:
            continue
        samples = sizes.run_samples(starts)[starts[0]]
        if all(
            array.tolist() == [n * one.tokens for n in range(one.texts)]
            for array, one in zip(samples, SAMPLES, strict=True)
        ):
            last = constant(sizes.graph, "last_axis", np.array([-1], np.int64))
            numbers = insert(node, "Unsqueeze", [own[0], last])
            picked = insert(node, "GatherND", [vectors, numbers], {"batch_dims": 1})
            sizes.of_texts |= {numbers, picked}
            replace(node.outputs[0], picked)


def _pick_same_token(sizes: BatchSizes) -> None:
    """Let a Gather take the first or the last token of every text, as poolings do with GatherElements."""
    for node, place in sizes.frontier():
        vectors = sizes.shapes.get(required(node.inputs[0]))
        if node.op_type != "GatherElements" or place != 1 or vectors is None or len(vectors[0]) != 3:
            continue
        indices = sizes.run_samples([required(node.inputs[1])])[required(node.inputs[1])]
        picked = [same_number(array) for array in indices]
        of_one_token = all(
            array.shape == (shape[0], 1, shape[2]) for array, shape in zip(indices, vectors, strict=True)
        )
        if node.attributes.get_int("axis", 0) != 1 or not of_one_token:
            continue
        for token, expected in ((0, [0, 0]), (-1, [one.tokens - 1 for one in SAMPLES])):
            if picked == expected:
                name = "first_token" if token == 0 else "last_token"
                number = constant(sizes.graph, name, np.array([token], np.int64))
                found = insert(node, "Gather", [node.inputs[0], number], {"axis": 1})
                sizes.of_texts.add(found)
                replace(node.outputs[0], found)
                sizes.graph.remove(node, safe=True)
                break


def _window_of(checkpoint: Checkpoint, length: int) -> int:
    """The size of the local attention that a config.json asks for, 0 where it holds all of a text."""
    config = checkpoint.config
    found = [config.get("local_attention"), config.get("sliding_window") if config.get("use_sliding_window") else None]
    return max((size for size in found if isinstance(size, int) and size < 2 * length), default=0)


def _drop_neutral(graph: ir.Graph, shapes: dict[ir.Value, tuple[Shape, ...]]) -> None:
    """Drop what adds 0, multiplies by 1, or chooses by a mask that hides nothing."""
    for node in list(graph):
        kept = _kept_input(node)
        constants = [array for value in node.inputs if (array := array_of(value)) is not None]
        if kept is None or kept not in shapes or any(array.ndim > len(shapes[kept][0]) for array in constants):
            continue
        if node.outputs[0].is_graph_output() and required(kept.producer()) is None:
            continue
        replace(node.outputs[0], kept)
        graph.remove(node, safe=True)


def _kept_input(node: ir.Node) -> ir.Value | None:
    """The input that an operator gives as it is; None where it changes it."""
    if node.op_type == "Where":
        mask = array_of(node.inputs[0])
        if mask is None or mask.size != 1:
            return None
        return node.inputs[1 if mask.reshape(())[()] else 2]
    neutral = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}.get(node.op_type)
    if neutral is None:
        return None
    for place in (1, 0) if node.op_type in ("Add", "Mul") else (1,):
        array = array_of(node.inputs[place])
        if array is not None and array.size == 1 and same_number(array) == neutral:
            return node.inputs[1 - place]
    return None


def _average_tokens(graph: ir.Graph, tables: Tables) -> None:
    """Let one operator compute a mean over tokens, whose sum float16 may not hold."""
    tokens = tables.known.get(("count",))
    for node in list(graph):
        if node.op_type != "Div" or tokens is None or node.inputs[1] is not tokens:
            continue
        total = required(node.inputs[0]).producer()
        if total is None or total.op_type != "ReduceSum" or only_user(total.outputs[0], "Div") is not node:
            continue
        axes = array_of(total.inputs[1])
        if axes is not None and axes.tolist() in ([1], [-2]):
            keep = {"keepdims": total.attributes.get_int("keepdims", 1)}
            replace(node.outputs[0], insert(node, "ReduceMean", [total.inputs[0], total.inputs[1]], keep))


def fuse_attention(found: TextsFirst, write: Callable[[SelfAttention], ir.Value]) -> int:
    """Compute every attention by what `write` inserts, (texts, tokens, heads * width); returns how many there are."""
    graph = found.model.graph
    fused = 0
    for softmax in [node for node in graph if node.op_type == "Softmax"]:
        matched = _match_self_attention(softmax, found)
        if matched is not None:
            context, attention = matched
            replace(context, write(attention))
            fused += 1
    tidy(found.model)
    return fused


def _match_self_attention(softmax: ir.Node, found: TextsFirst) -> tuple[ir.Value, SelfAttention] | None:
    """The attention around a Softmax, and the value of its context, (texts, tokens, heads * width)."""
    added, node = _added_scores(softmax)
    scale, product = scaled(node)
    weighted = only_user(softmax.outputs[0], "MatMul")
    back = only_user(weighted.outputs[0], "Transpose") if weighted is not None else None
    context = only_user(back.outputs[0], "Reshape") if back is not None else None
    if product is None or product.op_type != "MatMul" or weighted is None or back is None or context is None:
        return None
    if weighted.inputs[0] is not softmax.outputs[0] or tuple(back.attributes["perm"].as_ints()) != (0, 2, 1, 3):
        return None
    query_scale, query = _scaled_value(required(product.inputs[0]))
    key_scale, turned = _scaled_value(required(product.inputs[1]))
    key = _untransposed(turned, softmax)
    shape = found.shapes.get(required(product.inputs[0]))
    if key is None or shape is None or len(shape[0]) != 4:
        return None
    bias, causal = joined(added, found.tables, softmax)
    attention = SelfAttention(
        query=query,
        key=key,
        value=required(weighted.inputs[1]),
        heads=shape[0][1],
        width=shape[0][3],
        scale=scale * query_scale * key_scale,
        bias=bias,
        causal=causal,
        before=softmax,
    )
    return context.outputs[0], attention


def _added_scores(softmax: ir.Node) -> tuple[list[ir.Value], ir.Node | None]:
    """What is added to the scores before a Softmax, and the node that makes the scores."""
    node = required(softmax.inputs[0]).producer()
    added = []
    while node is not None and node.op_type == "Add":
        added.append(required(node.inputs[1]))
        node = required(node.inputs[0]).producer()
    return added, node


def _scaled_value(value: ir.Value) -> tuple[float, ir.Value]:
    """The factor of a Mul or Div by one number that makes a value, and what it is applied to."""
    node = value.producer()
    factor, before = scaled(node)
    return (1.0, value) if node is None or before is node else (factor, required(node.inputs[0]))


def _untransposed(turned: ir.Value, before: ir.Node) -> ir.Value | None:
    """Keys (texts, heads, tokens, width) of what queries are multiplied by, (texts, heads, width, tokens)."""
    node = turned.producer()
    if node is None or node.op_type != "Transpose":
        return None
    permutation = tuple(node.attributes["perm"].as_ints())
    if permutation == (0, 1, 3, 2):
        return node.inputs[0]
    if permutation == (0, 2, 3, 1):
        return insert(before, "Transpose", [node.inputs[0]], {"perm": [0, 2, 1, 3]})
    return None


def joined(added: list[ir.Value], tables: Tables, before: ir.Node) -> tuple[ir.Value | None, bool]:
    """The sum of what is added to scores, in four dimensions, and whether it is the mask of later tokens alone."""
    if len(added) == 1 and added[0] in tables.causal:
        return None, True
    terms = []
    for value in added:
        rank = len(value.shape) if value.shape is not None else 4
        axes = np.arange(4 - rank, dtype=np.int64)
        lacking = constant(tables.graph, f"first_{len(axes)}_axes", axes)
        terms.append(insert(before, "Unsqueeze", [value, lacking]) if len(axes) else value)
    if not terms:
        return None, False
    total = terms[0]
    for term in terms[1:]:
        total = insert(before, "Add", [total, term])
    return total, False
