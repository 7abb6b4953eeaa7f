"""The only module that opens an ONNX session; it checks which provider the session really got."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..bundle.manifest import Layout, Provider
from ..errors import BundleError, InputError, OrtkitError, OutOfMemoryError, ProviderError
from ..output_path import native
from .config import SessionConfig
from .cpu import int8_arithmetic
from .cuda import cuda_version, free_gpu_memory
from .cuda_errors import has_code, is_allocation, state_in
from .huge_pages import weights_on_huge_pages
from .memory import MEMORY_HINT, SPARE, available_memory, check_memory, mebibytes, smallest_limit
from .onnxruntime_import import load_onnxruntime
from .placement import check_placement
from .providers import PROVIDERS, ExecutionProvider
from .request import NO_FALLBACK, RECORD_ASSIGNMENT, Request, session_options

FLOATS, INTEGERS = "tensor(float)", "tensor(int64)"
_GENERAL = {"Fail", "RuntimeException", "RuntimeError"}
"""Classes of onnxruntime's exceptions that say only that something failed; with I/O binding it is Python's own."""
_FATAL = 4
"""onnxruntime's logging severity for fatal errors alone."""
_GPU_HINT = "raise `max_memory` (`--max-memory`), or take smaller `batch_tokens`, shorter texts, or fewer bits"


