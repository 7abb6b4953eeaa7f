"""Memory that this process can still allocate: free memory, control group and address-space limit."""

from __future__ import annotations

import mmap
import resource
from dataclasses import dataclass
from pathlib import Path

from .. import sizes
from ..errors import OutOfMemoryError
from .cores import MEMBERSHIP, ROOT, control_groups

mebibytes = sizes.mebibytes
MEMINFO = Path("/proc/meminfo")
_STATM = Path("/proc/self/statm")
SPARE = 64 << 20
"""Bytes to leave free for a graph while it runs."""
MEMORY_HINT = "free memory or raise the limit, or export the model with a precision of fewer bits"
ADDRESS_SPACE = "the limit of `ulimit -v`"
CONTROL_GROUP = "the memory limit of the control group"
RESIDENT, _ADDRESSES = 48 << 20, 160 << 20
"""Bytes that numpy, tokenizers and onnxruntime take at least: resident, and of address space (measured on Linux)."""


@dataclass(frozen=True)
class Limit:
    """A limit on the memory of this process."""

    left: int
    """Bytes that can still be allocated."""
    name: str

    @property
    def described(self) -> str:
        return f"{mebibytes(self.left)} are left by {self.name}"


def available_memory(
    meminfo: Path = MEMINFO, membership: Path = MEMBERSHIP, root: Path = ROOT, statm: Path = _STATM
) -> int | None:
    """Bytes that can be allocated without swapping or being killed; None where the system does not say.

    Linux's estimate (`MemAvailable`, proc(5)), or less where the control group or RLIMIT_AS (getrlimit(2)) leaves less.
    """
    limit = smallest_limit(meminfo, membership, root, statm)
    return None if limit is None else limit.left


def smallest_limit(
    meminfo: Path = MEMINFO, membership: Path = MEMBERSHIP, root: Path = ROOT, statm: Path = _STATM
) -> Limit | None:
    """The smallest limit; None where the system does not say, as on macOS."""
    return min(limits_of_memory(meminfo, membership, root, statm), key=lambda one: one.left, default=None)


def limits_of_memory(
    meminfo: Path = MEMINFO, membership: Path = MEMBERSHIP, root: Path = ROOT, statm: Path = _STATM
) -> list[Limit]:
    """All limits on the memory of this process."""
    found = [(_free_memory(meminfo), "the system, as MemAvailable"), (_addresses_left(statm), ADDRESS_SPACE)]
    found += [(left, CONTROL_GROUP) for left in _group_memory(membership, root)]
    return [Limit(left, name) for left, name in found if left is not None]


def check_memory(needed: int, what: str) -> None:
    """Raise OutOfMemoryError where `needed` bytes do not fit."""
    limit = smallest_limit()
    if limit is not None and limit.left < needed:
        raise OutOfMemoryError(f"{what} take at least {mebibytes(needed)}, and {limit.described}", hint=MEMORY_HINT)


def check_libraries() -> None:
    """Raise OutOfMemoryError where even the libraries do not fit; importing them would crash."""
    for left, needed, name in (
        (_addresses_left(_STATM), _ADDRESSES, ADDRESS_SPACE),
        *((left, RESIDENT, CONTROL_GROUP) for left in _group_memory(MEMBERSHIP, ROOT)),
    ):
        if left is not None and left < needed:
            raise OutOfMemoryError(
                f"the libraries that run a model take at least {mebibytes(needed)}, and {Limit(left, name).described}",
                hint="raise the limit",
            )


def _addresses_left(statm: Path) -> int | None:
    """Bytes left by the address-space limit (RLIMIT_AS); None without one."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        return max(0, int(limit) - int(statm.read_text().split()[0]) * mmap.PAGESIZE)
    except (OSError, ValueError, IndexError):
        return None


def _free_memory(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _group_memory(membership: Path, root: Path) -> list[int | None]:
    """Bytes that the control group and each of its parents leave.

    The usage includes the page cache; inactive pages of files are reclaimed before an allocation fails.
    """
    return [_left(folder) for folder in control_groups(membership, root, "memory")]


def _left(folder: Path) -> int | None:
    """Bytes that one control group leaves; None without a limit."""
    for limit, usage, inactive in _FILES:
        try:
            free = int((folder / limit).read_text()) - int((folder / usage).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            left = max(0, free + int(statistics.get(inactive, 0)))
        # Without a limit, `memory.max` says `max`.
        except (OSError, ValueError):
            continue
        return left if left < _NO_LIMIT else None
    return None


_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, usage and the name of inactive file pages in `memory.stat`, of versions 2 and 1 of control groups."""
_NO_LIMIT = 1 << 60
"""Version 1 says a number a little below 2^63 where there is none."""
