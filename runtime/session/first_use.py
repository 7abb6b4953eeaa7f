"""A golden text at the first use of a bundle on a machine, where another provider runs it than the CPU.

The CPU certified the graph; a GPU or CoreML may give numbers that are finite and wrong. What was compared once is
remembered in the cache, for this bundle, provider, versions and device, so that later starts run nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..bundle.folder import BundleFolder
from ..bundle.manifest import Provider
from ..cache_folder import cache_folder, usable_folder
from ..errors import BundleError, ProviderError
from ..version import __version__
from .model_cache import CHECKED
from .onnxruntime_import import load_onnxruntime
from .providers import PROVIDERS
from .tolerance import DisagreementError, hint_for


def check_first_use(bundle: BundleFolder, compare: Callable[[], object], *, shape: str = "") -> None:
    """Call `compare`, which runs a golden text, unless that was done before on this machine and succeeded.

    `shape` names a graph that was compiled for a fixed shape, which is another program. Nothing is called for a
    provider whose entry has no `identity`, such as the CPU. Where `compare` raises DisagreementError, raises
    ProviderError, which says what differs and what to use instead.
    """
    identity = PROVIDERS[bundle.provider].identity
    if identity is None:
        return
    facts = {
        "bundle": bundle.digest,
        "provider": bundle.provider.value,
        "shape": shape,
        "ortkit": __version__,
        "system": platform.platform(),
        **identity(load_onnxruntime()),
    }
    content = json.dumps(facts, indent=1, sort_keys=True)
    record = _record_of(content)
    if record is not None and _holds(record, content):
        return
    try:
        compare()
    except DisagreementError as error:
        raise wrong_here(bundle, error) from error
    if record is not None:
        _remember(record, content)


def wrong_here(bundle: BundleFolder, error: DisagreementError) -> BundleError | ProviderError:
    """The error for a bundle whose outputs are not those of its certificate: the provider's fault, but for the CPU."""
    if bundle.provider is Provider.CPU:
        return BundleError(error.message, hint=error.hint)
    what = error.message.removeprefix("on this machine ")
    return ProviderError(
        f"`{bundle.provider.value}` computes `{bundle.path}` wrongly on this machine: {what}",
        hint=hint_for(bundle),
    )


def _record_of(content: str) -> Path | None:
    """The file that says that this was compared; None where nothing is kept."""
    root = cache_folder()
    return None if root is None else root / CHECKED / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.json"


def _holds(record: Path, content: str) -> bool:
    try:
        return record.read_text(encoding="utf-8") == content
    except (OSError, UnicodeDecodeError):
        return False


def _remember(record: Path, content: str) -> None:
    """Write the record atomically; a cache that cannot be written only costs the next start a golden text."""
    if usable_folder(record.parent) is None:
        return
    with contextlib.suppress(OSError):
        descriptor, name = tempfile.mkstemp(dir=record.parent, prefix=".", suffix=".json")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(content)
            Path(name).replace(record)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
