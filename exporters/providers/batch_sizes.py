"""The part of a traced graph that depends on the sizes of a batch alone, run for sample sizes.

A trace computes shapes, masks, rotary angles and relative positions from `Shape` of its values. What comes of that does
not depend on the texts, so it can be run without the model's weights, at any size, once the shapes are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from ...runtime.bundle.bundle import GRAPH
from ...runtime.bundle.graph_io import INPUT_IDS
from ...runtime.errors import UnsupportedModelError
from ..graph.external_data import save_graph
from ..graph.nodes import constant_of, required, values_of_texts

CPU_INSTEAD = "use `--provider cpu`"
"""The hint for a model whose graph cannot be made for another provider."""
_SHAPED = frozenset(
    {"Add", "Div", "Expand", "GatherElements", "MatMul", "Mul", "Reshape", "Slice", "Transpose", "Where"}
)
"""Operators the shapes of whose inputs are asked for."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a batch."""

    texts: int
    tokens: int


SAMPLES = (Sizes(2, 5), Sizes(3, 7))
"""Sizes that tell the number of texts, the number of tokens, their product and constants apart."""
Shape = tuple[int, ...]
Arrays = tuple[NDArray[np.generic], ...]
"""One for each of SAMPLES."""


class BatchSizes:
    """What a graph computes from the sizes of a batch, and the shapes of what it computes from texts."""

    def __init__(self, model: ir.Model, *, scratch: Path | None = None) -> None:
        """Run the whole graph at the sample sizes, by way of a file in the folder `scratch`."""
        self.model = model
        self.of_texts = values_of_texts(model.graph)
        self._scratch = scratch
        self._shapes = [
            node.outputs[0]
            for node in model.graph
            if node.op_type == "Shape" and required(node.inputs[0]) in self.of_texts
        ]
        shaped = {
            value
            for node in model.graph
            if node.op_type in _SHAPED
            for value in node.inputs
            if value in self.of_texts and value is not None and not value.is_graph_input()
        }
        wanted = [*self._shapes, *shaped]
        found = _run(model, wanted, [_token_ids(model.graph, sizes) for sizes in SAMPLES], scratch)
        self.shapes: dict[ir.Value, tuple[Shape, ...]] = {value: _shapes_of(found[value]) for value in shaped}
        """A value that depends on texts -> its shape at each of SAMPLES."""
        for value in model.graph.inputs:
            self.shapes[value] = tuple((sizes.texts, sizes.tokens) for sizes in SAMPLES)
        self._samples = {value: found[value] for value in self._shapes}

    @property
    def graph(self) -> ir.Graph:
        return self.model.graph

    def frontier(self) -> list[tuple[ir.Node, int]]:
        """The places at which a node that depends on texts reads what is computed from sizes: (node, input)."""
        return [
            (node, place)
            for node in self.graph
            if node.outputs[0] in self.of_texts
            for place, value in enumerate(node.inputs)
            if value is not None and value not in self.of_texts and constant_of(value) is None
        ]

    def run(self, values: Iterable[ir.Value], sizes: Sizes) -> dict[ir.Value, NDArray[np.generic]]:
        """Compute values that depend on sizes alone."""
        return {value: found[0] for value, found in self._run(values, [sizes]).items()}

    def run_samples(self, values: Iterable[ir.Value]) -> dict[ir.Value, Arrays]:
        """Compute values that depend on sizes alone for each of SAMPLES."""
        return self._run(values, SAMPLES)

    def _run(self, values: Iterable[ir.Value], sizes: Sequence[Sizes]) -> dict[ir.Value, Arrays]:
        wanted = list(dict.fromkeys(values))
        if not wanted:
            return {}
        # What was replaced meanwhile is not part of the graph any more.
        shapes = [value for value in self._shapes if required(value.producer()).graph is self.graph]
        graph = ir.convenience.extract(self.graph, shapes, wanted)
        for value in graph.inputs:
            value.type = ir.TensorType(ir.DataType.INT64)
        model = ir.Model(graph, ir_version=10)
        feeds = [{str(value.name): self._shape_at(self._samples[value], one) for value in shapes} for one in sizes]
        used = {str(value.name) for value in graph.inputs}
        feeds = [{name: array for name, array in some.items() if name in used} for some in feeds]
        found = _run(model, list(graph.outputs), feeds, self._scratch)
        return dict(zip(wanted, found.values(), strict=True))

    def _shape_at(self, samples: Arrays, sizes: Sizes) -> NDArray[np.int64]:
        """A shape at other sizes than those of the samples."""
        pairs = zip(*(array.tolist() for array in samples), strict=True)
        return np.array([_size_at(pair, sizes) for pair in pairs], np.int64)


def _size_at(samples: tuple[int, ...], sizes: Sizes) -> int:
    """A size that is a constant, or a multiple of the number of texts, of tokens, or of both."""
    if len(set(samples)) == 1:
        return samples[0]
    for place, base in enumerate(_bases(sizes)):
        factors = {divmod(sample, _bases(own)[place]) for sample, own in zip(samples, SAMPLES, strict=True)}
        factor, rest = next(iter(factors))
        if len(factors) == 1 and rest == 0:
            return factor * base
    raise UnsupportedModelError(
        f"a size in the graph is {samples[0]} for {SAMPLES[0]} and {samples[1]} for {SAMPLES[1]}, which is neither a "
        "number of texts nor of tokens",
        hint=CPU_INSTEAD,
    )


def _bases(sizes: Sizes) -> tuple[int, int, int]:
    return sizes.texts, sizes.tokens, sizes.texts * sizes.tokens


def _token_ids(graph: ir.Graph, sizes: Sizes) -> dict[str, NDArray[np.generic]]:
    """Inputs of these sizes for a graph of token ids, and of token types where it has them."""
    names = [str(value.name) for value in graph.inputs]
    ids: NDArray[np.generic] = np.ones((sizes.texts, sizes.tokens), np.int64)
    return {name: ids if name == INPUT_IDS else np.zeros_like(ids) for name in names}


def _shapes_of(arrays: Arrays) -> tuple[Shape, ...]:
    return tuple(array.shape for array in arrays)


def _run(
    model: ir.Model,
    values: Sequence[ir.Value],
    feeds: Sequence[Mapping[str, NDArray[np.generic]]],
    scratch: Path | None,
) -> dict[ir.Value, Arrays]:
    """Inner values of a graph for several inputs."""
    wanted = list(dict.fromkeys(values))
    own_outputs = list(model.graph.outputs)
    model.graph.outputs[:] = wanted
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # The graph runs as it is: what is asked for may be fused away.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        with TemporaryDirectory(dir=scratch) as folder:
            save_graph(model, Path(folder) / GRAPH)
            session = ort.InferenceSession(Path(folder) / GRAPH, options, providers=["CPUExecutionProvider"])
            runs = [session.run(None, dict(some)) for some in feeds]
    finally:
        model.graph.outputs[:] = own_outputs
    return dict(zip(wanted, zip(*runs, strict=True), strict=True))


def same_number(array: NDArray[np.generic]) -> NDArray[np.generic] | None:
    """The one number that all elements are, without dimensions; None where there are several."""
    flat = array.reshape(-1)
    return flat[0] if flat.size and bool((flat == flat[0]).all()) else None


def unsupported(reason: str) -> UnsupportedModelError:
    """The error for a graph that needs the sizes of a batch in another way."""
    return UnsupportedModelError(
        f"the traced graph cannot do without the sizes of the batch: {reason}", hint=CPU_INSTEAD
    )
