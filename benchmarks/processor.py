"""The CPU that figures were measured on, and its class, on which speed depends."""

from __future__ import annotations

import os
import platform

from ortkit.runtime.host_facts import CPUINFO
from ortkit.runtime.session.cpu_class import cpu_features, this_cpu_class


def processor() -> str:
    """The CPU's model, its class and features, and its cores."""
    features = ", ".join(cpu_features(CPUINFO))
    known = f" ({features})" if features else ""
    return f"{processor_name()}, {this_cpu_class(CPUINFO).description}{known}, {os.cpu_count()} CPU cores"


def processor_name() -> str:
    """What the system calls the processor, or its architecture where it has no name for it."""
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines() if CPUINFO.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
