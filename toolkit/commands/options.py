"""Options that several commands share."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from ...runtime.arguments import size_of
from ...runtime.bundle.manifest import PrefillChoice
from ...runtime.errors import InputError
from ..io.answer_options import META_KEY
from ..io.input_format import InputFormat, as_typed
from .bundle_names import BundleType

Function = TypeVar("Function", bound=Callable[..., Any])


class Text(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """A text argument, decoded as UTF-8 whatever the locale says."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002
        return as_typed(value)


def _only_one(_context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    """The value of an option; raises InputError if it is repeated, since click would silently use the last."""
    if len(values) < 2:
        return values[0] if values else None
    name = parameter.opts[0]
    shown = ", ".join(f"`{value}`" for value in values)
    if name == "--input":
        hint = f"run it once for each, or give one pipe: `awk 1 {' '.join(map(shlex.quote, values))} | ortkit ...`"
    else:
        hint = f"give `{name}` once"
    raise InputError(f"`{name}` takes one value, not {len(values)}: {shown}", hint=hint)


def once(name: str, *names: str, **settings: Any) -> Callable[[Function], Function]:
    """An option that must not be repeated."""
    return click.option(name, *names, multiple=True, callback=_only_one, **settings)


token_host_option = click.option(
    "--token-host",
    metavar="HOST",
    envvar="ORTKIT_TOKEN_HOST",
    help="Also send the token to HOST, when HF_ENDPOINT names it.  [env: ORTKIT_TOKEN_HOST]",
)
system_option = once("--system", type=Text(), metavar="TEXT", help="System message of the conversation.")


class Size(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """A size in bytes, such as `500M` or `4G`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return size_of(str(value), self.name)
        except InputError:
            self.fail(f"'{value}' is not a size such as 500M or 4G.", param, ctx)


max_memory_option = click.option(
    "--max-memory",
    type=Size(),
    metavar="SIZE",
    help="Memory that the process may take, such as 500M or 4G; for bundles for CUDA, GPU memory.  "
    "[default: all; env: ORTKIT_MAX_MEMORY]",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads of the model.  [default: one per usable CPU core]",
)
context_option = click.option(
    "--context", type=int, metavar="N", help="Limit of prompt and answer together, in tokens.  [default: the model's]"
)
_PREFILL_HELP = (
    "Bundles of `export --prefill int8`: run prompts through the 8-bit graph, or (none) through the one that decodes. "
    "auto: the 8-bit one where it is faster on this class of CPU.  [default: auto]"
)
_PREFILLS = click.Choice([choice.value for choice in PrefillChoice])
prefill_option = click.option("--prefill", type=_PREFILLS, default="auto", help=_PREFILL_HELP)
prefill_setting_option = click.option("--prefill", type=_PREFILLS, help=_PREFILL_HELP)
rates_option = click.option(
    "--rates", is_flag=True, help="Print token counts and speed to stderr (always printed on a terminal)."
)


def _with_options(command: Function, options: Sequence[Callable[[Function], Function]]) -> Function:
    """Add options to a command; `--help` shows them in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def decoder_options(command: Function) -> Function:
    """Add the options of a process that runs an LLM."""
    return _with_options(command, [threads_option, context_option, max_memory_option, prefill_option, rates_option])


def release_option(help_text: str) -> Callable[[Function], Function]:
    """`--release N`, the counter of bundles and kits."""
    return click.option("--release", type=click.IntRange(1, (1 << 31) - 1), metavar="N", help=help_text)


def input_format_option(help_text: str) -> Callable[[Function], Function]:
    """`--input-format`, detected by default."""
    return click.option(
        "--input-format",
        type=click.Choice([choice.value for choice in InputFormat]),
        default="auto",
        show_default=True,
        help=help_text,
    )


SAMPLING_OPTIONS = (
    "--temperature --top-k --top-p --min-p --repetition-penalty --presence-penalty --frequency-penalty --seed"
)
LENGTH_OPTIONS = "--max-tokens --stop --context"
PERFORMANCE_OPTIONS = "--threads --max-memory --prefill --lookup --rates"
"""Sections of `--help` that `generate` and `chat` share."""
field_option = once(
    "--field",
    "--column",
    "field",
    type=Text(),
    metavar="NAME",
    help="JSON field or CSV column that holds the text.  [default: text]",
)
literal_option = click.option("--literal", is_flag=True, help="Take arguments as texts even if they are file names.")


def question_options(noun: str, nouns: str) -> Callable[[Function], Function]:
    """Options of commands that take one query or question as an argument, or many from an input."""
    options = [
        once("--input", "source", metavar="FILE", help=f"Read {nouns} from FILE, `-` for stdin."),
        input_format_option(
            f"One {noun} per line, or one per record in --field; other fields are copied to the output."
        ),
        once(
            "--field",
            type=Text(),
            metavar="NAME",
            help=f"JSON field or CSV column that holds the {noun}.  [default: {noun}]",
        ),
        literal_option,
    ]
    return lambda command: _with_options(command, options)


def passage_options(command: Function) -> Function:
    """Add the options of `search` and `ask` that choose passages."""
    options = [
        click.option(
            "--reranker",
            type=BundleType(),
            metavar="BUNDLE",
            help="Rerank the best passages with this bundle: slower, and better ordered.",
        ),
        click.option(
            "--path",
            "paths",
            multiple=True,
            type=Text(),
            metavar="GLOB",
            help="Search only in files whose path matches, such as `manuals/**` or `*.pdf`; may be repeated.",
        ),
        click.option(
            "--mode",
            type=click.Choice(["hybrid", "vector", "bm25"]),
            default="hybrid",
            show_default=True,
            help="Rank by embeddings and BM25, or by one of them.",
        ),
        click.option(
            "--bundle",
            type=BundleType(),
            metavar="BUNDLE",
            help="Where the bundle of the index is now, if it was moved.",
        ),
    ]
    return _with_options(command, options)


def _store(context: click.Context, parameter: click.Parameter, value: object) -> None:
    context.meta.setdefault(META_KEY, {})[parameter.name] = value


def _answer_option(name: str, **settings: Any) -> Callable[[Function], Function]:
    return click.option(name, expose_value=False, callback=_store, **settings)


def answer_options(*, length: str = "as many as fit") -> Callable[[Function], Function]:
    """Add the options of AnswerOptions to a command; `length` is the default of --max-tokens, in words."""
    options = [
        _answer_option(
            "--max-tokens",
            type=click.IntRange(min=1),
            metavar="N",
            help=f"Maximum tokens of an answer.  [default: {length}]",
        ),
        _answer_option(
            "--temperature", type=float, metavar="T", help="0 is greedy decoding; higher values are more random."
        ),
        _answer_option("--top-k", type=int, metavar="N", help="Sample from the N most probable tokens; 0 for all."),
        _answer_option(
            "--top-p", type=float, metavar="P", help="Sample from the smallest set with total probability P."
        ),
        _answer_option("--min-p", type=float, metavar="P", help="Drop tokens below P times the top probability."),
        _answer_option(
            "--repetition-penalty",
            type=float,
            metavar="X",
            help="Above 1, tokens of prompt and answer become less probable.",
        ),
        _answer_option(
            "--presence-penalty", type=float, metavar="X", help="Subtracted from the logits of tokens in the answer."
        ),
        _answer_option(
            "--frequency-penalty", type=float, metavar="X", help="The same, times their count in the answer."
        ),
        _answer_option("--seed", type=int, metavar="N", help="Same seed, same text on the same machine."),
        _answer_option("--stop", multiple=True, type=Text(), metavar="TEXT", help="Stop before TEXT; may be repeated."),
        _answer_option(
            "--lookup/--no-lookup",
            default=True,
            help="Prompt lookup (n-gram speculation): faster where answers quote.  [default: --lookup]",
        ),
    ]
    return lambda command: _with_options(command, options)