class Session:
    """An open graph; safe to call from several threads at once.

    On the CPU, an encoder's session has one thread: each call runs on one core, and several calls run at once. A
    decoder's has more: all of them work on every matmul of a call, and spin while they wait for the next one, because a
    token needs hundreds of matmuls of a few microseconds each, and waking a sleeping thread takes as long.
    """

    def __init__(self, path: Path, config: SessionConfig, *, begins: Callable[[], None] | None = None) -> None:
        """Open the graph at `path`; `begins` is called when it is read, and opened further without Python's lock (GIL).

        Raises ProviderError where the provider does not run the whole graph, BundleError where the graph has other
        inputs, OutOfMemoryError, before weights are loaded, where there is no memory for them, and InputError for
        `max_memory` on a provider without such a limit.
        """
        ort = load_onnxruntime()
        entry = PROVIDERS[config.provider]
        _check_memory_option(config, entry)
        problem = entry.problem_of(ort, path)
        if problem is not None:
            raise problem.error()
        self.path = path
        self._begins = begins
        self.provider = config.provider
        self.device = entry.device
        """onnxruntime's name of the device that values for the graph are on: `cpu` or `cuda`."""
        self.max_memory = config.max_memory
        """Bytes of GPU memory that the session may take; None for all."""
        self.int8 = int8_arithmetic(ort) if config.int8 and config.provider is Provider.CPU else None
        self.weights = size_of_weights(path)
        self._device_weights = size_of_weights(path, self.device)
        self._values: WeakSet[Any] = WeakSet()
        self._check_weights()
        request = entry.request(ort, config)
        self.disabled_optimizers = request.disabled_optimizers
        """Graph optimizers of onnxruntime that are disabled."""
        self.session = self._open(ort, entry, request)
        _check_inputs(self.session, path, config)
        _check_output(self.session, path, config)
        if entry.probed and config.bucket is not None:
            self._probe(entry.name)

    def _check_weights(self) -> None:
        """Raise OutOfMemoryError where the weights do not fit."""
        what = f"the weights of `{self.path}`"
        check_memory(self.weights, what)
        if self.device != "cpu":
            check_gpu_memory(self._device_weights, what)
        limit = self.max_memory
        if limit is not None and self._device_weights > limit:
            raise OutOfMemoryError(
                f"{what} take at least {mebibytes(self._device_weights)}, and `max_memory` is {mebibytes(limit)}",
                hint=_GPU_HINT,
            )

    def _open(self, ort: Any, entry: ExecutionProvider, request: Request) -> Any:
        """Open the graph, and prove that the provider runs all of it."""
        try:
            with weights_on_huge_pages(self.path.parent) if request.huge_pages else nullcontext():
                session = self._created(ort, entry, request)
        # onnxruntime's exceptions share no base class but Exception.
        except Exception as error:
            if NO_FALLBACK in request.entries:
                self._check_what_falls_back(ort, entry, request)
            raise self.failure("open", error, needed=self.weights) from error
        recorded = RECORD_ASSIGNMENT in request.entries
        check_placement(session, entry.name, self.path, one_program=request.cpu_beside, recorded=recorded)
        return session

    def _check_what_falls_back(self, ort: Any, entry: ExecutionProvider, request: Request) -> None:
        """Open a graph that was refused once more, with fallback to the CPU: raise ProviderError that names its nodes.

        The refusal says only that there are some.
        """
        entries = {name: value for name, value in request.entries.items() if name != NO_FALLBACK}
        try:
            session = self._created(ort, entry, replace(request, entries=entries))
        # It fails for another reason, which the caller reports.
        except Exception:  # noqa: BLE001 - onnxruntime's exceptions share no base class but Exception
            return
        check_placement(session, entry.name, self.path, one_program=request.cpu_beside)

    def _created(self, ort: Any, entry: ExecutionProvider, request: Request) -> Any:
        if request.silent:
            ort.set_default_logger_severity(_FATAL)
        options = session_options(ort, request)
        return ort.InferenceSession(
            native(self.path),
            options,
            providers=entry.select(ort, options, request),
            disabled_optimizers=self._optimizers_at(request),
            # Otherwise onnxruntime tries a graph that failed once more on the CPU, and says so on stdout.
            enable_fallback=0,
        )

    def _optimizers_at(self, request: Request) -> Iterator[str]:
        """The disabled optimizers, which onnxruntime takes between reading the graph and opening it without the GIL."""
        if self._begins is not None:
            self._begins()
        yield from request.disabled_optimizers

    def _probe(self, name: str) -> None:
        """Run the graph once, on zeros; raises ProviderError where a number of the result is not finite."""
        feeds = {
            value.name: np.zeros(value.shape, np.int64 if value.type == INTEGERS else np.float32)
            for value in self.session.get_inputs()
        }
        if not np.isfinite(self.run(feeds)).all():
            raise ProviderError(
                f"`{name}` computes `{self.path}` wrongly on this machine: its output is not finite",
                hint="use a bundle for the CPU: `ortkit export MODEL --provider cpu`",
            )

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
            raise self.failure("run", error, needed=self.weights) from error
        if shape is not None and not _fits(found.shape, shape):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise BundleError(f"the graph `{self.path}` gives an output of the shape {found.shape}, not ({wanted})")
        return cast("NDArray[np.float32]", found)

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Any:
        """Allocate an OrtValue on the session's device, from its arena; its contents are undefined.

        Raises OutOfMemoryError, and ProviderError where the device is gone.
        """
        kind = np.dtype(dtype)
        try:
            value = self.session.create_ortvalue_from_shape_and_type(list(shape), kind.type, self.device, 0)
        # Whatever fails here is the allocation, or the state of CUDA; onnxruntime's exceptions share no base class.
        except Exception as error:
            state = state_in(error)
            if state is not None:
                raise state.error() from error
            size = kind.itemsize * math.prod(shape)
            raise OutOfMemoryError(
                f"there is no memory for {mebibytes(size)} more on the device `{self.device}`{self._limit()}: "
                f"{text_of(error)}",
                hint=MEMORY_HINT if self.device == "cpu" else _GPU_HINT,
            ) from error
        self._values.add(value)
        return value

    def value(self, array: NDArray[Any]) -> Any:
        """Copy an array to an OrtValue on the session's device; raises OutOfMemoryError."""
        value = self.empty(array.shape, array.dtype)
        value.update_inplace(array)
        return value

    def available_memory(self) -> int | None:
        """Bytes that can still be allocated on the session's device; None where the system does not say.

        Within `max_memory`, what is left beside the weights and the values that `empty` and `value` made.
        """
        if self.device == "cpu":
            return available_memory()
        free = free_memory_of_gpu()
        if self.max_memory is None:
            return free
        taken = self._device_weights + sum(int(value.tensor_size_in_bytes()) for value in self._values)
        left = max(0, self.max_memory - taken)
        return left if free is None else min(left, free)

    def _limit(self) -> str:
        return "" if self.max_memory is None else f" within `max_memory`, {mebibytes(self.max_memory)}"

    def failure(self, verb: str, error: Exception, *, needed: int) -> OrtkitError:
        """The error for a failure of onnxruntime on this session's device; `needed` are bytes that the call takes."""
        if self.device == "cpu":
            return failure(self.path, verb, error, needed=needed)
        return gpu_failure(self.path, verb, error, needed=needed, max_memory=self.max_memory)


def _check_memory_option(config: SessionConfig, entry: ExecutionProvider) -> None:
    if config.max_memory is not None and not entry.limits_memory:
        raise InputError(
            f"`max_memory` limits the memory of a GPU, and the graph is for `{config.provider}`",
            hint="leave it out; `ulimit -v` and control groups limit the memory of a process, and ortkit observes them",
        )


