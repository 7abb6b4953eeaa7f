# ruff: noqa: E501 - texts as they are printed
from __future__ import annotations

from typing import Any

import pytest

from ortkit.runtime.host_facts import Libc
from ortkit.toolkit.doctor.packages import Imported
from ortkit.toolkit.doctor.system import check_cpu, check_libc, check_platform, check_python, wheel_tag
from tests.toolkit.doctor.hosts import GOOD, X86, host, text_of

ELSEWHERE = "do: use another machine: see `docs/appliance.md`, Requirements"
ARM = frozenset({"fp", "asimd", "aes"})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "ok platform: Linux on x86_64, 64 bits"),
        ({"machine": "aarch64"}, "ok platform: Linux on aarch64, 64 bits"),
        ({"system": "Darwin", "machine": "arm64"}, "ok platform: Darwin on arm64, 64 bits"),
        (
            {"machine": "armv7l", "bits": 32},
            (
                "error platform: Linux on armv7l, 32 bits: there are no wheels of onnxruntime for this kind of CPU\n"
                "why: supported: x86-64 and 64-bit ARM; 32-bit ARM and RISC-V are not\n"
                f"{ELSEWHERE}\nexit: 8"
            ),
        ),
        (
            {"machine": "riscv64"},
            (
                "error platform: Linux on riscv64, 64 bits: there are no wheels of onnxruntime for this kind of CPU\n"
                "why: supported: x86-64 and 64-bit ARM; 32-bit ARM and RISC-V are not\n"
                f"{ELSEWHERE}\nexit: 8"
            ),
        ),
        (
            # Raspberry Pi OS of 32 bits with its kernel of 64.
            {"machine": "aarch64", "bits": 32},
            (
                "error platform: this Python is a 32-bit program on a aarch64 CPU\n"
                "why: onnxruntime has no wheels for 32 bits\n"
                "do: install a 64-bit system: the 64-bit edition of Raspberry Pi OS, for example\nexit: 8"
            ),
        ),
        (
            {"system": "Darwin"},
            (
                "error platform: Darwin on x86_64, 64 bits: onnxruntime has no wheels for Intel Macs since 1.24\n"
                f"why: ortkit needs onnxruntime 1.30\n{ELSEWHERE}\nexit: 8"
            ),
        ),
        (
            {"system": "FreeBSD", "machine": "AMD64"},
            (
                "error platform: FreeBSD on AMD64, 64 bits: ortkit does not run on FreeBSD\n"
                f"why: supported: Linux and macOS\n{ELSEWHERE}\nexit: 8"
            ),
        ),
    ],
)
def test_platform(changes: dict[str, Any], expected: str) -> None:
    assert [text_of(found) for found in check_platform(host(**changes))] == [expected]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "ok libc: glibc 2.36; the wheels need 2.28"),
        ({"libc": Libc("glibc", (2, 28))}, "ok libc: glibc 2.28; the wheels need 2.28"),
        (
            {"libc": Libc("glibc", (2, 27))},
            (
                "error libc: glibc 2.27 is older than glibc 2.28\n"
                "why: pip finds no wheel of onnxruntime for it, and one that is copied here does not load\n"
                "do: use a newer system: Debian 11, Ubuntu 20.04 or RHEL 8 are new enough\nexit: 8"
            ),
        ),
        (
            {"libc": Libc("musl")},
            (
                "error libc: the C library is musl\n"
                "why: onnxruntime has wheels for glibc alone, so not for Alpine Linux\n"
                "do: use a system or container with glibc 2.28 or newer, such as Debian 12 (`python:3.12-slim`)\nexit: 8"
            ),
        ),
        (
            {"libc": Libc()},
            (
                "note libc: the C library is not known\n"
                "why: the wheels need glibc 2.28 or newer\ndo: ask it: `ldd --version`"
            ),
        ),
        ({"system": "Darwin", "macos": (14, 5)}, "ok libc: macOS 14.5; the wheels need 14"),
        (
            {"system": "Darwin", "macos": (13, 6)},
            (
                "error libc: macOS 13.6 is older than macOS 14\n"
                "why: onnxruntime's wheels need macOS 14\ndo: update macOS\nexit: 8"
            ),
        ),
    ],
)
def test_libc(changes: dict[str, Any], expected: str) -> None:
    assert [text_of(found) for found in check_libc(host(**changes))] == [expected]


