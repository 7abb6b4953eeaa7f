"""The one place that opens an ONNX session, and says which hardware it really got."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from runtime.bundle import GRAPH_DATA, Bundle
from runtime.cpu import PRECISION_MODE, WITHOUT_KLEIDIAI, int8_arithmetic
from runtime.errors import BundleError, EdgekitError, InputError, MissingPartError, OutOfMemoryError, ProviderError
from runtime.manifest import Provider
from runtime.memory import MEMORY_HINT, SPARE, check_memory, smallest_limit
from runtime.pages import give_back, mapped_regions, on_large_pages
from runtime.targets import native

ORT_NAMES = {
    Provider.CPU: "CPUExecutionProvider",
    Provider.CUDA: "CUDAExecutionProvider",
    Provider.COREML: "CoreMLExecutionProvider",
}

ONNXRUNTIME = "onnxruntime"
"""Its name in a manifest's `requires` and `made_with`."""
OLDEST_ONNXRUNTIME = "1.30"
"""The first that runs every graph that edgekit makes. 1.23 and 1.24 give a decoder's tokens wrong, 1.25 to 1.29 end the
process, and those before 1.23 cannot open it (1.20 to 1.32 tried)."""
INSTALL = "pip install 'onnxruntime>={}'"
GENERAL = {"Fail", "RuntimeException"}
"""The classes of onnxruntime's exceptions that say no more than that something failed."""
FLOATS = "tensor(float)"
# Measured on encoders: the fused operator that this optimizer makes is five times slower than the two it replaces. Its
# twin for decoders, without a mean, is faster.
DISABLED_OPTIMIZERS = ["SkipLayerNormFusion"]


