"""The lock that this release ships, and what is selected from it; the reference is the library `packaging`."""

from __future__ import annotations

import platform
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.pylock import Pylock
from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import canonicalize_name

from ortkit import InputError
from ortkit.exporters.packaging.wheel_lock import LOCK, PROVIDER_TARGETS, PROVIDERS, Pin, needed_glibc, read_lock
from ortkit.exporters.packaging.wheel_target import PYTHONS, TARGETS, Target, parse_target
from ortkit.runtime.session.packages import NVIDIA
from tests.package_index import tiny_wheel, write_lock

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = ("grammar", "serve", "sign")
NEW_GLIBC = 34
"""What the wheel of onnxruntime-gpu for aarch64 needs; others need less."""


def targets() -> list[Target]:
    return [
        Target(name, python, NEW_GLIBC if name.startswith("linux-") else None) for name in TARGETS for python in PYTHONS
    ]


def providers_of(target: Target) -> list[str]:
    return [name for name in PROVIDERS if target.name in PROVIDER_TARGETS.get(name, TARGETS)]


@pytest.mark.parametrize("target", targets(), ids=str)
def test_every_target_gets_what_pyproject_asks_for(target: Target) -> None:
    for provider in providers_of(target):
        pins = {pin.name: pin for pin in read_lock().select(target, provider, EXTRAS)}
        asked = [*PROJECT["dependencies"], *(line for extra in (provider, *EXTRAS) for line in extra_of(extra))]
        for requirement in map(Requirement, asked):
            assert requirement.marker is None or requirement.marker.evaluate(target.environment())
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)].version)
        assert len({"onnxruntime", "onnxruntime-gpu"} & pins.keys()) == 1
        assert (pins.keys() >= NVIDIA.keys()) == (provider == "cuda")
        assert not pins.keys() & {"huggingface-hub", "hf-xet", "requests", "httpx", "pyyaml", "tqdm", "fsspec"}


def extra_of(name: str) -> list[str]:
    return PROJECT["optional-dependencies"][name]


@pytest.mark.parametrize("target", targets(), ids=str)
def test_the_selection_is_that_of_the_library(target: Target) -> None:
    pylock = Pylock.from_dict(tomllib.loads(LOCK.read_text("utf-8")))
    for provider in providers_of(target):
        for extras in ([], ["sign"], ["serve"], [*EXTRAS]):
            expected = pylock.select(
                environment={**default_environment(), **target.environment()},
                tags=target.tags(),
                extras=[provider, *extras],
            )

            found = read_lock().select(target, provider, extras)

            assert [(pin.name, pin.version, pin.wheel.file) for pin in found] == [
                (package.name, str(package.version), wheel.filename) for package, wheel in expected
            ]


def test_the_versions_are_those_of_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    packages = read_lock().packages

    assert len(packages) > 15
    for package in packages:
        assert versions[canonicalize_name(package.name)] == package.version


def test_the_lock_has_no_addresses_and_a_hash_of_every_file() -> None:
    text = LOCK.read_text("utf-8")
    wheels = [wheel for package in read_lock().packages for wheel in package.wheels]

    assert not re.search(r"://|\burl\b|\.org\b|\.com\b", text)
    assert len({wheel.file for wheel in wheels}) == len(wheels) > 100
    assert all(re.fullmatch(r"[0-9a-f]{64}", wheel.sha256) and wheel.size > 0 for wheel in wheels)


@pytest.mark.skipif(sys.platform != "linux", reason="compares the tags of Linux")
def test_the_tags_are_those_of_a_real_interpreter() -> None:
    libc, version = platform.libc_ver()
    assert libc == "glibc"
    here = Target(f"linux-{platform.machine()}", sys.version_info[:2], int(version.split(".")[1]))
    # No package index has wheels for a Linux of any glibc.
    real = [tag for tag in sys_tags() if not tag.platform.startswith("linux_")]

    assert here.tags() == real


