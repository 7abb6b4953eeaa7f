"""Whether prompts go through a bundle's 8-bit graph or through the graph that also decodes."""

from __future__ import annotations

from ..bundle.bundle import PREFILL_GRAPH
from ..bundle.folder import BundleFolder
from ..bundle.manifest import Manifest, PrefillChoice
from ..errors import InputError
from ..session.cpu import int8_prefill_pays
from ..session.cpu_class import this_cpu_class
from ..session.memory import available_memory
from ..session.memory_limit import MemoryLimit
from ..session.opening import size_to_open, size_to_open_prefill

_SHARE = 4
"""What `auto` opens for prompts takes at most this part of the memory that the decoder's own graph leaves."""


def takes_int8_prefill(bundle: BundleFolder, chosen: PrefillChoice, limit: MemoryLimit | None) -> bool:
    """Whether prompts go through the bundle's 8-bit graph; raises InputError for `int8` where there is none.

    It does not depend on the number of a prompt's tokens, so answers do not depend on how a prompt is split.
    """
    there = bundle.manifest.prefill is not None
    if chosen is PrefillChoice.INT8 and not there:
        raise InputError(
            f"`{bundle.path}` has no 8-bit graph for prompts",
            hint="leave out `prefill`, or export the model again with `--prefill int8`",
        )
    if chosen is not PrefillChoice.AUTO or not there:
        return chosen is PrefillChoice.INT8
    return int8_prefill_pays(this_cpu_class()) and _fits(bundle, limit)


def _fits(bundle: BundleFolder, limit: MemoryLimit | None) -> bool:
    free = available_memory() if limit is None else limit.left()
    return free is None or size_to_open_prefill(bundle) <= (free - size_to_open(bundle)) // _SHARE


def prefill_size(manifest: Manifest) -> int:
    """Bytes of the files of the 8-bit graph; its weights are packed as they are."""
    return sum(record.size for name, record in manifest.files.items() if name.startswith(PREFILL_GRAPH))
