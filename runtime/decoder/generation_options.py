"""Keyword options of generation, shared by `generate`, `stream`, `chat`, `stream_chat`, `steps` and `Chat`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from ..arguments import checked_flag, without_none
from ..errors import InputError
from ..text.tokenizer import checked_text
from .grammar import Grammar, schema_of
from .sampler import Sampler, Sampling


class GenerationOptions(TypedDict, total=False):
    """Keyword options of `generate`, `stream`, `chat`, `stream_chat`, `steps` and `Chat`; None is the default.

    Fields of `Sampling` override those of `sampling`, whose default is `decoder.sampling`: the publisher's
    recommendation, or greedy decoding.
    """

    max_tokens: int | None
    """Largest number of tokens of the answer; default: as many as fit in the context and the memory."""
    stop: str | Sequence[str] | None
    """Stop string or strings: the answer ends before them."""
    top_logprobs: int | None
    """Number of most probable tokens to report with their log-probabilities at each position; default: 0."""
    lookup: bool | None
    """Prompt lookup (n-gram speculation) where it pays; default: True."""
    sampling: Sampling | None
    """Sampling parameters as one object."""
    sampler: Sampler | None
    """A custom sampler: a function from logits, float32 (vocabulary,), after penalties and bias, to a token id."""
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    grammar: Grammar | None
    """A grammar that the answer follows, compiled by `decoder.grammar`; needs the extra `grammar`."""
    response_format: Mapping[str, object] | None
    """The same in the format of OpenAI's API: `{"type": "json_object"}`, or `json_schema` with a schema."""


_SAMPLING = tuple(field.name for field in dataclasses.fields(Sampling))
_CHOICE = ("temperature", "top_k", "top_p", "min_p", "seed")
"""Options of the built-in sampler, which `sampler` replaces."""


@dataclass(frozen=True)
class CheckedOptions:
    """Checked GenerationOptions with defaults."""

    sampling: Sampling
    sampler: Sampler | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0
    lookup: bool = True
    grammar: Grammar | None = None
    response_format: Mapping[str, object] | None = None
    """Its JSON schema; None for text."""


def checked_options(options: Mapping[str, Any], default: Sampling) -> CheckedOptions:
    """Check options and fill in defaults; raises InputError for a value that is not valid."""
    given = without_none(options)
    sampling = given.get("sampling", default)
    if not isinstance(sampling, Sampling):
        raise InputError(f"`sampling` must be a Sampling, not {type(sampling).__name__}")
    sampler = given.get("sampler")
    if sampler is not None:
        _check_sampler(sampler, given)
    return CheckedOptions(
        sampling=dataclasses.replace(sampling, **{name: given[name] for name in _SAMPLING if name in given}),
        sampler=sampler,
        max_tokens=given.get("max_tokens"),
        stop=_checked_stop(given.get("stop", ())),
        top_logprobs=given.get("top_logprobs", 0),
        lookup=checked_flag(given.get("lookup", True), "lookup"),
        grammar=_checked_grammar(given),
        response_format=schema_of(given["response_format"]) if "response_format" in given else None,
    )


def _checked_grammar(given: Mapping[str, Any]) -> Grammar | None:
    grammar = given.get("grammar")
    if grammar is None:
        return None
    if not isinstance(grammar, Grammar):
        raise InputError(
            f"`grammar` must be a Grammar, not {type(grammar).__name__}",
            hint='compile one with `decoder.grammar(regex="yes|no")`',
        )
    if "response_format" in given:
        raise InputError("`grammar` and `response_format` exclude each other", hint="leave one of them out")
    return grammar


def _check_sampler(sampler: object, given: Mapping[str, Any]) -> None:
    """Raise InputError for anything but a callable, and for options that have no effect with it."""
    if not callable(sampler):
        raise InputError(
            f"`sampler` must be a function from logits to a token id, not {type(sampler).__name__}",
            hint="to sample with a temperature, pass `temperature=0.7`",
        )
    for name in _CHOICE:
        if name in given:
            raise InputError(f"`{name}` has no effect with a custom `sampler`", hint="leave one of them out")


def _checked_stop(stop: object) -> tuple[str, ...]:
    """The stop strings as a tuple; a single string is one of them."""
    if isinstance(stop, str):
        return (stop,)
    if not isinstance(stop, Iterable) or isinstance(stop, (bytes, Mapping)):
        raise InputError(f"`stop` must be a string or a list of strings, not {type(stop).__name__}")
    return tuple(checked_text(one, f"stop string {index}") for index, one in enumerate(stop))
