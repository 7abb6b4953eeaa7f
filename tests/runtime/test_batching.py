from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.batching import batches, cgroup_quota, run_all, usable_cores


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 2000))
def test_every_text_is_in_one_batch_of_its_own_length_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = batches(lengths, budget)

    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len({lengths[index] for index in group}) == 1
        assert len(group) == 1 or len(group) * lengths[group[0]] <= budget
    firsts = [lengths[group[0]] for group in groups]
    assert firsts == sorted(firsts, reverse=True)


@pytest.mark.parametrize("workers", [1, 3])
def test_all_groups_run(workers: int) -> None:
    done: list[int] = []
    run_all(done.extend, [[0], [1, 2], [3]], workers)

    assert sorted(done) == [0, 1, 2, 3]


def test_groups_run_at_once() -> None:
    both = threading.Barrier(2, timeout=10)

    def run(_: list[int]) -> None:
        both.wait()

    run_all(run, [[0], [1]], 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_and_stops_the_rest(workers: int) -> None:
    done: list[int] = []

    def run(group: list[int]) -> None:
        done.extend(group)
        if group == [0]:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        run_all(run, [[number] for number in range(1000)], workers)
    assert len(done) < 1000


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


def test_without_a_quota_there_is_none(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    assert cgroup_quota(membership, tmp_path) is None
    membership.write_text("0::/\n")
    assert cgroup_quota(membership, tmp_path) is None
    membership.write_text("4:cpu:/old\n")
    assert cgroup_quota(membership, tmp_path) is None


def test_usable_cores_follow_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3}, raising=False)

    assert usable_cores() == 1
