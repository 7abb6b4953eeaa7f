"""How a prompt is split into runs, so that its bits on the CPU depend neither on runs nor on what is cached.

The number of tokens of each run is even, or it is padded: see `ModelRunner.prefill`. That is enough for most models.
Where attention consists of plain operators, its sums have as many terms as the run's sequence has tokens; and products
of heads of more than 128 numbers are summed in parts that depend on it (onnxruntime's matmul). So each run of such a
prompt ends at the next multiple of CHUNK tokens, or with the prompt, and only whole chunks are reused.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..bundle.manifest import DecoderFacts

CHUNK = 64
"""Tokens of a run where its end matters; no more than those of the smallest run that a limit on memory asks for."""
_LARGEST_SUMMED_AT_ONCE = 128
"""Head size up to which onnxruntime's matmul sums a product of query and key in one part."""


@dataclass(frozen=True)
class PromptRuns:
    """The splitting of prompts of one decoder."""

    in_chunks: bool
    """Whether runs begin and end at multiples of CHUNK only."""

    @classmethod
    def of(cls, facts: DecoderFacts, device: str) -> PromptRuns:
        # A GPU's bits depend on the number of rows anyway.
        return cls(device == "cpu" and (facts.plain_attention or facts.head_size > _LARGEST_SUMMED_AT_ONCE))

    def reusable(self, common: int, prompt: int) -> int:
        """How many of the first `common` tokens, which are cached, a prompt of `prompt` tokens can reuse.

        Where all of it is cached, the last token runs again for its logits.
        """
        return self.whole(min(common, prompt - 1))

    def whole(self, length: int) -> int:
        """How many of the first `length` tokens of a prompt are of use to others."""
        return length // CHUNK * CHUNK if self.in_chunks else length

    def longest(self, most: int) -> int:
        """Tokens of the longest run, which may have `most`."""
        return min(most, CHUNK) if self.in_chunks else most
