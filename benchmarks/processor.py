"""The processor that figures were measured on, as it decides how fast int8 is."""

from __future__ import annotations

import os
import platform

from ortkit.runtime.host_facts import CPUINFO
from ortkit.runtime.session.cpu import cpu_features

CLASSES = (
    ("amx_int8", "AVX-512 with VNNI and AMX"),
    ("avx512_vnni", "AVX-512 with VNNI"),
    ("avx_vnni", "AVX2 with VNNI"),
    ("avx512f", "AVX-512 without VNNI"),
    ("avx2", "AVX2 without VNNI"),
    ("i8mm", "ARM with i8mm"),
    ("asimddp", "ARM with dot product"),
)
"""A feature, as Linux names it -> the class of the processors that have it and none of those before."""


def processor() -> str:
    """The processor's name, the class of its int8 kernels, and its CPU cores."""
    features = cpu_features(CPUINFO)
    known = next((name for feature, name in CLASSES if feature in features), "int8 kernels not known")
    return f"{processor_name()}, {known}, {os.cpu_count()} CPU cores"


def processor_name() -> str:
    """What the system calls the processor, or its architecture where it has no name for it."""
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines() if CPUINFO.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
