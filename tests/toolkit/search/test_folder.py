from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ortkit import InputError, MissingPartError, NotFoundError
from ortkit.toolkit.search.folder import FolderRules, FoundFile, SkippedFile, walk
from tests.tiny_bundles import write_embedder


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}\n", encoding="utf-8", errors="surrogateescape")
    return folder


def names_of(folder: Path, **rules: Any) -> list[str]:
    return [found.name for found in walk(folder, FolderRules(**rules)) if isinstance(found, FoundFile)]


def skipped_in(folder: Path, **rules: Any) -> dict[str, str]:
    return {found.name: found.reason for found in walk(folder, FolderRules(**rules)) if isinstance(found, SkippedFile)}


def test_files_are_found_with_their_facts_sorted_by_name(tmp_path: Path) -> None:
    make(tmp_path, "b.txt", "a/c.txt", "a-b.txt", "a.txt", "ä.txt", "a/b/deep.md")

    found = list(walk(tmp_path, FolderRules()))

    assert [file.name for file in found] == sorted(file.name for file in found)
    assert {file.name for file in found} == {"b.txt", "a/c.txt", "a-b.txt", "a.txt", "ä.txt", "a/b/deep.md"}
    for file in found:
        assert isinstance(file, FoundFile)
        status = file.path.stat()
        assert file.path == tmp_path / file.name
        assert (file.size, file.modified_ns) == (status.st_size, status.st_mtime_ns)


def test_an_empty_folder_has_no_files(tmp_path: Path) -> None:
    assert list(walk(tmp_path, FolderRules())) == []


def test_include_and_exclude(tmp_path: Path) -> None:
    make(tmp_path, "a.md", "docs/b.md", "docs/c.txt", "drafts/d.md", "e.png")

    assert names_of(tmp_path, include=("*.md",)) == ["a.md", "docs/b.md", "drafts/d.md"]
    assert names_of(tmp_path, include=("docs/**", "a.md")) == ["a.md", "docs/b.md", "docs/c.txt"]
    assert names_of(tmp_path, include=("*.md",), exclude=("drafts/",)) == ["a.md", "docs/b.md"]
    assert skipped_in(tmp_path, include=("*.md",), exclude=("drafts/",)) == {}


def test_hidden_files_are_left_out_by_default(tmp_path: Path) -> None:
    make(tmp_path, ".hidden", ".git/config", "a.txt", "b/.c")

    assert names_of(tmp_path) == ["a.txt"]
    assert names_of(tmp_path, hidden=True) == [".git/config", ".hidden", "a.txt", "b/.c"]
    assert skipped_in(tmp_path) == {}


IGNORED = {
    ".ortkitignore": "# comment\n*.log\n!keep.log\n/top.txt\nbuild/\ndeep/**/x.txt\n\\#odd\nspace\\ \n",
    "sub/.ortkitignore": "!b.log\nlocal.txt\n/anchored.txt\n",
}
BELOW = [
    *("a.log", "keep.log", "top.txt", "sub/top.txt", "build/a.txt", "sub/build/b.txt", "build.txt", "#odd"),
    *("deep/a/b/x.txt", "deep/x.txt", "deep/y.txt", "sub/b.log", "sub/local.txt", "sub/deeper/local.txt"),
    *("local.txt", "sub/anchored.txt", "sub/deeper/anchored.txt"),
]


