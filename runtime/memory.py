"""How much memory this process may still take: what the system has free, and what the limits on it leave."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

from runtime.cores import MEMBERSHIP, ROOT, way_up
from runtime.errors import OutOfMemoryError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MEMINFO = Path("/proc/meminfo")
STATM = Path("/proc/self/statm")
SPARE = 64 << 20
"""Bytes that are left free: a graph needs some while it runs."""
MEMORY_HINT = "free memory or raise the limit, or export the model with a precision of fewer bits"
RESIDENT, ADDRESSES = 48 << 20, 160 << 20
"""Bytes that numpy, tokenizers and onnxruntime take at least, in memory and of addresses, as measured on Linux."""


@dataclass(frozen=True)
class Limit:
    """Something that bounds the memory of this process."""

    left: int
    """Bytes that may still be taken."""
    name: str

    @property
    def described(self) -> str:
        return f"{mebibytes(self.left)} are left by {self.name}"


def available_memory(
    meminfo: Path = MEMINFO, membership: Path = MEMBERSHIP, root: Path = ROOT, statm: Path = STATM
) -> int | None:
    """Bytes that can be taken without swapping, being killed or being refused; None where the system does not say.

    `MemAvailable` is Linux's own estimate (proc(5)); a control group may leave less, and so may a limit on addresses
    (getrlimit(2)).
    """
    limit = smallest_limit(meminfo, membership, root, statm)
    return None if limit is None else limit.left


def smallest_limit(
    meminfo: Path = MEMINFO, membership: Path = MEMBERSHIP, root: Path = ROOT, statm: Path = STATM
) -> Limit | None:
    """What bounds the memory of this process most; None where the system does not say, as on macOS."""
    found = [(free_memory(meminfo), "the system, as MemAvailable"), (addresses_left(statm), "the limit of `ulimit -v`")]
    found += [(left, "the memory limit of the control group") for left in group_memory(membership, root)]
    return min((Limit(left, name) for left, name in found if left is not None), key=lambda one: one.left, default=None)


def check_memory(needed: int, what: str) -> None:
    """Raise OutOfMemoryError for what will not fit, before it is taken."""
    limit = smallest_limit()
    if limit is not None and limit.left < needed:
        raise OutOfMemoryError(f"{what} take at least {mebibytes(needed)}, and {limit.described}", hint=MEMORY_HINT)


def check_libraries() -> None:
    """Raise OutOfMemoryError where not even the libraries fit that run a model; they would end the process."""
    for left, needed, name in (
        (addresses_left(STATM), ADDRESSES, "the limit of `ulimit -v`"),
        *((left, RESIDENT, "the memory limit of the control group") for left in group_memory(MEMBERSHIP, ROOT)),
    ):
        if left is not None and left < needed:
            raise OutOfMemoryError(
                f"the libraries that run a model take at least {mebibytes(needed)}, and {Limit(left, name).described}",
                hint="raise the limit",
            )


def addresses_left(statm: Path) -> int | None:
    """What a limit on the addresses of this process leaves (RLIMIT_AS); None without one."""
    if resource is None:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        return max(0, int(limit) - int(statm.read_text().split()[0]) * mmap.PAGESIZE)
    except (OSError, ValueError, IndexError):
        return None


def free_memory(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def group_memory(membership: Path, root: Path) -> list[int | None]:
    """What each control group on the way up to the root leaves.

    Version 2 has `memory.max` and `memory.current` (cgroup-v2.rst), version 1 `memory.limit_in_bytes` and
    `memory.usage_in_bytes` (memcg_v1.rst). What they count as used holds pages of files, of which those not used for
    long are given up before anything fails.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    found: list[int | None] = []
    for line in lines:
        number, controllers, own = line.split(":", 2)
        if number == "0":
            found += [left(folder, "memory.max", "memory.current", "inactive_file") for folder in way_up(root, own)]
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            mounts = {root / controllers, root / "memory"}
            found += [left(folder, *names) for mount in mounts for folder in way_up(mount, own)]
    return found


def left(folder: Path, limit: str, usage: str, inactive: str) -> int | None:
    """What one group leaves; None without a limit."""
    try:
        free = int((folder / limit).read_text()) - int((folder / usage).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, free + int(statistics.get(inactive, 0)))
    # Without a limit, version 2 says `max`.
    except (OSError, ValueError):
        return None


def mebibytes(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
