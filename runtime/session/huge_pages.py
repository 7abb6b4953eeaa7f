"""Keep a decoder's weights in memory once, and on huge pages (2 MiB). Linux only.

onnxruntime maps external data and packs most of it for its kernels. The mapped pages stay resident, and the packed
weights are on pages of 4 KiB, of which the TLB covers fewer than a decoder reads for one token.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

_MAPS = Path("/proc/self/maps")
_PAGES = Path("/proc/self/pagemap")
_ENTRY = 8
"""Bytes of an entry of pagemap, one for each page."""
_HELD, _IN_FILE = np.uint64(3 << 62), np.uint64(1 << 61)
"""Bits of an entry: present or swapped; file page or shared (Linux's pagemap.rst)."""
HUGE_PAGE = 2 << 20
WORTH_MOVING = 256 << 20
"""Bytes of packed weights from which on they are moved to huge pages: smaller ones gain little and start later."""
_MADV_DONTNEED, _MADV_COLLAPSE = 4, 25
"""Advice of madvise(2); the second came with Linux 6.1 and is synchronous."""


@contextmanager
def weights_on_huge_pages(folder: Path) -> Iterator[None]:
    """Open a decoder's graph inside the block; afterwards its weights are in memory once, and on huge pages if large.

    `folder` holds the graph's files, of which mapped pages are freed.
    """
    before = mapped_regions()
    yield
    give_back(folder)
    move_to_huge_pages(before)


class Region(NamedTuple):
    """A memory mapping of this process."""

    start: int
    end: int
    file: str | None
    """None for anonymous memory."""

    @property
    def size(self) -> int:
        return self.end - self.start


def mapped_regions(maps: Path = _MAPS) -> list[Region]:
    """The writable and file mappings of this process; none where the system does not say."""
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


def own_bytes(regions: Sequence[Region], pages: Path = _PAGES) -> list[int]:
    """Bytes of private memory in each region, from /proc/self/pagemap; raises OSError where it cannot be read.

    Pass only the regions of interest: the kernel looks at each of their pages.
    """
    found = []
    with pages.open("rb", buffering=0) as file:
        for region in regions:
            count = region.size // mmap.PAGESIZE
            file.seek(region.start // mmap.PAGESIZE * _ENTRY)
            entries = np.frombuffer(file.read(count * _ENTRY), np.uint64)
            if len(entries) != count:
                raise OSError(f"`{pages}` says nothing of {region}")
            own = (entries & _HELD != 0) & (entries & _IN_FILE == 0)
            found.append(int(np.count_nonzero(own)) * mmap.PAGESIZE)
    return found


def give_back(folder: Path) -> int:
    """Free unmodified pages mapped from files in `folder`, and unused memory of the allocator.

    A freed page is read from its file when it is used again. Returns the bytes of the freed ranges.
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
    # Modified pages would be lost.
    unchanged = [region for region, size in zip(files, own, strict=True) if not size]
    return sum(region.size for region in unchanged if _advise(region.start, region.size, _MADV_DONTNEED))


def move_to_huge_pages(before: Sequence[Region]) -> int:
    """Move what was allocated since `before` to huge pages; returns the bytes that were moved.

    Nothing is moved where it is little, or where the kernel does not support _MADV_COLLAPSE.
    """
    known = {region.start: region.end for region in before}
    new = [region for region in mapped_regions() if region.file is None and known.get(region.start) != region.end]
    # Small decoders have little even before private memory is counted.
    if sum(size for _, size in map(_huge_range, new)) < WORTH_MOVING:
        return 0
    try:
        own = own_bytes(new)
    except OSError:
        return 0
    ranges = [_huge_range(region) for region, size in zip(new, own, strict=True) if size >= HUGE_PAGE]
    if sum(size for _, size in ranges) < WORTH_MOVING:
        return 0
    return sum(size for first, size in ranges if size and _advise(first, size, _MADV_COLLAPSE))


def _huge_range(region: Region) -> tuple[int, int]:
    """The aligned range of huge pages within a region: its start and size."""
    first = -(-region.start // HUGE_PAGE) * HUGE_PAGE
    return first, max(0, region.end // HUGE_PAGE * HUGE_PAGE - first)


def _advise(start: int, size: int, advice: int) -> bool:
    """Call madvise(2); returns whether it succeeded."""
    madvise = ctypes.CDLL(None).madvise
    return bool(madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice) == 0)