def test_caches_are_left_out_by_default(tmp_path: Path) -> None:
    for folder in ("__pycache__", "web/node_modules/x", "built", "not_tagged", "manuals"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.txt").write_text("a")
    (tmp_path / "built" / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# a comment\n")
    (tmp_path / "not_tagged" / "CACHEDIR.TAG").write_text("Signature: none\n")
    (tmp_path / "manuals" / "__pycache__").write_text("a file of that name")
    os.mkfifo(tmp_path / "manuals" / "CACHEDIR.TAG")

    found = [file.name for file in walk(tmp_path, FolderRules())]
    all_of_them = [file.name for file in walk(tmp_path, FolderRules(hidden=True))]

    assert found == [
        "manuals/CACHEDIR.TAG",
        "manuals/__pycache__",
        "manuals/a.txt",
        "not_tagged/CACHEDIR.TAG",
        "not_tagged/a.txt",
    ]
    assert set(all_of_them) - set(found) == {
        "__pycache__/a.txt",
        "built/CACHEDIR.TAG",
        "built/a.txt",
        "web/node_modules/x/a.txt",
    }


def test_ignore_files_are_those_of_git(tmp_path: Path) -> None:
    """The reference is git itself, with the same files by its own name."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder, name in ((ours, ".ortkitignore"), (theirs, ".gitignore")):
        make(folder, *BELOW, "space ")
        for path, patterns in IGNORED.items():
            (folder / path).with_name(name).write_text(patterns, encoding="utf-8")
    subprocess.run(["git", "init", "-q", theirs], check=True)
    command = ["git", "-C", theirs, "ls-files", "-z", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")

    assert names_of(ours) == sorted(name for name in listed if name and not name.endswith(".gitignore"))
    assert "sub/b.log" in names_of(ours), "an inner file overrides an outer one"


def test_an_ignore_file_can_have_another_name_or_none(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "b.log")
    (tmp_path / ".ortkitignore").write_text("*.log\n")
    (tmp_path / ".gitignore").write_text("*.txt\n")

    assert names_of(tmp_path) == ["a.txt"]
    assert names_of(tmp_path, ignore_file=".gitignore") == ["b.log"]
    assert names_of(tmp_path, ignore_file=None) == ["a.txt", "b.log"]


def test_an_ignore_file_without_pathspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pathspec", None)
    make(tmp_path, "a.txt")
    assert names_of(tmp_path) == ["a.txt"]
    make(tmp_path, "sub/.ortkitignore")

    with pytest.raises(MissingPartError) as caught:
        names_of(tmp_path)

    assert str(caught.value) == (
        f"the ignore file `{tmp_path}/sub/.ortkitignore` cannot be followed: the Python package `pathspec` is not "
        "installed\n\nhint: install the extra `docs`: `pip install 'ortkit[docs]'`; or use `--exclude` and remove the "
        "file"
    )
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\n", "is not valid UTF-8 at byte 1"),
        (b"a" * ((1 << 20) + 1), "has more than 1M"),
        (b"[z-a]\n!\n", "has a pattern that is not valid: "),
    ],
)
def test_an_ignore_file_that_cannot_be_followed(tmp_path: Path, content: bytes, message: str) -> None:
    make(tmp_path, "a.txt")
    (tmp_path / ".ortkitignore").write_bytes(content)

    with pytest.raises(InputError) as caught:
        names_of(tmp_path)

    assert f"the ignore file `{tmp_path}/.ortkitignore` {message}" in caught.value.message
    assert caught.value.exit_code == 2


def test_large_files_are_listed(tmp_path: Path) -> None:
    make(tmp_path, "a.txt")
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate(2 << 30)

    assert skipped_in(tmp_path) == {"large.txt": "is larger than the limit of 64M"}
    assert names_of(tmp_path, max_file_bytes=2 << 30) == ["a.txt", "large.txt"]


def test_links(tmp_path: Path) -> None:
    outside = make(tmp_path / "outside", "secret.txt", "more/x.txt")
    folder = make(tmp_path / "folder", "a.txt", "sub/b.txt")
    links = {
        "to-file": folder / "a.txt",
        "sub/to-parent": folder,
        "sub/to-self": folder / "sub",
        "to-folder": folder / "sub",
        "out-file": outside / "secret.txt",
        "out-folder": outside,
        "out-folder-2": outside,
        "up": tmp_path,
        "gone": tmp_path / "missing",
        "loop": folder / "loop",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (outside / "back").symlink_to(folder)
    (outside / "around").symlink_to(outside)

    assert names_of(folder) == ["a.txt", "sub/b.txt"]
    assert skipped_in(folder) == {
        "gone": "is a link to a file that does not exist",
        "loop": "is a link that cannot be followed: Too many levels of symbolic links",
        "out-file": "is a link out of the folder",
        "out-folder": "is a link out of the folder",
        "out-folder-2": "is a link out of the folder",
        "sub/to-parent": "is a link to the folder itself",
        "sub/to-self": "is a link to `sub`, which is read by that name",
        "to-file": "is a link to `a.txt`, which is read by that name",
        "to-folder": "is a link to `sub`, which is read by that name",
        "up": "is a link out of the folder",
    }
    followed = names_of(folder, follow_links=True)
    assert followed == ["a.txt", "out-file", "out-folder-2/more/x.txt", "sub/b.txt"]
    again = skipped_in(folder, follow_links=True)
    assert again["up"] == "is a link to a folder that this one is in"
    assert again["out-folder"] == f"is a link to `{outside}`, as an earlier one"
    assert again["out-folder-2/around"] == f"is a link to `{outside}`, as an earlier one"
    assert again["out-folder-2/back"] == "is a link to the folder itself"
    assert again["out-folder-2/secret.txt"] == "is a file that is read by an earlier name"


def test_the_folder_may_be_a_link_itself(tmp_path: Path) -> None:
    make(tmp_path / "real", "a.txt", "b/c.txt")
    (tmp_path / "link").symlink_to("real")

    assert names_of(tmp_path / "link") == ["a.txt", "b/c.txt"]


def test_what_is_no_regular_file_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.txt")
        found = skipped_in(tmp_path)
    (tmp_path / "null").symlink_to("/dev/null")

    assert found == {"pipe.txt": "is a named pipe", "socket.txt": "is a socket"}
    assert skipped_in(tmp_path, follow_links=True)["null"] == "is a device"


def test_folders_without_permission_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for the system's call, since the tests may run as root."""
    make(tmp_path, "a.txt", "closed/b.txt", "open/c.txt")
    scandir = os.scandir

    def refuse(path: Path) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)

    assert names_of(tmp_path) == ["a.txt", "open/c.txt"]
    assert skipped_in(tmp_path) == {"closed/": "cannot be listed: Permission denied"}


def test_a_file_that_vanishes_meanwhile_is_listed(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "b.txt", "c.txt")
    found = walk(tmp_path, FolderRules())
    next(iter(found))
    (tmp_path / "b.txt").unlink()

    assert [ascii(file.name) for file in found] == ["'b.txt'", "'c.txt'"]
    (tmp_path / "a.txt").unlink()
    found = walk(tmp_path, FolderRules())
    (tmp_path / "c.txt").unlink()
    assert list(found) == [SkippedFile("c.txt", "vanished while the folder was read")]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    make(path, "\udcff.txt", "new\nline.txt")

    assert names_of(tmp_path) == ["caf\udce9/new\nline.txt", "caf\udce9/\udcff.txt"]
    assert [os.fsencode(name) for name in names_of(tmp_path)] == [b"caf\xe9/new\nline.txt", b"caf\xe9/\xff.txt"]


def test_bundles_and_indexes_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "other/manifest.json", "other/index.json")
    write_embedder(tmp_path / "bundle")
    make(tmp_path / "manuals.index", "texts-1.sqlite")
    (tmp_path / "manuals.index" / "index.json").write_text('{"format": 1, "generation": 3}')

    assert names_of(tmp_path) == ["a.txt", "other/index.json", "other/manifest.json"]
    assert skipped_in(tmp_path) == {"bundle/": "is an ortkit bundle", "manuals.index/": "is an ortkit index"}
    with pytest.raises(InputError, match="` is an ortkit index, not a folder of documents"):
        walk(tmp_path / "manuals.index", FolderRules())


def test_a_folder_too_deep_is_listed(tmp_path: Path) -> None:
    make(tmp_path, "/".join(["d"] * 102) + "/a.txt", "b.txt")

    assert names_of(tmp_path) == ["b.txt"]
    assert list(skipped_in(tmp_path).values()) == ["is more than 100 folders deep"]


def test_no_folder_or_none_at_all(tmp_path: Path) -> None:
    make(tmp_path, "a.txt")

    with pytest.raises(NotFoundError) as missing:
        walk(tmp_path / "missing", FolderRules())
    with pytest.raises(InputError) as file:
        walk(tmp_path / "a.txt", FolderRules())

    assert (missing.value.message, missing.value.exit_code) == (f"there is no folder `{tmp_path}/missing`", 5)
    assert (file.value.message, file.value.exit_code) == (f"`{tmp_path}/a.txt` is not a folder", 2)