@pytest.mark.skipif(sys.platform != "linux", reason="compares the environment of Linux")
def test_the_environment_is_that_of_a_real_interpreter() -> None:
    unknown = {"platform_release", "platform_version", "python_full_version", "implementation_version"}
    here = Target(f"linux-{platform.machine()}", sys.version_info[:2], 28).environment()
    real = default_environment()

    assert here.keys() == real.keys()
    assert {key: here[key] for key in here.keys() - unknown} == {key: real[key] for key in real.keys() - unknown}


MARKERS = {
    "posix": "os_name == 'posix'",
    "on-linux": "sys_platform == 'linux'",
    "on-windows": "platform_system == 'Windows'",
    "on-macs": "sys_platform == 'darwin' and platform_machine == 'arm64'",
    "on-arm": "platform_machine == 'aarch64'",
    "old-python": "python_version < '3.12'",
    "cpython": "platform_python_implementation != 'PyPy'",
    "signing": "'sign' in extras and python_full_version >= '3.13'",
}


@pytest.mark.parametrize(
    ("name", "python", "expected"),
    [
        ("linux-x86_64", "3.11", {"posix", "on-linux", "old-python", "cpython"}),
        ("linux-aarch64", "3.13", {"posix", "on-linux", "on-arm", "cpython", "signing"}),
        ("macos-arm64", "3.12", {"posix", "on-macs", "cpython"}),
        ("windows-amd64", "3.11", {"on-windows", "old-python", "cpython"}),
    ],
)
def test_markers_are_those_of_the_target(tmp_path: Path, name: str, python: str, expected: set[str]) -> None:
    path = tmp_path / "pylock.toml"
    write_lock(path, [tiny_wheel(package) for package in MARKERS], MARKERS)

    pins = read_lock(path).select(parse_target(name, python), "cpu", ["sign"])

    assert {pin.name for pin in pins} == expected


def refused(target: Target, provider: str = "cpu") -> InputError:
    with pytest.raises(InputError) as caught:
        read_lock().select(target, provider)
    return caught.value


def test_an_old_glibc_is_refused_with_the_one_that_does() -> None:
    error = refused(parse_target("linux-x86_64", "3.11", "2.17"))

    assert error.message == (
        "there is no wheel for linux-x86_64 with Python 3.11 and glibc 2.17 of `numpy` 2.4.6 (needs glibc 2.27), "
        "`onnxruntime` 1.31.1 (needs glibc 2.28)"
    )
    assert error.hint == ("a system with glibc 2.28 or later has all wheels (`ldd --version` shows it): `--glibc 2.28`")


def test_cuda_on_arm_needs_a_newer_glibc() -> None:
    error = refused(parse_target("linux-aarch64", "3.12"), "cuda")

    assert error.message.endswith("of `onnxruntime-gpu` 1.31.1 (needs glibc 2.34)")
    assert error.hint is not None
    assert "`--glibc 2.34`" in error.hint


def test_the_glibc_of_a_selection_is_the_lowest_that_runs_all() -> None:
    """A wheel may have tags of several versions, of which the oldest counts."""
    cases = {
        ("linux-x86_64", "cpu"): 28,
        ("linux-aarch64", "cuda"): 34,
        ("windows-amd64", "cpu"): None,
        ("macos-arm64", "coreml"): None,
    }
    for (name, provider), glibc in cases.items():
        target = parse_target(name, "3.13", "2.39" if name.startswith("linux-") else None)
        pins: list[Pin] = read_lock().select(target, provider)
        assert needed_glibc(pins, target) == glibc


@pytest.mark.parametrize(
    ("platform_tags", "expected"),
    [
        ("manylinux1_x86_64.manylinux_2_5_x86_64", 5),
        ("manylinux_2_17_x86_64.manylinux2014_x86_64", 17),
        ("manylinux_2_28_x86_64.manylinux_2_31_x86_64", 28),
        ("any", 0),
    ],
)
def test_the_glibc_of_a_tag(tmp_path: Path, platform_tags: str, expected: int) -> None:
    write_lock(tmp_path / "lock", [tiny_wheel("click", tag=f"py3-none-{platform_tags}")])
    target = parse_target("linux-x86_64", "3.11", "2.35")

    assert needed_glibc(read_lock(tmp_path / "lock").select(target, "cpu"), target) == expected
