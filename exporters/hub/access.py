"""Can this token download that model, and if not, what to do: decided before a byte of the model is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo

from exporters.hub.account import Account, ask, invalid_token, whoami
from exporters.hub.failures import ASKING_FAILED, SITE, TIMEOUT, host, network_failure, status_of, strange_answer
from exporters.hub.token import Token, exposure, find_token, token_for_host
from runtime.errors import AccessError, EdgekitError, InputError, NetworkError, NotFoundError, NotSignedInError

FINE_GRAINED = "fineGrained"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, and the hash by which what arrives is checked."""

    name: str
    size: int
    sha256: str | None
    """For files in the Hub's large file storage."""
    blob: str | None
    """git's hash of the content, for the others."""


@dataclass(frozen=True)
class Access:
    """A model that can be downloaded now."""

    requested: str
    repo: str
    """The id under which the Hub answered; differs from `requested` after a renaming."""
    revision: str
    commit: str
    """What the revision means now."""
    gated: bool
    granted_at: str | None
    """For a gated model: when the Hub confirmed that access is granted, in UTC."""
    licence: str | None
    files: tuple[HubFile, ...]
    token: Token | None
    """What the download must show; None where nothing is needed."""
    notes: tuple[str, ...]
    """What the user should know although it works."""

    @property
    def page(self) -> str:
        return page_of(self.repo)


@dataclass(frozen=True)
class Question:
    """What is asked for, and how to ask again."""

    repo: str
    revision: str
    command: str
    """What the user types once the way is clear."""
    token: Token | None
    """What is sent to the Hub."""
    withheld: Token | None
    """A token that there is, and that is not sent because `HF_ENDPOINT` names another host."""


def check_access(repo: str, revision: str, *, command: str, token_host: str | None = None) -> Access:
    """Ask the Hub for a model; raises the error that says why it cannot be downloaded and what to do.

    NotSignedInError: a token is needed and there is none, or it is invalid, or it may not go to this host. AccessError:
    the token is fine and access is not granted. NotFoundError, NetworkError, InputError: as their names say.
    """
    token = find_token()
    sent = token_for_host(token, token_host)
    asked = Question(repo, revision, command, sent, token if sent is None else None)
    exposed = exposure() if token is not None else None
    notes = [exposed] if exposed is not None else []
    info = None
    try:
        info = model_info(asked)
        if info.gated:
            ask(f"/api/models/{info.id}/auth-check", sent)
    except ASKING_FAILED as error:
        found = explain(error, asked, by_hand=info is not None and info.gated == "manual")
        if sent is None or not isinstance(found, NotSignedInError):
            raise found from error
        # A token that is refused makes the Hub refuse public models too: ask once more as nobody.
        asked = Question(repo, revision, command, None, None)
        info = public_info(asked, found)
        sent = None
        notes.append(f"{found.message}; the model is public, so it is downloaded without a token")
    return describe(info, asked, sent, notes)


def public_info(asked: Question, refused: EdgekitError) -> ModelInfo:
    """The model when it needs no token; raises `refused` when it does."""
    try:
        info = model_info(asked)
    except ASKING_FAILED as error:
        raise refused from error
    if info.gated:
        raise refused
    return info


def model_info(asked: Question) -> ModelInfo:
    api = HfApi(endpoint=constants.ENDPOINT, token=asked.token.value if asked.token is not None else False)
    return api.model_info(asked.repo, revision=asked.revision, timeout=TIMEOUT, files_metadata=True)


def describe(info: ModelInfo, asked: Question, token: Token | None, notes: list[str]) -> Access:
    if info.sha is None:
        raise NetworkError(
            f"`{host()}` does not say which commit `{asked.revision}` of `{asked.repo}` is",
            hint="what stands there does not speak the Hub's protocol whole; check HF_ENDPOINT",
        )
    files = tuple(
        HubFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs is not None else None, file.blob_id)
        for file in info.siblings or ()
    )
    licence = info.card_data.get("license") if info.card_data is not None else None
    gated = bool(info.gated)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Access(
        requested=asked.repo,
        repo=info.id,
        revision=asked.revision,
        commit=info.sha,
        gated=gated,
        granted_at=now if gated else None,
        licence=licence if isinstance(licence, str) else None,
        files=files,
        token=token,
        notes=tuple(notes),
    )


