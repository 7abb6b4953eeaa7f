"""The only module that opens an ONNX session; it checks which provider the session really got."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..bundle.bundle import GRAPH_DATA
from ..bundle.folder import BundleFolder
from ..bundle.manifest import Precision, Provider
from ..errors import BundleError, InputError, OrtkitError, OutOfMemoryError, ProviderError
from ..output_path import native
from .cpu import PRECISION_MODE, WITHOUT_KLEIDIAI, int8_arithmetic
from .huge_pages import weights_on_huge_pages
from .memory import MEMORY_HINT, SPARE, check_memory, smallest_limit
from .onnxruntime_import import load_onnxruntime
from .providers import ORT_NAMES, available_providers, named

FLOATS = "tensor(float)"
# Measured on encoders: the fused operator that this optimizer makes is five times slower than the two it replaces. Its
# counterpart for decoders, without a mean, is faster.
DISABLED_OPTIMIZERS = ["SkipLayerNormFusion"]
_GENERAL = {"Fail", "RuntimeException"}
"""Classes of onnxruntime's exceptions that say only that something failed."""


@dataclass(frozen=True)
class SessionConfig:
    """How to open a graph."""

    provider: Provider
    inputs: tuple[str, ...]
    """The input names that the manifest states."""
    threads: int | None = None
    """Threads of a decoder; None for an encoder."""
    int8: bool = False
    """Whether the graph has int8 matmuls."""
    symmetric_blocks: bool = False
    """Whether it has 4-bit matmuls without zero points."""

    @classmethod
    def of(cls, bundle: BundleFolder, *, threads: int | None = None) -> SessionConfig:
        """Return the config for a bundle's graph."""
        manifest = bundle.manifest
        return cls(
            provider=bundle.provider,
            inputs=manifest.inputs,
            threads=threads,
            int8=manifest.precision is Precision.INT8,
            symmetric_blocks=manifest.blocks is not None and manifest.blocks.symmetric,
        )


class Session:
    """An open graph; safe to call from several threads at once.

    An encoder's session has one thread: each call runs on one core, and several calls run at once. A decoder's has
    more: all of them work on every matmul of a call, and spin while they wait for the next one, because a token needs
    hundreds of matmuls of a few microseconds each, and waking a sleeping thread takes as long.
    """

    def __init__(self, path: Path, config: SessionConfig) -> None:
        """Open the graph at `path`.

        Raises ProviderError where the session does not get the provider, BundleError where the graph has other inputs,
        and OutOfMemoryError, before weights are loaded, where there is no memory for them.
        """
        provider, threads = config.provider, config.threads
        if provider not in available_providers():
            raise ProviderError(
                f"`{provider.value}` is not available; this onnxruntime has {named(available_providers())}",
                hint="use a bundle for an available provider, or install an onnxruntime that has this one",
            )
        ort = load_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 1
        options.inter_op_num_threads = 1
        # One block of memory a run, planned when its shape is first seen. Without the plan every operator takes its
        # output from what the other core's run has just freed, and fetches it out of that core's cache.
        # A decoder's prompts have as many shapes as lengths, and a plan for each would never be freed.
        options.enable_mem_pattern = threads is None
        # Its log quotes the graph, unescaped, on stderr; errors say the same.
        options.log_severity_level = 4
        self.int8 = int8_arithmetic(ort) if config.int8 and provider is Provider.CPU else None
        # It takes 1.6 times as long, so it is used only where it is needed.
        if self.int8 is not None and self.int8.precision_mode:
            options.add_session_config_entry(PRECISION_MODE, "1")
        if config.symmetric_blocks and provider is Provider.CPU:
            options.add_session_config_entry(WITHOUT_KLEIDIAI, "1")
        self.weights = _size_of_weights(path)
        check_memory(self.weights, f"the weights of `{path}`")
        # A decoder reads all its weights for each token; an encoder's are small and read once for many.
        huge = threads is not None and provider is Provider.CPU
        try:
            with weights_on_huge_pages(path.parent) if huge else nullcontext():
                self.session = ort.InferenceSession(
                    native(path),
                    options,
                    providers=[ORT_NAMES[provider]],
                    disabled_optimizers=DISABLED_OPTIMIZERS if threads is None else [],
                    # Otherwise onnxruntime tries a graph that failed once more on the CPU, and says so on stdout.
                    enable_fallback=0,
                )
        # onnxruntime's exceptions share no base class but Exception.
        except Exception as error:
            raise failure(path, "open", error, needed=self.weights) from error
        obtained = self.session.get_providers()[0]
        if obtained != ORT_NAMES[provider]:
            raise ProviderError(f"`{provider.value}` was requested, and onnxruntime used `{obtained}` instead")
        self.path = path
        self.provider = provider
        found = [value.name for value in self.session.get_inputs()]
        if found != list(config.inputs):
            raise BundleError(f"the graph `{path}` has the inputs {found}, and the manifest says {list(config.inputs)}")
        outputs = self.session.get_outputs()
        if outputs[0].type != FLOATS:
            raise BundleError(f"the first output of the graph `{path}` must be `{FLOATS}`, not `{outputs[0].type}`")

    @property
    def width(self) -> int | None:
        """The size of the last axis of the first output; None where the graph does not state it."""
        shape = self.session.get_outputs()[0].shape
        return shape[-1] if shape and isinstance(shape[-1], int) else None

    def run(self, feeds: Mapping[str, NDArray[Any]], shape: Sequence[int | None] | None = None) -> NDArray[np.float32]:
        """Run the graph and return its first output, float32.

        Raises BundleError where the run fails, or the output's shape is not `shape`, in which None is any size;
        OutOfMemoryError where memory was short.
        """
        # Some of onnxruntime's kernels divide by the number of tokens, and the signal ends the process.
        for name, array in feeds.items():
            if not array.size:
                raise InputError(f"`{name}` has the shape {array.shape}: there are no tokens to run `{self.path}` on")
        try:
            found = self.session.run(None, dict(feeds))[0]
        # onnxruntime's exceptions share no base class but Exception.
        except Exception as error:
            raise failure(self.path, "run", error, needed=self.weights) from error
        if shape is not None and not _fits(found.shape, shape):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise BundleError(f"the graph `{self.path}` gives an output of the shape {found.shape}, not ({wanted})")
        return cast("NDArray[np.float32]", found)


def _fits(found: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(found) == len(wanted) and all(size in (None, own) for own, size in zip(found, wanted, strict=True))


def _size_of_weights(path: Path) -> int:
    """Bytes that an open graph takes at least.

    Weights in the graph's own file are read and then copied, as measured; external data is packed once.
    """
    data = path.with_name(GRAPH_DATA)
    try:
        return 2 * path.stat().st_size + (data.stat().st_size if data.exists() else 0)
    except OSError:
        return 0


def failure(path: Path, verb: str, error: Exception, *, needed: int) -> OrtkitError:
    """The error for a failure of onnxruntime: too little memory if there is none now, otherwise a broken bundle.

    onnxruntime has no status for a failed allocation: it is a general failure with the name of C++'s exception as text.
    """
    short = max(needed, SPARE)
    free = smallest_limit()
    if isinstance(error, MemoryError) or (type(error).__name__ in _GENERAL and free is not None and free.left < short):
        limit = "" if free is None else f": {free.described}"
        return OutOfMemoryError(f"there is too little memory to {verb} `{path}`{limit}", hint=MEMORY_HINT)
    return BundleError(f"onnxruntime cannot {verb} `{path}`: {error}")
