"""How to open a bundle's graph: the facts of its manifest that a session depends on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ..arguments import checked_integer
from ..bundle.folder import BundleFolder
from ..bundle.manifest import Kind, Layout, Precision, Provider, WeightBlocks
from .fit import check_fit
from .model_cache import model_cache_of

_COMPACT_BLOCK = 32
_MOST_MEMORY = (1 << 63) - 1
"""onnxruntime reads the limit as a signed integer of 64 bits."""


class Bucket(NamedTuple):
    """A fixed shape of an encoder's inputs."""

    texts: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.texts}x{self.tokens}"


@dataclass(frozen=True)
class SessionConfig:
    """How to open a graph."""

    provider: Provider
    inputs: tuple[str, ...]
    """The input names that the manifest states."""
    threads: int | None = None
    """Threads of a decoder, 1 where another device computes; None for an encoder."""
    int8: bool = False
    """Whether the graph has int8 matmuls."""
    symmetric_blocks: bool = False
    """Whether it has 4-bit matmuls without zero points."""
    compact_blocks: bool = False
    """Whether its 4- and 8-bit matmuls have the only form that onnxruntime's wheels have CUTLASS kernels for."""
    float16: bool = False
    """Whether its activations are float16."""
    layout: Layout | None = None
    """The layout of an encoder's token embeddings; None where the output is not one of them."""
    max_memory: int | None = None
    """Bytes of GPU memory that the session may take; None for all."""
    bucket: Bucket | None = None
    """The fixed shape to open the graph for; None for the shapes of the graph."""
    beside_another: bool = False
    """Whether another session runs right after this one, on the same CPU cores."""
    model_cache: Path | None = None
    """Folder for what the provider compiles, where it does; None to compile at each opening."""

    @classmethod
    def of(cls, bundle: BundleFolder, *, threads: int | None = None, max_memory: int | None = None) -> SessionConfig:
        """Return the config for a bundle's graph.

        Raises InputError for a `max_memory` that is not a size, and BundleError for a manifest that contradicts itself.
        """
        check_fit(bundle)
        compiled = bundle.provider is Provider.COREML
        manifest = bundle.manifest
        return cls(
            provider=bundle.provider,
            inputs=manifest.inputs,
            # A session is shared by its config: another number, which it does not use, would load the weights twice.
            threads=threads if threads is None or bundle.provider is Provider.CPU else 1,
            int8=manifest.precision is Precision.INT8,
            symmetric_blocks=manifest.blocks is not None and manifest.blocks.symmetric,
            compact_blocks=manifest.blocks is not None and _are_compact(manifest.blocks),
            float16=manifest.precision is Precision.FP16,
            layout=None if manifest.kind is Kind.DECODER else manifest.layout,
            max_memory=None if max_memory is None else min(checked_integer(max_memory, "max_memory"), _MOST_MEMORY),
            model_cache=model_cache_of(bundle) if compiled else None,
        )

    def for_prefill(self) -> SessionConfig:
        """Return the config for the bundle's 8-bit graph for prompts."""
        return replace(self, int8=True, beside_another=True)


def _are_compact(blocks: WeightBlocks) -> bool:
    """Whether onnxruntime's wheels have CUTLASS kernels (fpA_intB) for these blocks: symmetric, of 32 weights."""
    return blocks.symmetric and blocks.block == _COMPACT_BLOCK and blocks.output_block in (0, _COMPACT_BLOCK)
