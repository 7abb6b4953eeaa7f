from __future__ import annotations

from pathlib import Path

import pytest

from ortkit.runtime.session.cores import Cores, cgroup_quota, find_cores


def write_group(root: Path, name: str, quota: str) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "cpu.max").write_text(quota)


def test_the_smallest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("12:pids:/x\n0::/slice/service\n")
    root = tmp_path / "fs"
    write_group(root, "slice", "150000 100000")
    write_group(root, "slice/service", "max 100000")

    assert cgroup_quota(membership, root) == 1.5
    write_group(root, "slice/service", "50000 100000")
    assert cgroup_quota(membership, root) == 0.5


def test_version_1_of_control_groups(tmp_path: Path) -> None:
    """A tree for each controller; a container may see its own group as the root."""
    membership = tmp_path / "cgroup"
    membership.write_text("9:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n")
    group = tmp_path / "fs/cpu"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("250000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")

    assert cgroup_quota(membership, tmp_path / "fs") == 2.5
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup_quota(membership, tmp_path / "fs") is None


def test_without_a_quota_there_is_none(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    assert cgroup_quota(membership, tmp_path) is None
    membership.write_text("0::/\n")
    assert cgroup_quota(membership, tmp_path) is None


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    """The path is the host's, and the folder of that name is not there."""
    membership = tmp_path / "cgroup"
    membership.write_text("0::/docker/ab\n")
    write_group(tmp_path / "fs", ".", "150000 100000")

    assert cgroup_quota(membership, tmp_path / "fs") == 1.5


def test_cores_follow_the_affinity_and_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    membership = tmp_path / "cgroup"
    monkeypatch.setattr("ortkit.runtime.session.cores.MEMBERSHIP", membership)
    monkeypatch.setattr("ortkit.runtime.session.cores.ROOT", tmp_path)

    assert find_cores() == Cores(64, 8, None)
    membership.write_text("0::/a\n")
    write_group(tmp_path, "a", "250000 100000")
    assert find_cores() == Cores(64, 8, 2.5)


@pytest.mark.parametrize(
    ("cores", "usable", "reason"),
    [
        (Cores(64, 64, None), 64, "the host has 64 cores"),
        (Cores(1, 1, None), 1, "the host has 1 core"),
        (Cores(64, 4, None), 4, "the process is bound to 4, the host has 64 cores"),
        (Cores(64, 64, 2.5), 2, "the control group's quota is 2.5, the host has 64 cores"),
        (Cores(64, 64, 0.5), 1, "the control group's quota is 0.5, the host has 64 cores"),
        (Cores(64, 2, 4.0), 2, "the process is bound to 2, the host has 64 cores"),
    ],
)
def test_the_reason_names_the_limit(cores: Cores, usable: int, reason: str) -> None:
    assert (cores.usable, cores.reason) == (usable, reason)
