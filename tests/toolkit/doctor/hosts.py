"""A machine on which nothing is wrong, and what differs on others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ortkit.runtime.host_facts import Libc
from ortkit.runtime.session.cores import Cores
from ortkit.runtime.session.memory import Limit
from ortkit.toolkit.doctor.finding import Finding
from ortkit.toolkit.doctor.host import Folder, Host, Swap
from ortkit.toolkit.doctor.packages import Imported, Package

NOW = 1_800_000_000.0
"""15 January 2027."""
SITE = "/opt/ortkit/lib/python3.11/site-packages"
VERSIONS = {"click": "8.2.1", "jinja2": "3.1.6", "numpy": "2.4.6", "onnxruntime": "1.31.1", "tokenizers": "0.22.2"}
X86 = frozenset({"sse4_2", "popcnt", "ssse3", "avx2", "avx512f", "avx512_vnni"})
OLD_X86 = frozenset({"sse4_2", "popcnt", "ssse3", "avx"})
GOOD = Host(
    libc=Libc("glibc", (2, 36)),
    python=(3, 11, 2),
    executable="/opt/ortkit/bin/python3",
    cpu_flags=X86,
    cores=Cores(4, 4, None),
    memory=(Limit(2 << 30, "the system, as MemAvailable"),),
    total_memory=4 << 30,
    swap=Swap(0, 0),
    open_files=1024,
    environment={"HOME": "/home/ada"},
    now=NOW,
    newest_file=NOW - 1000,
    packages=tuple(Package(name, version, SITE) for name, version in VERSIONS.items()),
    imports={name: Imported(version) for name, version in VERSIONS.items()},
    bundles=Folder(Path("bundles"), exists=True, writable=False, free=8 << 30),
    cache=Folder(Path("/home/ada/.cache/ortkit"), exists=False, writable=True, free=8 << 30),
    temporary=Folder(Path("/tmp"), exists=True, writable=True, free=8 << 30),
)


def host(**changes: Any) -> Host:
    return replace(GOOD, **changes)


def text_of(finding: Finding) -> str:
    """A finding with everything that a person reads, and its exit code, to compare at once."""
    lines = [f"{finding.severity.value} {finding.check}: {finding.what}"]
    lines += [f"why: {finding.why}"] if finding.why is not None else []
    lines += [f"do: {finding.action}"] if finding.action is not None else []
    lines += [f"exit: {finding.exit_code}"] if finding.exit_code else []
    return "\n".join(lines)