class Session:
    """A graph that is ready to run; safe to call from several threads at once.

    With one thread, as encoders have it, each call runs on one core, and several texts at once. With more, as decoders
    have it, all of them work on every product of a call, and wait for the next by spinning: a token needs hundreds of
    products of some microseconds each, and waking a sleeping thread takes as long.
    """

    def __init__(
        self,
        path: Path,
        *,
        provider: Provider,
        inputs: Sequence[str],
        threads: int | None = None,
        int8: bool = False,
        symmetric_blocks: bool = False,
    ) -> None:
        """Open `path` on `provider`; raises ProviderError when that is not what the session gets.

        `inputs` are the names that the manifest promises; BundleError when the graph has others. `threads` are those of
        a decoder; None opens the session of an encoder. `int8` says that the graph has int8 matmuls,
        `symmetric_blocks` that it has 4-bit ones without zero points. Raises OutOfMemoryError
        before weights are loaded for which there is no memory.
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
        # What it would log quotes the graph, raw, on stderr; errors say the same.
        options.log_severity_level = 4
        self.int8 = int8_arithmetic(ort) if int8 and provider is Provider.CPU else None
        # It takes 1.6 times as long, so it is asked for only where it is needed.
        if self.int8 is not None and self.int8.precision_mode:
            options.add_session_config_entry(PRECISION_MODE, "1")
        if symmetric_blocks and provider is Provider.CPU:
            options.add_session_config_entry(WITHOUT_KLEIDIAI, "1")
        self.weights = size_of_weights(path)
        check_memory(self.weights, f"the weights of `{path}`")
        before = mapped_regions() if threads is not None else []
        try:
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
            raise ProviderError(f"`{provider.value}` was asked for and onnxruntime took `{obtained}` instead")
        self.path = path
        self.provider = provider
        found = [value.name for value in self.session.get_inputs()]
        if found != list(inputs):
            raise BundleError(f"the graph `{path}` has the inputs {found}, the manifest says {list(inputs)}")
        outputs = self.session.get_outputs()
        if outputs[0].type != FLOATS:
            raise BundleError(f"the first output of the graph `{path}` must be `{FLOATS}`, not `{outputs[0].type}`")
        # A decoder reads all its weights for each token; an encoder's are small and read once for many.
        if threads is not None and provider is Provider.CPU:
            give_back(path.parent)
            on_large_pages(before)

    @property
    def width(self) -> int | None:
        """How many numbers the last axis of the first output has; None where the graph does not say."""
        shape = self.session.get_outputs()[0].shape
        return shape[-1] if shape and isinstance(shape[-1], int) else None

    def run(self, feeds: Mapping[str, NDArray[Any]], shape: Sequence[int | None] | None = None) -> NDArray[np.float32]:
        """Run the graph and return its first output, float32.

        Raises BundleError when onnxruntime cannot, or where the output has another shape than `shape`, in which None
        stands for any size; OutOfMemoryError where memory was short.
        """
        # onnxruntime divides by the number of tokens in some kernels, and the signal that follows ends the process.
        for name, array in feeds.items():
            if not array.size:
                raise InputError(f"there are no tokens to run `{self.path}` on: `{name}` has the shape {array.shape}")
        try:
            found = self.session.run(None, dict(feeds))[0]
        # onnxruntime's exceptions share no base class but Exception.
        except Exception as error:
            raise failure(self.path, "run", error, needed=self.weights) from error
        if shape is not None and not fits(found.shape, shape):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise BundleError(f"the graph `{self.path}` gives an output of the shape {found.shape}, not ({wanted})")
        return cast("NDArray[np.float32]", found)


OPEN: WeakValueDictionary[tuple[object, ...], Session] = WeakValueDictionary()
"""The sessions that someone holds, by what identifies the file that each was opened from."""
OPENING = threading.Lock()


def shared_session(
    path: Path,
    *,
    provider: Provider,
    inputs: Sequence[str],
    threads: int | None = None,
    int8: bool = False,
    symmetric_blocks: bool = False,
) -> Session:
    """The session that is open on this very file already, or a new one; its weights go when the last holder goes.

    A file that was replaced is another file: device, inode, size and time of its last change tell, of the graph and of
    the weights beside it.
    """
    data = path.with_name(GRAPH_DATA)
    files = [path, data] if data.exists() else [path]
    key = (path.resolve(), *map(state_of, files), provider, tuple(inputs), threads, int8, symmetric_blocks)
    with OPENING:
        session = OPEN.get(key)
        if session is None:
            session = OPEN[key] = Session(
                path,
                provider=provider,
                inputs=inputs,
                threads=threads,
                int8=int8,
                symmetric_blocks=symmetric_blocks,
            )
        return session


def fits(found: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(found) == len(wanted) and all(size in (None, own) for own, size in zip(found, wanted, strict=True))


def size_of_weights(path: Path) -> int:
    """Bytes that an open graph takes at least.

    What lies in the graph's own file is read and then copied, as measured, what lies beside it is packed once.
    """
    data = path.with_name(GRAPH_DATA)
    try:
        return 2 * path.stat().st_size + (data.stat().st_size if data.exists() else 0)
    except OSError:
        return 0


def failure(path: Path, verb: str, error: Exception, *, needed: int) -> EdgekitError:
    """What a failure of onnxruntime means: too little memory, where there is none now, and else a broken bundle.

    onnxruntime has no status of its own for an allocation that failed: it is a general one, with the name of C++'s
    exception as its text.
    """
    short = max(needed, SPARE)
    free = smallest_limit()
    if isinstance(error, MemoryError) or (type(error).__name__ in GENERAL and free is not None and free.left < short):
        limit = "" if free is None else f": {free.described}"
        return OutOfMemoryError(f"there is too little memory to {verb} `{path}`{limit}", hint=MEMORY_HINT)
    return BundleError(f"onnxruntime cannot {verb} `{path}`: {error}")


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
    # What the loader of libraries could not map, and what onnxruntime makes of C++'s own exception, are both this.
    except ImportError as error:
        free = smallest_limit()
        if free is not None and free.left < SPARE:
            raise OutOfMemoryError(
                f"there is too little memory to load onnxruntime: {free.described}",
                hint="free memory or raise the limit",
            ) from error
        raise MissingPartError(
            f"onnxruntime cannot be loaded: {error}",
            hint="install it again, in a version for this Python and this system: `pip install 'edgekit[cpu]'`",
        ) from error
    if release(onnxruntime.__version__) < release(OLDEST_ONNXRUNTIME):
        raise MissingPartError(
            f"onnxruntime {onnxruntime.__version__} is installed, and edgekit needs {OLDEST_ONNXRUNTIME} or newer",
            hint=f"run `{INSTALL.format(OLDEST_ONNXRUNTIME)}`; versions before it crash or give wrong tokens",
        )
    return onnxruntime


def check_requirements(bundle: Bundle) -> None:
    """Raise BundleError for a bundle whose graph needs a newer onnxruntime than this one."""
    needed, here = bundle.manifest.requires.get(ONNXRUNTIME), onnxruntime_version()
    if needed is not None and release(here) < release(needed):
        raise BundleError(
            f"the bundle `{bundle.path}` needs onnxruntime {needed} or newer, and {here} is installed",
            hint=f"run `{INSTALL.format(needed)}`",
        )


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: (1, 30, 0) of `1.30.0rc1`; none of what is no version."""
    return tuple(map(int, re.findall(r"\d+", re.split(r"[^\d.]", version, maxsplit=1)[0])))


def onnxruntime_version() -> str:
    return str(load_onnxruntime().__version__)


def available_providers() -> list[Provider]:
    """What this onnxruntime was built for and edgekit knows; whether it opens is seen when a session is made."""
    built = load_onnxruntime().get_available_providers()
    return [provider for provider, name in ORT_NAMES.items() if name in built]


def named(providers: Sequence[Provider]) -> str:
    return ", ".join(f"`{provider.value}`" for provider in providers)
