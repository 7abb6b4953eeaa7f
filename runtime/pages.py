"""Where the weights of an open graph lie in memory: once, and on large pages where the system has them. Linux only.

onnxruntime maps what lies beside a graph and packs most of it anew, as its kernels want to read it. The pages that it
has packed from stay with the process, and what it packed lies on pages of 4 KiB, of which the processor finds fewer at
a time than a decoder reads for one token.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAPS = Path("/proc/self/maps")
PAGES = Path("/proc/self/pagemap")
ENTRY = 8
"""Bytes that the second says of each page."""
HELD, IN_FILE = np.uint64(3 << 62), np.uint64(1 << 61)
"""Bits of what it says, in memory or swapped and of a file or shared (Linux's pagemap.rst)."""
LARGE_PAGE = 2 << 20
WORTH_MOVING = 256 << 20
"""Bytes of packed weights from which on they are moved to large pages: smaller ones gain little, and start later."""
MADV_DONTNEED, MADV_COLLAPSE = 4, 25
"""Advice of madvise(2); the second came with Linux 6.1, and does its work before it returns."""


@contextmanager
def weights_on_huge_pages(folder: Path) -> Iterator[None]:
    """Open a decoder's graph inside the block; afterwards its weights are in memory once, and on huge pages if large.

    `folder` holds the graph's files, of which mapped pages are freed.
    """
    before = mapped_regions()
    yield
    give_back(folder)
    on_large_pages(before)


class Region(NamedTuple):
    """A range of this process's addresses that was mapped at once."""

    start: int
    end: int
    file: str | None
    """None for memory that no file stands behind."""

    @property
    def size(self) -> int:
        return self.end - self.start


def mapped_regions(maps: Path = MAPS) -> list[Region]:
    """What this process has mapped readable and writable, or from a file; none where the system does not say."""
    try:
        # Not `splitlines`, and no text mode: a path may hold what they take for the end of a line.
        lines = maps.read_bytes().decode("utf-8", "surrogateescape").rstrip("\n").split("\n")
    except OSError:
        return []
    regions = []
    for line in lines:
        # Addresses, permissions, offset, device, inode, and the path where there is one (proc_pid_maps(5)).
        addresses, permissions, _, _, _, *path = line.split(maxsplit=5)
        file = path[0] if path and path[0].startswith("/") else None
        if file or permissions.startswith("rw"):
            start, _, end = addresses.partition("-")
            regions.append(Region(int(start, 16), int(end, 16), file))
    return regions


def own_bytes(regions: Sequence[Region], pages: Path = PAGES) -> list[int]:
    """Bytes of each region that were written since it was mapped and are in no file; raises OSError if it is not told.

    Only the regions of interest are asked about: the system looks at each of their pages for its answer.
    """
    found = []
    with pages.open("rb", buffering=0) as file:
        for region in regions:
            count = region.size // mmap.PAGESIZE
            file.seek(region.start // mmap.PAGESIZE * ENTRY)
            entries = np.frombuffer(file.read(count * ENTRY), np.uint64)
            if len(entries) != count:
                raise OSError(f"`{pages}` says nothing of {region}")
            own = (entries & HELD != 0) & (entries & IN_FILE == 0)
            found.append(int(np.count_nonzero(own)) * mmap.PAGESIZE)
    return found


def give_back(folder: Path) -> int:
    """Give back the memory of pages mapped from files in `folder`, and what the allocator holds without use.

    Such a page is read from its file again when it is used again. Returns the bytes of the ranges that were given back.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    inside = str(folder.resolve())
    files = [region for region in mapped_regions() if region.file and region.file.rpartition("/")[0] == inside]
    try:
        own = own_bytes(files)
    except OSError:
        return 0
    # What was written to since is in no file, and would be lost.
    unchanged = [region for region, size in zip(files, own, strict=True) if not size]
    return sum(region.size for region in unchanged if advise(region.start, region.size, MADV_DONTNEED))


def on_large_pages(before: Sequence[Region]) -> int:
    """Put what was allocated since `before` was read on pages of 2 MiB; returns the bytes that were moved.

    Nothing is moved where it is little, or where the system knows no such advice.
    """
    known = {region.start: region.end for region in before}
    new = [region for region in mapped_regions() if region.file is None and known.get(region.start) != region.end]
    # What small decoders have is little even before one looks which of it was written to.
    if sum(size for _, size in map(large_pages, new)) < WORTH_MOVING:
        return 0
    try:
        own = own_bytes(new)
    except OSError:
        return 0
    ranges = [large_pages(region) for region, size in zip(new, own, strict=True) if size >= LARGE_PAGE]
    if sum(size for _, size in ranges) < WORTH_MOVING:
        return 0
    return sum(size for first, size in ranges if size and advise(first, size, MADV_COLLAPSE))


def large_pages(region: Region) -> tuple[int, int]:
    """Where large pages in a region would begin, and the bytes that they would take."""
    first = -(-region.start // LARGE_PAGE) * LARGE_PAGE
    return first, max(0, region.end // LARGE_PAGE * LARGE_PAGE - first)


def advise(start: int, size: int, advice: int) -> bool:
    """Whether the system took an advice about a range of addresses."""
    madvise = ctypes.CDLL(None).madvise
    return bool(madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice) == 0)
