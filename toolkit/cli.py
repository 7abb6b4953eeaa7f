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
from typing import Any

import click

from ..runtime.errors import MissingPartError, OrtkitError, WrongKindError
from ..runtime.version import __version__
from .commands import (
    ask,
    bench,
    bundles,
    cache,
    catalog,
    chat,
    doctor,
    embed,
    export,
    generate,
    hub,
    index,
    kit,
    pack,
    providers,
    rerank,
    search,
    serve,
    sign,
    wheelhouse,
)
from .console.help import GroupedCommands
from .console.interrupts import reraised_interrupts
from .console.leaving import INTERRUPTED, leave_at_interrupt
from .console.masking import without_tokens
from .console.progress import OwnLines, fresh_line
from .io.warnings_report import print_error

_ESCAPED = "ortkit.escaped"
"""Name of the codec error handler that escapes characters an encoding does not have."""
_CLOSED_PIPE = 141
"""Exit code for a closed pipe, as shells report SIGPIPE."""
_OUT_OF_MEMORY = 9
_NO_ARGUMENTS: tuple[type[click.UsageError], ...] = (
    (click.exceptions.NoArgsIsHelpError,) if hasattr(click.exceptions, "NoArgsIsHelpError") else ()
)
"""What click 8.2 raises for a command that needs arguments and has none."""
_RUN_MODELS = frozenset(
    {"embed", "rerank", "generate", "chat", "index", "search", "ask", "serve", "verify", "bench", "providers"}
)
"""Commands that load onnxruntime or tokenizers."""


class Commands(GroupedCommands):
    """The command group; checks memory before a model's libraries load, and exits quietly at a closed pipe."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        # Without enough memory, these libraries abort the process while they load.
        if name in _RUN_MODELS and not {"-h", "--help"} & set(rest):
            from ..runtime.session.memory import check_libraries

            check_libraries()
        return name, command, rest

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            # `python -m ortkit` and `ortkit` show the same help.
            return super().make_context("ortkit" if parent is None else info_name, args, parent, **extra)
        except BrokenPipeError as error:
            # `--help` and `--version` print here.
            raise click.exceptions.Exit(_CLOSED_PIPE) from error
        except KeyboardInterrupt as error:
            # click would print an empty line for a KeyboardInterrupt.
            raise click.Abort from error

    def invoke(self, ctx: click.Context) -> object:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            ctx.exit(_CLOSED_PIPE)
        except KeyboardInterrupt as error:
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
cli.add_under("Carry and install", pack.pack, pack.unpack, sign.keygen, sign.sign, wheelhouse.wheelhouse, kit.kit)
cli.add_under("This machine", doctor.doctor, providers.providers, bench.bench, cache.cache)
cli.add_under("Search your own files (offline)", index.index, search.search, ask.ask)
cli.add_under(
    "Embed, rerank and generate (offline)", embed.embed, rerank.rerank, generate.generate, chat.chat, serve.serve
)


def main() -> None:
    """Run the command line, and exit with the code of the error (`runtime/errors.py`)."""
    leave_at_interrupt()
    open_closed_streams()
    buffer_stdout()
    configure_output()
    code = exit_code_of(run_interruptibly)
    # Ctrl-C has nothing left to interrupt.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    discard_unwritten()
    if code == INTERRUPTED:
        # Without Python's finalization: it would end a thread inside of onnxruntime, which aborts, and it would raise
        # SIGINT again if Ctrl-C came during `exec`, which libraries use.
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_interruptibly() -> object:
    """Run the command; an error after Ctrl-C counts as the interrupt, whatever a library made of it."""
    with reraised_interrupts() as check:
        try:
            return cli.main(standalone_mode=False)
        except Exception:
            check()
            raise


def open_closed_streams() -> None:
    """Replace standard streams that were closed at the start (`<&-`) with the null device."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # In this order, each gets its own descriptor, so that no other file takes it.
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - stays open
            setattr(sys, name, stream)


def buffer_stdout() -> None:
    """Buffer stdout under PYTHONUNBUFFERED too: an unbuffered write may be partial."""
    raw = sys.stdout.buffer
    if isinstance(raw, io.RawIOBase):
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(raw), sys.stdout.encoding, sys.stdout.errors, line_buffering=True
        )


def configure_output() -> None:
    """Make stdout and stderr accept any text, and begin messages on a line of their own beside progress.

    Characters that the stream's encoding does not have are escaped; undecodable bytes of file names are written as they
    are.
    """
    codecs.register_error(_ESCAPED, _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # The C locale means ASCII, but terminals there read UTF-8 (PEP 540); click assumes that too.
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if is_ascii else stream.encoding, errors=_ESCAPED)
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr.isatty():
        sys.stderr = OwnLines(sys.stderr)


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Codec error handler: write the byte of a surrogate (PEP 383), or a JSON escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if 0xDC80 <= ord(character) <= 0xDCFF:
        return bytes([ord(character) - 0xDC00]), error.start + 1
    # A JSON escape, because the output may be JSON.
    return json.dumps(character)[1:-1], error.start + 1


def discard_unwritten() -> None:
    """Discard output that stdout did not take: the error was reported, and Python would fail once more at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_code_of(run: Callable[[], object]) -> int:  # noqa: PLR0911 - a table of exceptions
    """Run a command; print its error to stderr, and return the exit code."""
    try:
        code = run()
    except click.UsageError as error:
        return _report_usage(error)
    except click.ClickException as error:
        return _report(error.format_message(), None, error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        # Overwrites the ^C that the terminal shows.
        click.echo(f"{fresh_line()}interrupted", err=True)
        return INTERRUPTED
    except WrongKindError as error:
        hint = f"use `{error.command}`" if error.command is not None else error.hint
        return _report(error.message, hint, error.exit_code)
    except OrtkitError as error:
        return _report(error.message, error.hint, error.exit_code)
    except MemoryError:
        return _report("not enough memory", None, _OUT_OF_MEMORY)
    except OSError as error:
        where = f"`{error.filename}`: " if error.filename else ""
        return _report(f"{where}{error.strerror or error}", None, OrtkitError.exit_code)
    except Exception as error:  # noqa: BLE001 - users see a sentence, not a traceback
        return _report_unforeseen(error)
    # In non-standalone mode, click returns the exit code of `ctx.exit`.
    return code if isinstance(code, int) else 0


def _report_unforeseen(error: Exception) -> int:
    """A dependency that is missing, or a bug."""
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("ortkit"):
        message = f"the package `{error.name}`, which ortkit needs, is not installed in this environment"
        return _report(message, "install ortkit again, with its dependencies", MissingPartError.exit_code)
    if os.environ.get("ORTKIT_TRACEBACK"):
        traceback.print_exc()
    return _report(
        f"internal error: {type(error).__name__}: {error}",
        "this is a bug in ortkit; set ORTKIT_TRACEBACK=1 to see the traceback",
        OrtkitError.exit_code,
    )


def _report_usage(error: click.UsageError) -> int:
    if isinstance(error, _NO_ARGUMENTS):
        # The message is the help text.
        error.show()
        return error.exit_code
    message = error.format_message()
    hint = None
    if error.ctx is not None:
        usage = " ".join(error.ctx.get_usage().split()).removeprefix("Usage: ")
        hint = f"usage: {usage}; `{error.ctx.command_path} --help` shows more"
    return _report(message[:1].lower() + message[1:].removesuffix("."), hint, error.exit_code)


def _report(message: str, hint: str | None, exit_code: int) -> int:
    print_error(without_tokens(message), without_tokens(hint) if hint is not None else None)
    return exit_code
