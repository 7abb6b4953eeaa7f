"""The lock of what an appliance installs: pinned versions, and the sha256 of every wheel for every target.

`pylock.toml` beside this module has the form of PEP 751, without addresses: wheels come from the index, mirror or
folder that the user's pip is set to. It leaves out what the runtime never imports: huggingface_hub, which tokenizers
depends on, and the dependencies of huggingface_hub.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.tags import Tag
from packaging.utils import parse_wheel_filename

from ...runtime.errors import InputError
from .wheel_target import NEWEST_GLIBC, PYTHONS, Target

LOCK = Path(__file__).with_name("pylock.toml")
PROVIDERS = ("cpu", "cuda", "coreml")
"""Extras of which exactly one is installed."""
PROVIDER_TARGETS = {"cuda": ("linux-x86_64", "linux-aarch64"), "coreml": ("macos-arm64",)}
"""Where a provider runs, if not everywhere."""


@dataclass(frozen=True)
class LockedWheel:
    """A wheel of the lock."""

    file: str
    size: int
    sha256: str

    @cached_property
    def tags(self) -> frozenset[Tag]:
        return parse_wheel_filename(self.file)[3]


@dataclass(frozen=True)
class LockedPackage:
    """A package of the lock, and its wheels for all targets."""

    name: str
    version: str
    marker: Marker | None
    wheels: tuple[LockedWheel, ...]

    def is_needed(self, target: Target, extras: Collection[str]) -> bool:
        """Whether the extras install it on the target."""
        if self.marker is None:
            return True
        return self.marker.evaluate({**target.environment(), "extras": frozenset(extras)}, context="lock_file")

    def best_wheel(self, tags: Sequence[Tag]) -> LockedWheel | None:
        """The wheel with the best of these tags, which are ordered; None where no wheel has any of them."""
        return next((wheel for tag in tags for wheel in self.wheels if tag in wheel.tags), None)


@dataclass(frozen=True)
class Pin:
    """A wheel that a target needs."""

    name: str
    version: str
    wheel: LockedWheel


@dataclass(frozen=True)
class Lock:
    """The packages of all extras that an appliance may install."""

    extras: tuple[str, ...]
    packages: tuple[LockedPackage, ...]

    @property
    def optional(self) -> tuple[str, ...]:
        """Extras beside the providers."""
        return tuple(extra for extra in self.extras if extra not in PROVIDERS)

    def select(self, target: Target, provider: str, extras: Iterable[str] = ()) -> list[Pin]:
        """The wheels that a target needs, in order of names.

        Raises InputError where the target has no wheel of a package, with the versions of Python and glibc that have.
        """
        chosen = (provider, *extras)
        self._check_extras(target, provider, chosen)
        tags = target.tags()
        needed = [package for package in self.packages if package.is_needed(target, chosen)]
        found = [(package, package.best_wheel(tags)) for package in needed]
        missing = [package for package, wheel in found if wheel is None]
        if missing:
            raise InputError(_missing_message(missing, target), hint=self._way_on(target, chosen))
        return [Pin(package.name, package.version, wheel) for package, wheel in found if wheel is not None]

    def _check_extras(self, target: Target, provider: str, chosen: Sequence[str]) -> None:
        for extra in chosen[1:]:
            if extra not in self.optional:
                raise InputError(
                    f"`{extra}` is not an extra that ortkit has wheels for; supported: "
                    f"{', '.join(f'`{name}`' for name in self.optional)}",
                    hint="the provider is an option of its own: `--provider`" if extra in PROVIDERS else None,
                )
        if target.name not in PROVIDER_TARGETS.get(provider, (target.name,)):
            supported = " and ".join(f"`{name}`" for name in PROVIDER_TARGETS[provider])
            raise InputError(
                f"the provider {provider} does not run on `{target.name}`; it runs on {supported}",
                hint="leave `--provider` out, and export the bundles with `--provider cpu`",
            )

    def _has_all(self, target: Target, extras: Sequence[str]) -> bool:
        tags = target.tags()
        return all(
            package.best_wheel(tags) is not None for package in self.packages if package.is_needed(target, extras)
        )

    def _way_on(self, target: Target, extras: Sequence[str]) -> str:
        """Which other Python, or which newer glibc, has all wheels."""
        pythons = [f"{one[0]}.{one[1]}" for one in PYTHONS if self._has_all(target.with_python(one), extras)]
        ways = [f"Python {' or '.join(pythons)} on the appliance: `--python {pythons[-1]}`"] if pythons else []
        for glibc in range(target.glibc or NEWEST_GLIBC, NEWEST_GLIBC):
            if target.glibc is not None and self._has_all(target.with_glibc(glibc), extras):
                ways.append(
                    f"a system with glibc 2.{glibc} or later has all wheels (`ldd --version` shows it): "
                    f"`--glibc 2.{glibc}`"
                )
                break
        return "; or ".join(ways) or "choose another provider or other extras"


def _missing_message(missing: Sequence[LockedPackage], target: Target) -> str:
    described = [f"`{package.name}` {package.version}{_lowest_glibc(package, target)}" for package in missing]
    return f"there is no wheel for {target} of {', '.join(described)}"


def _lowest_glibc(package: LockedPackage, target: Target) -> str:
    """The glibc that a package's wheels for this Python need, in brackets; empty where none would do."""
    if target.glibc is None:
        return ""
    for glibc in range(target.glibc + 1, NEWEST_GLIBC):
        if package.best_wheel(target.with_glibc(glibc).tags()) is not None:
            return f" (needs glibc 2.{glibc})"
    return ""


def needed_glibc(pins: Iterable[Pin], target: Target) -> int | None:
    """Minor version of the oldest glibc that all these wheels run on; None where the system is not Linux."""
    if target.glibc is None:
        return None
    supported = {tag: _glibc_of(tag) for tag in target.tags()}
    lowest = [min(supported[tag] for tag in pin.wheel.tags & supported.keys()) for pin in pins]
    return max(lowest, default=0)


def _glibc_of(tag: Tag) -> int:
    """Minor version of glibc 2 of a tag; 0 where it needs none."""
    legacy = {"manylinux2014": 17, "manylinux2010": 12, "manylinux1": 5}
    family, _, rest = tag.platform.partition("_")
    return int(rest.split("_")[1]) if family == "manylinux" else legacy.get(family, 0)


def read_lock(path: Path | None = None) -> Lock:
    """Read the lock that this release ships."""
    content = tomllib.loads((path or LOCK).read_text(encoding="utf-8"))
    return Lock(tuple(content["extras"]), tuple(map(_read_package, content["packages"])))


def _read_package(entry: dict[str, Any]) -> LockedPackage:
    marker = entry.get("marker")
    wheels = tuple(LockedWheel(wheel["path"], wheel["size"], wheel["hashes"]["sha256"]) for wheel in entry["wheels"])
    return LockedPackage(entry["name"], entry["version"], Marker(marker) if marker is not None else None, wheels)
