"""What goes into the products of a graph on calibration texts, and an encoder's matrices rounded for it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from exporters.nodes import linears
from exporters.rounding import SMALLEST, QuantizedWeight, quantize_weight
from runtime.encoder import INPUT_IDS
from runtime.forward import LAST_POSITIONS, LOGIT_POSITIONS, TOTAL_LENGTH

TOGETHER = 16
"""Texts whose second moments are taken in one product: each writes the whole matrix, (width, width)."""
PROMPT = 256
"""Tokens of a prompt that a decoder is calibrated with: enough to attend to, few enough to hold all that is inside."""
LARGEST_PROTOBUF = 2**31 - 2**26
"""Bytes of weights that fit a graph in one piece, with room for the graph itself: protobuf ends at 2 GiB."""


class Calibration:
    """The largest values and the second moments of the inputs of products, by the inputs' names in the graph."""

    def __init__(self, model: ir.Model, texts: Iterable[Mapping[str, NDArray[np.int64]]]) -> None:
        """Run a float32 graph on calibration texts, given as the graph's inputs, each (1, tokens)."""
        self.peaks: dict[str, NDArray[np.float32]] = {}
        """Name -> the largest absolute value of each channel, (width,)."""
        self.moments: dict[str, NDArray[np.float32]] = {}
        """Name -> the sum over tokens of the products of each two channels, (width, width)."""
        self.first_moments: dict[str, NDArray[np.float32]] = {}
        """The same, of the first token of each text."""
        self.known: dict[tuple[str, bool, bytes], QuantizedWeight] = {}
        session, names = session_that_gives(model, [linear.input for linear in linears(model.graph)])
        remaining = iter(texts)
        while some := list(islice(remaining, TOGETHER)):
            runs = [session.run(names, dict(feeds)) for feeds in some]
            for name, given in zip(names, zip(*runs, strict=True), strict=True):
                self.take(name, [rows.reshape(-1, rows.shape[-1]) for rows in given])

    def take(self, name: str, texts: Sequence[NDArray[np.float32]]) -> None:
        """Count the rows (tokens, width) of an input for several texts in."""
        rows = np.concatenate(texts)
        peaks, moments = np.abs(rows).max(axis=0), moments_of(rows)
        firsts = moments_of(np.stack([text[0] for text in texts]))
        if name in self.peaks:
            peaks, moments = np.maximum(peaks, self.peaks[name]), moments + self.moments[name]
            firsts = firsts + self.first_moments[name]
        self.peaks[name], self.moments[name], self.first_moments[name] = peaks, moments, firsts

    def quantize(
        self,
        name: str,
        weight: NDArray[np.float32],
        *,
        divisors: NDArray[np.float32] | None = None,
        of_first_tokens: bool = False,
    ) -> QuantizedWeight:
        """Round the matrix (inputs, outputs) of a product of the input `name`, by what it was on calibration texts.

        `divisors` (inputs,) are what the input is divided by first. For rows `of_first_tokens`, those of the
        calibration texts weigh as much as all together. Recipes differ in few matrices, and each is rounded once for
        all of them.
        """
        key = (name, of_first_tokens, blake2b(np.ascontiguousarray(weight).tobytes()).digest())
        if key not in self.known:
            moments = self.moments[name]
            if of_first_tokens:
                firsts = self.first_moments[name]
                moments = moments + firsts * (np.trace(moments) / max(np.trace(firsts), SMALLEST))
            if divisors is not None:
                moments = moments / np.outer(divisors, divisors)
            self.known[key] = quantize_weight(weight, moments)
        return self.known[key]


def moments_of(rows: NDArray[np.float32], *, squares_only: bool = False) -> NDArray[np.float32]:
    """The sums over rows (tokens, width) of the products of each two channels, (width, width), or of each with itself.

    In float64, since float32 sums differ between the kernels of a linear algebra library, and a bit decides how a
    weight on the edge between two levels is rounded: the same export would not give the same bytes.
    """
    exact = rows.astype(np.float64)
    return np.asarray(np.square(exact).sum(axis=0) if squares_only else exact.T @ exact, np.float32)


def second_moments(
    model: ir.Model,
    values: Iterable[ir.Value],
    runs: Iterable[Mapping[str, NDArray[np.generic]]],
    *,
    squares_only: bool = False,
) -> dict[str, NDArray[np.float32]]:
    """What `moments_of` gives for inner values of a float32 graph, (..., width) each, over runs with these inputs."""
    session, names = session_that_gives(model, values)
    moments: dict[str, NDArray[np.float32]] = {}
    for feeds in runs:
        for name, given in zip(names, session.run(names, dict(feeds)), strict=True):
            found = moments_of(given.reshape(-1, given.shape[-1]), squares_only=squares_only)
            moments[name] = found + moments[name] if name in moments else found
    return moments


def prompts(graph: ir.Graph, ids: Sequence[int], *, length: int = PROMPT) -> Iterator[dict[str, NDArray[np.generic]]]:
    """Token ids cut into prompts of `length`, each as the inputs of a decoder's graph, with nothing in its past."""
    for start in range(0, len(ids), length):
        tokens = np.array(ids[start : start + length], np.int64)
        count = len(tokens)
        known: dict[str, NDArray[np.generic]] = {
            INPUT_IDS: tokens[np.newaxis],
            LAST_POSITIONS: np.array([count - 1], np.int32),
            TOTAL_LENGTH: np.array(count, np.int32),
            LOGIT_POSITIONS: np.arange(count, dtype=np.int64),
        }
        yield {
            str(value.name): known[str(value.name)] if value.name in known else empty_past(value, count)
            for value in graph.inputs
        }


def empty_past(value: ir.Value, capacity: int) -> NDArray[np.float32]:
    """What a decoder's graph takes for the keys or values of one layer: (1, heads, capacity, head size)."""
    if value.shape is None or len(value.shape) != 4:
        raise ValueError(f"the graph's input `{value.name}` is none that a decoder's graph has")
    heads, size = value.shape[1], value.shape[3]
    if not isinstance(heads, int) or not isinstance(size, int):
        raise TypeError(f"the graph's input `{value.name}` does not say how many heads of which size it holds")
    return np.zeros((1, heads, capacity, size), np.float32)


def session_that_gives(model: ir.Model, values: Iterable[ir.Value]) -> tuple[ort.InferenceSession, list[str]]:
    """A session on a graph that gives inner values instead of its outputs, and their names."""
    wanted = list(dict.fromkeys(values))
    own_outputs = list(model.graph.outputs)
    model.graph.outputs[:] = wanted
    try:
        for value in wanted:
            value.dtype = value.dtype or ir.DataType.FLOAT
        session = open_session(model)
    finally:
        model.graph.outputs[:] = own_outputs
    return session, [value.name or "" for value in wanted]


def open_session(model: ir.Model) -> ort.InferenceSession:
    """A session on a graph in memory; one whose weights are too large for that goes through a temporary file."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if weights_size(model) < LARGEST_PROTOBUF:
        graph: bytes | str = ir.to_proto(model).SerializeToString()
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        graph = str(Path(folder) / "model.onnx")
        save_graph(model, Path(graph))
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def weights_size(model: ir.Model) -> int:
    """Bytes of all constants of a graph."""
    weights = [value.const_value for value in model.graph.initializers.values()]
    return sum(weight.nbytes for weight in weights if weight is not None)


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph; weights that do not fit in the same file go into one beside it, with `.data` after its name."""
    external = f"{path.name}.data" if weights_size(model) >= LARGEST_PROTOBUF else None
    ir.save(model, path, external_data=external)
