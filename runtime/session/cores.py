"""CPU cores that this process may use: limited by CPU affinity and control group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")
"""Linux's files for the control groups of this process."""
_ANY_CONTROLLER = ""
"""The name in /proc/self/cgroup for version 2, whose groups have all controllers."""


@dataclass(frozen=True)
class Cores:
    """CPU cores of the host, and how many this process may use."""

    host: int
    affinity: int
    """Cores in the CPU affinity."""
    quota: float | None
    """CPU quota of the control group, in cores; None without one."""

    @property
    def usable(self) -> int:
        """Number of cores that this process may use."""
        return self.affinity if self.quota is None else max(1, min(self.affinity, int(self.quota)))

    @property
    def reason(self) -> str:
        """What limits `usable`, for people."""
        of_the_host = f"the host has {_counted(self.host)}"
        if self.quota is not None and self.quota < self.affinity:
            return f"the control group's quota is {self.quota:g}, {of_the_host}"
        if self.affinity < self.host:
            return f"the process is bound to {self.affinity}, {of_the_host}"
        return of_the_host


def _counted(cores: int) -> str:
    return f"{cores} core" if cores == 1 else f"{cores} cores"


def find_cores() -> Cores:
    """Read the limits from the system."""
    host = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else host
    return Cores(host, affinity, cgroup_quota(MEMBERSHIP, ROOT))


def cgroup_quota(membership: Path, root: Path) -> float | None:
    """The smallest CPU quota, in cores, of this process's control group and its parents; None without one.

    A container may see its own group as the root, so parents are read even where the group's own folder is not there.
    """
    quotas = [quota for folder in control_groups(membership, root, "cpu") if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def control_groups(membership: Path, root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control group and its parents, innermost first; none on other systems.

    Version 2 (Linux's cgroup-v2.rst) has one tree, version 1 (cgroup-v1) one for each controller, below `root` in a
    folder of its name. Both may be mounted at once.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        # Hierarchy, controllers, path (cgroups(7)).
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == _ANY_CONTROLLER and path:
            top = root
        elif controller in controllers.split(","):
            top = root / controller
        else:
            continue
        group = top / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder == top or top in folder.parents)


def _quota(folder: Path) -> float | None:
    """The CPU quota of one control group, in cores; None without one."""
    try:
        limit, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return _quota_of_version_1(folder)
    return None if limit == "max" else int(limit) / int(period)


def _quota_of_version_1(folder: Path) -> float | None:
    try:
        limit, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):
        return None
    # Without a limit the quota is -1.
    return limit / period if limit > 0 and period > 0 else None
