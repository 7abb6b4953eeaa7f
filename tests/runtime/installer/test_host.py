"""What a kit can be installed on: each refusal names what the kit is for and what the machine is."""

from __future__ import annotations

import dataclasses
import platform
import sys
from pathlib import Path

import pytest

from ortkit import OrtkitError
from ortkit.runtime.installer.host import CPU_FEATURES, Host, Needs

PI = Host("Linux", "aarch64", 64, (2, 36), "cpython", (3, 11, 2), False, frozenset(), "/usr/bin/python3.11")
PC = dataclasses.replace(PI, machine="x86_64", cpu_features=frozenset(CPU_FEATURES["linux-x86_64"]))
FOR_PI = Needs("linux-aarch64", (3, 11), (2, 28))
FOR_PC = Needs("linux-x86_64", (3, 11), (2, 28))


def test_a_machine_that_has_what_the_kit_needs() -> None:
    PI.check(FOR_PI, "line4.kit")
    PC.check(FOR_PC, "line4.kit")
    dataclasses.replace(PC, cpu_features=None).check(FOR_PC, "line4.kit")


@pytest.mark.parametrize(
    ("host", "needs", "code", "message", "hint"),
    [
        (
            PC,
            FOR_PI,
            2,
            "`line4.kit` is for linux-aarch64, and this machine is linux-x86_64",
            "make a kit for it: `ortkit kit BUNDLE... --target linux-x86_64 --python 3.11`",
        ),
        (
            dataclasses.replace(PI, python=(3, 13, 1), executable="/usr/bin/python3"),
            FOR_PI,
            2,
            "`line4.kit` is for CPython 3.11, and `/usr/bin/python3` is CPython 3.13.1",
            "`ORTKIT_PYTHON=/path/to/python3.11 sh line4.kit ...`; else make a kit for this one: `ortkit kit ",
        ),
        (
            dataclasses.replace(PI, free_threaded=True),
            FOR_PI,
            2,
            "`line4.kit` is for CPython 3.11, and `/usr/bin/python3.11` is free-threaded CPython 3.11.2",
            "--python 3.11`",
        ),
        (
            dataclasses.replace(PI, implementation="pypy"),
            FOR_PI,
            2,
            "`line4.kit` is for CPython 3.11, and `/usr/bin/python3.11` is pypy 3.11.2",
            "--python 3.11`",
        ),
        (
            dataclasses.replace(PI, glibc=None),
            FOR_PI,
            1,
            "this system's C library is not glibc (Alpine has musl), and onnxruntime runs with glibc alone",
            "use a system with glibc, such as Debian, or a container of one",
        ),
        (
            dataclasses.replace(PI, glibc=(2, 27)),
            FOR_PI,
            1,
            "`line4.kit` needs glibc 2.28, and this system has 2.27",
            "update the system, or make the kit with older packages",
        ),
        (
            dataclasses.replace(PI, machine="armv7l", bits=32),
            FOR_PI,
            1,
            "this machine is 32-bit ARM (armv7l), for which there is no onnxruntime",
            "install a 64-bit system where the processor can run one; supported: linux-x86_64, linux-aarch64",
        ),
        (
            dataclasses.replace(PI, bits=32),
            FOR_PI,
            1,
            "this machine is a 32-bit system on aarch64 (aarch64), for which there is no onnxruntime",
            "install a 64-bit system",
        ),
        (
            dataclasses.replace(PI, machine="riscv64"),
            FOR_PI,
            1,
            "this machine is RISC-V (riscv64), for which there is no onnxruntime",
            "supported: linux-x86_64, linux-aarch64, with glibc",
        ),
        (
            dataclasses.replace(PI, system="FreeBSD"),
            FOR_PI,
            1,
            "a kit cannot be installed on FreeBSD on aarch64",
            "supported: linux-x86_64, linux-aarch64, with glibc",
        ),
        (
            dataclasses.replace(PC, cpu_features=PC.cpu_features - {"sse4_2", "popcnt"}),
            FOR_PC,
            1,
            "this CPU has no sse4_2, popcnt, which numpy and onnxruntime need (x86-64-v2)",
            "in a virtual machine, let the hypervisor pass on the CPU's features",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) > 40 else "",
)
def test_another_machine_is_refused(host: Host, needs: Needs, code: int, message: str, hint: str) -> None:
    with pytest.raises(OrtkitError) as raised:
        host.check(needs, "line4.kit")

    assert (raised.value.message, raised.value.exit_code) == (message, code)
    assert hint in raised.value.hint


def test_this_machine_is_what_its_own_commands_say() -> None:
    host = Host.this()

    assert (host.system, host.machine) == (platform.system(), platform.machine())
    assert host.python == sys.version_info[:3]
    assert host.glibc == tuple(map(int, platform.libc_ver()[1].split(".")))
    assert Path(host.executable).exists()
    host.check(Needs(host.platform, host.python[:2], (2, 17)), "a.kit")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="CPUID is x86's")
def test_the_cpu_has_the_features_that_linux_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    from ortkit.runtime.installer import host

    asked = host._x86_features()
    monkeypatch.setattr(host, "_cpuid_1_ecx", lambda: None)
    assert asked == host._x86_features()
    monkeypatch.setattr(host, "cpu_flags", lambda: None)
    assert host._x86_features() is None
