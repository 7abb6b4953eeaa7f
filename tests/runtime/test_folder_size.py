from __future__ import annotations

import shutil
from pathlib import Path
from threading import Event, Thread

from ortkit.runtime.folder_size import bytes_in


def test_files_at_any_depth_and_no_links(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "one").write_bytes(bytes(3))
    (tmp_path / "a" / "b" / "two").write_bytes(bytes(40))
    (tmp_path / "a" / "link").symlink_to(tmp_path / "one")
    (tmp_path / "a" / "folder").symlink_to(tmp_path / "a" / "b")

    assert bytes_in(tmp_path) == 43
    assert bytes_in(tmp_path / "missing") == 0


def test_folders_that_go_while_they_are_looked_into(tmp_path: Path) -> None:
    """As pip's do, which empties its temporary folder while it downloads."""
    (tmp_path / "stays").write_bytes(bytes(5))
    done = Event()

    def come_and_go() -> None:
        while not done.is_set():
            for number in range(20):
                (tmp_path / f"{number}" / "below").mkdir(parents=True)
            for number in range(20):
                shutil.rmtree(tmp_path / f"{number}")

    thread = Thread(target=come_and_go)
    thread.start()
    try:
        sizes = {bytes_in(tmp_path) for _ in range(2000)}
    finally:
        done.set()
        thread.join()

    assert sizes == {5}
    assert [path.name for path in tmp_path.iterdir()] == ["stays"]
