"""`ortkit wheelhouse`, with pip and an index on the loopback; the real lock is tested in tests/exporters/packaging."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ortkit import __version__
from ortkit.exporters.packaging.wheelhouse import Wheelhouse
from tests.commands import Finished
from tests.package_index import PASSWORD, PackageIndex, TinyWheel, tiny_wheel, write_lock

ARM = ("--target", "linux-aarch64", "--python", "3.11")
PURE = tiny_wheel("click", "8.0")
NATIVE = tiny_wheel("numpy", "2.0", "cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64")
FOR_ALL = tiny_wheel("tokenizers", "0.22", "cp39-abi3-manylinux_2_17_aarch64.manylinux2014_aarch64")
FOR_WINDOWS = tiny_wheel("colorama", "0.4")
LOCKED = [
    PURE,
    NATIVE,
    tiny_wheel("numpy", "2.0", "cp312-cp312-manylinux_2_27_aarch64.manylinux_2_28_aarch64"),
    tiny_wheel("numpy", "2.0", "cp311-cp311-manylinux_2_35_aarch64"),
    tiny_wheel("numpy", "2.0", "cp311-cp311-win_amd64"),
    FOR_ALL,
    FOR_WINDOWS,
]
WANTED = [PURE, NATIVE, FOR_ALL]
OWN = tiny_wheel("ortkit", __version__)
WheelhouseCommand = Callable[..., Finished]


@pytest.fixture
def index() -> Iterator[PackageIndex]:
    served = PackageIndex(LOCKED)
    yield served
    served.close()


@pytest.fixture
def run(
    index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ortkit: Callable[..., Finished]
) -> WheelhouseCommand:
    """`ortkit wheelhouse`, with a lock of tiny wheels and pip set to the index on the loopback."""
    lock, own = tmp_path / "pylock.toml", tmp_path / OWN.file
    write_lock(lock, LOCKED, {"colorama": "sys_platform == 'win32'"})
    own.write_bytes(OWN.content)
    monkeypatch.setattr("ortkit.exporters.packaging.wheel_lock.LOCK", lock)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    # A constraint of the user's that contradicts the lock, and a setting that has pip refuse to run here.
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("click==0.1\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_CONSTRAINT", str(constraints))
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    # Where the machine is busy, the index may be slow to answer.
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "180")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)

    def wheelhouse(*arguments: object) -> Finished:
        finished = ortkit("wheelhouse", *arguments, "--ortkit-wheel", own)
        for secret in (PASSWORD, PASSWORD.replace("%40", "@"), "Traceback"):
            assert secret not in finished.err + finished.out.decode()
        return finished

    return wheelhouse


def test_collects_what_the_target_needs(run: WheelhouseCommand, index: PackageIndex, tmp_path: Path) -> None:
    finished = run(*ARM, "-o", "w")

    assert (finished.code, finished.out) == (0, b"w\n"), finished.err
    assert "linux-aarch64, Python 3.11, glibc 2.27 or later, cpu" in finished.err
    assert "pip install --no-deps -r w/requirements.txt" in finished.err
    assert sorted(index.fetched) == sorted(wheel.file for wheel in WANTED)
    files = {path.name: path.read_bytes() for path in (tmp_path / "w").iterdir()}
    assert files.keys() == {*(wheel.file for wheel in (*WANTED, OWN)), "requirements.txt", "wheelhouse.json"}
    for wheel in (*WANTED, OWN):
        assert files[wheel.file] == wheel.content
    assert json.loads(files["wheelhouse.json"]) == {
        "schema": 1,
        "ortkit": __version__,
        "target": "linux-aarch64",
        "python": "3.11",
        "glibc": "2.27",
        "macos": None,
        "provider": "cpu",
        "extras": [],
        "wheels": [
            {
                "name": wheel.name,
                "version": wheel.version,
                "file": wheel.file,
                "size": len(wheel.content),
                "sha256": wheel.sha256,
            }
            for wheel in sorted((*WANTED, OWN), key=lambda wheel: wheel.name)
        ],
    }
    assert b"://" not in files["requirements.txt"] + files["wheelhouse.json"]
    assert not list(tmp_path.glob(".*.partial"))


def test_a_complete_wheelhouse_is_left_as_it_is_and_a_damaged_one_repaired(
    run: WheelhouseCommand, index: PackageIndex, tmp_path: Path
) -> None:
    assert run(*ARM).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "wheels").iterdir()}
    inode = (tmp_path / "wheels").stat().st_ino
    index.fetched.clear()

    again = run(*ARM)

    assert (again.code, again.out) == (0, b"wheels\n")
    assert "complete already, nothing was changed" in again.err
    assert (index.fetched, (tmp_path / "wheels").stat().st_ino) == ([], inode)

    (tmp_path / "wheels" / PURE.file).write_bytes(PURE.content[:-1] + b"?")
    (tmp_path / "wheels" / "wheelhouse.json").write_text("{}")
    repaired = run(*ARM)

    assert repaired.code == 0, repaired.err
    assert "1 downloaded" in repaired.err
    assert index.fetched == [PURE.file]
    assert {path.name: path.read_bytes() for path in (tmp_path / "wheels").iterdir()} == before


def test_pip_installs_the_folder_without_an_index(run: WheelhouseCommand, tmp_path: Path) -> None:
    """With the first wheel that the lock has for this very Python: the pure ones."""
    write_lock(tmp_path / "pylock.toml", [PURE, FOR_WINDOWS])
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert run("--target", "linux-x86_64", "--python", here, "-o", "w").code == 0
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    command = [sys.executable, "-m", "pip", "install", "--isolated", "--no-deps", "--target", "installed"]

    finished = subprocess.run(
        [*command, "-r", "w/requirements.txt"],
        cwd=tmp_path,
        env=environment | {"PIP_CONFIG_FILE": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )

    assert finished.returncode == 0, finished.stderr
    assert {path.name for path in (tmp_path / "installed").glob("*.py")} == {"click.py", "colorama.py", "ortkit.py"}


def test_a_wheel_with_another_hash_is_refused(run: WheelhouseCommand, index: PackageIndex, tmp_path: Path) -> None:
    index.files[NATIVE.file] = tiny_wheel("numpy", "2.0", code="import evil\n").content

    finished = run(*ARM, "-o", "w")

    assert finished.code == 7
    assert f"`{NATIVE.file}` is not the wheel that was pinned: its sha256 is" in finished.err
    assert "hint: the index that pip is set to serves another file under this name: `pip config list`" in finished.err
    assert not (tmp_path / "w").exists()
    assert not list(tmp_path.glob(".*.partial"))


def test_a_wheel_under_another_platform_tag_is_refused(run: WheelhouseCommand, index: PackageIndex) -> None:
    renamed = "numpy-2.0-py3-none-any.whl"
    index.rename(NATIVE.file, renamed)

    finished = run(*ARM)

    assert finished.code == 7
    assert f"pip fetched `{renamed}` in place of `{NATIVE.file}`" in finished.err


def test_a_wheel_that_the_index_does_not_have(run: WheelhouseCommand, index: PackageIndex, tmp_path: Path) -> None:
    del index.files[FOR_ALL.file], index.packages[FOR_ALL.file]

    finished = run(*ARM)

    assert finished.code == 6
    assert f"pip could not fetch `{FOR_ALL.file}`" in finished.err
    assert "hint: check the network, or the index that pip is set to: `pip config list`" in finished.err
    assert not (tmp_path / "wheels").exists()


@pytest.mark.slow
def test_an_index_that_fails_once_is_asked_again(run: WheelhouseCommand, index: PackageIndex, tmp_path: Path) -> None:
    index.unavailable.add(NATIVE.file)

    finished = run(*ARM)

    assert finished.code == 0, finished.err
    assert index.unavailable == set()
    assert [wheel.name for wheel in Wheelhouse.open(tmp_path / "wheels").wheels] == [
        "click",
        "numpy",
        "ortkit",
        "tokenizers",
    ]


def test_without_network(run: WheelhouseCommand, index: PackageIndex, tmp_path: Path) -> None:
    index.close()

    finished = run(*ARM)

    assert finished.code == 6
    assert f"pip could not fetch `{PURE.file}`" in finished.err
    assert "PIP_FIND_LINKS" in finished.err
    assert not (tmp_path / "wheels").exists()


def test_wheels_that_were_carried_here_are_enough(
    run: WheelhouseCommand, index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the hint of a failed download says."""
    index.close()
    (tmp_path / "carried").mkdir()
    for wheel in WANTED:
        (tmp_path / "carried" / wheel.file).write_bytes(wheel.content)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "carried"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    assert run(*ARM).code == 0


