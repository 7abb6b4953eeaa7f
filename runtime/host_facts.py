"""What the system says of its C library and its CPU. Standard library only: the installer of a kit runs this."""

from __future__ import annotations

import os
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Libc:
    """The C library: its name, `glibc` or `musl`, and version; empty where it is not known."""

    name: str = ""
    version: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {'.'.join(map(str, self.version))}".strip()


def find_libc() -> Libc:
    """The C library that this Python is linked to."""
    try:
        name, _, version = os.confstr("CS_GNU_LIBC_VERSION").partition(" ")  # type: ignore[union-attr]
    # musl does not know the name, and neither do other systems.
    except (AttributeError, ValueError, OSError):
        musl = "musl" in f"{sysconfig.get_config_var('SOABI')}{sysconfig.get_config_var('HOST_GNU_TYPE')}"
        return Libc("musl") if musl else Libc()
    return Libc(name, numbers_of(version))


def numbers_of(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 36) for `2.36-9`, () where there are none."""
    return tuple(map(int, re.findall(r"\d+", re.split(r"[^\d.]", version, maxsplit=1)[0])))


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str] | None:
    """All features that Linux reports for the first CPU; None where the system does not say."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), None)
    return None if found is None else frozenset(found)
