"""The machine that wheels are collected for: its wheel tags, its pip platforms and its environment markers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms

from ...runtime.errors import InputError

PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14))
"""Versions of CPython that the lock has wheels for."""
TARGETS = ("linux-x86_64", "linux-aarch64", "macos-arm64", "windows-amd64")
DEFAULT_GLIBC = "2.28"
"""What onnxruntime's wheels need: Debian 10, RHEL 8, Ubuntu 20.04 and later have it."""
NEWEST_GLIBC = 43
"""The minor version up to which wheels are looked for: no manylinux wheel needs a newer one yet."""
MACOS = (14, 0)
"""What onnxruntime's wheels need."""
_OLDEST_GLIBC = 5
"""The minor version of manylinux1."""
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
"""Names of platform tags before PEP 600, by the minor version of glibc."""
_LEGACY_OF = {"x86_64": (17, 12, 5), "aarch64": (17,)}
_SYSTEMS = {
    "linux": {"os_name": "posix", "platform_system": "Linux", "sys_platform": "linux"},
    "macos": {"os_name": "posix", "platform_system": "Darwin", "sys_platform": "darwin"},
    "windows": {"os_name": "nt", "platform_system": "Windows", "sys_platform": "win32"},
}
_MACHINES = {"linux-x86_64": "x86_64", "linux-aarch64": "aarch64", "macos-arm64": "arm64", "windows-amd64": "AMD64"}
"""Target -> `platform.machine()` there."""
_OTHER_NAMES = {
    "linux-amd64": "linux-x86_64",
    "linux-x64": "linux-x86_64",
    "x86_64": "linux-x86_64",
    "amd64": "linux-x86_64",
    "linux-arm64": "linux-aarch64",
    "aarch64": "linux-aarch64",
    "arm64": "linux-aarch64",
    "macos-aarch64": "macos-arm64",
    "darwin-arm64": "macos-arm64",
    "windows-x86_64": "windows-amd64",
    "win-amd64": "windows-amd64",
    "win_amd64": "windows-amd64",
}
"""What Docker, Go, uv and others call a target."""
_IMPOSSIBLE = (
    (
        r".*(musl|alpine).*",
        "onnxruntime has no wheels for musl (Alpine)",
        "use a system or a container with glibc, such as Debian, and `--target linux-x86_64` or `linux-aarch64`",
    ),
    (
        r"(linux[-_])?(armv[5-8]l?|armv6hf|armv7hf|armhf|arm32|arm)",
        "onnxruntime has no wheels for 32-bit ARM",
        "install a 64-bit system, such as Raspberry Pi OS (64-bit), and use `--target linux-aarch64`",
    ),
    (
        r".*riscv.*",
        "onnxruntime has no wheels for RISC-V",
        "use a machine with an x86-64 or a 64-bit ARM processor",
    ),
    (
        r"(macos|darwin)[-_](x86_64|amd64|x64)",
        "onnxruntime has no wheels for Macs with an Intel processor since version 1.24",
        "use a Mac with Apple silicon, and `--target macos-arm64`",
    ),
)
"""Pattern of a target, why ortkit cannot run there, and what to do."""


