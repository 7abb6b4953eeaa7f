"""A graph on disk, and its weights in a file beside it, from where they are mapped."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import onnx_ir as ir

from ...runtime.bundle.bundle import GRAPH_DATA
from ...runtime.errors import OutputError
from ...runtime.sizes import megabytes
from ..progress import Progress, WeightCounter
from .array_store import KeptArrays, Made
from .nodes import required

LARGEST_PROTOBUF = 2**31 - 2**26
"""Bytes of weights that fit a graph's own file, with room for the graph itself: protobuf ends at 2 GiB."""
LARGE = 1024
"""Bytes from which on a constant is a weight."""
CONTENT = "content"
"""The name of an array that is all there is to an entry of KeptArrays."""


def write_graph(model: ir.Model, weights: KeptArrays, path: Path, *, progress: Progress | None = None) -> None:
    """Store the weights of a graph, then write it: `store_weights`, `write_stored_graph`."""
    store_weights(model, weights, progress=progress)
    write_stored_graph(model, weights.path, path)


def store_weights(model: ir.Model, weights: KeptArrays, *, progress: Progress | None = None) -> None:
    """Move the weights of a graph that are not in a file yet to `weights`, one at a time; streamed ones are read."""
    large = [value for value in model.graph.initializers.values() if _is_large(value)]
    counter = WeightCounter(progress, [required(value.const_value).nbytes for value in large])
    for value in large:
        tensor = required(value.const_value)
        value.const_value = weights.keep(required(value.name), partial(_content_of, tensor)).arrays[CONTENT]
        counter.advance(tensor.nbytes)


def weights_file(model: ir.Model) -> Path | None:
    """The file that holds the weights of a graph; None where they are in none yet."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    files = {Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    if len(files) > 1:
        raise ValueError(f"the graph's weights are in several files: {', '.join(map(str, sorted(files)))}")
    return files.pop() if files else None


def write_stored_graph(model: ir.Model, weights: Path, path: Path) -> None:
    """Write a graph whose weights are in the file `weights`, and that file beside it."""
    ir.save(model, path)
    beside = path.with_name(f"{path.name}.data")
    beside.unlink(missing_ok=True)
    # Under another name too, so that what is done stays there until the bundle is whole.
    try:
        os.link(weights, beside)
    except OSError:
        # Not every file system has files of two names.
        shutil.copyfile(weights, beside)


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph whose weights are in memory, with a file beside it for them where they do not fit into its own."""
    # Whoever has them open keeps the old files.
    path.unlink(missing_ok=True)
    path.with_name(GRAPH_DATA).unlink(missing_ok=True)
    ir.save(model, path, external_data=GRAPH_DATA if weights_bytes(model) > LARGEST_PROTOBUF else None)


def weights_bytes(model: ir.Model) -> int:
    """Bytes of a graph's weights in the types that they have in it, before any rounding."""
    return sum(required(value.const_value).nbytes for value in model.graph.initializers.values())


def _is_large(value: ir.Value) -> bool:
    """Whether a constant does not belong into the graph's own file, and is not elsewhere yet."""
    tensor = value.const_value
    return tensor is not None and tensor.nbytes >= LARGE and not isinstance(tensor, ir.ExternalTensor)


def _content_of(tensor: ir.TensorProtocol) -> Made:
    return Made({CONTENT: tensor.numpy()})


def need_space(folder: Path, size: int, *, done: int = 0) -> None:
    """Raise OutputError when the disk of a folder has no room for so many bytes, of which some are there."""
    free = shutil.disk_usage(folder).free
    if size - done > free:
        raise OutputError(
            f"the export writes about {megabytes(size - done)} in `{folder}`, and {megabytes(free)} are free",
            hint="free some space, or choose another folder with `--out`",
        )
