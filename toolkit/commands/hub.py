"""`ortkit login`, `whoami`, `logout` and `access`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from ...runtime.errors import InputError, NotSignedInError
from ...runtime.sizes import megabytes
from ..console.help import ExampleCommand
from ..console.terminal import say
from .options import token_host_option

_MAX_INPUT = 64 * 1024

if TYPE_CHECKING:
    from ...exporters.hub.access import Access
    from ...exporters.hub.account import Account
    from ...exporters.hub.token import Token


@click.command(
    cls=ExampleCommand,
    context_settings={"allow_extra_args": True},
    examples=["ortkit login", "ortkit login --token-stdin < token.txt"],
)
@click.option("--token-stdin", is_flag=True, help="Read the token from stdin, for scripts.")
@token_host_option
@click.pass_context
def login(context: click.Context, *, token_stdin: bool, token_host: str | None) -> None:
    """Store a Hugging Face token, for all Hugging Face tools."""
    from ...exporters.hub.account import whoami as ask_whoami
    from ...exporters.hub.settings import SITE
    from ...exporters.hub.token import Token, read_new_token, store_token

    if context.args:
        raise InputError(
            "a token cannot be given on the command line, where other users and the shell history see it",
            hint="run `ortkit login` alone, or pipe the token in with `--token-stdin`; if you typed a token, "
            f"replace it at {SITE}/settings/tokens",
        )
    _check_host(token_host)
    if token_stdin:
        text = sys.stdin.buffer.read(_MAX_INPUT).decode("utf-8", errors="replace")
    elif sys.stdin.isatty():
        say(f"Create a token at {SITE}/settings/tokens; the role `read` is enough.", err=True)
        text = click.prompt("Token (not shown)", hide_input=True, err=True)
    else:
        raise InputError(
            "stdin is not a terminal, so ortkit cannot ask for a token", hint="pipe it in with `--token-stdin`"
        )
    token = Token(read_new_token(text), "your input")
    account = ask_whoami(token)
    path = store_token(token.value)
    say(f"signed in as {account.user}; the token {token.masked} is in {path}")
    for variable in _variables_in_force():
        say(f"warning: the environment variable `{variable}` is set and takes precedence over the token file", err=True)


@click.command(cls=ExampleCommand, examples=["ortkit whoami"])
@token_host_option
def whoami(*, token_host: str | None) -> None:
    """Show the user, source and permissions of the current token."""
    from ...exporters.hub.account import whoami as ask_whoami
    from ...exporters.hub.token import exposure, find_token, no_token

    token = find_token()
    if token is None:
        raise no_token()
    _check_host(token_host)
    account = ask_whoami(token)
    for label, text in _describe(account, token):
        say(f"{label:<8} {text}")
    exposed = exposure()
    if exposed is not None:
        say(f"warning: {exposed}", err=True)


@click.command(cls=ExampleCommand, examples=["ortkit logout"])
def logout() -> None:
    """Remove the stored token."""
    from ...exporters.hub.token import remove_token, stored_tokens_path

    removed = remove_token()
    for path in removed:
        say(f"removed {path}")
    if not removed:
        say("no token is stored")
    for variable in _variables_in_force():
        say(f"warning: the environment variable `{variable}` is still set: `unset {variable}`", err=True)
    if stored_tokens_path().exists():
        say(
            f"warning: named tokens of `hf auth login` remain in `{stored_tokens_path()}`",
            err=True,
        )


@click.command(
    cls=ExampleCommand,
    examples=["ortkit access all-MiniLM-L6-v2", "ortkit access mistralai/Mistral-7B-Instruct-v0.1"],
)
@click.argument("model")
@click.option("--revision", metavar="R", help="Branch, tag or commit.  [default: the catalog's, or main]")
@token_host_option
def access(*, model: str, revision: str | None, token_host: str | None) -> None:
    """Check whether MODEL can be downloaded, and if not, why.

    MODEL is a catalog name or a Hub id.
    """
    from ...exporters.checkpoint.files import is_wanted
    from ...exporters.hub.access import check_access
    from ...exporters.hub.request import hub_request, notes_on

    request = hub_request(model, revision)
    found = check_access(request.repo, request.revision, command=f"ortkit access {model}", token_host=token_host)
    for note in notes_on(found):
        say(f"note: {note}", err=True)
    needed = [file for file in found.files if is_wanted(file.name)]
    shown = (
        f"with the token {found.token.masked} from {found.token.source}"
        if found.token is not None
        else "without a token"
    )
    say(f"{found.repo} can be downloaded {shown}")
    say(f"  commit   {found.commit}")
    say(f"  license  {found.license or 'not stated'}, {_visibility(found)}")
    size = megabytes(sum(file.size or 0 for file in needed))
    say(f"  size     {size} in {len(needed)} files needed for an export")


def _visibility(access: Access) -> str:
    """A repository's visibility in words."""
    if access.gated:
        return "private, gated" if access.private else "gated"
    return "private" if access.private else "public"


def _check_host(token_host: str | None) -> None:
    """Raise NotSignedInError if the token must not be sent to the host."""
    from ...exporters.hub.errors import host
    from ...exporters.hub.token import may_be_sent

    if not may_be_sent(token_host):
        raise NotSignedInError(
            f"the token is not sent to `{host()}`, which is not the Hugging Face Hub",
            hint=f"if you trust that host with it, add `--token-host {host()}`",
        )


def _variables_in_force() -> list[str]:
    from ...exporters.hub.token import VARIABLES

    return [variable for variable in VARIABLES if os.environ.get(variable, "").strip()]


def _describe(account: Account, token: Token) -> list[tuple[str, str]]:
    """The account and permissions of a token in lines: (label, text)."""
    lines = [("user", account.user), ("token", f"{token.masked}, from {token.source}")]
    if account.role is not None:
        lines.append(("kind", account.role))
    if account.reads_gated is not None:
        lines.append(
            ("gated", "may read gated repositories" if account.reads_gated else "may not read gated repositories")
        )
    lines += [("scope", scope) for scope in account.scopes]
    return lines
