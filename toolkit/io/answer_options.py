"""Options of an answer: length, sampling and stop texts, from the command line or from a record."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ...runtime.decoder.sampler import Sampling

META_KEY = "ortkit.answer_options"
"""Key of the answer options' values in the context's `meta`."""


@dataclass(frozen=True)
class AnswerOptions:
    """Length, sampling and stop options of answers; None where the command line gives none."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    lookup: bool = True

    @classmethod
    def from_command_line(cls) -> AnswerOptions:
        """The values given to the current command, which must have `answer_options`."""
        return cls(**click.get_current_context().meta[META_KEY])

    def sampling(self, defaults: Sampling) -> Sampling:
        """The publisher's sampling defaults, overridden by these options; raises InputError for an invalid value."""
        names = {field.name for field in dataclasses.fields(defaults)}
        given = {name: value for name, value in vars(self).items() if name in names and value is not None}
        return dataclasses.replace(defaults, **given)
