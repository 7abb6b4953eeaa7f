"""Wheels without pip: the references are pip, which installs the same files, and `packaging`, which knows the tags."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import stat
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from ortkit import BundleError
from ortkit.runtime.installer.host import Host
from ortkit.runtime.installer.wheel_file import Site, WheelName, record_sha256, unpacked_size
from tests.kits import record_hash, wheel, write_zip

HOST = Host("Linux", "aarch64", 64, (2, 31), "cpython", (3, 11, 2), False, frozenset(), "/usr/bin/python3.11")
FILES = {
    "package/__init__.py": b"VALUE = 1\n",
    "package/data/table.bin": bytes(range(256)),
    "single.py": b"",
    "package-1.0.data/purelib/pure.py": b"pure = True\n",
    "package-1.0.data/platlib/plat.py": b"plat = True\n",
}


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "site").mkdir()
    return Site(tmp_path / "site")


def test_the_same_files_are_installed_as_by_pip(site: Site, tmp_path: Path) -> None:
    made = wheel(tmp_path, "package", FILES)
    target = tmp_path / "by-pip"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", target, made], check=True)

    site.unpack(made)

    expected, found = files_below(target), files_below(site.folder)
    # What pip notes about itself, and its own RECORD.
    for name in ("INSTALLER", "REQUESTED", "direct_url.json", "RECORD"):
        expected.pop(f"package-1.0.dist-info/{name}", None)
    record = found.pop("package-1.0.dist-info/RECORD")
    assert found == expected
    assert record == zipfile.ZipFile(made).read("package-1.0.dist-info/RECORD")
    assert {stat.S_IMODE(path.stat().st_mode) for path in site.folder.rglob("*") if path.is_file()} == {0o444}
    assert unpacked_size(made) == sum(
        map(len, (zipfile.ZipFile(made).read(n) for n in zipfile.ZipFile(made).namelist()))
    )


@pytest.mark.parametrize(
    "tag",
    [
        *("py3-none-any", "py2.py3-none-any", "py2-none-any", "py310-none-any", "py312-none-any", "cp311-none-any"),
        *("cp311-cp311-manylinux_2_28_aarch64", "cp311-cp311-manylinux_2_31_aarch64"),
        *("cp311-cp311-manylinux_2_32_aarch64", "cp311-cp311-manylinux_2_28_x86_64", "cp312-cp312-linux_aarch64"),
        *("cp311-cp311-linux_aarch64", "cp311-cp311-musllinux_1_2_aarch64", "cp311-cp311-win_amd64"),
        *("cp39-abi3-manylinux_2_17_aarch64.manylinux2014_aarch64", "cp312-abi3-manylinux2014_aarch64"),
        *("cp311-abi3-manylinux2014_aarch64", "cp310-cp310-manylinux2014_aarch64", "cp313-cp313t-any"),
        *("cp311-cp311t-manylinux2014_aarch64", "cp311-none-manylinux2014_aarch64", "pp311-pypy311_pp73-any"),
        *("py3-none-manylinux_2_17_aarch64", "py3-none-linux_armv7l", "cp311-cp311-macosx_14_0_arm64"),
    ],
)
def test_tags_fit_as_packaging_has_it(tag: str) -> None:
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(31, 16, -1)] + [
        "manylinux2014_aarch64",
        "linux_aarch64",
    ]
    tags = {*cpython_tags((3, 11), ["cp311"], platforms), *compatible_tags((3, 11), "cp311", platforms)}
    file = f"package-1.0-{tag}.whl"
    expected = bool(parse_wheel_filename(file)[3] & tags)

    message = f"the wheel `{file}` does not run on this machine: CPython 3.11.2, linux-aarch64"
    with nullcontext() if expected else pytest.raises(BundleError, match=re.escape(message)):
        WheelName.of(file).check(HOST)


def test_musl_has_no_manylinux() -> None:
    with pytest.raises(BundleError, match="does not run on this machine"):
        WheelName.of("package-1.0-cp311-cp311-manylinux2014_aarch64.whl").check(dataclasses.replace(HOST, glibc=None))


@pytest.mark.parametrize(
    "name", ["package.whl", "package-1.0.whl", "../package-1.0-py3-none-any.whl", "a-1-py3-none-any.zip"]
)
def test_other_names_are_not_wheels(name: str) -> None:
    with pytest.raises(BundleError, match="is not the name of a wheel"):
        WheelName.of(name)


RECORD = "package-1.0.dist-info/RECORD"


def changed(tmp_path: Path, change) -> Path:
    """A wheel whose files are changed by a function after its RECORD was written."""
    made = wheel(tmp_path, "package", {"package/a.py": b"a = 1\n"})
    with zipfile.ZipFile(made) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    write_zip(made, files)
    return made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda files: files.update({"package/a.py": b"a = 2\n"}),
            r"`package/a.py` in the wheel .* differs from its RECORD",
        ),
        (lambda files: files.update({"package/b.py": b""}), r"differs from its RECORD in `package/b.py`"),
        (lambda files: files.pop("package/a.py"), r"differs from its RECORD in `package/a.py`"),
        (lambda files: files.pop(RECORD), r"has no `package-1.0.dist-info/RECORD`"),
        (lambda files: files.update({RECORD: b"package/a.py,md5=x,6\n"}), r"lists `package/a.py` without a sha256"),
        (lambda files: files.update({RECORD: b"\xff"}), r"is not a valid wheel"),
        (lambda files: files.update({"../a.py": b""}), r"`../a.py` in the wheel .* unsafe path"),
        (lambda files: files.update({"/etc/a.py": b""}), r"`/etc/a.py` in the wheel .* unsafe path"),
        (lambda files: files.update({"a\\b.py": b""}), r"in the wheel .* unsafe path"),
    ],
)
def test_a_wheel_that_differs_from_its_record_is_refused(change, message: str, site: Site, tmp_path: Path) -> None:
    made = changed(tmp_path, change)

    with pytest.raises(BundleError, match=message):
        site.unpack(made)
    assert not (tmp_path / "a.py").exists()


def test_paths_in_record_do_not_leave_the_folder(site: Site, tmp_path: Path) -> None:
    """The zip's name is plain; what the RECORD calls `purelib` leads outside."""
    path = "package-1.0.data/purelib/../../../escaped.py"
    made = wheel(tmp_path, "package", {path: b"x"})

    with pytest.raises(BundleError, match="unsafe path"):
        site.unpack(made)
    assert not list(tmp_path.rglob("escaped.py"))


