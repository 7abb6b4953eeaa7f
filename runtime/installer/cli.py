"""The command line of the installer: `sh KIT COMMAND` on a new appliance, `ortkit-install` where there is a release."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ..errors import InputError, NotFoundError, OrtkitError
from .checks import CheckError
from .install import Have, Options, install, rollback, uninstall
from .installation import Installation
from .kit_file import Kit

DEFAULT_PREFIX = "/opt/ortkit"
COMMANDS = ("install", "update", "rollback", "uninstall", "status", "have")
_INTERRUPTED = 130
_SET_CLOCK = 1_600_000_000
"""Seconds since 1970: a clock before September 2020 was never set."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message, hint=f"`{self.prog} --help` shows the options")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code (`runtime/errors.py`)."""
    os.umask(0o022)
    try:
        return run(sys.argv[1:] if arguments is None else arguments)
    except OrtkitError as error:
        # What a check printed has lines; in anything else they are a kit's.
        message = error.message if isinstance(error, CheckError) else _escaped(error.message, kept="")
        say(f"error: {message}" + (f"\n\nhint: {_escaped(error.hint, kept='')}" if error.hint is not None else ""))
        return error.exit_code
    except OSError as error:
        say(f"error: {f'`{error.filename}`: ' if error.filename else ''}{error.strerror or error}")
        return OrtkitError.exit_code
    except KeyboardInterrupt:
        say("interrupted")
        return _INTERRUPTED


def say(text: str) -> None:
    """Print to stderr, because stdout is data; control characters, which a kit may have, are escaped."""
    text = _escaped(text)
    # Characters that the terminal's encoding does not have must not end an installation.
    encoding = sys.stderr.encoding or "ascii"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)


