"""Options that more than one command has."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from runtime.errors import InputError
from toolkit.inputs import InputFormat, as_typed

if TYPE_CHECKING:
    from runtime.sampler import Sampling

Function = TypeVar("Function", bound=Callable[..., Any])
KEPT = "edgekit.answer_options"
"""Where a command's context keeps the values of answer_options until AnswerOptions takes them."""


class Text(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """A text as it was typed: in UTF-8, whatever the locale takes its bytes for."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002
        return as_typed(value)


def only_one(_context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    """The value of an option that may be given once; raises InputError for a second one, which would be dropped."""
    if len(values) < 2:
        return values[0] if values else None
    name = parameter.opts[0]
    shown = ", ".join(f"`{value}`" for value in values)
    if name == "--input":
        hint = f"run it once for each, or give one pipe: `awk 1 {' '.join(map(shlex.quote, values))} | edgekit ...`"
    else:
        hint = f"give `{name}` once"
    raise InputError(f"`{name}` was given {len(values)} times, and takes one value: {shown}", hint=hint)


def once(name: str, *names: str, **settings: Any) -> Callable[[Function], Function]:
    """An option that takes one value, and says so where it is given several."""
    return click.option(name, *names, multiple=True, callback=only_one, **settings)


token_host_option = click.option(
    "--token-host",
    metavar="HOST",
    envvar="EDGEKIT_TOKEN_HOST",
    help="Send the token to this host too, when HF_ENDPOINT names it.  [env: EDGEKIT_TOKEN_HOST]",
)
system_option = once("--system", type=Text(), metavar="TEXT", help="What the model is told before the conversation.")
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Cores for each token.  [default: all usable ones]"
)
context_option = click.option(
    "--context", type=int, metavar="N", help="Tokens of prompt and answer together.  [default: as the model has]"
)
rates_option = click.option(
    "--rates", is_flag=True, help="Tell on stderr how fast it was, which a terminal is told in any case."
)


def input_format_option(help_text: str) -> Callable[[Function], Function]:
    """How an input holds texts, recognized where it is not said."""
    return click.option(
        "--input-format",
        type=click.Choice([choice.value for choice in InputFormat]),
        default="auto",
        show_default=True,
        help=help_text,
    )


field_option = once(
    "--field",
    type=Text(),
    metavar="NAME",
    help="The field or column that holds the text, in JSON and CSV.  [default: text]",
)
literal_option = click.option(
    "--literal", is_flag=True, help="An argument is a text, even where it is the name of a file."
)


@dataclass(frozen=True)
class AnswerOptions:
    """How a decoder answers; None where the command line does not say."""

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
    def given(cls) -> AnswerOptions:
        """What was given to the command that runs, which has `answer_options`."""
        return cls(**click.get_current_context().meta[KEPT])

    def sampling(self, stated: Sampling) -> Sampling:
        """What the publisher states, but for what was given; raises InputError for a value that cannot be used."""
        names = {field.name for field in dataclasses.fields(stated)}
        given = {name: value for name, value in vars(self).items() if name in names and value is not None}
        return dataclasses.replace(stated, **given)


def keep(context: click.Context, parameter: click.Parameter, value: object) -> None:
    context.meta.setdefault(KEPT, {})[parameter.name] = value


def answer_option(name: str, **settings: Any) -> Callable[[Function], Function]:
    return click.option(name, expose_value=False, callback=keep, **settings)


def answer_options(command: Function) -> Function:
    """Give a command the options of which AnswerOptions are made."""
    options = [
        answer_option(
            "--max-tokens",
            type=click.IntRange(min=1),
            metavar="N",
            help="End an answer after so many tokens.  [default: as many as fit]",
        ),
        answer_option("--temperature", type=float, metavar="T", help="0 always takes the most probable token."),
        answer_option("--top-k", type=int, metavar="N", help="Choose among the N most probable tokens; 0 for all."),
        answer_option("--top-p", type=float, metavar="P", help="Choose among those that together reach P."),
        answer_option("--min-p", type=float, metavar="P", help="Choose among those P times as probable as the best."),
        answer_option("--repetition-penalty", type=float, metavar="X", help="Above 1, what was said is less probable."),
        answer_option("--presence-penalty", type=float, metavar="X", help="Taken from what the answer has already."),
        answer_option("--frequency-penalty", type=float, metavar="X", help="The same, for each time that it has it."),
        answer_option("--seed", type=int, metavar="N", help="The same seed gives the same text on the same machine."),
        answer_option(
            "--stop", multiple=True, type=Text(), metavar="TEXT", help="End an answer before TEXT; may be repeated."
        ),
        answer_option(
            "--lookup/--no-lookup",
            default=True,
            help="Draft tokens from the text so far where that pays: faster where answers quote.  [default: --lookup]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command
