"""Whose token it is, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...runtime.errors import NotSignedInError
from ..printable import printable
from .errors import ASKING_FAILED, HubAnswerError, network_failure, strange_answer
from .names import LONGEST_TEXT
from .settings import SITE
from .token import Token
from .transport import ask_json


@dataclass(frozen=True)
class Account:
    """A user, and the kind and scope of the token that stands for them."""

    user: str
    role: str | None
    """`read`, `write` or `fineGrained`, where the Hub tells."""
    reads_gated: bool | None
    """For a fine-grained token: whether it may read gated repositories of others."""
    scopes: tuple[str, ...]
    """For a fine-grained token: what it may do, such as `ada: repo.content.read`."""


def whoami(token: Token) -> Account:
    """Ask the Hub whose token this is; raises NotSignedInError when it is not valid, else NetworkError."""
    try:
        return _account_in(ask_json("/api/whoami-v2", token))
    except ASKING_FAILED as error:
        if isinstance(error, HubAnswerError) and error.status in (401, 403):
            raise invalid_token(token) from error
        raise network_failure(error) or strange_answer(error) from error


def _account_in(found: Any) -> Account:
    """Read what the Hub says of a token; raises ValueError for an answer of any other form."""
    details = at(found, "auth", "accessToken")
    fine = at(details, "fineGrained")
    user, role, reads_gated = at(found).get("name"), details.get("role"), fine.get("canReadGatedRepos")
    scoped = fine.get("scoped", [])
    if not isinstance(user, str) or not user.strip() or not isinstance(scoped, list):
        raise ValueError("no user")
    return Account(
        printable(user),
        printable(role) if isinstance(role, str) else None,
        reads_gated if isinstance(reads_gated, bool) else None,
        tuple(_scope_in(scope) for scope in scoped),
    )


def _scope_in(scope: Any) -> str:
    name, permissions = at(scope, "entity").get("name", "everything"), at(scope).get("permissions", [])
    if not isinstance(name, str) or not isinstance(permissions, list):
        raise ValueError("a scope of another form")  # noqa: TRY004 - the answer's fault
    return printable(f"{name}: {', '.join(map(str, permissions))}", LONGEST_TEXT)


def at(found: Any, *keys: str) -> dict[str, Any]:
    """An object within an object, an empty one where there is none; raises ValueError for anything else."""
    for key in (None, *keys):
        found = found if key is None else (found.get(key) or {})
        if not isinstance(found, dict):
            raise ValueError("no object")  # noqa: TRY004 - the answer's fault
    return dict(found)


def invalid_token(token: Token, command: str | None = None) -> NotSignedInError:
    again = f", then run `{command}` again" if command else ""
    renew = f"set `{token.variable}` to it" if token.variable is not None else "run `ortkit login`"
    return NotSignedInError(
        f"the Hub refuses the token {token.masked} from {token.source}: it is invalid or has expired",
        hint=f"make a new one at {SITE}/settings/tokens and {renew}{again}",
    )
