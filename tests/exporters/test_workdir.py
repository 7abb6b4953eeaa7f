"""The work folder of a resumable export: kept when the export is interrupted, for the same export, by one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ortkit.exporters.workdir import ResumableFolder, interrupted_exports, work_folder_of
from ortkit.runtime.errors import OutputError


def damage(folder: Path, kind: str) -> None:
    key = folder / "key"
    key.unlink()
    if kind == "folder":
        (key / "more").mkdir(parents=True)
    elif kind == "link":
        key.symlink_to("/nothing")
    elif kind != "none":
        key.write_bytes({"empty": b"", "garbage": b"\xff\0", "cut": b"on"}[kind])


@pytest.mark.parametrize("kind", ["none", "empty", "garbage", "cut", "folder", "link"])
def test_a_damaged_key_begins_anew_and_says_so(kind: str, tmp_path: Path) -> None:
    notes: list[str] = []
    folder = tmp_path / ".bundle.unfinished"
    with pytest.raises(KeyboardInterrupt), ResumableFolder(tmp_path / "bundle", "one") as unfinished:
        (unfinished.folder / "file").touch()
        raise KeyboardInterrupt
    damage(folder, kind)

    with ResumableFolder(tmp_path / "bundle", "one", notes.append) as unfinished:
        assert {path.name for path in unfinished.folder.iterdir()} == {"key", "lock"}
        assert (unfinished.folder / "key").read_text() == "one"

    assert notes == [f"deleted the results of a different export in `{folder}`"]
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_says_what_is_kept(tmp_path: Path) -> None:
    notes: list[str] = []
    with pytest.raises(KeyboardInterrupt), ResumableFolder(tmp_path / "bundle", "one", notes.append):
        raise KeyboardInterrupt
    assert notes == []
    with pytest.raises(KeyboardInterrupt), ResumableFolder(tmp_path / "bundle", "one", notes.append) as unfinished:
        (unfinished.folder / "file").touch()
        raise KeyboardInterrupt
    assert notes == [f"results are kept in `{unfinished.folder}`; the same command resumes from there"]


def test_what_a_link_names_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    folder = tmp_path / ".bundle.unfinished"
    folder.symlink_to(tmp_path / "mine")

    with pytest.raises(OutputError) as caught, ResumableFolder(tmp_path / "bundle", "one"):
        pass

    assert caught.value.message == f"`{folder}` is a link or not a folder, where unfinished results would be kept"
    assert caught.value.hint == f"remove it: `rm {folder}`"
    assert (tmp_path / "mine" / "file").exists()
    folder.unlink()
    folder.mkdir()
    (folder / "lock").symlink_to(tmp_path / "mine" / "file")
    with pytest.raises(OutputError) as caught, ResumableFolder(tmp_path / "bundle", "one"):
        pass
    assert caught.value.hint == f"remove what is in the way: `rm -r {folder}`"


def test_unfinished_work_stays_when_it_is_interrupted_only(tmp_path: Path) -> None:
    def work(key: str, error: type[BaseException] | None = None) -> bool:
        """Whether there was a file from before; leaves one."""
        with ResumableFolder(tmp_path / "bundle", key) as unfinished:
            path = unfinished.folder / "sub" / "file"
            there = path.exists()
            path.parent.mkdir(exist_ok=True)
            path.touch()
            if error is not None:
                raise error
        return there

    with pytest.raises(KeyboardInterrupt):
        work("one", KeyboardInterrupt)
    assert (tmp_path / ".bundle.unfinished").exists()
    assert work("one")
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        work("one", KeyboardInterrupt)
    assert not work("another")
    with pytest.raises(ArithmeticError):
        work("one", ArithmeticError)
    assert not list(tmp_path.iterdir())


def test_two_exports_to_one_target_do_not_mix(tmp_path: Path) -> None:
    with ResumableFolder(tmp_path / "bundle", "one"):
        with pytest.raises(OutputError) as caught, ResumableFolder(tmp_path / "bundle", "one"):
            raise AssertionError
        assert (tmp_path / ".bundle.unfinished").exists()

    assert caught.value.message == f"`{tmp_path / 'bundle'}` is being written by another process"
    assert caught.value.hint == "wait for it, or choose another folder with `--out`"
    assert not list(tmp_path.iterdir())


def test_two_processes_do_not_write_one_bundle(tmp_path: Path) -> None:
    hold = (
        "import sys; from pathlib import Path; from ortkit.exporters.workdir import ResumableFolder\n"
        "with ResumableFolder(Path(sys.argv[1]), 'one'):\n    print('held', flush=True); sys.stdin.read()"
    )
    target = tmp_path / "bundle"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(OutputError) as caught, ResumableFolder(target, "one"):
            pytest.fail("begun while another process writes")
        assert interrupted_exports(tmp_path / "another") == []
        process.communicate()

    assert caught.value.message == f"`{target}` is being written by another process"
    assert caught.value.hint == "wait for it, or choose another folder with `--out`"
    assert not work_folder_of(target).exists()


def test_work_that_nobody_continues_is_found(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ResumableFolder(tmp_path / "bundle", "one") as unfinished:
        (unfinished.folder / "work").write_bytes(b"12345")
        raise KeyboardInterrupt

    (left,) = interrupted_exports(tmp_path / "another")
    assert (left.target, left.folder) == (tmp_path / "bundle", unfinished.folder)
    with ResumableFolder(tmp_path / "bundle", "one") as unfinished:
        assert (unfinished.folder / "work").read_bytes() == b"12345"
