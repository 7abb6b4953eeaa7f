"""Checks of the installation: packages and their versions, whether they load, and telemetry."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from ...runtime.host_facts import numbers_of
from ...runtime.session.onnxruntime_import import OLDEST_ONNXRUNTIME
from ...runtime.session.packages import PACKAGES, conflict, install_command
from ...runtime.telemetry import SWITCHES
from .finding import Finding, error, note, ok, warning
from .host import Host
from .packages import MODULES, Imported, Package

_EXIT = 1
_ILLEGAL = "SIGILL"
_SWITCH = "ORT_DISABLE_TELEMETRY"
_SHOWN = 3
"""Changed files that a finding names."""


def check_packages(host: Host) -> Iterator[Finding]:
    """Packages that are installed over each other, several times, or with other files than their wheels have."""
    found = list(_package_faults(host))
    yield from found
    if not found:
        versions = {package.name: package.version for package in host.packages}
        shown = ", ".join(f"{name} {version}" for name, version in versions.items()) or "none with metadata"
        yield ok("packages", f"installed: {shown}", packages=versions)


def _package_faults(host: Host) -> Iterator[Finding]:
    # The first on the search path is the one that is imported.
    first: dict[str, Package] = {}
    for package in host.packages:
        first.setdefault(package.name, package)
    runtimes = {name: first[name].version for name in PACKAGES if name in first}
    overwritten = conflict(runtimes, "cpu")
    if overwritten is not None:
        yield error(
            "packages",
            overwritten.message,
            "each has overwritten files of those before it, so that providers are missing or crash",
            overwritten.hint,
            _EXIT,
            packages=runtimes,
        )
    for package in host.packages:
        other = first[package.name]
        if package is not other and package.folder == other.folder:
            yield warning(
                "packages",
                f"`{package.name}` is installed twice in `{package.folder}`: {other.version} and {package.version}",
                "an interrupted or forced installation has left files of both",
                f"{_again(host, package.name)}",
                package=package.name,
            )
    for package in first.values():
        if package.changed:
            more = f" and {len(package.changed) - _SHOWN} more" if len(package.changed) > _SHOWN else ""
            names = ", ".join(f"`{name}`" for name in package.changed[:_SHOWN])
            yield warning(
                "packages",
                f"files of `{package.name}` {package.version} are missing or not those of its wheel: {names}{more}",
                "another package was installed over it, or a disk or a copy is damaged",
                f"{_again(host, package.name)}",
                package=package.name,
                files=list(package.changed),
            )


def _again(host: Host, name: str) -> str:
    """How to install a package again, from the wheels that were carried here."""
    python = shlex.quote(host.executable)
    return (
        f"run `{python} -m pip uninstall -y {name}` until it finds none, then `{python} -m pip install --no-index "
        f"--find-links wheels {name}`"
    )


def check_imports(host: Host) -> Iterator[Finding]:
    """Each module that a model needs, imported in a process of its own."""
    for module, oldest in MODULES.items():
        found = host.imports.get(module)
        if found is not None:
            yield _import_finding(host, module, oldest, found)


def _import_finding(host: Host, module: str, oldest: str, found: Imported) -> Finding:
    check = f"import-{module}"
    facts: dict[str, Any] = {"module": module, "version": found.version, "needed": oldest}
    if found.missing:
        return error(check, f"`{module}` is not installed", _why(module), _install(host, module), _EXIT, **facts)
    if found.signal is not None:
        why = (
            "its wheel has instructions that this CPU does not have"
            if found.signal == _ILLEGAL
            else "its files are damaged, or for another system"
        )
        return error(
            check,
            f"importing `{module}` ends Python with {found.signal}",
            why,
            "see `cpu` above; otherwise install it again" if found.signal == _ILLEGAL else _again(host, module),
            _EXIT,
            **facts,
        )
    if found.error is not None:
        return error(
            check, f"`{module}` cannot be imported: {found.error}", _why(module), _again(host, module), _EXIT, **facts
        )
    version = found.version or _installed_version(host, module)
    if version is not None and numbers_of(version) < numbers_of(oldest):
        return error(
            check,
            f"`{module}` {version} is installed, and ortkit needs {oldest} or newer",
            _why(module),
            _install(host, module),
            _EXIT,
            **facts,
        )
    return ok(check, f"`{module}` {version or ''}".strip() + " can be imported", **facts)


def _installed_version(host: Host, module: str) -> str | None:
    return next((package.version for package in host.packages if package.name == module), None)


def _why(module: str) -> str:
    return _PURPOSES[module]


_PURPOSES: Mapping[str, str] = {
    "click": "the command line needs it",
    "jinja2": "chat templates need it; older versions let a template leave its sandbox (CVE-2025-27516)",
    "numpy": "every model needs it",
    "onnxruntime": f"it runs every model; before {OLDEST_ONNXRUNTIME} LLMs crash or give wrong tokens",
    "tokenizers": "every model needs it",
}


def _install(host: Host, module: str) -> str:
    requirement = f"'{module}>={MODULES[module]}'"
    if module == "onnxruntime":
        return (
            f"run `{install_command('cpu')}`, or for a GPU of NVIDIA `{install_command('cuda')}`, never both; offline "
            "add `--no-index --find-links wheels`"
        )
    return f"run `{shlex.quote(host.executable)} -m pip install --no-index --find-links wheels {requirement}`"


def check_telemetry(host: Host) -> Iterator[Finding]:
    """The switches of the dependencies' telemetry, outside of ortkit."""
    value = host.environment.get(_SWITCH)
    facts: dict[str, Any] = {name: host.environment.get(name) for name in SWITCHES}
    if value == "1":
        yield ok("telemetry", "telemetry is off for all programs of this environment", **facts)
    elif value is None:
        yield ok("telemetry", "ortkit switches off the telemetry of its dependencies before they load", **facts)
    else:
        yield note(
            "telemetry",
            f"{_SWITCH} is `{value}`, which leaves onnxruntime's telemetry on",
            "ortkit switches it off for itself; another program that imports onnxruntime sends events to its vendor",
            f"set it for all: `export {_SWITCH}=1`",
            **facts,
        )
