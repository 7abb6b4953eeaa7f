"""How many cores this process may use, and what decides it: its affinity and its control group, not the host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")
"""Where Linux says which control groups this process is in, and what they grant."""


@dataclass(frozen=True)
class Cores:
    """The cores of the host, and what this process may have of them."""

    host: int
    affinity: int
    """Cores that the process is allowed to run on."""
    quota: float | None
    """Cores' worth of time that its control group grants; None without a limit."""

    @property
    def usable(self) -> int:
        return self.affinity if self.quota is None else max(1, min(self.affinity, int(self.quota)))

    @property
    def reason(self) -> str:
        """Why so many are usable, in words."""
        of_the_host = f"the host has {counted(self.host)}"
        if self.quota is not None and self.quota < self.affinity:
            return f"the control group's quota is {self.quota:g}, {of_the_host}"
        if self.affinity < self.host:
            return f"the process is bound to {self.affinity}, {of_the_host}"
        return of_the_host


def counted(cores: int) -> str:
    return f"{cores} core" if cores == 1 else f"{cores} cores"


def find_cores() -> Cores:
    """Read them from the system."""
    host = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else host
    return Cores(host, affinity, cgroup_quota(MEMBERSHIP, ROOT))


def cgroup_quota(membership: Path, root: Path) -> float | None:
    """The smallest CPU quota, in cores, on the way from a process's control groups up to their roots; None without one.

    Version 2 has one hierarchy with `cpu.max` (Linux's cgroup-v2.rst), version 1 one for each controller, with
    `cpu.cfs_quota_us` and `cpu.cfs_period_us` (sched-bwc.rst); a system may have both, and a container may see its own
    group as the root, which is why the way up goes on over folders that are not there.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        number, controllers, own = line.split(":", 2)
        if number == "0":
            quotas += [quota for folder in way_up(root, own) if (quota := quota_v2(folder)) is not None]
        elif "cpu" in controllers.split(","):
            mounts = {root / controllers, root / "cpu"}
            quotas += [
                quota for mount in mounts for folder in way_up(mount, own) if (quota := quota_v1(folder)) is not None
            ]
    return min(quotas, default=None)


def way_up(root: Path, own: str) -> Iterator[Path]:
    """The folder of a control group and those above it, up to the root of its hierarchy."""
    group = root / own.lstrip("/")
    for folder in (group, *group.parents):
        if folder != root and root not in folder.parents:
            return
        yield folder


def quota_v2(folder: Path) -> float | None:
    try:
        limit, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)


def quota_v1(folder: Path) -> float | None:
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return None if limit < 0 else limit / period
