"""Make `exporters/packaging/pylock.toml`, the lock of `ortkit wheelhouse`: `make wheel-lock`, or `python -m
tests.wheelhouse.lock`.

Needs `uv` and a package registry. Versions come from constraints.txt, the ranges and extras from pyproject.toml. What
tokenizers depends on is left out: the runtime never imports huggingface_hub.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.utils import parse_wheel_filename

from ortkit.exporters.packaging.wheel_lock import LOCK, PROVIDERS
from ortkit.exporters.packaging.wheel_target import NEWEST_GLIBC, PYTHONS, TARGETS, Target

ROOT = Path(__file__).parents[2]
EXTRAS = (*PROVIDERS, "arrow", "docs", "grammar", "serve", "sign")
"""What an appliance may install."""
LEFT_OUT = ("huggingface-hub",)
HEADER = """\
# What `ortkit wheelhouse` collects: made by `make wheel-lock` from pyproject.toml and constraints.txt; do not edit.
# The form is that of PEP 751. A wheel has no address: it comes from the index, mirror or folder that pip is set to.
"""

Packages = dict[str, dict[str, Any]]


def resolve(extra: str | None) -> Packages:
    """What uv resolves for all platforms: name -> entry of a pylock."""
    with tempfile.TemporaryDirectory() as scratch:
        excluded, out = Path(scratch) / "excluded.txt", Path(scratch) / "pylock.toml"
        excluded.write_text("\n".join(LEFT_OUT), encoding="utf-8")
        command = ["uv", "pip", "compile", "pyproject.toml", *(["--extra", extra] if extra is not None else [])]
        command += ["--constraint", "constraints.txt", "--excludes", str(excluded), "--no-config", "--quiet"]
        command += ["--universal", "--python-version", version(PYTHONS[0]), "--only-binary", ":all:"]
        subprocess.run([*command, "--format", "pylock.toml", "--output-file", str(out)], cwd=ROOT, check=True)
        entries = tomllib.loads(out.read_text(encoding="utf-8"))["packages"]
    found = {entry["name"]: entry for entry in entries}
    if len(found) != len(entries):
        raise SystemExit(f"uv pins a package to several versions for extra {extra}: narrow it in constraints.txt")
    return found


def merge(base: Packages, extras: Mapping[str, Packages]) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Each package of all resolutions, with the marker of when it is needed."""
    for name in sorted({*base, *(name for packages in extras.values() for name in packages)}):
        entries = [packages[name] for packages in (base, *extras.values()) if name in packages]
        if len({entry["version"] for entry in entries}) > 1:
            raise SystemExit(f"uv pins `{name}` to different versions for different extras: pin it in constraints.txt")
        if name in base:
            yield base[name], base[name].get("marker")
            continue
        markers = []
        for extra, packages in extras.items():
            if name in packages:
                condition = packages[name].get("marker")
                named = f"'{extra}' in extras"
                markers.append(f"({named} and ({condition}))" if condition is not None else named)
        yield entries[0], " or ".join(markers)


def usable(wheels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The wheels that run on some target."""
    tags = {
        tag
        for name in TARGETS
        for python in PYTHONS
        for tag in Target(name, python, NEWEST_GLIBC if name.startswith("linux-") else None).tags()
    }
    return sorted((wheel for wheel in wheels if parse_wheel_filename(file_of(wheel))[3] & tags), key=file_of)


def file_of(wheel: Mapping[str, Any]) -> str:
    return str(wheel.get("name") or wheel["url"].rpartition("/")[2])


def to_toml() -> str:
    lines = [HEADER + 'lock-version = "1.0"', f'requires-python = ">={version(PYTHONS[0])}"']
    lines += [f"extras = {json.dumps(EXTRAS)}", 'created-by = "ortkit"']
    for entry, marker in merge(resolve(None), {extra: resolve(extra) for extra in EXTRAS}):
        lines += [
            "",
            "[[packages]]",
            f"name = {json.dumps(entry['name'])}",
            f"version = {json.dumps(entry['version'])}",
        ]
        lines += [f"marker = {json.dumps(marker)}"] if marker is not None else []
        lines.append("wheels = [")
        for wheel in usable(entry.get("wheels", [])):
            sha256 = wheel["hashes"]["sha256"]
            lines += [f'  {{ path = "{file_of(wheel)}", size = {wheel["size"]}, hashes = {{ sha256 = "{sha256}" }} }},']
        lines.append("]")
    return "\n".join(lines) + "\n"


def version(python: tuple[int, int]) -> str:
    return f"{python[0]}.{python[1]}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true", help="compare with the lock instead of writing it")
    options = parser.parse_args(argv)
    made = to_toml()
    if options.check:
        same = LOCK.read_text(encoding="utf-8") == made
        print(f"`{LOCK}` is what uv resolves" if same else f"`{LOCK}` is not what uv resolves: run `make wheel-lock`")
        return 0 if same else 1
    LOCK.write_text(made, encoding="utf-8")
    print(f"wrote `{LOCK}`")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
