"""`Decoder.generate_many` and `chat_many`: the answers to several prompts, in a batch of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, TypeVar

from ...arguments import checked_integer
from ...errors import InputError, OutOfMemoryError, TextError
from ...text.messages import Messages
from ..generation_options import GenerationOptions
from ..prompt import Prompt, checked_max_tokens
from ..stream import Answer
from .batch import Batch
from .batched_decoder import BatchedDecoder

Result = TypeVar("Result")


def answer_all(
    decoder: BatchedDecoder, prompts: list[Prompt], *, slots: int, options: GenerationOptions
) -> list[Answer]:
    """The answers to several prompts, in a batch of their own with as many slots as are needed and fit."""
    slots = min(checked_integer(slots, "slots"), len(prompts))
    ids = [numbered(decoder.prompt_ids, index)(prompt, decoder.context) for index, prompt in enumerate(prompts)]
    if not ids:
        return []
    with _largest_batch(decoder, slots, max(map(len, ids)), options.get("max_tokens")) as batch:
        streams = [numbered(batch.submit, index)(prompt, **options) for index, prompt in enumerate(ids)]
        return [numbered(stream.answer, index)() for index, stream in enumerate(streams)]


def _largest_batch(decoder: BatchedDecoder, slots: int, longest: int, max_tokens: int | None) -> Batch:
    """A batch for prompts of at most `longest` tokens, with fewer slots where memory is short."""
    context = None
    if max_tokens is not None:
        context = max(2, longest + checked_max_tokens(max_tokens, longest, decoder.context))
    while True:
        try:
            batch = Batch(decoder, slots=slots, context=context, prefix_bytes=0)
        except OutOfMemoryError:
            if slots == 1:
                raise
        else:
            if batch.context > longest or slots == 1:
                return batch
            batch.close()
        slots = -(-slots // 2)


def listed(prompts: Iterable[Prompt] | Iterable[Messages], name: str) -> list[Any]:
    """The prompts or conversations of a call; raises InputError for one alone."""
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
        raise InputError(f"`{name}` must be a list of {name}, not {type(prompts).__name__}")
    return list(prompts)


def numbered(function: Callable[..., Result], index: int) -> Callable[..., Result]:
    """A function whose errors name the prompt that was passed to it."""

    @wraps(function)
    def called(*arguments: Any, **options: Any) -> Result:
        try:
            return function(*arguments, **options)
        except InputError as error:
            error.message = f"prompt {index}: {error.message}"
            if isinstance(error, TextError):
                error.texts = (index,)
            raise

    return called
