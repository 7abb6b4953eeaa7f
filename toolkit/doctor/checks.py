"""All checks, in the order in which to mend what they find: system, Python, packages, resources, trust, bundles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .bundles import check_bundle, look_at_bundle
from .environment import check_secrets, check_variables
from .finding import Finding
from .host import Host, look_at_host
from .installation import check_imports, check_packages, check_telemetry
from .providers import check_providers, look_at_providers
from .resources import (
    check_clock,
    check_cores,
    check_encoding,
    check_folders,
    check_memory,
    check_open_files,
    check_swap,
)
from .system import check_cpu, check_libc, check_platform, check_python
from .trust import check_trust, look_at_trust

Check = Callable[[Host], Iterator[Finding]]

HOST_CHECKS: Sequence[Check] = (
    check_platform,
    check_libc,
    check_cpu,
    check_python,
    check_packages,
    check_imports,
    check_telemetry,
    check_cores,
    check_memory,
    check_swap,
    check_open_files,
    check_folders,
    check_clock,
    check_encoding,
    check_variables,
    check_secrets,
)


def check_host(host: Host) -> Iterator[Finding]:
    """The checks of a machine that need no library."""
    for check in HOST_CHECKS:
        yield from check(host)


def examine(bundles: Sequence[str], *, quick: bool = False, seconds: float | None = None) -> Iterator[Finding]:
    """Look at this machine and at these bundles; yields each finding once it is known."""
    host, trust = look_at_host(), look_at_trust()
    yield from check_host(host)
    yield from check_providers(look_at_providers(host))
    yield from check_trust(trust)
    for path in bundles:
        yield from check_bundle(host, trust, look_at_bundle(path, host, trust, quick=quick, seconds=seconds))
