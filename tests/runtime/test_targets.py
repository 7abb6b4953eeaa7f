from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.errors import OutputError
from runtime.targets import is_special, regular_target_of, target_of


def test_a_file_and_one_that_is_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").write_text("old")
    monkeypatch.chdir(tmp_path)

    for name in ("there", "new"):
        assert target_of(tmp_path / name) == regular_target_of(tmp_path / name) == tmp_path / name
        # As it was typed, for messages.
        assert target_of(name) == Path(name)


def test_what_a_link_names_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/file")

    assert target_of(tmp_path / "link") == tmp_path / "folder" / "file"
    (tmp_path / "folder" / "file").write_text("old")
    assert target_of(tmp_path / "link") == tmp_path / "folder" / "file"


def test_devices_and_pipes_are_no_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")

    for path in (tmp_path / "pipe", tmp_path / "link", Path(os.devnull)):
        assert target_of(path) == path
        assert is_special(path)
        with pytest.raises(OutputError) as caught:
            regular_target_of(path, hint="another")
        assert caught.value.message == f"`{path}` cannot be written: it is no regular file"
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


def test_what_cannot_be_written(tmp_path: Path) -> None:
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
