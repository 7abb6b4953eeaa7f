"""Which texts run together, and how many runs at once.

A batch holds texts of one length only, so nothing is padded: no computing is spent on padding, the graph needs no mask,
and the bits of a text's result cannot depend on its neighbours' lengths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group the indices of texts by length, each group of at most `batch_tokens` tokens but at least one text.

    The longest come first, so that no worker is left with a long batch at the end.
    """
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    groups = []
    for length in sorted(by_length, reverse=True):
        indices = by_length[length]
        count = max(1, batch_tokens // max(length, 1))
        groups += [indices[start : start + count] for start in range(0, len(indices), count)]
    return groups


def run_all(run: Callable[[list[int]], None], groups: Iterable[list[int]], workers: int) -> None:
    """Call `run` for every group, `workers` at a time; the first error stops what has not begun and is raised."""
    groups = list(groups)
    if workers == 1 or len(groups) == 1:
        for group in groups:
            run(group)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="edgekit") as pool:
        futures = [pool.submit(run, group) for group in groups]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    """How many cores this process may use: its affinity, cut to the quota of its control group (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return cores if quota is None else max(1, min(cores, int(quota)))


def cgroup_quota(membership: Path, root: Path) -> float | None:
    """The smallest CPU quota, in cores, on the way from a process's control group up to the root; None without one."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    if own is None:
        return None
    group = root / own.lstrip("/")
    quotas = []
    for folder in (group, *group.parents):
        if folder != root and root not in folder.parents:
            break
        try:
            limit, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if limit != "max":
            quotas.append(int(limit) / int(period))
    return min(quotas, default=None)
