"""Whether prompts go through a bundle's 8-bit graph or through the graph that also decodes."""

from __future__ import annotations

from ..bundle.bundle import PREFILL_GRAPH
from ..bundle.folder import BundleFolder
from ..bundle.manifest import Manifest, PrefillChoice
from ..errors import InputError
from ..session.cpu import int8_prefill_pays
from ..session.cpu_class import this_cpu_class


def takes_int8_prefill(bundle: BundleFolder, chosen: PrefillChoice) -> bool:
    """Whether prompts go through the bundle's 8-bit graph; raises InputError for `int8` where there is none.

    It depends neither on the number of a prompt's tokens nor on the memory that is free or that a limit leaves: answers
    depend on neither. Where there is no memory for the graph, opening it is refused.
    """
    there = bundle.manifest.prefill is not None
    if chosen is PrefillChoice.INT8 and not there:
        raise InputError(
            f"`{bundle.path}` has no 8-bit graph for prompts",
            hint="leave out `prefill`, or export the model again with `--prefill int8`",
        )
    if chosen is PrefillChoice.AUTO:
        return there and int8_prefill_pays(this_cpu_class())
    return chosen is PrefillChoice.INT8


def prefill_size(manifest: Manifest) -> int:
    """Bytes of the files of the 8-bit graph; its weights are packed as they are."""
    return sum(record.size for name, record in manifest.files.items() if name.startswith(PREFILL_GRAPH))
