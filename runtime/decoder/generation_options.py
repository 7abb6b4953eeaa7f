"""The keywords that say how an answer is generated, the same for `generate`, `stream`, `chat` and `Chat.send`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from ..errors import InputError
from .sampler import Sampler, Sampling
from ..text.tokenizer import checked_text


class GenerationOptions(TypedDict, total=False):
    """How an answer is generated; an option that is None counts as not given.

    Fields of `Sampling` that are given replace those of `sampling`, which is by default `decoder.sampling`: what the
    model's publisher recommends, and greedy decoding where that is nothing.
    """

    max_tokens: int | None
    """The most tokens of the answer; by default as many as the context, and the memory, have room for."""
    stop: str | Sequence[str] | None
    """A text or texts before which the answer ends; they are no part of it."""
    top_logprobs: int | None
    """How many of the most probable tokens are reported with their log-probability at each place; 0 by default."""
    lookup: bool | None
    """Prompt lookup: speculate with n-grams of the text so far where that pays; True by default."""
    sampling: Sampling | None
    """The fields of `Sampling` in one object."""
    sampler: Sampler | None
    """A function of your own: float32 logits (vocabulary,), a copy, after penalties and bias -> a token id."""
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None


NAMES = tuple(GenerationOptions.__annotations__)
SAMPLING = tuple(field.name for field in dataclasses.fields(Sampling))
CHOICE = ("temperature", "top_k", "top_p", "min_p", "seed")
"""What the built-in sampler does, and one that is passed as `sampler` does instead."""


@dataclass(frozen=True)
class CheckedOptions:
    """GenerationOptions with their defaults filled in."""

    sampling: Sampling
    sampler: Sampler | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0
    lookup: bool = True


def checked_options(options: Mapping[str, Any], default: Sampling) -> CheckedOptions:
    """Fill in what is not given.

    Raises TypeError for a keyword that does not exist, naming the closest one, and InputError for a value that cannot
    be used.
    """
    for name in options:
        if name not in NAMES:
            raise TypeError(f"unexpected keyword argument `{name}`{suggestion(name)}")
    given = {name: value for name, value in options.items() if value is not None}
    sampling = given.get("sampling", default)
    if not isinstance(sampling, Sampling):
        raise InputError(f"`sampling` must be a Sampling, not {type(sampling).__name__}")
    sampler = given.get("sampler")
    if sampler is not None:
        check_sampler(sampler, given)
    return CheckedOptions(
        sampling=dataclasses.replace(sampling, **{name: given[name] for name in SAMPLING if name in given}),
        sampler=sampler,
        max_tokens=given.get("max_tokens"),
        stop=checked_stop(given.get("stop", ())),
        top_logprobs=given.get("top_logprobs", 0),
        lookup=given.get("lookup", True),
    )


def check_sampler(sampler: object, given: Mapping[str, Any]) -> None:
    """Raise InputError for what cannot be called, and for options that it would leave without effect."""
    if not callable(sampler):
        raise InputError(
            f"`sampler` must be a function from logits to a token id, not {type(sampler).__name__}",
            hint="to sample with a temperature, pass `temperature=0.7`",
        )
    for name in CHOICE:
        if name in given:
            raise InputError(f"`{name}` has no effect with a `sampler`, which chooses the tokens", hint="leave one out")


def checked_stop(stop: object) -> tuple[str, ...]:
    """The stop strings; one string is one of them."""
    if isinstance(stop, str):
        return (stop,)
    if not isinstance(stop, Iterable) or isinstance(stop, (bytes, Mapping)):
        raise InputError(f"`stop` must be a string or a list of strings, not {type(stop).__name__}")
    return tuple(checked_text(one, f"stop string {index}") for index, one in enumerate(stop))


def suggestion(name: str) -> str:
    """The existing keyword that a misspelled one is closest to, as the end of a message."""
    from difflib import get_close_matches  # noqa: PLC0415 - only where there is something to suggest

    near = get_close_matches(name, NAMES, n=1)
    return f"; did you mean `{near[0]}`?" if near else f"; supported: {', '.join(f'`{one}`' for one in NAMES)}"
