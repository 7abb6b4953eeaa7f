"""Prompts as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex

from ..arguments import checked_integer
from ..bundle.manifest import DecoderFacts
from ..errors import InputError
from ..text.safe_tokenizer import SafeTokenizer

Prompt = str | Sequence[int]
"""A raw text, or token ids."""


def encode_text(tokenizer: SafeTokenizer, facts: DecoderFacts, text: str) -> list[int]:
    """Convert a raw text to token ids, with a beginning-of-sequence token where the model has one."""
    return begun(encode_exactly(tokenizer, text), facts)


def begun(ids: list[int], facts: DecoderFacts) -> list[int]:
    """Add the beginning-of-sequence token where the model has one, unless `ids` begin with it."""
    bos = [facts.bos_id] if facts.add_bos and facts.bos_id is not None else []
    return ids if ids[:1] == bos else [*bos, *ids]


def encode_exactly(tokenizer: SafeTokenizer, text: str) -> list[int]:
    """Convert a text to token ids without adding special tokens."""
    return tokenizer.encode(text)


def checked_id(id_: object, place: int) -> int:
    """Convert any integer, such as numpy's, to an int; raises InputError for anything else."""
    if isinstance(id_, bool) or not isinstance(id_, SupportsIndex):
        raise InputError(f"token {place} of the prompt must be an integer, not {type(id_).__name__}")
    return id_.__index__()


def checked_max_tokens(max_tokens: int, prompt: int, context: int) -> int:
    """The number of tokens of an answer; raises InputError where they do not fit behind `prompt` tokens."""
    max_tokens, room = checked_integer(max_tokens, "max_tokens"), max(0, context - prompt)
    if max_tokens > room:
        raise InputError(
            f"`max_tokens` is {max_tokens}, and a prompt of {prompt} tokens leaves {room} in the context of {context}"
        )
    return max_tokens
