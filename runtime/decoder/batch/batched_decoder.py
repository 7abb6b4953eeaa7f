"""What a batch needs of its Decoder, which it cannot import: `Decoder.generate_many` makes batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from ...bundle.folder import BundleFolder
from ...bundle.manifest import DecoderFacts
from ...session.session import Session
from ...text.detokenizer import Vocabulary
from ...text.messages import Messages
from ...text.tools import ToolChoice
from ..cache_room import CacheRoom
from ..generation_options import CheckedOptions, GenerationOptions
from ..prompt import Prompt
from ..sampler import Sampling
from ..token_choice import TokenChoice
from ..tool_use import ToolUse


@runtime_checkable
class BatchedDecoder(Protocol):
    """A Decoder."""

    bundle: BundleFolder
    session: Session
    prefill_session: Session | None
    facts: DecoderFacts
    context: int
    room: CacheRoom | None
    run_tokens: int
    sampling: Sampling
    vocabulary: Vocabulary

    def prompt_ids(self, prompt: Prompt, context: int) -> list[int]: ...

    def token_choice(self, ids: list[int], chosen: CheckedOptions, *, max_tokens: int) -> TokenChoice: ...

    def tool_use(
        self, tools: Sequence[Mapping[str, object]] | None, *, tool_choice: ToolChoice | None = None
    ) -> ToolUse | None: ...

    def chat_prompt(
        self,
        messages: Messages,
        use: ToolUse | None,
        tools: Sequence[Mapping[str, object]] | None,
        options: GenerationOptions,
    ) -> tuple[list[int], GenerationOptions]: ...
