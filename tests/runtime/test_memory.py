from __future__ import annotations

from pathlib import Path

from runtime.memory import available_memory

MEMINFO = "MemTotal:       24000000 kB\nMemFree:          500000 kB\nMemAvailable:    2000000 kB\n"


def write_group(folder: Path, *, limit: object, used: int, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive}\n")


def test_without_a_group_it_is_what_the_system_has(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)

    assert available_memory(tmp_path / "meminfo", tmp_path / "none", tmp_path) == 2_000_000 * 1024


def test_the_tightest_group_on_the_way_up_counts_with_the_pages_that_it_can_give_up(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "cgroup").write_text("0::/slice/service\n")
    write_group(tmp_path / "fs/slice", limit=1_000_000, used=700_000, inactive=200_000)
    write_group(tmp_path / "fs/slice/service", limit="max", used=100)

    assert available_memory(tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "fs") == 500_000
    write_group(tmp_path / "fs/slice/service", limit=400_000, used=500_000)
    assert available_memory(tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "fs") == 0


def test_a_group_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("4:memory:/docker/ab\n1:cpu:/\n0::/\n")
    folder = tmp_path / "fs/memory/docker/ab"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("1000\n")
    (folder / "memory.usage_in_bytes").write_text("900\n")
    (folder / "memory.stat").write_text("total_inactive_file 50\n")

    assert available_memory(tmp_path / "none", tmp_path / "cgroup", tmp_path / "fs") == 150


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert available_memory(tmp_path / "none", tmp_path / "none", tmp_path) is None


def test_this_machine_says() -> None:
    assert (available_memory() or 0) > 1 << 20
