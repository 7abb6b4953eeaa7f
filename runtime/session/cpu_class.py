"""CPU classes: which matmul kernels of ONNX Runtime a CPU has, on which speed depends. Standard library only.

Speed is measured and stated per class (`benchmarks/results/CLASS/`); `cpu.py` has the decisions that depend on it.
A class is what the system reports. A hypervisor or an emulator can report less, or more, than there is, so nothing that
decides whether a result is right depends on it: `int8_overflow.py` asks the kernels themselves.
"""

from __future__ import annotations

import platform
from collections.abc import Collection
from enum import StrEnum
from pathlib import Path

from ..host_facts import CPUINFO, cpu_flags

FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve", "sme")
"""Linux's names of the instruction sets that matmuls of few bits use."""
X86_MACHINES = frozenset({"x86_64", "AMD64"})
ARM_MACHINES = frozenset({"aarch64", "arm64"})
"""What `platform.machine()` says on 64-bit systems."""
_VNNI = frozenset({"avx_vnni", "avx512_vnni"})
_DOT_PRODUCTS = frozenset({"asimddp", "i8mm"})


class CpuClass(StrEnum):
    """A class of CPUs that run the same kernels; the value is its name in result files and in JSON."""

    X86_AMX = "x86-amx"
    """AMX with tiles of 8 bits (Sapphire Rapids and later Xeons): matmuls of u8 x s8 have kernels of their own."""
    X86_VNNI = "x86-vnni"
    """AVX-512 VNNI or AVX VNNI (Cascade Lake, Alder Lake, Zen 4 and later): 8-bit dot products in 32 bits."""
    X86_AVX2 = "x86-avx2"
    """AVX2, or AVX-512, without VNNI (Haswell to Skylake, Zen 1 to 3): 8-bit matmuls add pairs in 16 bits."""
    X86 = "x86"
    """Older: no kernels for 4 and 8 bits."""
    AARCH64_DOTPROD = "aarch64-dotprod"
    """Dot product or i8mm (Cortex-A76, Neoverse, Apple silicon)."""
    AARCH64 = "aarch64"
    """Older (Cortex-A72, as in Raspberry Pi 4): 4-bit weights are unpacked and multiplied in float32."""
    OTHER = "other"
    """Another architecture, or a system that does not report the CPU's features."""

    @property
    def description(self) -> str:
        """The class in words."""
        return _DESCRIPTIONS[self]

    @property
    def has_few_bit_kernels(self) -> bool:
        """Whether matmuls of 4 and 8 bits have kernels of their own."""
        return self in {CpuClass.X86_AMX, CpuClass.X86_VNNI, CpuClass.X86_AVX2, CpuClass.AARCH64_DOTPROD}


_DESCRIPTIONS = {
    CpuClass.X86_AMX: "x86 with AMX",
    CpuClass.X86_VNNI: "x86 with VNNI",
    CpuClass.X86_AVX2: "x86 with AVX2, without VNNI",
    CpuClass.X86: "x86 without AVX2",
    CpuClass.AARCH64_DOTPROD: "aarch64 with dot product",
    CpuClass.AARCH64: "aarch64 without dot product",
    CpuClass.OTHER: "CPU features not known",
}


def class_of(flags: Collection[str] | None, machine: str, system: str) -> CpuClass:
    """The class of a CPU, from Linux's feature names (None where they are not known) and what `platform` says.

    macOS has no such list. ONNX Runtime's wheels for it need Apple silicon, which has dot products since its first.
    """
    if flags is None:
        return CpuClass.AARCH64_DOTPROD if system == "Darwin" and machine in ARM_MACHINES else CpuClass.OTHER
    if machine in ARM_MACHINES:
        return CpuClass.AARCH64 if _DOT_PRODUCTS.isdisjoint(flags) else CpuClass.AARCH64_DOTPROD
    if machine not in X86_MACHINES:
        return CpuClass.OTHER
    if "amx_int8" in flags:
        return CpuClass.X86_AMX
    if not _VNNI.isdisjoint(flags):
        return CpuClass.X86_VNNI
    return CpuClass.X86_AVX2 if "avx2" in flags else CpuClass.X86


def this_cpu_class(cpuinfo: Path = CPUINFO) -> CpuClass:
    """The class of this machine's CPU."""
    return class_of(cpu_flags(cpuinfo), platform.machine(), platform.system())


def cpu_features(cpuinfo: Path = CPUINFO) -> tuple[str, ...]:
    """Those of FEATURES that the CPU has; empty where the system does not say. Shown, not used for decisions."""
    return features_in(cpu_flags(cpuinfo) or ())


def features_in(flags: Collection[str]) -> tuple[str, ...]:
    """Those of FEATURES that are among Linux's flags."""
    return tuple(name for name in FEATURES if name in flags)
