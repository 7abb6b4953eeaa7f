"""`docs/examples/bulk_ray.py` on this machine: an actor is killed, and the vectors are those of a single process."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ortkit import Bundle
from ortkit.bulk import Embed

ROOT = Path(__file__).parents[3]
ROWS = 20_000
STARTS = 5
"""Ray gives its agents 15 seconds to start, which no option changes: too few where other tests take the cores."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds Ray's processes in /proc"),
]


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder for all that Ray writes, with a name so short that sockets fit in it."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def environment(folder: Path) -> dict[str, str]:
    (folder / "home").mkdir(exist_ok=True)
    # Its processes are started faster with bytecode files, which the first start writes where there are none.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {
        "HOME": str(folder / "home"),
        "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        # Ray listens on the loopback alone, as it does on macOS.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def processes_of(folder: Path) -> dict[int, str]:
    """The processes with Ray's folder in their environment, and their titles."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"RAY_TMPDIR={folder}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def kill_one_actor(folder: Path, example: subprocess.Popen[bytes]) -> tuple[int, set[int]]:
    """Kill an actor while it embeds; returns its process, and all actors until the end of the example."""
    killed, actors = 0, set()
    while example.poll() is None:
        for process, title in processes_of(folder).items():
            if title.startswith("ray::MapWorker(MapBatches(Embed))"):
                actors.add(process)
                if not killed and ".submit" in title:
                    os.kill(process, signal.SIGKILL)
                    killed = process
        time.sleep(0.02)
    return killed, actors


def test_a_killed_actor_changes_no_byte(small_embedder: Bundle, tmp_path: Path, ray_folder: Path) -> None:
    texts = [None if row % 997 == 5 else f"the fox {'lazy ' * (row % 40)}{row}" for row in range(ROWS)]
    given = pa.table({"id": range(ROWS), "text": texts})
    (tmp_path / "in").mkdir()
    for part in range(4):
        pq.write_table(given.slice(part * ROWS // 4, ROWS // 4), tmp_path / "in" / f"{part}.parquet")
    command = [sys.executable, ROOT / "docs/examples/bulk_ray.py", tmp_path / "in", tmp_path / "out"]
    command += ["--bundle", small_embedder.path, "--local", "--actors", "2", "--rows", "1000"]

    for _ in range(STARTS):
        with (tmp_path / "log").open("wb") as log:
            example = subprocess.Popen(
                command, env=environment(ray_folder), stdout=log, stderr=log, start_new_session=True
            )
            try:
                killed, actors = kill_one_actor(ray_folder, example)
            finally:
                for process in processes_of(ray_folder):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                example.wait()
        if killed:
            break
        # Ray has not started, or was done before one of its actors was seen at work.
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    assert example.returncode == 0, (tmp_path / "log").read_text(errors="replace")
    assert killed
    assert len(actors) > 2, "two, and another for the killed one"
    # Ray's Parquet writer has several threads, and writes the batches of a file in any order.
    found = pa.concat_tables(map(pq.read_table, (tmp_path / "out").glob("*.parquet"))).sort_by("id")
    expected = Embed(small_embedder.path)(given)
    assert found["id"].to_pylist() == list(range(ROWS)), "no row is lost or written twice"
    assert found["error"].to_pylist() == expected["error"].to_pylist()
    assert found["embedding"].combine_chunks().equals(expected["embedding"].combine_chunks())
    assert found.schema.field("embedding").type == expected.schema.field("embedding").type