def _check_inputs(session: Any, path: Path, config: SessionConfig) -> None:
    """Raise BundleError where a graph's inputs are not those of its manifest, or do not have the bucket's shape."""
    found = [value.name for value in session.get_inputs()]
    if found != list(config.inputs):
        raise BundleError(f"the graph `{path}` has the inputs {found}, and the manifest says {list(config.inputs)}")
    if config.bucket is not None and list(session.get_inputs()[0].shape) != list(config.bucket):
        raise BundleError(
            f"the graph `{path}` cannot be opened for {config.bucket.texts} texts of {config.bucket.tokens} tokens: "
            f"`{found[0]}` has the shape {session.get_inputs()[0].shape}, and its dimensions must be `batch` and "
            "`tokens`"
        )


def _check_output(session: Any, path: Path, config: SessionConfig) -> None:
    """Raise BundleError where a graph's first output is not float32, or has the axes of another layout."""
    output = session.get_outputs()[0]
    if output.type != FLOATS:
        raise BundleError(f"the first output of the graph `{path}` must be `{FLOATS}`, not `{output.type}`")
    if config.layout is None or len(output.shape) != 3 or len(session.get_inputs()[0].shape) != 2:
        return
    texts, tokens = session.get_inputs()[0].shape
    axes = [tokens, texts] if config.layout is Layout.TOKENS_FIRST else [texts, tokens]
    # Names may be missing or differ; what is certain is that they are swapped.
    if texts != tokens and output.shape[:2] == axes[::-1]:
        raise BundleError(
            f"the graph `{path}` gives token embeddings of the shape {output.shape}, and the manifest says "
            f"`{config.layout.value}`"
        )


def _fits(found: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(found) == len(wanted) and all(size in (None, own) for own, size in zip(found, wanted, strict=True))


def size_of_weights(path: Path, device: str = "cpu") -> int:
    """Bytes that an open graph takes at least of a device's memory.

    On the CPU, weights in the graph's own file are read and then copied, as measured; external data is packed once.
    """
    copies = 2 if device == "cpu" else 1
    data = path.with_name(f"{path.name}.data")
    try:
        return copies * path.stat().st_size + (data.stat().st_size if data.exists() else 0)
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
    return BundleError(f"onnxruntime cannot {verb} `{path}`: {text_of(error)}")


def text_of(error: Exception) -> str:
    """The text of an exception of onnxruntime, which may end with a line break."""
    return str(error).strip()


def gpu_failure(path: Path, verb: str, error: Exception, *, needed: int, max_memory: int | None) -> OrtkitError:
    """The error for a failure of onnxruntime on a GPU: CUDA's state, too little memory, or else a broken bundle.

    A failed allocation has no status of its own: it is a general failure, of a kernel or of the copy of an input
    (`cuda_errors.py`). cuDNN's are not stated either; they are taken for one where the GPU has hardly any memory left.
    """
    state = state_in(error)
    if state is not None:
        return state.error()
    free = free_memory_of_gpu()
    short = free is not None and free < (needed if verb == "open" else SPARE)
    general = type(error).__name__ in _GENERAL
    if isinstance(error, MemoryError) or (general and (is_allocation(error) or (short and not has_code(error)))):
        limit = f"`max_memory` is {mebibytes(max_memory)}" if max_memory is not None else ""
        left = f"{mebibytes(free)} are free on the GPU" if free is not None else ""
        why = ", ".join(filter(None, (limit, left)))
        return OutOfMemoryError(
            f"there is too little GPU memory to {verb} `{path}`{f' ({why})' if why else ''}: {text_of(error)}",
            hint=_GPU_HINT,
        )
    return BundleError(f"onnxruntime cannot {verb} `{path}`: {text_of(error)}")


def check_gpu_memory(needed: int, what: str) -> None:
    """Raise OutOfMemoryError where `needed` bytes do not fit in the memory that is free on the GPU."""
    free = free_memory_of_gpu()
    if free is not None and free < needed:
        raise OutOfMemoryError(
            f"{what} take at least {mebibytes(needed)}, and {mebibytes(free)} are free on the GPU",
            hint="close what else uses the GPU, or take a bundle of fewer bits",
        )


def free_memory_of_gpu() -> int | None:
    """Bytes that are free on the GPU; None without one."""
    built = cuda_version(load_onnxruntime())
    return None if built is None else free_gpu_memory(built[0])
