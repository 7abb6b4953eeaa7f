"""Whose token it is, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

from exporters.hub.failures import ASKING_FAILED, SITE, TIMEOUT, network_failure, status_of, strange_answer
from exporters.hub.token import Token
from runtime.errors import NotSignedInError


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


def ask(path: str, token: Token | None) -> Any:
    """GET a path of the Hub's API, with a time limit, which huggingface_hub's own calls lack in some versions."""
    headers = build_hf_headers(token=token.value if token is not None else False)
    response = get_session().get(f"{constants.ENDPOINT}{path}", headers=headers, timeout=TIMEOUT)
    hf_raise_for_status(response)
    return response


def whoami(token: Token) -> Account:
    """Ask the Hub whose token this is; raises NotSignedInError when it is not valid, else NetworkError."""
    try:
        found = ask("/api/whoami-v2", token).json()
    except ASKING_FAILED as error:
        if status_of(error) in (401, 403):
            raise invalid_token(token) from error
        raise network_failure(error) or strange_answer(error) from error
    details = (found.get("auth") or {}).get("accessToken") or {}
    fine = details.get("fineGrained") or {}
    scopes = [
        f"{(scope.get('entity') or {}).get('name', 'everything')}: {', '.join(scope.get('permissions', []))}"
        for scope in fine.get("scoped", [])
    ]
    return Account(str(found.get("name")), details.get("role"), fine.get("canReadGatedRepos"), tuple(scopes))


def invalid_token(token: Token, command: str | None = None) -> NotSignedInError:
    again = f", then run `{command}` again" if command else ""
    renew = f"set `{token.variable}` to it" if token.variable is not None else "run `edgekit login`"
    return NotSignedInError(
        f"the Hub refuses the token {token.masked} from {token.source}: it is invalid or has expired",
        hint=f"make a new one at {SITE}/settings/tokens and {renew}{again}",
    )
