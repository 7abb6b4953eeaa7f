"""Tables looked up by `positions`, in place of what a traced graph computes from the sizes of a batch.

`positions` is an input of the graph, int64 (tokens,), 0 ... tokens - 1. With it the graph needs no Shape: absolute
positions and rotary angles are rows of a table, and what depends on two positions (attention biases and windows) is
looked up by their difference.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.bundle.graph_io import POSITIONS
from ..graph.nodes import constant, insert
from .batch_sizes import Arrays, BatchSizes, unsupported

MASKED = -3e4
"""What is added to the score of a masked pair: float16 holds it and its sum with any score."""
_HIDDEN = -1e30
"""At or below this, traces mean a masked pair."""
_WHOLE, _SHORT = 1024, 256
"""Functions of two positions are run for all tokens of models up to the first length; for others, for the second."""


@dataclass(frozen=True)
class Reach:
    """How far positions matter to a model."""

    length: int
    """The model's limit in tokens."""
    window: int = 0
    """The largest distance at which a mask or a bias may change its form: the size of local attention."""

    @property
    def trial(self) -> int:
        """Tokens at which functions of two positions are run: far enough to see their form."""
        return self.length if self.length <= _WHOLE else min(self.length, max(_SHORT, 2 * self.window + 2))


@dataclass
class Tables:
    """The lookups that a graph has so far."""

    sizes: BatchSizes
    known: dict[tuple[object, ...], ir.Value] = field(default_factory=dict)
    causal: set[ir.Value] = field(default_factory=set)
    """Lookups by difference that mask later tokens and do nothing else."""
    count_of_nodes: int = 0

    @property
    def graph(self) -> ir.Graph:
        return self.sizes.graph

    @property
    def positions(self) -> ir.Value:
        found = next((value for value in self.graph.inputs if value.name == POSITIONS), None)
        if found is None:
            found = ir.val(POSITIONS, ir.DataType.INT64, ["tokens"])
            self.graph.inputs.append(found)
            self.sizes.of_texts.add(found)
        return found

    def by_position(self, table: NDArray[np.generic], axis: int) -> ir.Value:
        """The rows of a table along `axis` for the positions of the tokens."""
        shape = [*table.shape[:axis], "tokens", *table.shape[axis + 1 :]]
        return self._lookup(table, self.positions, axis, shape)

    def by_difference(self, table: NDArray[np.generic]) -> ir.Value:
        """(..., tokens, tokens): the entries of a table (..., 2 * length - 1) for query minus key position."""
        value = self._lookup(table, self._differences(table.shape[-1] // 2), table.ndim - 1, None)
        value.shape = ir.Shape([*table.shape[:-1], "tokens", "tokens"])
        if _is_causal(table):
            self.causal.add(value)
        return value

    def for_texts_and_heads(self, table: NDArray[np.generic], heads: int) -> ir.Value:
        """The entries of a table of integers by difference: int32 (texts, heads, tokens, tokens).

        GatherElements, which reads them, does not broadcast.
        """
        key = ("for heads", heads, table.tobytes())
        if key not in self.known:
            entries = self.by_difference(table)
            pairs = self._insert("Cast", [entries], {"to": ir.DataType.FLOAT.value}, ["tokens", "tokens"])
            wide = self._insert("Add", [pairs, self._zeros(heads)], {}, ["texts", heads, "tokens", "tokens"])
            found = self._insert("Cast", [wide], {"to": ir.DataType.INT32.value}, ["texts", heads, "tokens", "tokens"])
            found.type = ir.TensorType(ir.DataType.INT32)
            self.known[key] = found
        return self.known[key]

    def _zeros(self, heads: int) -> ir.Value:
        """Zeros, float32 (texts, heads, 1, 1)."""
        key = ("zeros", heads)
        if key not in self.known:
            ids = self.graph.inputs[0]
            first = self._insert("Gather", [ids, constant(self.graph, "first_token", np.array([0]))], {"axis": 1}, None)
            first.type = ir.TensorType(ir.DataType.INT64)
            number = self._insert("Cast", [first], {"to": ir.DataType.FLOAT.value}, ["texts", 1])
            zero = self._insert("Mul", [number, self._number(0.0)], {}, ["texts", 1])
            axes = constant(self.graph, "last_two_of_four_axes", np.array([2, 3]))
            apart = self._insert("Unsqueeze", [zero, axes], {}, ["texts", 1, 1, 1])
            of_heads = constant(self.graph, f"zeros_of_{heads}_heads", np.zeros((1, heads, 1, 1), np.float32))
            self.known[key] = self._insert("Add", [apart, of_heads], {}, ["texts", heads, 1, 1])
        return self.known[key]

    def count(self) -> ir.Value:
        """The number of tokens, a float32 scalar."""
        if ("count",) not in self.known:
            last = self._insert("ReduceMax", [self._float_positions()], {"keepdims": 0}, [])
            self.known["count",] = self._insert("Add", [last, self._number(1.0)], {}, [])
        return self.known["count",]

    def root_of_count(self) -> ir.Value:
        """The square root of the number of tokens, a float32 scalar."""
        if ("root",) not in self.known:
            self.known["root",] = self._insert("Sqrt", [self.count()], {}, [])
        return self.known["root",]

    def sum_of_places(self) -> ir.Value:
        """The sum of the places of the tokens, counted from 1: a float32 scalar."""
        if ("sum",) not in self.known:
            square = self._insert("Mul", [self.count(), self.count()], {}, [])
            twice = self._insert("Add", [square, self.count()], {}, [])
            self.known["sum",] = self._insert("Mul", [twice, self._number(0.5)], {}, [])
        return self.known["sum",]

    def _differences(self, offset: int) -> ir.Value:
        """Query minus key position, plus `offset`: int64 (tokens, tokens)."""
        key = ("differences", offset)
        if key not in self.known:
            numbers = self._float_positions()
            column = self._insert("Unsqueeze", [numbers, self._axis(1)], {}, ["tokens", 1])
            row = self._insert("Unsqueeze", [numbers, self._axis(0)], {}, [1, "tokens"])
            difference = self._insert("Sub", [column, row], {}, ["tokens", "tokens"])
            shifted = self._insert("Add", [difference, self._number(float(offset))], {}, ["tokens", "tokens"])
            found = self._insert("Cast", [shifted], {"to": ir.DataType.INT64.value}, ["tokens", "tokens"])
            found.type = ir.TensorType(ir.DataType.INT64)
            self.known[key] = found
        return self.known[key]

    def _float_positions(self) -> ir.Value:
        if ("float",) not in self.known:
            self.known["float",] = self._insert("Cast", [self.positions], {"to": ir.DataType.FLOAT.value}, ["tokens"])
        return self.known["float",]

    def _lookup(self, table: NDArray[np.generic], ids: ir.Value, axis: int, shape: list[int | str] | None) -> ir.Value:
        key = (ids.name, axis, table.shape, table.dtype.str, table.tobytes())
        if key not in self.known:
            name = f"position_table_{len(self.known)}"
            held = constant(self.graph, name, np.ascontiguousarray(table))
            found = self._insert("Gather", [held, ids], {"axis": axis}, shape)
            found.type = ir.TensorType(ir.DataType.from_numpy(table.dtype))
            self.known[key] = found
        return self.known[key]

    def held(self, name: str, table: NDArray[np.generic]) -> ir.Value:
        """A table as a constant of the graph, once for all that read the same."""
        key = ("held", table.shape, table.dtype.str, table.tobytes())
        if key not in self.known:
            self.known[key] = constant(self.graph, f"{name}_table_{len(self.known)}", table)
        return self.known[key]

    def _axis(self, number: int) -> ir.Value:
        return constant(self.graph, f"axis_{number}", np.array([number], np.int64))

    def _number(self, number: float) -> ir.Value:
        return constant(self.graph, f"number_{number:g}", np.array(number, np.float32))

    def _insert(
        self, op_type: str, inputs: list[ir.Value], attributes: dict[str, int], shape: list[int | str] | None
    ) -> ir.Value:
        found = insert(self.graph[0], op_type, inputs, attributes)
        # What is inserted before reads nothing that comes after: the graph is sorted at the end.
        found.type = ir.TensorType(ir.DataType.FLOAT)
        found.shape = None if shape is None else ir.Shape(shape)
        # Not computed from the sizes of the batch any more.
        self.sizes.of_texts.add(found)
        found.name = f"of_positions_{self.count_of_nodes}"
        self.count_of_nodes += 1
        return found


def table_of_differences(samples: Arrays, trial: NDArray[np.generic], reach: Reach) -> NDArray[np.generic]:
    """The table (..., 2 * length - 1) of a function (..., tokens, tokens) of query minus key position."""
    table = _extended(trial, reach)
    for array in samples:
        if not np.array_equal(_pairs(table, array.shape[-1]), finite(array)):
            raise unsupported("what is computed for two positions depends on the number of tokens")
    return table


def _extended(trial: NDArray[np.generic], reach: Reach) -> NDArray[np.generic]:
    """The table (..., 2 * length - 1) of a function (..., tokens, tokens) of query minus key position.

    Beyond the distances of the trial it continues as a constant or, as ALiBi does, as a line.
    """
    tokens = trial.shape[-1]
    trial = finite(trial)
    # Query 0 has the differences 0, -1, ...; key 0 has 0, 1, ...
    table = np.concatenate([trial[..., 0, :0:-1], trial[..., :, 0]], axis=-1)
    if not np.array_equal(_pairs(table, tokens), trial):
        raise unsupported("what is computed for two positions depends on more than their difference")
    if tokens == reach.length:
        return table
    middle = tokens - 1
    later, earlier = (_beyond(edge, reach) for edge in (table[..., middle::-1], table[..., middle:]))
    return np.concatenate([later[..., ::-1], table, earlier], axis=-1)


def _beyond(edge: NDArray[np.generic], reach: Reach) -> NDArray[np.generic]:
    """The entries (..., distances) of a table for longer distances, given those from 0 on."""
    tokens = edge.shape[-1]
    outer, last = edge[..., reach.window + 1 :], edge[..., -1:]
    if bool((outer == last).all()):
        return np.repeat(last, reach.length - tokens, axis=-1)
    line = edge[..., 1:2] * np.arange(reach.length).astype(np.float32)
    if edge.dtype != np.float32 or not np.array_equal(outer, line[..., reach.window + 1 : tokens]):
        raise unsupported("a bias has another form at long distances")
    return np.asarray(line[..., tokens:])


def _pairs(table: NDArray[np.generic], tokens: int) -> NDArray[np.generic]:
    """The entries of a table by difference for so many tokens: (..., tokens, tokens)."""
    numbers = np.arange(tokens)
    return np.asarray(np.take(table, numbers[:, np.newaxis] - numbers + table.shape[-1] // 2, axis=-1))


def finite(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """What float16 holds for a mask in float32."""
    if array.dtype != np.float32:
        return array
    numbers = array.astype(np.float32)
    return np.where(numbers <= _HIDDEN, np.float32(MASKED), numbers)


def _is_causal(table: NDArray[np.generic]) -> bool:
    """Whether a table masks later keys and adds nothing to others."""
    if table.dtype != np.float32 or table.size != table.shape[-1]:
        return False
    flat, middle = table.reshape(-1), table.shape[-1] // 2
    return bool((flat[middle:] == 0).all() and (flat[:middle] == np.float32(MASKED)).all())
