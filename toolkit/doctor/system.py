"""Checks of the system against what the wheels of onnxruntime, numpy and tokenizers need: CPU, C library, Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...runtime.session.cpu_class import ARM_MACHINES, X86_MACHINES, CpuClass, class_of, features_in
from .finding import Finding, error, note, ok, warning
from .host import Host

OLDEST_GLIBC = (2, 28)
"""Of onnxruntime's wheels (manylinux_2_28), on both kinds of CPU; numpy's need 2.27, and tokenizers' 2.17."""
OLDEST_MACOS = (14,)
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)
"""Versions for which onnxruntime 1.30 to 1.32 have wheels."""
_SYSTEMS = ("Linux", "Darwin")
_BASELINE = ("sse4_2", "popcnt", "ssse3")
"""Features of x86-64-v2 that tell it from older CPUs: numpy's wheels begin there (Nehalem, Silvermont, Jaguar)."""
_X86 = frozenset({CpuClass.X86_AMX, CpuClass.X86_VNNI, CpuClass.X86_AVX2, CpuClass.X86})
_SLOWER = {
    CpuClass.X86_AVX2: (
        "the CPU has AVX2 and no VNNI",
        "int8 matmuls run in onnxruntime's precision mode, which takes 1.6 times as long as VNNI",
    ),
    CpuClass.X86: (
        "the CPU has no AVX2",
        "there are no fast kernels for int8 and int4: models are several times slower than with AVX2",
        "in a virtual machine, let the guest see the host's CPU (`-cpu host`)",
    ),
    CpuClass.AARCH64: (
        "the CPU has no dot product (asimddp)",
        "int4 and int8 LLMs run as float32 matmuls: exact, and several times slower than on a Cortex-A76",
    ),
}
"""CPU classes that are slower than others of their architecture: what is noted, why, and what to do."""
_SYSTEM_EXIT = 8
"""Exit code where no wheel of onnxruntime runs: no execution provider is available."""
_PACKAGE_EXIT = 1
_ELSEWHERE = "use another machine: see `docs/appliance.md`, Requirements"


def check_platform(host: Host) -> Iterator[Finding]:
    """Operating system and kind of CPU."""
    shown = f"{host.system} on {host.machine}, {host.bits} bits"
    facts: dict[str, Any] = {"system": host.system, "machine": host.machine, "bits": host.bits}
    if host.bits == 32 and host.machine in X86_MACHINES | ARM_MACHINES:
        yield error(
            "platform",
            f"this Python is a 32-bit program on a {host.machine} CPU",
            "onnxruntime has no wheels for 32 bits",
            "install a 64-bit system: the 64-bit edition of Raspberry Pi OS, for example",
            _SYSTEM_EXIT,
            **facts,
        )
    elif host.machine not in X86_MACHINES | ARM_MACHINES:
        yield error(
            "platform",
            f"{shown}: there are no wheels of onnxruntime for this kind of CPU",
            "supported: x86-64 and 64-bit ARM; 32-bit ARM and RISC-V are not",
            _ELSEWHERE,
            _SYSTEM_EXIT,
            **facts,
        )
    elif host.system not in _SYSTEMS:
        yield error(
            "platform",
            f"{shown}: ortkit does not run on {host.system or 'this system'}",
            "supported: Linux and macOS",
            _ELSEWHERE,
            _SYSTEM_EXIT,
            **facts,
        )
    elif host.system == "Darwin" and host.machine in X86_MACHINES:
        yield error(
            "platform",
            f"{shown}: onnxruntime has no wheels for Intel Macs since 1.24",
            "ortkit needs onnxruntime 1.30",
            _ELSEWHERE,
            _SYSTEM_EXIT,
            **facts,
        )
    else:
        yield ok("platform", shown, **facts)


def check_libc(host: Host) -> Iterator[Finding]:
    """The C library, or the version of macOS."""
    if host.system == "Darwin":
        yield from _check_macos(host)
        return
    facts: dict[str, Any] = {"name": host.libc.name, "version": _dotted(host.libc.version)}
    if host.libc.name == "musl":
        yield error(
            "libc",
            "the C library is musl",
            "onnxruntime has wheels for glibc alone, so not for Alpine Linux",
            "use a system or container with glibc 2.28 or newer, such as Debian 12 (`python:3.12-slim`)",
            _SYSTEM_EXIT,
            **facts,
        )
    elif not host.libc.version:
        yield note(
            "libc",
            "the C library is not known",
            "the wheels need glibc 2.28 or newer",
            "ask it: `ldd --version`",
            **facts,
        )
    elif host.libc.version < OLDEST_GLIBC:
        yield error(
            "libc",
            f"{host.libc} is older than glibc 2.28",
            "pip finds no wheel of onnxruntime for it, and one that is copied here does not load",
            "use a newer system: Debian 11, Ubuntu 20.04 or RHEL 8 are new enough",
            _SYSTEM_EXIT,
            **facts,
        )
    else:
        yield ok("libc", f"{host.libc}; the wheels need 2.28", **facts)


