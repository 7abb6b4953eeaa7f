"""The execution providers of this machine, as `ortkit providers` knows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ...runtime.bundle.manifest import Provider
from .finding import Finding, note, ok
from .host import Host

if TYPE_CHECKING:
    from ...runtime.session.machine import ProviderState


def look_at_providers(host: Host) -> Sequence[ProviderState]:
    """The providers; none where the modules that know them cannot be imported."""
    if not host.imports_well("numpy", "onnxruntime"):
        return ()
    from ...runtime.session.machine import this_machine

    return this_machine().providers


def check_providers(states: Sequence[ProviderState]) -> Iterator[Finding]:
    """Which providers are there. One that is missing matters only to a bundle for it."""
    available = [state.provider.value for state in states if state.problem is None]
    if states:
        yield ok("providers", f"bundles for {', '.join(available) or 'no provider'} can run here", available=available)
    for state in states:
        # CoreML is a part of macOS: it is not missing elsewhere.
        wanted = state.provider is not Provider.COREML or state.built_in
        if state.problem is not None and wanted and state.built_in:
            yield note("providers", state.problem, f"bundles for `{state.provider.value}` cannot run here", state.hint)
