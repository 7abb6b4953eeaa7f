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
    return cpuinfo_field("model name") or platform.processor() or platform.machine()


def processor_model() -> str:
    """The name with family and model, which a virtual machine's `AMD EPYC` lacks: (25, 17) is Zen 4."""
    numbers = [f"{what} {found}" for what in ("cpu family", "model") if (found := cpuinfo_field(what)) is not None]
    return f"{processor_name()} ({', '.join(numbers)})" if numbers else processor_name()


def cpuinfo_field(name: str) -> str | None:
    """A field of the first CPU that Linux lists; None where the system does not have it."""
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines() if CPUINFO.exists() else []
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for field, _, value in fields if field.strip() == name), None)
