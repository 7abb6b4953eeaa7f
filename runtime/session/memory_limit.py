"""A limit on the memory of this process, `max_memory` or ORTKIT_MAX_MEMORY, for models that run on the CPU.

It is on the resident memory (RSS) as the system counts it: Python and its libraries, the tokenizer, the weights (once
as onnxruntime packs them; while a graph is opened also the pages of its files), activations and KV caches. What the
process has taken when a model is opened counts; a model that is open already does not know of those opened after it,
and may still fill its own limit. What would exceed it is refused before it is allocated, with what would fit.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from ..arguments import checked_integer, size_of
from ..errors import OutOfMemoryError
from .memory import mebibytes

VARIABLE = "ORTKIT_MAX_MEMORY"
_STATM = Path("/proc/self/statm")
MARGIN = 12 << 20
"""Bytes that a limit leaves free: for Python's own objects, and for estimates that are a little too small."""
_MEBIBYTE = 1 << 20


def max_memory_of(max_memory: object) -> int | None:
    """The limit in bytes: the argument, or ORTKIT_MAX_MEMORY without one; None without both.

    Raises InputError for one that is not a size.
    """
    if max_memory is not None:
        return checked_integer(max_memory, "max_memory")
    found = os.environ.get(VARIABLE)
    return size_of(found, VARIABLE) if found else None


def resident_memory(statm: Path = _STATM) -> int:
    """Bytes of this process in memory; where the system does not say, the most that there have been."""
    try:
        return int(statm.read_text().split()[1]) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def trim() -> None:
    """Return unused memory of the C library's allocator to the system, where it can."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@dataclass(frozen=True)
class MemoryLimit:
    """A limit on the resident memory of this process."""

    size: int

    def left(self) -> int:
        """Bytes that can still be allocated."""
        return max(0, self.size - MARGIN - resident_memory())

    def check(self, needed: int, what: str, *, instead: str) -> None:
        """Raise OutOfMemoryError where `needed` more bytes exceed the limit; `instead` is what would fit."""
        total = resident_memory() + needed + MARGIN
        if total > self.size:
            raise OutOfMemoryError(
                f"{what} takes this process to about {mebibytes(total)}, and `max_memory` is {mebibytes(self.size)}",
                hint=f"{self.raised(total)}, or {instead}",
            )

    def raised(self, total: int) -> str:
        """How to raise the limit so that the process may take `total` bytes."""
        return f"raise `max_memory` (`--max-memory {-(-total // _MEBIBYTE)}M`, ORTKIT_MAX_MEMORY)"
