"""How a batch divides the memory between its slots and the prefix store."""

from __future__ import annotations

from dataclasses import dataclass

from ...arguments import checked_integer
from ...errors import InputError, OutOfMemoryError
from ...session.memory import SPARE, available_memory, mebibytes
from ..cache.kv_cache import FIRST_CAPACITY, token_size
from .batched_decoder import BatchedDecoder
from .slots import decodes_together

_PREFIX_BYTES = 256 << 20
"""Most bytes of the prefix store by default."""
_PREFIX_SHARE = 8
"""By default the prefix store takes at most this part of the free memory, and the slots the rest."""
_LOGITS = 3
"""Rows of logits for each sequence: its own, and copies for sampling."""


@dataclass(frozen=True)
class Shares:
    """What a batch takes of the memory."""

    rows: int
    context: int
    prefix_bytes: int


def divided(decoder: BatchedDecoder, slots: int, context: int | None, prefix_bytes: int | None) -> Shares:
    """Divide the memory between slots and prefix store; raises OutOfMemoryError, with what fits, and InputError."""
    facts, room = decoder.facts, decoder.room
    if context is not None and not 2 <= checked_integer(context, "context", least=None) <= decoder.context:
        raise InputError(f"`context` must be from 2 to {decoder.context}, the decoder's, not {context}")
    if prefix_bytes is not None:
        checked_integer(prefix_bytes, "prefix_bytes", least=0)
    # Runs have an even number of rows.
    rows = slots + slots % 2 if decodes_together(decoder.session, facts) else slots
    each = rows * token_size(facts)
    free = available_memory() if room is None else room.available()
    if free is None:
        return Shares(rows, context or decoder.context, _PREFIX_BYTES if prefix_bytes is None else prefix_bytes)
    free = max(0, free - SPARE - _LOGITS * rows * 4 * facts.vocabulary)
    if prefix_bytes is None:
        prefix_bytes = min(_PREFIX_BYTES, free // _PREFIX_SHARE)
    fits = max(0, free - prefix_bytes) // each
    if context is None:
        # The rest of the system needs memory too.
        most = fits if room is not None else fits // 2
        wanted = min(FIRST_CAPACITY, decoder.context)
        context = max(min(decoder.context, most), min(wanted, fits))
    else:
        wanted = context
    if fits < wanted:
        missing = (wanted - fits) * each
        remedy = "free memory" if room is None else room.remedy(missing)
        instead = f"take `context={fits}` or fewer slots" if fits >= 2 else "take fewer slots"
        raise OutOfMemoryError(
            f"the KV cache of {slots} slots with a context of {wanted} tokens takes {mebibytes(wanted * each)}, and "
            f"there is memory for {fits} tokens in each",
            hint=f"{remedy}, or {instead}",
        )
    return Shares(rows, context, prefix_bytes)