def _check_macos(host: Host) -> Iterator[Finding]:
    version = _dotted(host.macos)
    if host.macos < OLDEST_MACOS:
        yield error(
            "libc",
            f"macOS {version or 'of an unknown version'} is older than macOS 14",
            "onnxruntime's wheels need macOS 14",
            "update macOS",
            _SYSTEM_EXIT,
            name="macOS",
            version=version,
        )
    else:
        yield ok("libc", f"macOS {version}; the wheels need 14", name="macOS", version=version)


def check_python(host: Host) -> Iterator[Finding]:
    """Python's version and kind, for which there must be wheels."""
    version = _dotted(host.python)
    facts: dict[str, Any] = {"version": version, "implementation": host.implementation}
    short, action = host.python[:2], "make a virtual environment with CPython 3.11 to 3.14: `python3.12 -m venv ortkit`"
    if host.implementation != "CPython":
        yield error(
            "python",
            f"this Python is {host.implementation} {version}",
            "the wheels of onnxruntime and numpy are for CPython",
            action,
            _PACKAGE_EXIT,
            **facts,
        )
    elif short < OLDEST_PYTHON:
        yield error(
            "python",
            f"Python {version} is older than 3.11",
            "onnxruntime below 1.30 runs decoders wrongly, and newer ones have no wheels for it",
            action,
            _PACKAGE_EXIT,
            **facts,
        )
    elif short > NEWEST_PYTHON and not host.imports_well("onnxruntime"):
        yield error(
            "python",
            f"Python {version} is newer than 3.14, the last one with wheels of onnxruntime 1.32",
            "onnxruntime cannot be imported here",
            action,
            _PACKAGE_EXIT,
            **facts,
        )
    elif host.free_threaded:
        yield warning(
            "python",
            f"Python {version} is a free-threaded build",
            "tokenizers has no wheels for it, and ortkit was not tested on it",
            action,
            **facts,
        )
    else:
        yield ok(
            "python", f"Python {version}, {host.executable}; wheels: {wheel_tag(host)}", tag=wheel_tag(host), **facts
        )


def wheel_tag(host: Host) -> str:
    """The newest wheel tag that pip installs here: `cp311-manylinux_2_36_x86_64`."""
    major, minor = host.python[:2]
    suffix = "t" if host.free_threaded else ""
    if host.system == "Darwin":
        return f"cp{major}{minor}{suffix}-macosx_{'_'.join(map(str, (*host.macos, 0, 0)[:2]))}_{host.machine}"
    if host.libc.name == "glibc":
        libc = f"manylinux_{'_'.join(map(str, host.libc.version[:2]))}"
    else:
        libc = "musllinux" if host.libc.name == "musl" else "linux"
    return f"cp{major}{minor}{suffix}-{libc}_{host.machine}"


def check_cpu(host: Host) -> Iterator[Finding]:
    """The CPU's class and features: the floor of the wheels, and what makes matmuls of few bits fast."""
    cpu_class = class_of(host.cpu_flags, host.machine, host.system)
    flags = host.cpu_flags or frozenset()
    found = features_in(flags)
    facts: dict[str, Any] = {"class": cpu_class.value, "features": list(found)}
    missing = [] if cpu_class not in _X86 else [name for name in _BASELINE if name not in flags]
    if cpu_class is CpuClass.OTHER:
        yield note("cpu", "the CPU's features are not known", "this system does not say", **facts)
    elif missing:
        yield error(
            "cpu",
            f"the CPU has no {_listed(missing)}",
            "numpy's wheels need x86-64-v2 (SSE4.2, from Nehalem, Silvermont or Jaguar on) and end with an illegal "
            "instruction, or an error, elsewhere",
            "use a newer CPU; in a virtual machine, let the guest see the host's CPU (`-cpu host`)",
            _SYSTEM_EXIT,
            **facts,
        )
    elif cpu_class in _SLOWER:
        yield note("cpu", *_SLOWER[cpu_class], **facts)
    else:
        features = f"; CPU features for matmuls of few bits: {', '.join(found)}" if found else ""
        yield ok("cpu", f"{cpu_class.description}{features}", **facts)


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
