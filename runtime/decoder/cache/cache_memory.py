"""The memory that the buffers of a KV cache are in: the process's own, or that of the device that runs the graph."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import OutOfMemoryError
from ...session.memory import available_memory, mebibytes
from ...session.onnxruntime_import import load_onnxruntime
from ...session.session import Session

LARGE = 4 << 20
"""Bytes of a buffer from which on it is placed on huge pages."""
Array = NDArray[Any]


class CacheMemory(Protocol):
    """Makes and copies buffers (1, kv_heads, capacity, head_size), of a type of its own."""

    def available(self) -> int | None:
        """Bytes that can still be allocated; None where that is not known."""

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Make a buffer; raises OutOfMemoryError."""

    def grown(self, buffer: Any, capacity: int, length: int) -> Any:
        """Copy the first `length` tokens of a buffer to a larger one; raises OutOfMemoryError."""

    def shrink(self, buffers: list[Any], capacity: int, length: int) -> None:
        """Give all buffers this capacity again; some of them have it still. Raises OutOfMemoryError."""

    def value(self, buffer: Any) -> Any:
        """Return the OrtValue to bind, which is the buffer itself and no copy."""

    def array(self, buffer: Any) -> Array:
        """Return the content in the process's memory."""

    def writable(self, buffer: Any) -> Array:
        """Return an array to write new content to, for `store`."""

    def store(self, buffer: Any, content: Array) -> None:
        """Write what `writable` returned to the buffer."""


@dataclass(frozen=True)
class HostMemory:
    """The process's own memory. Buffers are arrays, which onnxruntime reads and writes in place."""

    def available(self) -> int | None:
        return available_memory()

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return zeros(shape, dtype)

    def grown(self, buffer: Array, capacity: int, length: int) -> Array:
        larger = zeros(_with_capacity(buffer.shape, capacity), buffer.dtype)
        larger[:, :, :length] = buffer[:, :, :length]
        return larger

    def shrink(self, buffers: list[Array], capacity: int, length: int) -> None:
        """Shrink in place: it takes no memory."""
        buffers[:] = [_shrunk(buffer, capacity, length) for buffer in buffers]

    def value(self, buffer: Array) -> Any:
        return load_onnxruntime().OrtValue.ortvalue_from_numpy(buffer)

    def array(self, buffer: Array) -> Array:
        return buffer

    def writable(self, buffer: Array) -> Array:
        return buffer

    def store(self, buffer: Array, content: Array) -> None:
        """It was written in place."""


@dataclass(frozen=True)
class DeviceMemory:
    """The memory of a session's device, from the session's arena. Buffers are OrtValues that only it can bind."""

    session: Session

    def available(self) -> int | None:
        return self.session.available_memory()

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        return self.session.value(np.zeros(shape, dtype))

    def grown(self, buffer: Any, capacity: int, length: int) -> Any:
        """Copy through the process's memory: onnxruntime does not copy a part of a value on the device."""
        return self.session.value(_resized(buffer.numpy(), capacity, length))

    def shrink(self, buffers: list[Any], capacity: int, length: int) -> None:
        for place in range(len(buffers)):
            content = self.array(buffers[place])
            if content.shape[2] != capacity:
                # The larger buffer is freed first: there is room for the smaller one then.
                buffers[place] = None
                buffers[place] = self.session.value(_resized(content, capacity, length))

    def value(self, buffer: Any) -> Any:
        return buffer

    def array(self, buffer: Any) -> Array:
        content: Array = buffer.numpy()
        return content

    def writable(self, buffer: Any) -> Array:
        return np.zeros_like(buffer.numpy())

    def store(self, buffer: Any, content: Array) -> None:
        buffer.update_inplace(content)


def memory_of(session: Session) -> CacheMemory:
    """Return the memory for the KV caches of a session."""
    return HostMemory() if session.device == "cpu" else DeviceMemory(session)


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any], *, huge_pages: bool = True) -> Array:
    """Allocate zeros in a memory mapping of their own.

    It is freed with the array, where the allocator would keep outgrown buffers. Memory is taken page by page as it is
    written, so a buffer with far more room than content should have no `huge_pages`. Raises OutOfMemoryError.
    """
    size = dtype.itemsize * math.prod(shape)
    try:
        # Private: by default a forked process would share the pages.
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise OutOfMemoryError(
            f"the system does not give {mebibytes(size)} for the KV cache: {error.strerror}",
            hint="free memory, or ask for fewer tokens",
        ) from error
    # As numpy does for its arrays, from the same size on; a kernel without huge pages refuses it.
    if size >= LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE if huge_pages else mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype).reshape(shape)


def _with_capacity(shape: Sequence[int], capacity: int) -> tuple[int, ...]:
    batch, heads, _, size = shape
    return batch, heads, capacity, size


def _resized(content: Array, capacity: int, length: int) -> Array:
    """Copy the first `length` tokens to an array of this capacity."""
    resized = np.zeros(_with_capacity(content.shape, capacity), content.dtype)
    resized[:, :, :length] = content[:, :, :length]
    return resized


def _shrunk(buffer: Array, capacity: int, length: int) -> Array:
    """Shrink a buffer in place to this capacity."""
    _, heads, larger, size = buffer.shape
    if larger == capacity:
        return buffer
    smaller = buffer.reshape(-1)[: heads * capacity * size].reshape(1, heads, capacity, size)
    # In this order no token is overwritten before it is moved.
    for head in range(heads):
        smaller[0, head, :length] = buffer[0, head, :length]
    return smaller
