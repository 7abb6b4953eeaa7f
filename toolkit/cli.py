"""`edgekit`: the group of commands, and the place that turns an exception into a message, a hint and an exit code."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import click

from runtime.errors import EdgekitError
from runtime.version import __version__
from toolkit.commands import bundles, catalog, chat, embed, export, generate, hub, rerank
from toolkit.masking import without_tokens
from toolkit.notes import tell_error

INTERRUPTED = 130
CLOSED_PIPE = 141
OUT_OF_MEMORY = 9
"""What a shell reports for a process ended by SIGINT or SIGPIPE, and edgekit's own code for memory."""


class Commands(click.Group):
    """A group whose reader may leave early, as with `| head -1`."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            ctx.exit(CLOSED_PIPE)
        return result


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgekit")
def cli() -> None:
    """Take language models from the Hugging Face Hub to machines that have no network."""


cli.add_command(catalog.models)
cli.add_command(hub.login)
cli.add_command(hub.whoami)
cli.add_command(hub.logout)
cli.add_command(hub.access)
cli.add_command(export.export)
cli.add_command(bundles.inspect)
cli.add_command(bundles.verify)
cli.add_command(embed.embed)
cli.add_command(rerank.rerank)
cli.add_command(generate.generate)
cli.add_command(chat.chat)


def main() -> None:
    """Run the command line and end the process with the exit code that errors.py names."""
    open_closed_streams()
    buffer_stdout()
    code = exit_code_of(lambda: cli.main(standalone_mode=False))
    drop_unwritten()
    sys.exit(code)


def open_closed_streams() -> None:
    """Let stdin, stdout and stderr be there where a process was started without them, as with `<&-`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # In this order each takes its own number, which no other file can get then.
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - open as long as the process
            setattr(sys, name, stream)


def buffer_stdout() -> None:
    """Put a buffer before stdout where Python has none, as with PYTHONUNBUFFERED: what is below it may write a part."""
    raw = sys.stdout.buffer
    if isinstance(raw, io.RawIOBase):
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(raw), sys.stdout.encoding, sys.stdout.errors, line_buffering=True
        )


def drop_unwritten() -> None:
    """Forget what stdout did not take: that was told, and Python tries again at its end, with a code of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_code_of(run: Callable[[], object]) -> int:  # noqa: PLR0911 - a table of exceptions
    """Run a command; print what went wrong to stderr and return the exit code."""
    try:
        code = run()
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        click.echo(without_tokens(shown.getvalue()), nl=False, err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except EdgekitError as error:
        return report(error.message, error.hint, error.exit_code)
    except MemoryError:
        return report("the machine has not enough memory for this", None, OUT_OF_MEMORY)
    except OSError as error:
        where = f"`{error.filename}`: " if error.filename else ""
        return report(f"{where}{error.strerror or error}", None, EdgekitError.exit_code)
    except Exception as error:  # noqa: BLE001 - the boundary: a user sees a sentence, not a traceback
        if os.environ.get("EDGEKIT_TRACEBACK"):
            traceback.print_exc()
        return report(
            f"something in edgekit itself went wrong: {type(error).__name__}: {error}",
            "this is a bug; EDGEKIT_TRACEBACK=1 shows where it happened",
            EdgekitError.exit_code,
        )
    # Without its standalone mode, click returns the code with which a command wants to end.
    return code if isinstance(code, int) else 0


def report(message: str, hint: str | None, exit_code: int) -> int:
    tell_error(without_tokens(message), without_tokens(hint) if hint is not None else None)
    return exit_code