VENV = "do: make a virtual environment with CPython 3.11 to 3.14: `python3.12 -m venv ortkit`"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "ok python: Python 3.11.2, /opt/ortkit/bin/python3; wheels: cp311-manylinux_2_36_x86_64"),
        # Newer than what is known, but its onnxruntime loads.
        (
            {"python": (3, 15, 0)},
            "ok python: Python 3.15.0, /opt/ortkit/bin/python3; wheels: cp315-manylinux_2_36_x86_64",
        ),
        (
            {"python": (3, 15, 0), "imports": {"onnxruntime": Imported(missing=True)}},
            (
                "error python: Python 3.15.0 is newer than 3.14, the last one with wheels of onnxruntime 1.32\n"
                f"why: onnxruntime cannot be imported here\n{VENV}\nexit: 1"
            ),
        ),
        (
            {"python": (3, 10, 12)},
            (
                "error python: Python 3.10.12 is older than 3.11\n"
                f"why: onnxruntime below 1.30 runs decoders wrongly, and newer ones have no wheels for it\n{VENV}\nexit: 1"
            ),
        ),
        (
            {"implementation": "PyPy"},
            (
                "error python: this Python is PyPy 3.11.2\n"
                f"why: the wheels of onnxruntime and numpy are for CPython\n{VENV}\nexit: 1"
            ),
        ),
        (
            {"python": (3, 13, 1), "free_threaded": True},
            (
                "warning python: Python 3.13.1 is a free-threaded build\n"
                f"why: tokenizers has no wheels for it, and ortkit was not tested on it\n{VENV}"
            ),
        ),
    ],
)
def test_python(changes: dict[str, Any], expected: str) -> None:
    assert [text_of(found) for found in check_python(host(**changes))] == [expected]


def test_wheel_tags() -> None:
    mac = host(system="Darwin", machine="arm64", macos=(14,), python=(3, 13, 1), free_threaded=True)

    assert wheel_tag(mac) == "cp313t-macosx_14_0_arm64"
    assert wheel_tag(host(libc=Libc("musl"))) == "cp311-musllinux_x86_64"
    assert wheel_tag(host(libc=Libc())) == "cp311-linux_x86_64"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "ok cpu: x86 with VNNI; CPU features for matmuls of few bits: avx2, avx512f, avx512_vnni"),
        (
            {"machine": "aarch64", "cpu_flags": ARM | {"asimddp"}},
            "ok cpu: aarch64 with dot product; CPU features for matmuls of few bits: asimddp",
        ),
        ({"system": "Darwin", "machine": "arm64", "cpu_flags": None}, "ok cpu: aarch64 with dot product"),
        ({"cpu_flags": None}, "note cpu: the CPU's features are not known\nwhy: this system does not say"),
        (
            {"cpu_flags": frozenset({"sse2", "ssse3"})},
            (
                "error cpu: the CPU has no sse4_2 and popcnt\n"
                "why: numpy's wheels need x86-64-v2 (SSE4.2, from Nehalem, Silvermont or Jaguar on) and end with an "
                "illegal instruction, or an error, elsewhere\n"
                "do: use a newer CPU; in a virtual machine, let the guest see the host's CPU (`-cpu host`)\nexit: 8"
            ),
        ),
        (
            {"cpu_flags": frozenset({"sse4_2", "popcnt", "ssse3", "avx"})},
            (
                "note cpu: the CPU has no AVX2\n"
                "why: there are no fast kernels for int8 and int4: models are several times slower than with AVX2\n"
                "do: in a virtual machine, let the guest see the host's CPU (`-cpu host`)"
            ),
        ),
        (
            {"cpu_flags": X86 - {"avx512_vnni"}},
            (
                "note cpu: the CPU has AVX2 and no VNNI\n"
                "why: int8 matmuls run in onnxruntime's precision mode, which takes 1.6 times as long as VNNI"
            ),
        ),
        (
            {"machine": "aarch64", "cpu_flags": ARM},
            (
                "note cpu: the CPU has no dot product (asimddp)\n"
                "why: int4 and int8 LLMs run as float32 matmuls: exact, and several times slower than on a Cortex-A76"
            ),
        ),
    ],
)
def test_cpu(changes: dict[str, Any], expected: str) -> None:
    assert [text_of(found) for found in check_cpu(host(**changes))] == [expected]


def test_facts_for_programs() -> None:
    (found,) = check_cpu(GOOD)
    assert found.facts == {"class": "x86-vnni", "features": ["avx2", "avx512f", "avx512_vnni"]}
    (found,) = check_libc(GOOD)
    assert found.facts == {"name": "glibc", "version": "2.36"}
