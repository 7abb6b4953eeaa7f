"""How much memory this process may still take: what the system has free, and what its control groups leave of it."""

from __future__ import annotations

from pathlib import Path

from runtime.cores import MEMBERSHIP, ROOT, way_up

MEMINFO = Path("/proc/meminfo")


def available_memory(meminfo: Path = MEMINFO, membership: Path = MEMBERSHIP, root: Path = ROOT) -> int | None:
    """Bytes that can be taken without swapping or being killed; None where the system does not say, as on macOS.

    `MemAvailable` is Linux's own estimate (proc(5)); a control group may leave less. Version 2 has `memory.max` and
    `memory.current` (cgroup-v2.rst), version 1 `memory.limit_in_bytes` and `memory.usage_in_bytes` (memcg_v1.rst). What
    they count as used holds pages of files, of which those not used for long are given up before anything fails.
    """
    found = [bytes_ for bytes_ in (free_memory(meminfo), *group_memory(membership, root)) if bytes_ is not None]
    return min(found, default=None)


def free_memory(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def group_memory(membership: Path, root: Path) -> list[int | None]:
    """What each control group on the way up to the root leaves."""
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