def test_links_and_repeated_files_are_refused(site: Site, tmp_path: Path) -> None:
    made = wheel(tmp_path, "package", {"a.py": b"/etc/passwd"})
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(made, "a") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(BundleError, match=r"`link` in the wheel .* is a link"):
        site.unpack(made)

    made = wheel(tmp_path, "package", {"a.py": b"1"})
    with zipfile.ZipFile(made, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a.py", b"2")
    with pytest.raises(BundleError, match=r"`a.py` in the wheel .* listed twice"):
        site.unpack(made)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"x" * 1000])
def test_what_is_not_a_zip_is_refused(content: bytes, site: Site, tmp_path: Path) -> None:
    made = tmp_path / "package-1.0-py3-none-any.whl"
    made.write_bytes(content)

    with pytest.raises(BundleError, match="is not a valid wheel"):
        site.unpack(made)
    with pytest.raises(BundleError, match="is not a valid wheel"):
        unpacked_size(made)


def test_every_truncation_and_flip_of_a_wheel_is_refused_or_gives_the_same_files(tmp_path: Path) -> None:
    whole = wheel(tmp_path, "package", {"package/a.py": b"a = 1\n"})
    content = whole.read_bytes()
    (tmp_path / "expected").mkdir()
    Site(tmp_path / "expected").unpack(whole)
    expected = files_below(tmp_path / "expected")
    refused = 0
    for place in range(0, len(content), 5):
        for damaged in (content[:place], content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]):
            whole.write_bytes(damaged)
            folder = tmp_path / f"{place}-{len(damaged)}"
            folder.mkdir()
            try:
                Site(folder).unpack(whole)
            except BundleError:
                refused += 1
            else:
                assert files_below(folder) == expected
    assert refused > len(content) // 5


def test_two_wheels_with_one_file_are_refused(site: Site, tmp_path: Path) -> None:
    """As onnxruntime and onnxruntime-gpu, which overwrite each other with pip."""
    site.unpack(wheel(tmp_path, "one", {"onnxruntime/__init__.py": b"1"}))

    with pytest.raises(BundleError) as raised:
        site.unpack(wheel(tmp_path, "two", {"onnxruntime/__init__.py": b"2"}))

    assert raised.value.message == (
        "the wheels `one-1.0-py3-none-any.whl` and `two-1.0-py3-none-any.whl` both have `onnxruntime/__init__.py`"
    )
    assert "bundles for one provider alone" in raised.value.hint


def test_files_are_shared_with_an_earlier_folder_unless_they_were_changed(site: Site, tmp_path: Path) -> None:
    made = wheel(tmp_path, "package", FILES)
    site.unpack(made)
    name = WheelName.of(made.name)

    second = Site(tmp_path / "second")
    sha256 = record_sha256(made)
    assert second.share(name, site.folder, sha256)
    assert files_below(second.folder) == files_below(site.folder)
    assert (second.folder / "package/__init__.py").samefile(site.folder / "package/__init__.py")

    (site.folder / "single.py").unlink()
    (site.folder / "single.py").write_bytes(b"changed")
    third = Site(tmp_path / "third")
    assert not third.share(name, site.folder, sha256)
    assert not third.share(name, site.folder, "0" * 64)
    third.unpack(made)
    assert hashlib.sha256((third.folder / "single.py").read_bytes()).digest() == hashlib.sha256(b"").digest()
    assert record_hash(b"").startswith("sha256=47DEQpj8HBSa")