def explain(error: Exception, asked: Question, *, by_hand: bool) -> EdgekitError:
    """Turn a failure of huggingface_hub into the error that says what happened and what to do.

    `by_hand`: the Hub has said before the failure that the model's owners decide on each request.
    """
    broken = network_failure(error)
    if broken is not None:
        return broken
    if isinstance(error, HFValidationError):
        return InputError(f"`{asked.repo}` cannot be the id of a repository", hint="an id reads `owner/name`")
    if isinstance(error, RevisionNotFoundError):
        return NotFoundError(
            f"`{asked.repo}` has no revision `{asked.revision}`",
            hint=f"its branches and commits are listed at {page_of(asked.repo)}/commits/main",
        )
    status = status_of(error)
    if isinstance(error, GatedRepoError) or status == 403:
        return refusal(asked, gated=True, by_hand=by_hand)
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return refusal(asked, gated=False, by_hand=by_hand)
    return strange_answer(error)


def refusal(asked: Question, *, gated: bool, by_hand: bool) -> EdgekitError:
    """Why the Hub does not show a model: it is gated, or (one answer for both) it is private or not there."""
    if asked.token is None:
        return refusal_of_nobody(asked, gated=gated)
    try:
        account = whoami(asked.token)
    except NotSignedInError:
        return invalid_token(asked.token, asked.command)
    except NetworkError as error:
        return error
    if gated:
        return gate(asked, account, by_hand=by_hand)
    return NotFoundError(
        f"`{asked.repo}` does not exist, or it is private and `{account.user}` may not see it",
        hint=f"check the name at {page_of(asked.repo)}, signed in as the user who may",
    )


def refusal_of_nobody(asked: Question, *, gated: bool) -> EdgekitError:
    """What to do when no token was sent: because it may not go to this host, or because there is none."""
    page = page_of(asked.repo)
    if asked.withheld is not None:
        return NotSignedInError(
            f"`{asked.repo}` needs a token, and the one from {asked.withheld.source} is not sent to `{host()}`, "
            "which is not the Hub",
            hint=f"if that host may have it, run `{asked.command} --token-host {host()}`",
        )
    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return NotSignedInError(
            f"`{asked.repo}` needs a token, and `HF_HUB_DISABLE_IMPLICIT_TOKEN` keeps every token from being used",
            hint=f"unset it, then run `{asked.command}` again",
        )
    if gated:
        return NotSignedInError(
            f"`{asked.repo}` is gated, and there is no Hugging Face token on this machine",
            hint=f"accept the terms at {page}, run `edgekit login`, then `{asked.command}` again",
        )
    return NotFoundError(
        f"`{asked.repo}` does not exist, or it is private and there is no token to show",
        hint=f"check the name at {page}; if private, run `edgekit login`, then `{asked.command}`",
    )


def gate(asked: Question, account: Account, *, by_hand: bool) -> AccessError:
    """Why a gated model does not open for a token that is valid."""
    if account.role == FINE_GRAINED and account.reads_gated is False:
        return AccessError(
            f"the fine-grained token of `{account.user}` may not read gated repositories, such as `{asked.repo}`",
            hint="give it `Read access to contents of all public gated repos you can access` at "
            f"{SITE}/settings/tokens, then run `{asked.command}` again",
        )
    page = page_of(asked.repo)
    if by_hand:
        return AccessError(
            f"access to `{asked.repo}` has not been granted to `{account.user}` yet: its owners decide on each request",
            hint=f"ask at {page} if you have not; once they have granted it, run `{asked.command}` again",
        )
    return AccessError(
        f"access to `{asked.repo}` has not been granted to the token of `{account.user}`",
        hint=f"accept the terms at {page}, then run `{asked.command}` again",
    )


def page_of(repo: str) -> str:
    return f"{SITE}/{repo}"
