from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ortkit import OutOfMemoryError
from ortkit.runtime.session.memory import Limit, available_memory, check_memory, smallest_limit

MEMINFO = "MemTotal:       24000000 kB\nMemFree:          500000 kB\nMemAvailable:    2000000 kB\n"


def write_group(folder: Path, *, limit: object, used: int, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive}\n")


def test_without_a_control_group_the_system_decides(tmp_path: Path) -> None:
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


def test_version_1_of_control_groups(tmp_path: Path) -> None:
    """A tree for each controller; a number of its own says that there is no limit."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "cgroup").write_text("9:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab\n")
    group = tmp_path / "fs/memory/docker/ab"
    group.mkdir(parents=True)
    for name, content in {
        "memory.limit_in_bytes": "900000\n",
        "memory.usage_in_bytes": "700000\n",
        "memory.stat": "cache 5\ninactive_file 1\ntotal_inactive_file 100000\n",
    }.items():
        (group / name).write_text(content)

    assert available_memory(tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "fs") == 300_000
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert available_memory(tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "fs") == 2_000_000 * 1024


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert available_memory(tmp_path / "none", tmp_path / "none", tmp_path) is None


def test_the_limits_of_this_machine() -> None:
    assert (available_memory() or 0) > 1 << 20


def test_the_smallest_limit_is_named(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "cgroup").write_text("0::/service\n")
    write_group(tmp_path / "fs/service", limit=900 << 20, used=800 << 20)

    system = smallest_limit(tmp_path / "meminfo", tmp_path / "none", tmp_path)
    group = smallest_limit(tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "fs")

    assert system is not None
    assert system.described == "1,953 MiB are left by the system, as MemAvailable"
    assert group is not None
    assert group.described == "100 MiB are left by the memory limit of the control group"


def test_too_little_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ortkit.runtime.session.memory.smallest_limit", lambda: Limit(100 << 20, "the limit of `ulimit -v`")
    )

    check_memory(100 << 20, "the weights")
    with pytest.raises(OutOfMemoryError) as caught:
        check_memory(101 << 20, "the weights of `model.onnx`")
    assert caught.value.message == (
        "the weights of `model.onnx` take at least 101 MiB, and 100 MiB are left by the limit of `ulimit -v`"
    )
    assert caught.value.hint == ("free memory or raise the limit, or export the model with a precision of fewer bits")
    assert caught.value.exit_code == 9


def under(limit: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with so many MiB of addresses."""
    code = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({limit << 20}, {limit << 20}))
from ortkit.__main__ import main
main()
"""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("limit", [100, 128])
def test_an_address_space_limit_is_reported(limit: int, tmp_path: Path) -> None:
    """numpy's OpenBLAS and onnxruntime end with messages of their own, or the process."""
    finished = under(limit, "embed", str(tmp_path), "water")

    assert finished.returncode == 9, finished.stderr
    assert "error: the libraries that run a model take at least 160 MiB, and" in finished.stderr
    assert "are left by the limit of `ulimit -v`" in finished.stderr
    assert finished.stdout == ""


def test_help_needs_no_model() -> None:
    assert under(100, "embed", "--help").returncode == 0
