"""Activation statistics of an encoder's graph on calibration texts, and its weights quantized with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from ...runtime.bundle.bundle import GRAPH
from ...runtime.session.cores import find_cores
from ..graph.external_data import save_graph
from ..graph.nodes import linears
from ..quantization.gptq import SMALLEST, QuantizedWeight, quantize_weight, second_moments

_TOGETHER = 16
"""Texts whose second moments are computed in one matmul: each writes the whole matrix, (width, width)."""


class Calibration:
    """The largest values and the second moments of the inputs of products, by the inputs' names in the graph."""

    def __init__(
        self, model: ir.Model, texts: Iterable[Mapping[str, NDArray[np.int64]]], *, scratch: Path | None = None
    ) -> None:
        """Run a float32 graph on calibration texts, given as the graph's inputs, each (1, tokens).

        It goes through a file in the folder `scratch`, by default that of the system.
        """
        self.peaks: dict[str, NDArray[np.float32]] = {}
        """Name -> the largest absolute value of each channel, (width,)."""
        self.moments: dict[str, NDArray[np.float32]] = {}
        """Name -> the sum over tokens of the products of each two channels, (width, width)."""
        self.firsts: dict[str, NDArray[np.float32]] = {}
        """Name -> the rows of the [CLS] tokens, (texts, width)."""
        self.known: dict[tuple[str, bool, bytes], QuantizedWeight] = {}
        session, names = session_that_gives(model, [linear.input for linear in linears(model.graph)], scratch=scratch)
        remaining = iter(texts)
        while some := list(islice(remaining, _TOGETHER)):
            runs = [session.run(names, dict(feeds)) for feeds in some]
            for name, given in zip(names, zip(*runs, strict=True), strict=True):
                self.take(name, [rows.reshape(-1, rows.shape[-1]) for rows in given])

    def take(self, name: str, texts: Sequence[NDArray[np.float32]]) -> None:
        """Count the rows (tokens, width) of an input for several texts in."""
        rows = np.concatenate(texts)
        peaks, moments = np.abs(rows).max(axis=0), second_moments(rows)
        firsts = np.stack([text[0] for text in texts])
        if name in self.peaks:
            peaks, moments = np.maximum(peaks, self.peaks[name]), moments + self.moments[name]
            firsts = np.concatenate([self.firsts[name], firsts])
        self.peaks[name], self.moments[name], self.firsts[name] = peaks, moments, firsts

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
                firsts = second_moments(self.firsts[name])
                moments = moments + firsts * (np.trace(moments) / max(np.trace(firsts), SMALLEST))
            if divisors is not None:
                moments = moments / np.outer(divisors, divisors)
            self.known[key] = quantize_weight(weight, moments)
        return self.known[key]


def session_that_gives(
    model: ir.Model, values: Iterable[ir.Value], *, scratch: Path | None = None
) -> tuple[ort.InferenceSession, list[str]]:
    """A session on a graph that gives inner values instead of its outputs, and their names."""
    wanted = list(dict.fromkeys(values))
    own_outputs = list(model.graph.outputs)
    model.graph.outputs[:] = wanted
    try:
        for value in wanted:
            value.dtype = value.dtype or ir.DataType.FLOAT
        session = open_session(model, scratch)
    finally:
        model.graph.outputs[:] = own_outputs
    return session, [value.name or "" for value in wanted]


def open_session(model: ir.Model, scratch: Path | None) -> ort.InferenceSession:
    """A session on a graph in memory, by way of a file."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Not all of the host's, as onnxruntime takes by itself.
    options.intra_op_num_threads = find_cores().usable
    with TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / GRAPH
        save_graph(model, path)
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
