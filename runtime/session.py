"""The one place that opens an ONNX session, and says which hardware it really got."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from runtime.bundle import GRAPH_DATA
from runtime.errors import BundleError, InputError, MissingPartError, ProviderError
from runtime.manifest import Provider
from runtime.pages import give_back, mapped_regions, on_large_pages
from runtime.targets import native

ORT_NAMES = {
    Provider.CPU: "CPUExecutionProvider",
    Provider.CUDA: "CUDAExecutionProvider",
    Provider.COREML: "CoreMLExecutionProvider",
}

# Measured on encoders: the fused operator that this optimizer makes is five times slower than the two it replaces. Its
# twin for decoders, without a mean, is faster.
DISABLED_OPTIMIZERS = ["SkipLayerNormFusion"]


class Session:
    """A graph that is ready to run; safe to call from several threads at once.

    With one thread, as encoders have it, each call runs on one core, and several texts at once. With more, as decoders
    have it, all of them work on every product of a call, and wait for the next by spinning: a token needs hundreds of
    products of some microseconds each, and waking a sleeping thread takes as long.
    """

    def __init__(self, path: Path, *, provider: Provider, inputs: Sequence[str], threads: int | None = None) -> None:
        """Open `path` on `provider`; raises ProviderError when that is not what the session gets.

        `inputs` are the names that the manifest promises; BundleError when the graph has others. `threads` are those of
        a decoder; None opens the session of an encoder.
        """
        if provider not in available_providers():
            raise ProviderError(
                f"`{provider.value}` is not available here; this onnxruntime has {named(available_providers())}",
                hint="run on what is there, or install the onnxruntime that has it: `pip install 'edgekit[cuda]'`",
            )
        ort = load_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 1
        options.inter_op_num_threads = 1
        # One block of memory a run, planned when its shape is first seen. Without the plan every operator takes its
        # output from what the other core's run has just freed, and fetches it out of that core's cache.
        # A decoder's prompts have as many shapes as lengths, and a plan for each would never be given back.
        options.enable_mem_pattern = threads is None
        options.log_severity_level = 3
        # Without it, processors that have no 8-bit dot product (AVX2 without VNNI) add pairs of products in 16 bits,
        # which overflow without a word; where there is one, it changes nothing.
        options.add_session_config_entry("session.x64quantprecision", "1")
        before = mapped_regions() if threads is not None else []
        try:
            self.session = ort.InferenceSession(
                native(path),
                options,
                providers=[ORT_NAMES[provider]],
                disabled_optimizers=DISABLED_OPTIMIZERS if threads is None else [],
            )
        # onnxruntime's exceptions share no base class but Exception.
        except Exception as error:
            raise BundleError(f"onnxruntime cannot open `{path}`: {error}") from error
        obtained = self.session.get_providers()[0]
        if obtained != ORT_NAMES[provider]:
            raise ProviderError(f"`{provider.value}` was asked for and onnxruntime took `{obtained}` instead")
        self.path = path
        self.provider = provider
        found = [value.name for value in self.session.get_inputs()]
        if found != list(inputs):
            raise BundleError(f"the graph `{path}` has the inputs {found}, the manifest says {list(inputs)}")
        # A decoder reads all its weights for each token; an encoder's are small and read once for many.
        if threads is not None and provider is Provider.CPU:
            give_back(path.parent)
            on_large_pages(before)

    @property
    def width(self) -> int | None:
        """How many numbers the last axis of the first output has; None where the graph does not say."""
        shape = self.session.get_outputs()[0].shape
        return shape[-1] if shape and isinstance(shape[-1], int) else None

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Run the graph and return its first output; raises BundleError when onnxruntime cannot."""
        # onnxruntime divides by the number of tokens in some kernels, and the signal that follows ends the process.
        for name, array in feeds.items():
            if not array.size:
                raise InputError(f"there are no tokens to run `{self.path}` on: `{name}` has the shape {array.shape}")
        try:
            return cast("NDArray[np.float32]", self.session.run(None, dict(feeds))[0])
        # onnxruntime's exceptions share no base class but Exception.
        except Exception as error:
            raise BundleError(f"onnxruntime cannot run `{self.path}`: {error}") from error


OPEN: WeakValueDictionary[tuple[object, ...], Session] = WeakValueDictionary()
"""The sessions that someone holds, by what identifies the file that each was opened from."""
OPENING = threading.Lock()


def shared_session(path: Path, *, provider: Provider, inputs: Sequence[str], threads: int | None = None) -> Session:
    """The session that is open on this very file already, or a new one; its weights go when the last holder goes.

    A file that was replaced is another file: device, inode, size and time of its last change tell, of the graph and of
    the weights beside it.
    """
    data = path.with_name(GRAPH_DATA)
    files = [path, data] if data.exists() else [path]
    key = (path.resolve(), *map(state_of, files), provider, tuple(inputs), threads)
    with OPENING:
        session = OPEN.get(key)
        if session is None:
            session = OPEN[key] = Session(path, provider=provider, inputs=inputs, threads=threads)
        return session


def state_of(path: Path) -> tuple[int, ...]:
    """What is another for a file that was replaced or written over."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def load_onnxruntime() -> Any:
    """Import onnxruntime on first use, so that what needs no session starts without it."""
    try:
        import onnxruntime  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingPartError(
            "onnxruntime is not installed, and edgekit runs models with it",
            hint="install one of the two, never both: `pip install 'edgekit[cpu]'` or `pip install 'edgekit[cuda]'`",
        ) from error
    return onnxruntime


def onnxruntime_version() -> str:
    return str(load_onnxruntime().__version__)


def available_providers() -> list[Provider]:
    """What this onnxruntime was built for and edgekit knows; whether it opens is seen when a session is made."""
    built = load_onnxruntime().get_available_providers()
    return [provider for provider, name in ORT_NAMES.items() if name in built]


def named(providers: Sequence[Provider]) -> str:
    return ", ".join(f"`{provider.value}`" for provider in providers)
