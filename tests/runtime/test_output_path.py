from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ortkit.runtime.errors import OutputError
from ortkit.runtime.output_path import is_special, regular_target_of, remove_abandoned, replacing, target_of


def test_a_file_and_one_that_is_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").write_text("old")
    monkeypatch.chdir(tmp_path)

    for name in ("there", "new"):
        assert target_of(tmp_path / name) == regular_target_of(tmp_path / name) == tmp_path / name
        # As it was typed, for messages.
        assert target_of(name) == Path(name)


def test_the_target_of_a_link_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/file")

    assert target_of(tmp_path / "link") == tmp_path / "folder" / "file"
    (tmp_path / "folder" / "file").write_text("old")
    assert target_of(tmp_path / "link") == tmp_path / "folder" / "file"


def test_devices_and_pipes_are_not_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")

    for path in (tmp_path / "pipe", tmp_path / "link", Path(os.devnull)):
        assert target_of(path) == path
        assert is_special(path)
        with pytest.raises(OutputError) as caught:
            regular_target_of(path, hint="another")
        assert caught.value.message == f"`{path}` cannot be written: it is not a regular file"
        assert caught.value.hint == "another"


def test_the_other_end_of_an_open_pipe_stays_as_it_is_named() -> None:
    reading, writing = os.pipe()
    path = Path(f"/dev/fd/{writing}")
    try:
        assert target_of(path) == path
        with path.open("wb") as file:
            file.write(b"here")
        assert os.read(reading, 10) == b"here"
    finally:
        os.close(reading)
        os.close(writing)


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("none/file")
    for name, why in [
        (".", "it is a folder"),
        (str(tmp_path), "it is a folder"),
        (str(tmp_path / "none" / "file"), "No such file or directory"),
        (str(tmp_path / "dangling"), "No such file or directory"),
        (str(tmp_path / "file" / "file"), "Not a directory"),
        (str(tmp_path / "loop"), "Too many levels of symbolic links"),
        (str(tmp_path / ("x" * 300)), "File name too long"),
    ]:
        with pytest.raises(OutputError) as caught:
            target_of(name)
        assert caught.value.message == f"`{name}` cannot be written: {why}"
    with pytest.raises(OutputError, match="the name of the file to write is empty"):
        target_of("")


KILLED = """
import sys, time
from pathlib import Path
from ortkit.runtime.output_path import is_special, regular_target_of, remove_abandoned, replacing, target_of
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_file_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "saved"
    target.write_bytes(b"old")
    with replacing(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"

    assert target.read_bytes() == b"new"
    with pytest.raises(ZeroDivisionError), replacing(target) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_partial_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """And not what a process that still writes has, whatever their numbers are: a container's are always the same."""
    target = tmp_path / "saved[1]"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE) as writing:
        assert writing.stdout is not None
        writing.stdout.readline()
        (left,) = tmp_path.iterdir()
        same_number = left.rename(left.with_name(left.name.replace(f".{writing.pid}.", f".{os.getpid()}.")))
        remove_abandoned(target)
        assert same_number.exists()
        writing.kill()
        writing.wait()
    with replacing(target) as file:
        file.write(b"whole")

    assert [path.name for path in tmp_path.iterdir()] == ["saved[1]"]


def test_files_with_similar_names_are_kept(tmp_path: Path) -> None:
    target, other = tmp_path / "saved", tmp_path / "mine"
    other.touch()
    stay = [
        ".saved.partial",
        ".saved.1.partial",
        ".saved.12.0a1b2c3d.txt",
        ".saved.x.0a1b2c3d.partial",
        ".more.1.0a1b2c3d.partial",
    ]
    for name in stay:
        (tmp_path / name).touch()
    (tmp_path / ".saved.1.0a1b2c3d.partial").symlink_to(other)
    (tmp_path / ".saved.2.0a1b2c3d.partial").mkdir()
    os.mkfifo(tmp_path / ".saved.3.0a1b2c3d.partial")
    (tmp_path / ".saved.4.0a1b2c3d.partial").touch()

    remove_abandoned(target)

    assert {path.name for path in tmp_path.iterdir()} == {
        *stay,
        "mine",
        *(f".saved.{number}.0a1b2c3d.partial" for number in (1, 2, 3)),
    }


def test_without_locks_no_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network file systems."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / ".saved.4.0a1b2c3d.partial").touch()
    monkeypatch.setattr("fcntl.flock", refuse)
    with replacing(tmp_path / "saved") as file:
        file.write(b"whole")

    assert sorted(path.name for path in tmp_path.iterdir()) == [".saved.4.0a1b2c3d.partial", "saved"]
