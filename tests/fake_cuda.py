"""A session that behaves as onnxruntime's on a GPU where memory is concerned, and computes on the CPU.

Values of the device are copies that only `update_inplace` changes, and that only their session binds. An array of the
process that is bound to an input on the device is copied once, when it is bound: what is written to it afterwards is
not seen, as onnxruntime 1.31 was seen to do with its CUDA provider.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray

from ortkit.runtime.bundle.graph_io import TOTAL_LENGTH
from ortkit.runtime.errors import BundleError, OrtkitError, OutOfMemoryError
from ortkit.runtime.session.session import Session

ON_HOST = {TOTAL_LENGTH}
"""Inputs that CUDA's GroupQueryAttention reads in the process's memory."""


class DeviceValue:
    """An OrtValue in the memory of the device."""

    def __init__(self, session: FakeCuda, array: NDArray[Any]) -> None:
        self.session = session
        self._content = array.copy()
        self.updates = 0
        session.left -= array.nbytes
        weakref.finalize(self, session.free, array.nbytes)

    def update_inplace(self, array: NDArray[Any]) -> None:
        assert (array.shape, array.dtype) == (self._content.shape, self._content.dtype)
        self.updates += 1
        np.copyto(self._content, array)

    def numpy(self) -> NDArray[Any]:
        return self._content.copy()

    def shape(self) -> list[int]:
        return list(self._content.shape)


class Binding:
    """An IOBinding: what is bound, and the binding of the session that computes."""

    def __init__(self, session: FakeCuda) -> None:
        self.session = session
        self.inputs: dict[str, Any] = {}
        self.real = session.cpu.io_binding()

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.inputs[name] = value
        self.real.bind_ortvalue_input(name, self._value(value, copied=name not in ON_HOST))

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.real.bind_ortvalue_output(name, self._value(value, copied=False))

    def _value(self, value: Any, *, copied: bool) -> Any:
        if isinstance(value, DeviceValue):
            if value.session is not self.session:
                raise ValueError("Session-scoped OrtValues must originate from the same session.")
            return ort.OrtValue.ortvalue_from_numpy(value._content)
        return ort.OrtValue.ortvalue_from_numpy(value.numpy().copy()) if copied else value


class FakeCuda:
    """A `Session` whose device is a GPU; `session` is its InferenceSession, as `Session` has it."""

    device = "cuda"

    def __init__(self, session: Session, *, left: int = 1 << 40) -> None:
        """`left` is the memory of the device in bytes."""
        self.path, self.provider, self.weights = session.path, session.provider, session.weights
        self.cpu = session.session
        self.left = left
        self.failing: Exception | None = None
        """What the next run raises."""
        self.bindings: list[weakref.ref[Binding]] = []
        """All bindings that were made."""
        self.session = self

    def free(self, size: int) -> None:
        self.left += size

    # What ortkit's Session has for decoders.

    def value(self, array: NDArray[Any]) -> DeviceValue:
        if array.nbytes > self.left:
            raise OutOfMemoryError(f"there is no memory for {array.nbytes} bytes on the device", hint="free some")
        return DeviceValue(self, array)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceValue:
        return self.value(np.full(shape, np.nan, dtype))

    def available_memory(self) -> int | None:
        return None

    def failure(self, verb: str, error: Exception, *, needed: int) -> OrtkitError:
        del needed
        if isinstance(error, MemoryError):
            return OutOfMemoryError(f"there is too little GPU memory to {verb} `{self.path}`", hint="free some")
        return BundleError(f"onnxruntime cannot {verb} `{self.path}`: {error}")

    # What onnxruntime's InferenceSession has.

    def get_inputs(self) -> list[Any]:
        return self.cpu.get_inputs()

    def get_outputs(self) -> list[Any]:
        return self.cpu.get_outputs()

    def get_input_memory_infos(self) -> list[Any]:
        return [SimpleNamespace(name="Cpu" if value.name in ON_HOST else "Cuda") for value in self.cpu.get_inputs()]

    def io_binding(self) -> Binding:
        binding = Binding(self)
        self.bindings.append(weakref.ref(binding))
        return binding

    def run_with_iobinding(self, binding: Binding, options: Any = None) -> None:
        assert binding.session is self
        if self.failing is not None:
            failing, self.failing = self.failing, None
            raise failing
        self.cpu.run_with_iobinding(binding.real, options)


def bound_values(session: FakeCuda) -> Mapping[str, Any]:
    """What is bound to the inputs of the last binding."""
    binding = session.bindings[-1]()
    assert binding is not None
    return binding.inputs
