"""What this machine is, and whether a kit can run on it: platform, C library, Python and CPU features."""

from __future__ import annotations

import ctypes
import platform
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import InputError, OrtkitError
from ..host_facts import Libc, cpu_flags, find_libc

PLATFORMS = {"linux-x86_64": "x86_64", "linux-aarch64": "aarch64"}
"""A platform that kits are for -> the machine that uname(1) names."""
CPU_FEATURES = {"linux-x86_64": ("sse3", "ssse3", "cx16", "sse4_1", "sse4_2", "popcnt"), "linux-aarch64": ()}
"""What numpy's wheels need: x86-64-v2, and nothing beyond ARMv8.0."""
_CPUID_1_ECX = {"sse3": 0, "ssse3": 9, "cx16": 13, "sse4_1": 19, "sse4_2": 20, "popcnt": 23}
"""Bits of the register ECX after CPUID with EAX = 1."""
_CPUINFO_NAMES = {"sse3": "pni"}
"""Where Linux's name of a feature is another."""
_UNSUPPORTED = {
    "armv6l": "32-bit ARM",
    "armv7l": "32-bit ARM",
    "armv8l": "32-bit ARM",
    "i386": "32-bit x86",
    "i686": "32-bit x86",
    "riscv64": "RISC-V",
}
"""Machines that onnxruntime has never had wheels for."""


@dataclass(frozen=True)
class Needs:
    """What a kit needs of a machine."""

    platform: str
    """A key of PLATFORMS."""
    python: tuple[int, int]
    glibc: tuple[int, int]
    """The lowest version that its wheels allow."""

    @property
    def cpu_features(self) -> tuple[str, ...]:
        return CPU_FEATURES[self.platform]


@dataclass(frozen=True)
class Host:
    """What a machine and its Python are."""

    system: str
    """As uname(1) names it: `Linux`."""
    machine: str
    bits: int
    """Of the Python; a system of 32 bits may run on a processor of 64."""
    glibc: tuple[int, int] | None
    """None for another C library."""
    implementation: str
    """`cpython`"""
    python: tuple[int, int, int]
    free_threaded: bool
    cpu_features: frozenset[str] | None
    """Those of CPU_FEATURES that the CPU has; None where the system does not say."""
    executable: str
    """The Python itself, not that of a virtual environment."""

    @classmethod
    def this(cls) -> Host:
        """The machine and the Python that run the installer."""
        machine = platform.machine()
        return cls(
            system=platform.system(),
            machine=machine,
            bits=64 if sys.maxsize > 1 << 32 else 32,
            glibc=_glibc(find_libc()),
            implementation=sys.implementation.name,
            python=sys.version_info[:3],
            free_threaded=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
            cpu_features=_x86_features() if machine == "x86_64" else frozenset(),
            executable=getattr(sys, "_base_executable", None) or sys.executable,
        )

    @property
    def platform(self) -> str:
        """As PLATFORMS names it, where it is one of them."""
        return f"{self.system.lower()}-{self.machine}"

    def check(self, needs: Needs, kit: str) -> None:
        """Raise InputError for a kit for another machine or Python, OrtkitError where no kit could run."""
        self._check_support()
        if self.platform != needs.platform:
            raise InputError(
                f"`{kit}` is for {needs.platform}, and this machine is {self.platform}",
                hint=f"make a kit for it: `ortkit kit BUNDLE... --target {self.platform} "
                f"--python {dotted(self.python[:2])}`",
            )
        if self.python[:2] != needs.python or self.implementation != "cpython" or self.free_threaded:
            wanted = dotted(needs.python)
            raise InputError(
                f"`{kit}` is for CPython {wanted}, and `{self.executable}` is {self._python_name()}",
                hint=f"if Python {wanted} is installed elsewhere, name it: `ORTKIT_PYTHON=/path/to/python{wanted} sh "
                f"{kit} ...`; else make a kit for this one: `ortkit kit BUNDLE... --target {self.platform} "
                f"--python {dotted(self.python[:2])}`",
            )
        if self.glibc is not None and self.glibc < needs.glibc:
            raise OrtkitError(
                f"`{kit}` needs glibc {dotted(needs.glibc)}, and this system has {dotted(self.glibc)}",
                hint="the packages in it do not run here; update the system, or make the kit with older packages "
                "(`ortkit wheelhouse --help`)",
            )
        self._check_cpu(needs.cpu_features)

    def _check_support(self) -> None:
        """Raise OrtkitError for a machine that onnxruntime has no wheels for."""
        supported = f"supported: {', '.join(PLATFORMS)}, with glibc"
        if self.machine in _UNSUPPORTED or self.bits == 32:
            what = _UNSUPPORTED.get(self.machine, f"a 32-bit system on {self.machine}")
            raise OrtkitError(
                f"this machine is {what} ({self.machine}), for which there is no onnxruntime",
                hint=f"install a 64-bit system where the processor can run one; {supported}",
            )
        if self.platform not in PLATFORMS:
            raise OrtkitError(f"a kit cannot be installed on {self.system} on {self.machine}", hint=supported)
        if self.glibc is None:
            raise OrtkitError(
                "this system's C library is not glibc (Alpine has musl), and onnxruntime runs with glibc alone",
                hint="use a system with glibc, such as Debian, or a container of one",
            )

    def _python_name(self) -> str:
        version = dotted(self.python)
        if self.implementation != "cpython":
            return f"{self.implementation} {version}"
        return f"free-threaded CPython {version}" if self.free_threaded else f"CPython {version}"

    def _check_cpu(self, features: Iterable[str]) -> None:
        if self.cpu_features is None:
            return
        missing = [name for name in features if name not in self.cpu_features]
        if missing:
            raise OrtkitError(
                f"this CPU has no {', '.join(missing)}, which numpy and onnxruntime need (x86-64-v2)",
                hint="in a virtual machine, let the hypervisor pass on the CPU's features",
            )


def dotted(version: Iterable[int]) -> str:
    """(3, 11) as `3.11`."""
    return ".".join(map(str, version))


def _glibc(libc: Libc) -> tuple[int, int] | None:
    return libc.version[:2] if libc.name == "glibc" and len(libc.version) > 1 else None  # type: ignore[return-value]


def _x86_features() -> frozenset[str] | None:
    """What CPUID says through glibc, which an emulator answers too, or what Linux says of the host's CPU."""
    ecx = _cpuid_1_ecx()
    if ecx is not None:
        return frozenset(name for name, bit in _CPUID_1_ECX.items() if ecx >> bit & 1)
    flags = cpu_flags()
    if flags is None:
        return None
    return frozenset(name for name in _CPUID_1_ECX if _CPUINFO_NAMES.get(name, name) in flags)


def _cpuid_1_ecx() -> int | None:
    """The register ECX after CPUID with EAX = 1; None before glibc 2.33."""
    try:
        leaf = ctypes.CDLL(None)["__x86_get_cpuid_feature_leaf"]
    except (AttributeError, OSError):
        return None
    leaf.restype = ctypes.POINTER(ctypes.c_uint32 * 8)
    leaf.argtypes = [ctypes.c_uint32]
    found = leaf(0)
    return int(found.contents[2]) if found else None
