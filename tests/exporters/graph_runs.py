"""Inputs of a decoder's graph, and what goes into its products when onnxruntime runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ortkit.exporters.quantization import gptq as rounding
from ortkit.exporters.encoder.calibration import session_that_gives
from ortkit.exporters.graph.nodes import Linear, linears
from ortkit.runtime.bundle.graph_io import INPUT_IDS, LAST_POSITIONS, LOGIT_POSITIONS, TOTAL_LENGTH


def moments_in(
    model: ir.Model,
    values: Iterable[ir.Value],
    runs: Iterable[Mapping[str, NDArray[np.generic]]],
    *,
    squares_only: bool = False,
) -> dict[str, NDArray[np.float32]]:
    """Second moments of inner values of a float32 graph, (..., width) each, over runs with these inputs."""
    session, names = session_that_gives(model, values)
    moments: dict[str, NDArray[np.float32]] = {}
    for feeds in runs:
        for name, given in zip(names, session.run(names, dict(feeds)), strict=True):
            found = rounding.second_moments(given.reshape(-1, given.shape[-1]), squares_only=squares_only)
            moments[name] = found + moments[name] if name in moments else found
    return moments


def prompts(graph: ir.Graph, ids: Sequence[int], *, length: int = 256) -> Iterator[dict[str, NDArray[np.generic]]]:
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


def moments_by_graph(
    model: ir.Model, runs: Sequence[Mapping[str, NDArray[np.generic]]], groups: list[int] | None = None
) -> Callable[[Sequence[Linear], bool], dict[str, NDArray[np.float32]]]:
    """What `quantize_decoder` asks for, by the float32 graph; `groups` takes of how many products at once it does."""
    exact = model.clone()

    def moments(products: Sequence[Linear], squares_only: bool) -> dict[str, NDArray[np.float32]]:  # noqa: FBT001
        if groups is not None:
            groups.append(len(products))
        inputs = {product.name: product.input for product in linears(exact.graph)}
        names = [product.name for product in products]
        found = moments_in(exact, [inputs[name] for name in names], runs, squares_only=squares_only)
        return {name: found[inputs[name].name or ""] for name in names}

    return moments


def empty_past(value: ir.Value, capacity: int) -> NDArray[np.float32]:
    """What a decoder's graph takes for the keys or values of one layer: (1, heads, capacity, head size)."""
    if value.shape is None or len(value.shape) != 4:
        raise ValueError(f"the graph's input `{value.name}` is none that a decoder's graph has")
    heads, size = value.shape[1], value.shape[3]
    if not isinstance(heads, int) or not isinstance(size, int):
        raise TypeError(f"the graph's input `{value.name}` does not say how many heads of which size it holds")
    return np.zeros((1, heads, capacity, size), np.float32)
