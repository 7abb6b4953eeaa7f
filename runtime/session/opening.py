"""The memory that opening a bundle on the CPU takes, estimated from its files before anything is loaded."""

from __future__ import annotations

from ..bundle.bundle import GRAPH, GRAPH_DATA, PREFILL_GRAPH, TOKENIZER
from ..bundle.folder import BundleFolder
from ..bundle.manifest import Kind, Precision
from .config import SessionConfig
from .memory_limit import MemoryLimit
from .open_sessions import is_open

_PER_TOKENIZER_BYTE = 24
"""Bytes of a tokenizer while it is parsed, for each byte of tokenizer.json."""
_SESSION = 16 << 20
"""Bytes of onnxruntime's session beside the weights."""
_PER_GRAPH_BYTE, _PER_DATA_BYTE = 1.75, 1.5
"""Bytes at the peak for each byte of a graph's own file, and of external data, which is mapped and then packed.

Measured with libraries loaded: all-MiniLM-L6-v2 takes 52 MiB in int8 (22 in files) and 141 in fp32 (86), and
SmolLM2-135M 141 in int4 (79) and 199 with the blocks of a GGUF file (109); the estimates are 66, 177, 165 and 211.
"""


def size_of_graph(bundle: BundleFolder) -> int:
    """Bytes of a graph's files."""
    return sum(_size(bundle, name) for name in (GRAPH, GRAPH_DATA))


def _size(bundle: BundleFolder, name: str) -> int:
    record = bundle.manifest.files.get(name)
    return 0 if record is None else record.size


def opening_size(bundle: BundleFolder, config: SessionConfig) -> int:
    """Bytes that opening a bundle takes at its peak, beside what the process has already.

    Weights in the graph's own file are read and then copied. External data is mapped and packed, tensor by tensor.
    """
    if is_open(bundle.path / GRAPH, config):
        return _size(bundle, TOKENIZER) * _PER_TOKENIZER_BYTE
    return size_to_open(bundle)


def size_to_open(bundle: BundleFolder) -> int:
    """The same for a process that has not opened it."""
    tokenizer = _size(bundle, TOKENIZER) * _PER_TOKENIZER_BYTE
    weights = _PER_GRAPH_BYTE * _size(bundle, GRAPH) + _PER_DATA_BYTE * _size(bundle, GRAPH_DATA)
    return tokenizer + round(weights) + _SESSION


def size_to_open_prefill(bundle: BundleFolder) -> int:
    """The same for its 8-bit graph for prompts."""
    weights = _PER_GRAPH_BYTE * _size(bundle, PREFILL_GRAPH) + _PER_DATA_BYTE * _size(bundle, f"{PREFILL_GRAPH}.data")
    return round(weights) + _SESSION


def check_opening(
    limit: MemoryLimit, bundle: BundleFolder, config: SessionConfig, *, prefill: SessionConfig | None = None
) -> None:
    """Raise OutOfMemoryError where opening a bundle, with its graph for prompts if `prefill`, exceeds the limit."""
    size, instead = opening_size(bundle, config), smaller(bundle)
    if prefill is not None:
        size += 0 if is_open(bundle.path / PREFILL_GRAPH, prefill) else size_to_open_prefill(bundle)
        instead = 'leave out the 8-bit graph for prompts: `prefill="none"` (`--prefill none`)'
    limit.check(size, f"opening `{bundle.path}`", instead=instead)


def smaller(bundle: BundleFolder) -> str:
    """What takes less memory than a bundle."""
    fewest = Precision.INT4 if bundle.manifest.kind is Kind.DECODER else Precision.INT8
    if bundle.manifest.precision is fewest:
        return "take a smaller model"
    return f"take a bundle of fewer bits: `ortkit export MODEL --precision {fewest.value}`"