def test_a_dry_run_fetches_nothing(run: WheelhouseCommand, index: PackageIndex, tmp_path: Path) -> None:
    finished = run(*ARM, "--dry-run")

    assert finished.code == 0
    rows = [line.split() for line in finished.out.decode().splitlines()]
    assert rows[0] == ["name", "version", "size", "file"]
    assert [(row[0], row[1], row[-1]) for row in rows[1:]] == [
        (wheel.name, wheel.version, wheel.file) for wheel in WANTED
    ]
    assert f"3 wheels, {sum(len(wheel.content) for wheel in WANTED) / 1e6:.1f} MB to download" in finished.err
    assert (index.fetched, (tmp_path / "wheels").exists()) == ([], False)


def test_another_folder_is_not_replaced(run: WheelhouseCommand, index: PackageIndex, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("Dear Ada,")
    (tmp_path / "link").symlink_to("mine")
    (tmp_path / "empty").mkdir()

    for folder, message in (
        ("mine", "`mine` exists and is not a wheelhouse, so it is not replaced"),
        ("mine/letter.txt", "`mine/letter.txt` is not a folder"),
        ("link", "`link` is not a folder"),
    ):
        finished = run(*ARM, "-o", folder)
        assert (finished.code, f"error: {message}" in finished.err) == (2, True), finished.err
    assert index.fetched == []
    assert run(*ARM, "-o", "empty").code == 0


def test_another_target_replaces_a_wheelhouse(run: WheelhouseCommand, tmp_path: Path) -> None:
    assert run(*ARM).code == 0
    write_lock(tmp_path / "pylock.toml", [PURE, FOR_WINDOWS], {"colorama": "sys_platform == 'win32'"})

    assert run("--target", "windows-amd64", "--python", "3.12").code == 0

    found = Wheelhouse.open(tmp_path / "wheels")
    assert (found.target, found.python, found.glibc) == ("windows-amd64", "3.12", None)
    assert [wheel.name for wheel in found.wheels] == ["click", "colorama", "ortkit"]


UNSUPPORTED = "is not supported; supported: `linux-x86_64`, `linux-aarch64`, `macos-arm64`, `windows-amd64`"
REFUSALS = [
    (("--target", "linux-arm64"), f"the target `linux-arm64` {UNSUPPORTED}", "use `--target linux-aarch64`"),
    (("--target", "solaris"), f"the target `solaris` {UNSUPPORTED}", "`python3 -m sysconfig`"),
    (("--target", "linux-armv7l"), "onnxruntime has no wheels for 32-bit ARM", "Raspberry Pi OS (64-bit)"),
    (("--target", "armhf"), "onnxruntime has no wheels for 32-bit ARM", "`--target linux-aarch64`"),
    (("--target", "linux-riscv64"), "onnxruntime has no wheels for RISC-V", "64-bit ARM"),
    (("--target", "linux-musl-x86_64"), "onnxruntime has no wheels for musl (Alpine)", "with glibc, such as Debian"),
    (("--target", "macos-x86_64"), "no wheels for Macs with an Intel processor", "`--target macos-arm64`"),
    (("--python", "3.10"), "Python `3.10` is not supported: ortkit runs on Python 3.11 to 3.14", "install Python 3.11"),
    (("--python", "3.15"), "Python `3.15` is not supported", "install Python 3.14"),
    (("--python", "three"), "Python `three` is not supported", "`python3 --version` on the appliance"),
    (("--glibc", "musl"), "`musl` is not a version of glibc; such as `2.28`", "`ldd --version`"),
    (("--glibc", "2.17"), "of `numpy` 2.0 (needs glibc 2.27)", "a system with glibc 2.27 or later has all wheels"),
    (("--python", "3.13"), "there is no wheel for linux-aarch64 with Python 3.13", "Python 3.11 or 3.12"),
    (("--target", "macos-arm64", "--glibc", "2.28"), "`--glibc` is for Linux", "leave `--glibc` out"),
    (
        ("--provider", "coreml"),
        "the provider coreml does not run on `linux-aarch64`; it runs on `macos-arm64`",
        "leave",
    ),
    (("--target", "windows-amd64", "--provider", "cuda"), "it runs on `linux-x86_64` and `linux-aarch64`", "leave"),
    (("--with", "server"), "`server` is not an extra that ortkit has wheels for; supported: `sign`", ""),
    (("--with", "sign,cuda"), "`cuda` is not an extra that ortkit has wheels for", "`--provider`"),
    (("--provider", "tpu"), "'tpu' is not one of 'cpu', 'cuda', 'coreml'", ""),
]


@pytest.mark.parametrize(("arguments", "message", "hint"), REFUSALS, ids=[" ".join(row[0]) for row in REFUSALS])
def test_refusals(
    run: WheelhouseCommand, index: PackageIndex, arguments: tuple[str, ...], message: str, hint: str
) -> None:
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    options = {"--target": "linux-aarch64", "--python": "3.11", **given}

    finished = run(*(word for option in options.items() for word in option))

    assert finished.code == 2
    assert finished.err.startswith("error: ")
    said, _, advice = finished.err.partition("hint: ")
    assert message in said
    assert hint in advice
    assert index.fetched == []


@pytest.mark.parametrize("missing", ["--target", "--python"])
def test_both_the_target_and_its_python_are_needed(ortkit: Callable[..., Finished], missing: str) -> None:
    options = {"--target": "linux-aarch64", "--python": "3.11"}
    del options[missing]

    finished = ortkit("wheelhouse", *(word for option in options.items() for word in option))

    assert finished.code == 2
    assert f"missing option '{missing}'" in finished.err


def own_wheels() -> list[tuple[TinyWheel | None, int, str]]:
    return [
        (None, 5, "there is no file `"),
        (tiny_wheel("click", "8.0"), 2, "is a wheel of click 8.0, and the lock has what ortkit"),
        (
            tiny_wheel("ortkit", "99.0"),
            2,
            f"is a wheel of ortkit 99.0, and the lock has what ortkit {__version__} needs",
        ),
        (TinyWheel("ortkit", "1", "ortkit.whl", OWN.content), 2, "is not named as a wheel: `ortkit-"),
        (TinyWheel("ortkit", "1", OWN.file, OWN.content[:100]), 7, "is not a wheel, or is damaged"),
        (TinyWheel("ortkit", "1", OWN.file, PURE.content), 7, "is not a wheel, or is damaged"),
        (
            TinyWheel("ortkit", "1", OWN.file, OWN.content.replace(b"Name: ortkit", b"Name: 0rtkit", 1)),
            7,
            "is not a wheel, or is damaged",
        ),
    ]


@pytest.mark.parametrize(("wheel", "code", "message"), own_wheels())
@pytest.mark.usefixtures("run")
def test_ortkits_own_wheel_is_checked(
    ortkit: Callable[..., Finished], tmp_path: Path, wheel: TinyWheel | None, code: int, message: str
) -> None:
    path = tmp_path / "given" / (wheel.file if wheel is not None else OWN.file)
    path.parent.mkdir()
    if wheel is not None:
        path.write_bytes(wheel.content)

    finished = ortkit("wheelhouse", *ARM, "--ortkit-wheel", path)

    assert (finished.code, message in finished.err) == (code, True), finished.err
    assert not (tmp_path / "wheels").exists()


def test_without_pip(run: WheelhouseCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))

    finished = run(*ARM)

    assert finished.code == 1
    assert "pip is not installed in this environment" in finished.err
    assert "-m ensurepip" in finished.err


@pytest.mark.parametrize(
    ("version", "message"), [("24.2", "`packaging` 24.2 is too old"), (None, "`packaging` is not installed")]
)
def test_without_a_new_packaging(
    run: WheelhouseCommand, monkeypatch: pytest.MonkeyPatch, version: str | None, message: str
) -> None:
    def found(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", found)

    finished = run(*ARM)

    assert (finished.code, message in finished.err) == (1, True), finished.err
    assert "-m pip install 'packaging>=25'" in finished.err


def test_a_disk_that_is_too_small(run: WheelhouseCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: usage)

    finished = run(*ARM)

    assert finished.code == 1
    assert (
        "the wheels for linux-aarch64 with Python 3.11 and glibc 2.28 need 0 MB while they are fetched" in finished.err
    )
    assert "hint: choose a folder on another disk with `-o`" in finished.err
