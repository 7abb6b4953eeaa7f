"""Where the weights of an open graph lie in memory: once, and on large pages where the system has them. Linux only.

onnxruntime maps what lies beside a graph and packs most of it anew, as its kernels want to read it. The pages that it
has packed from stay with the process, and what it packed lies on pages of 4 KiB, of which the processor finds fewer at
a time than a decoder reads for one token.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAPS = Path("/proc/self/smaps")
LARGE_PAGE = 2 << 20
WORTH_MOVING = 256 << 20
"""Bytes of packed weights from which on they are moved to large pages: smaller ones gain little, and start later."""
MADV_DONTNEED, MADV_COLLAPSE = 4, 25
"""Advice of madvise(2); the second came with Linux 6.1, and does its work before it returns."""


@dataclass(frozen=True)
class Region:
    """A range of this process's addresses that was mapped at once."""

    start: int
    end: int
    file: Path | None
    """None for memory that no file stands behind."""
    own: int
    """Bytes that were written since and are in no file."""

    @property
    def size(self) -> int:
        return self.end - self.start


def mapped_regions(maps: Path = MAPS) -> list[Region]:
    """What this process has mapped readable and writable, or from a file; none where the system does not say."""
    try:
        lines = maps.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    regions: list[Region] = []
    for line in lines:
        name, *values = line.split(maxsplit=5)
        if name == "Anonymous:" and regions:
            last = regions.pop()
            regions.append(Region(last.start, last.end, last.file, int(values[0]) * 1024))
        elif not name.endswith(":"):
            start, end = (int(address, 16) for address in name.split("-"))
            path = values[4] if len(values) > 4 else ""
            regions.append(Region(start, end, Path(path) if path.startswith("/") else None, 0))
    return regions


def give_back(folder: Path) -> int:
    """Give back the memory of pages mapped from files in `folder`, and what the allocator holds without use.

    Such a page is read from its file again when it is used again. Returns the bytes of the ranges that were given back.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    folder = folder.resolve()
    # What was written to since is in no file, and would be lost.
    files = [region for region in mapped_regions() if region.file and region.file.parent == folder and not region.own]
    return sum(region.size for region in files if advise(region.start, region.size, MADV_DONTNEED))


def on_large_pages(before: Sequence[Region]) -> int:
    """Put what was allocated since `before` was read on pages of 2 MiB; returns the bytes that were moved.

    Nothing is moved where it is little, or where the system knows no such advice.
    """
    known = {region.start: region.end for region in before}
    ranges = []
    for region in mapped_regions():
        first = -(-region.start // LARGE_PAGE) * LARGE_PAGE
        last = region.end // LARGE_PAGE * LARGE_PAGE
        is_new = region.file is None and known.get(region.start) != region.end
        if is_new and region.own >= LARGE_PAGE and last > first:
            ranges.append((first, last - first))
    if sum(size for _, size in ranges) < WORTH_MOVING:
        return 0
    return sum(size for first, size in ranges if advise(first, size, MADV_COLLAPSE))


def advise(start: int, size: int, advice: int) -> bool:
    """Whether the system took an advice about a range of addresses."""
    madvise = ctypes.CDLL(None).madvise
    return bool(madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice) == 0)