@dataclass(frozen=True)
class Target:
    """A machine that wheels are collected for."""

    name: str
    """One of TARGETS."""
    python: tuple[int, int]
    glibc: int | None
    """Minor version of glibc 2; None where the system is not Linux."""

    @property
    def system(self) -> str:
        return self.name.partition("-")[0]

    @property
    def machine(self) -> str:
        """As `platform.machine()` says it there."""
        return _MACHINES[self.name]

    @property
    def python_version(self) -> str:
        return f"{self.python[0]}.{self.python[1]}"

    def __str__(self) -> str:
        python = f"{self.name} with Python {self.python_version}"
        return python if self.glibc is None else f"{python} and glibc 2.{self.glibc}"

    def with_python(self, python: tuple[int, int]) -> Target:
        return replace(self, python=python)

    def with_glibc(self, glibc: int) -> Target:
        return replace(self, glibc=glibc)

    def platforms(self) -> list[str]:
        """Platform tags of wheels that run there, the best first; pip infers none of them from another."""
        if self.glibc is not None:
            return list(_manylinux(self.machine, self.glibc))
        return [*mac_platforms(MACOS, self.machine)] if self.system == "macos" else ["win_amd64"]

    def tags(self) -> list[Tag]:
        """Tags of wheels that run there, the best first."""
        interpreter, platforms = f"cp{self.python[0]}{self.python[1]}", self.platforms()
        return [
            *cpython_tags(self.python, abis=[interpreter], platforms=platforms),
            *compatible_tags(self.python, interpreter, platforms),
        ]

    def environment(self) -> dict[str, str]:
        """The values of environment markers (PEP 508) there; of releases, only the first of the Python is certain."""
        return {
            **_SYSTEMS[self.system],
            "platform_machine": self.machine,
            "platform_release": "",
            "platform_version": "",
            "platform_python_implementation": "CPython",
            "implementation_name": "cpython",
            "implementation_version": f"{self.python_version}.0",
            "python_full_version": f"{self.python_version}.0",
            "python_version": self.python_version,
        }


def _manylinux(machine: str, glibc: int) -> Iterable[str]:
    for minor in range(glibc, _OLDEST_GLIBC - 1, -1):
        if machine != "x86_64" and minor < min(_LEGACY_OF[machine]):
            return
        yield f"manylinux_2_{minor}_{machine}"
        if minor in _LEGACY_OF[machine]:
            yield f"{_LEGACY[minor]}_{machine}"


def parse_target(name: str, python: str, glibc: str | None = None) -> Target:
    """A target from what a user typed; raises InputError with what to do where ortkit cannot run there."""
    _check_name(name)
    if glibc is not None and not name.startswith("linux-"):
        raise InputError(f"`--glibc` is for Linux, and the target is `{name}`", hint="leave `--glibc` out")
    return Target(name, _parse_python(python), _parse_glibc(glibc) if name.startswith("linux-") else None)


def _check_name(name: str) -> None:
    if name in TARGETS:
        return
    typed = name.lower()
    for pattern, reason, hint in _IMPOSSIBLE:
        if re.fullmatch(pattern, typed):
            raise InputError(f"ortkit cannot run on `{name}`: {reason}", hint=hint)
    meant = _OTHER_NAMES.get(typed)
    hint = (
        "on the appliance, `python3 -m sysconfig` prints its platform" if meant is None else f"use `--target {meant}`"
    )
    supported = ", ".join(f"`{target}`" for target in TARGETS)
    raise InputError(
        f"the target `{name}` is not supported; supported: {supported}",
        hint=hint,
    )


def _parse_python(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"3\.(\d{1,2})(\.\d{1,2})?", text)
    version = (3, int(found[1])) if found is not None else None
    if version in PYTHONS:
        return version
    oldest, newest = (f"{major}.{minor}" for major, minor in (PYTHONS[0], PYTHONS[-1]))
    message = f"Python `{text}` is not supported: ortkit runs on Python {oldest} to {newest}"
    if version is None:
        raise InputError(message, hint="`python3 --version` on the appliance prints it; name it as `3.11`")
    if version < PYTHONS[0]:
        hint = f"install Python {oldest} or later beside it; Debian 12, Ubuntu 24.04 and later come with one"
        raise InputError(message, hint=hint)
    raise InputError(message, hint=f"install Python {newest} beside the appliance's own")


def _parse_glibc(text: str | None) -> int:
    found = re.fullmatch(r"2\.(\d{1,2})", text or DEFAULT_GLIBC)
    if found is None:
        raise InputError(
            f"`{text}` is not a version of glibc; such as `{DEFAULT_GLIBC}`",
            hint="`ldd --version` on the appliance prints it",
        )
    return min(int(found[1]), NEWEST_GLIBC)
