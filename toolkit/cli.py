"""`ortkit`: the group of commands, and the place that turns an exception into a message, a hint and an exit code."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import click

from ..runtime.errors import OrtkitError, WrongKindError
from ..runtime.version import __version__
from .commands import bundles, catalog, chat, embed, export, generate, hub, rerank
from .console.help import GroupedCommands
from .console.interrupts import raised_again
from .console.leaving import INTERRUPTED, leave_at_interrupt
from .console.masking import without_tokens
from .console.progress import OwnLines, fresh_line
from .io.warnings_report import print_error

ESCAPED = "ortkit.escaped"
"""The name of how to write what an encoding has not."""
CLOSED_PIPE = 141
OUT_OF_MEMORY = 9
"""What a shell reports for a process ended by SIGPIPE, and ortkit's own code for memory."""
RUN_MODELS = frozenset({"embed", "rerank", "generate", "chat", "verify"})
"""Commands that need the libraries that run a model."""


class Commands(GroupedCommands):
    """The commands; checks that the libraries load before they end the process, and ends quietly at a closed pipe."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        # Before libraries are loaded that end the process themselves where memory is short.
        if name in RUN_MODELS and not {"-h", "--help"} & set(rest):
            from ..runtime.session.memory import check_libraries

            check_libraries()
        return name, command, rest

    def invoke(self, ctx: click.Context) -> object:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            ctx.exit(CLOSED_PIPE)
        except KeyboardInterrupt as error:
            # For which click itself would print an empty line.
            raise click.Abort from error
        return result


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ortkit")
def cli() -> None:
    """Export Hugging Face embedding models, rerankers and small LLMs to quantized ONNX bundles, and run them offline.

    BUNDLE is a folder, or the name of one in `bundles/` (or in the folder that ORTKIT_BUNDLES names).

    `ortkit COMMAND --help` shows the options of a command, and examples.
    """


cli.add_under("Hugging Face Hub", catalog.models, hub.login, hub.whoami, hub.logout, hub.access)
cli.add_under("Export (connected machine)", export.export)
cli.add_under("Bundles", bundles.list_bundles, bundles.inspect, bundles.verify)
cli.add_under("Embed, rerank and generate (offline)", embed.embed, rerank.rerank, generate.generate, chat.chat)


def main() -> None:
    """Run the command line and end the process with the exit code that errors.py names."""
    leave_at_interrupt()
    open_closed_streams()
    buffer_stdout()
    print_everything()
    code = exit_code_of(run_interruptibly)
    # Nothing is left to be interrupted.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    drop_unwritten()
    if code == INTERRUPTED:
        # Without Python's own end: a thread that opens a graph meanwhile would be ended within C++, which aborts, and
        # where Ctrl-C met code that was compiled as it ran, as libraries have it, Python would end itself by SIGINT.
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_interruptibly() -> object:
    """Run the command; whatever a library makes of Ctrl-C, it is an interrupt."""
    with raised_again() as check:
        try:
            return cli.main(standalone_mode=False)
        except Exception:
            check()
            raise


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


def print_everything() -> None:
    """Let stdout and stderr take every text, and give what is told a line of its own beside progress.

    What the encoding of stdout or stderr has not is written as an escape, and bytes of a file's name as they are.
    """
    codecs.register_error(ESCAPED, escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # ASCII is what the C locale says of terminals that know more (PEP 540); click takes it for UTF-8 too.
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if is_ascii else stream.encoding, errors=ESCAPED)
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr.isatty():
        sys.stderr = OwnLines(sys.stderr)


def escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """For characters that an encoding has not: the byte that a surrogate stands for (PEP 383), or an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if 0xDC80 <= ord(character) <= 0xDCFF:
        return bytes([ord(character) - 0xDC00]), error.start + 1
    # As in JSON, which may be what is written.
    return json.dumps(character)[1:-1], error.start + 1


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
        # In place of what the terminal shows of Ctrl-C.
        click.echo(f"{fresh_line()}interrupted", err=True)
        return INTERRUPTED
    except WrongKindError as error:
        hint = f"use `{error.command}`" if error.command is not None else error.hint
        return report(error.message, hint, error.exit_code)
    except OrtkitError as error:
        return report(error.message, error.hint, error.exit_code)
    except MemoryError:
        return report("the machine has not enough memory for this", None, OUT_OF_MEMORY)
    except OSError as error:
        where = f"`{error.filename}`: " if error.filename else ""
        return report(f"{where}{error.strerror or error}", None, OrtkitError.exit_code)
    except Exception as error:  # noqa: BLE001 - the boundary: a user sees a sentence, not a traceback
        if os.environ.get("ORTKIT_TRACEBACK"):
            traceback.print_exc()
        return report(
            f"something in ortkit itself went wrong: {type(error).__name__}: {error}",
            "this is a bug; ORTKIT_TRACEBACK=1 shows where it happened",
            OrtkitError.exit_code,
        )
    # Without its standalone mode, click returns the code with which a command wants to end.
    return code if isinstance(code, int) else 0


def report(message: str, hint: str | None, exit_code: int) -> int:
    print_error(without_tokens(message), without_tokens(hint) if hint is not None else None)
    return exit_code
