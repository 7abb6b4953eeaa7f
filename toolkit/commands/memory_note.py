"""What a limit on the memory leaves for the context of an LLM, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..console.terminal import say

if TYPE_CHECKING:
    from ...runtime.decoder.decoder import Decoder


def print_what_fits(decoder: Decoder) -> None:
    """Print a note to stderr where a limit leaves room for a part of the context."""
    if decoder.max_memory is None:
        return
    fits = decoder.plan.fits
    if fits < decoder.context:
        from ...runtime.session.memory import mebibytes

        limit = mebibytes(decoder.max_memory)
        say(f"note: within {limit} there is room for {fits} of {decoder.context} tokens, prompt and answer", err=True)