def _escaped(text: str, kept: str = "\n") -> str:
    """A text without characters that a terminal obeys or does not show, but for those in `kept`."""
    return "".join(
        character
        if character.isprintable() or character in kept
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def run(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(_with_command(arguments))
    installation = Installation(options.prefix)
    return int(_ACTIONS[options.command](installation, options))


def _with_command(arguments: Sequence[str]) -> list[str]:
    """`ortkit-install line5.kit` as `ortkit-install install line5.kit`."""
    values = {"--prefix", "--kit", "--trusted-key", "--trusted-certificate", "--to"}
    for place, argument in enumerate(arguments):
        if argument.startswith("-") or (place and arguments[place - 1] in values):
            continue
        return [*arguments] if argument in COMMANDS else [*arguments[:place], "install", *arguments[place:]]
    return [*arguments]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ortkit-install",
        description="Install a kit that `ortkit kit` made, update to it, go back, or remove it. Opens no connection.",
        epilog="`ortkit-install KIT` is short for `ortkit-install install KIT`.",
        allow_abbrev=False,
    )
    # Given by the header of a kit and by PREFIX/bin/ortkit-install.
    parser.add_argument("--kit", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--prefix", dest="prefix", default=DEFAULT_PREFIX, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")
    for name, text in _HELP.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument(
            "--prefix",
            default=argparse.SUPPRESS,
            metavar="FOLDER",
            help=f"The installation.  [default: {DEFAULT_PREFIX}]",
        )
        if name in ("install", "update"):
            command.add_argument(
                "path", type=Path, nargs="?", metavar="KIT", help="The kit; not where a kit runs this."
            )
            command.add_argument(
                "--trusted-key", type=Path, action="append", default=[], metavar="FILE",
                help="Public key or certificate that the kit must be signed with; kept for later kits.",
            )  # fmt: skip
            command.add_argument(
                "--trusted-certificate", type=Path, action="append", dest="trusted_key", metavar="FILE",
                help="The same, for the certificate of an authority or of a signer.",
            )  # fmt: skip
            command.add_argument(
                "--allow-unsigned", action="store_true", help="Install a kit although nothing shows who made it."
            )
            command.add_argument("--allow-downgrade", action="store_true", help="Install an older release.")
            command.add_argument("--reinstall", action="store_true", help="Install the kit that is installed again.")
            command.add_argument(
                "--other-kit", action="store_true", help="Replace what is installed by a kit of another name."
            )
        if name == "rollback":
            command.add_argument("--to", type=int, metavar="N", help="The release.  [default: the one before]")
        if name == "status":
            command.add_argument("--json", action="store_true", help="Print JSON.")
    return parser


_HELP = {
    "install": "Install a kit beside what is there, check it on this machine, and switch to it.",
    "update": "The same as install.",
    "rollback": "Switch to the release before, or to another one that is kept.",
    "uninstall": "Remove the installation.",
    "status": "Show the releases.",
    "have": "Print the digests of what is installed, for `ortkit kit --have`.",
}


def _install(installation: Installation, options: argparse.Namespace) -> int:
    path = options.path or options.kit
    if path is None:
        raise InputError("name the kit to install", hint="`ortkit-install KIT`")
    if time.time() < _SET_CLOCK:
        say(f"note: the clock of this machine says {time.strftime('%Y-%m-%d')}; the installation does not depend on it")
    chosen = Options(
        trusted_keys=options.trusted_key,
        allow_unsigned=options.allow_unsigned,
        allow_downgrade=options.allow_downgrade,
        reinstall=options.reinstall,
        other_kit=options.other_kit,
    )
    with Kit.open(path) as kit:
        number = install(kit, installation, chosen, say)
    record = installation.record(number)
    print(f"{record.kit}: release {number} in {installation.prefix}, with {', '.join(record.bundles)}")
    say(f"run it with `{installation.prefix}/bin/ortkit`")
    return 0


def _rollback(installation: Installation, options: argparse.Namespace) -> int:
    numbers = installation.numbers()
    if options.to is not None and numbers and options.to not in numbers:
        raise NotFoundError(
            f"there is no release {options.to} in `{installation.prefix}`",
            hint=f"its releases: {', '.join(map(str, numbers))}; "
            f"`{installation.prefix}/bin/ortkit-install status` shows what they are",
        )
    number = rollback(installation, options.to, say)
    print(f"{installation.record(number).kit}: release {number} in {installation.prefix}")
    return 0


def _uninstall(installation: Installation, _options: argparse.Namespace) -> int:
    left = uninstall(installation)
    print(f"removed the installation in {installation.prefix}")
    if left:
        say(f"note: `{installation.prefix}` still has {', '.join(left)}, which the installer did not make")
    return 0


def _status(installation: Installation, options: argparse.Namespace) -> int:
    numbers = installation.numbers()
    if not numbers:
        raise NotFoundError(f"nothing is installed in `{installation.prefix}`", hint="name its folder with `--prefix`")
    current, problem = None, None
    try:
        current = installation.current()
    except OrtkitError as error:
        problem = error
    releases = {number: installation.record(number) for number in numbers}
    if options.json:
        shown = {
            "prefix": str(installation.prefix),
            "current": current,
            "releases": {
                str(number): {
                    "kit": record.kit,
                    "release": record.release,
                    "ortkit": record.ortkit,
                    "signer": record.signer,
                    "bundles": sorted(record.bundles),
                }
                for number, record in releases.items()
            },
            "error": problem.message if problem is not None else None,
        }
        print(json.dumps(shown, indent=2))
    else:
        for number, record in releases.items():
            mark = "*" if number == current else " "
            counter = f", release {record.release} of it" if record.release else ""
            print(f"{mark} {number}  {record.kit}{counter}, ortkit {record.ortkit}: {', '.join(record.bundles)}")
            # The name in a certificate may be anything.
            print(f"     {f'signed by {_escaped(record.signer)}' if record.signer else 'not signed'}")
    if problem is not None:
        raise problem
    return 0


def _have(installation: Installation, _options: argparse.Namespace) -> int:
    found = Have.of(installation).digests()
    if not found:
        raise NotFoundError(f"nothing is installed in `{installation.prefix}`", hint="name its folder with `--prefix`")
    print("\n".join(found))
    return 0


_ACTIONS = {
    "install": _install,
    "update": _install,
    "rollback": _rollback,
    "uninstall": _uninstall,
    "status": _status,
    "have": _have,
}
