"""`--help`: commands in groups, options in sections, examples; and close matches for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

_WHOLE = 1000
"""Characters of a description: all, since a narrow terminal wraps it."""


class ExampleCommand(click.Command):
    """A command whose `--help` lists its options in sections and ends with examples."""

    def __init__(
        self, *arguments: Any, examples: Sequence[str], sections: Mapping[str, str] | None = None, **settings: Any
    ) -> None:
        """`sections` maps a heading to its options, `--input --field`; all others are listed under "Options"."""
        super().__init__(*arguments, **settings)
        self.examples = tuple(examples)
        self.sections = {heading: tuple(names.split()) for heading, names in (sections or {}).items()}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings = {name: heading for heading, names in self.sections.items() for name in names}
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in (*self.sections, "Options")}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None and isinstance(parameter, click.Option):
                rows[headings.get(parameter.opts[0], "Options")].append(row)
        for heading, found in rows.items():
            if found:
                with formatter.section(heading):
                    formatter.write_dl(found)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        with formatter.section("Examples"):
            # Not wrapped, so that they can be copied.
            for example in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")


class GroupedCommands(click.Group):
    """A group of commands that `--help` lists under headings."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.headings: dict[str, list[str]] = {}

    def add_under(self, heading: str, *commands: click.Command) -> None:
        for command in commands:
            self.add_command(command)
            self.headings.setdefault(heading, []).append(f"{command.name}")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        width = max(map(len, self.commands))
        for heading, names in self.headings.items():
            with formatter.section(heading):
                # Padded, so that the descriptions of all groups are aligned.
                formatter.write_dl(
                    [(f"{name:<{width}}", self.commands[name].get_short_help_str(_WHOLE)) for name in names]
                )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            close = close_names(name, self.commands)
            ctx.fail(f"No such command '{name}'.{f' Did you mean {_or_list(close)}?' if close else ''}")
        return super().resolve_command(ctx, args)


def close_names(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of the names in `known` that `name` may be a typing error or the beginning of, the closest first."""
    names = sorted(known)
    folded = name.casefold()
    close = difflib.get_close_matches(folded, [other.casefold() for other in names], cutoff=0.6)
    found = [other for match in close for other in names if other.casefold() == match]
    found += [other for other in names if len(folded) > 2 and folded in other.casefold()]
    return list(dict.fromkeys(found))[:3]


def _or_list(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)
