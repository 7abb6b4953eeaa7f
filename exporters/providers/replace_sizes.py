"""Let a graph read tables and constants instead of what it computes from the sizes of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graph.nodes import array_of, constant, replace, required
from ..graph.passes import tidy
from .batch_sizes import SAMPLES, Arrays, BatchSizes, Shape, Sizes, same_number, unsupported
from .position_tables import Reach, Tables, finite, table_of_differences

_BROADCAST = frozenset({"Add", "And", "Div", "Equal", "Max", "Min", "Mul", "Or", "Pow", "Sub", "Where"})
"""Operators that broadcast an axis of size 1."""


def replace_sizes(sizes: BatchSizes, tables: Tables, reach: Reach) -> None:
    """Let a graph read tables and constants instead of what it computes from the sizes of a batch.

    Raises UnsupportedModelError where something depends on the sizes in another way.
    """
    places = sizes.frontier()
    values = {required(node.inputs[place]) for node, place in places}
    samples = sizes.run_samples(values)
    for node, place in places:
        value = required(node.inputs[place])
        if node.op_type in ("Reshape", "Expand") and place == 1:
            _fix_shape(sizes, node, samples[value])
        elif node.op_type == "Slice" and place > 0:
            _fix_bound(sizes, node, place, samples)
    # Some of what is left was read for its shape only.
    tidy(sizes.model)
    left = sizes.frontier()
    read = {required(node.inputs[place]) for node, place in left}
    trial = sizes.run(read, Sizes(1, reach.trial))
    rows = [value for value in read if _token_axes(samples[value]).count(_TOKENS) == 1]
    whole = sizes.run(rows, Sizes(1, reach.length))
    made: dict[ir.Value, _Made] = {}
    for node, place in left:
        value = required(node.inputs[place])
        if value not in made:
            made[value] = _made_of(tables, samples[value], trial[value], whole.get(value), reach)
        if made[value].broadcasts and node.op_type not in _BROADCAST:
            raise unsupported(f"`{node.op_type}` reads what depends on the number of texts")
        node.replace_input_with(place, made[value].value)


@dataclass(frozen=True)
class _Made:
    """What stands for a value."""

    value: ir.Value
    broadcasts: bool
    """Whether an axis has size 1 that was the number of texts."""


_TEXTS, _TOKENS = "texts", "tokens"


def _token_axes(samples: Arrays) -> list[int | str]:
    """What each axis of a value stands for: texts, tokens, or its constant size."""
    axes: list[int | str] = []
    for found in zip(*(array.shape for array in samples), strict=True):
        if len(set(found)) == 1:
            axes.append(int(found[0]))
        elif found == tuple(sizes.texts for sizes in SAMPLES):
            axes.append(_TEXTS)
        elif found == tuple(sizes.tokens for sizes in SAMPLES):
            axes.append(_TOKENS)
        else:
            raise unsupported(f"a value has the shapes {[array.shape for array in samples]}")
    return axes


def _made_of(
    tables: Tables, samples: Arrays, trial: NDArray[np.generic], whole: NDArray[np.generic] | None, reach: Reach
) -> _Made:
    axes = _token_axes(samples)
    one = [same_number(array) for array in (*samples, trial)]
    broadcasts = _TEXTS in axes
    if all(number is not None and number == one[0] for number in one):
        uniform = np.full((1,) * len(axes), one[0], trial.dtype)
        return _Made(_constant(tables, uniform), broadcasts or _TOKENS in axes)
    samples = tuple(_of_one_text(array, axes) for array in samples)
    at = [axis for axis, kind in enumerate(axes) if kind == _TOKENS]
    if not at and all(np.array_equal(array, trial) for array in samples):
        return _Made(_constant(tables, trial), broadcasts)
    if not at:
        return _Made(_function_of_count(tables, samples, trial, reach), broadcasts=True)
    if whole is not None:
        first = np.take(whole, [0], at[0])
        if np.array_equal(whole, np.broadcast_to(first, whole.shape)):
            return _Made(_constant(tables, first), broadcasts=True)
        return _Made(_of_positions(tables, (*samples, trial), whole, at[0]), broadcasts)
    if at == [len(axes) - 2, len(axes) - 1]:
        return _Made(tables.by_difference(table_of_differences(samples, trial, reach)), broadcasts)
    raise unsupported(f"a value has the axes {axes}")


def _of_positions(tables: Tables, shorter: Arrays, whole: NDArray[np.generic], axis: int) -> ir.Value:
    """The rows for the positions of the tokens of what was run for the largest number of tokens."""
    for array in shorter:
        if not np.array_equal(array, np.take(whole, range(array.shape[axis]), axis)):
            raise unsupported("what is computed for a position depends on the number of tokens")
    if whole.ndim == 1 and whole.dtype == np.int64 and np.array_equal(whole, np.arange(len(whole))):
        return tables.positions
    return tables.by_position(whole, axis)


def _constant(tables: Tables, array: NDArray[np.generic]) -> ir.Value:
    key = ("constant", array.shape, array.dtype.str, array.tobytes())
    if key not in tables.known:
        tables.known[key] = constant(tables.graph, f"of_sizes_{len(tables.known)}", finite(array))
    return tables.known[key]


def _of_one_text(array: NDArray[np.generic], axes: list[int | str]) -> NDArray[np.generic]:
    """An array whose axis of texts holds the same for each of them, for one."""
    for axis, kind in enumerate(axes):
        if kind == _TEXTS:
            first = np.take(array, [0], axis)
            if not np.array_equal(array, np.broadcast_to(first, array.shape)):
                raise unsupported("what is computed for a text depends on its number in the batch")
            array = first
    return array


_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "count": lambda tokens: tokens,
    "root": lambda tokens: float(np.sqrt(np.float32(tokens))),
    "sum": lambda tokens: tokens * (tokens + 1) / 2,
}
"""What poolings divide by."""


def _function_of_count(tables: Tables, samples: Arrays, trial: NDArray[np.generic], reach: Reach) -> ir.Value:
    """A scalar for an array of one number, which depends on the number of tokens."""
    counts = [*(sizes.tokens for sizes in SAMPLES), reach.trial]
    numbers = [same_number(array) for array in (*samples, trial)]
    for name, function in _FUNCTIONS.items():
        pairs = zip(counts, numbers, strict=True)
        if trial.dtype == np.float32 and all(n is not None and float(n) == function(c) for c, n in pairs):
            if name == "count":
                return tables.count()
            if name == "root":
                return tables.root_of_count()
            return tables.sum_of_places()
    raise unsupported("a number depends on the number of tokens")


def _fix_shape(sizes: BatchSizes, node: ir.Node, targets: Arrays) -> None:
    """Let a Reshape or an Expand have a constant shape: 0 or 1 for sizes that its input has, -1 for another one."""
    found = sizes.shapes[required(node.inputs[0])]
    kept = 0 if node.op_type == "Reshape" else 1
    shape = []
    for axis, wanted in enumerate(zip(*(target.tolist() for target in targets), strict=True)):
        own = [_own_size(one, axis, len(target), node.op_type) for one, target in zip(found, targets, strict=True)]
        if list(wanted) == own:
            shape.append(kept)
        elif len(set(wanted)) == 1:
            shape.append(int(wanted[0]))
        else:
            shape.append(-1)
    if shape.count(-1) > (1 if node.op_type == "Reshape" else 0):
        raise unsupported(f"`{node.op_type}` makes {[t.tolist() for t in targets]} of the shapes {list(found)}")
    if node.op_type == "Expand" and set(shape) == {1}:
        replace(node.outputs[0], required(node.inputs[0]))
        sizes.graph.remove(node, safe=True)
        return
    name = f"shape_{'_'.join(map(str, shape)).replace('-', 'm')}"
    node.replace_input_with(1, constant(sizes.graph, name, np.array(shape, np.int64)))


def _own_size(shape: Shape, axis: int, rank: int, op_type: str) -> int | None:
    """The size that the input has along an axis of the result: aligned left for Reshape, right for Expand."""
    place = axis if op_type == "Reshape" else axis - (rank - len(shape))
    return shape[place] if 0 <= place < len(shape) else None


def _fix_bound(sizes: BatchSizes, node: ir.Node, place: int, samples: dict[ir.Value, Arrays]) -> None:
    """Let a Slice have a constant bound, which may be the whole of an axis."""
    bounds = samples[required(node.inputs[place])]
    axes = array_of(node.inputs[3]) if len(node.inputs) > 3 else None
    found = sizes.shapes[required(node.inputs[0])]
    if all(np.array_equal(bounds[0], bound) for bound in bounds[1:]):
        fixed = bounds[0].astype(np.int64)
    elif (
        place == 2
        and axes is not None
        and all(
            bound.tolist() == [shape[int(axis)] for axis in axes] for bound, shape in zip(bounds, found, strict=True)
        )
    ):
        fixed = np.full(bounds[0].shape, np.iinfo(np.int64).max, np.int64)
    else:
        raise unsupported("`Slice` has a bound that depends on the sizes of the batch")
    name = f"bound_{'_'.join(map(str, fixed.tolist())).replace('-', 'm')}"
    node.replace_input_with(place, constant(sizes.graph, name, fixed))
