"""Can this token download that model, and if not, what to do: decided before a byte of the model is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants

from ...runtime.errors import AccessError, InputError, NetworkError, NotFoundError, NotSignedInError, OrtkitError
from ..printable import printable
from .account import Account, at, invalid_token, whoami
from .errors import ASKING_FAILED, HubAnswerError, host, network_failure, strange_answer
from .names import LONGEST_TEXT, is_file_name, is_hash, is_repo_id
from .settings import SITE
from .token import Token, absence, find_token, token_for_host
from .transport import ask, ask_json

_FINE_GRAINED = "fineGrained"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, and the hash by which what arrives is checked."""

    name: str
    size: int | None
    """None where the Hub does not say."""
    hash: str | None
    """SHA-256 for files in the Hub's large file storage, git's hash of the content for others; None where the Hub does
    not say, which `ETag` must do then."""


@dataclass(frozen=True)
class Description:
    """What the Hub says of a repository at a revision, in strict forms."""

    repo: str
    commit: str | None
    gated: bool | str
    private: bool
    license: str | None
    files: tuple[HubFile, ...]


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
    private: bool
    granted_at: str | None
    """For a gated model: when the Hub confirmed that access is granted, in UTC."""
    license: str | None
    files: tuple[HubFile, ...]
    token: Token | None
    """What the download must show; None where nothing is needed."""
    notes: tuple[str, ...]
    """What the user should know although it works."""

    @property
    def page(self) -> str:
        return _page_of(self.repo)


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
    if not is_repo_id(repo):
        raise InputError(f"`{repo}` cannot be the id of a repository", hint="an id reads `owner/name`")
    unusable = None
    try:
        token = find_token()
    except NotSignedInError as error:
        # It does not stand in the way of a public model.
        token, unusable = None, error
    sent = token_for_host(token, token_host)
    asked = Question(repo, revision, command, sent, token if sent is None else None)
    notes = [f"{unusable.message}; no token is sent"] if unusable is not None else []
    info = None
    try:
        info = _describe(asked)
        if info.gated:
            ask(f"/api/models/{info.repo}/auth-check", sent)
    except ASKING_FAILED as error:
        found = _explain(error, asked, by_hand=info is not None and info.gated == "manual")
        if unusable is not None and isinstance(found, (NotSignedInError, NotFoundError)):
            raise unusable from error
        if sent is None or not isinstance(found, NotSignedInError):
            raise found from error
        # A token that is refused makes the Hub refuse public models too: ask once more as nobody.
        asked = Question(repo, revision, command, None, None)
        info = _public_info(asked, found)
        sent = None
        notes.append(f"{found.message}; the model is public, so it is downloaded without a token")
    return granted(info, asked, sent, notes)


def _public_info(asked: Question, refused: OrtkitError) -> Description:
    """The model when it needs no token; raises `refused` when it does."""
    try:
        info = _describe(asked)
    except ASKING_FAILED as error:
        raise refused from error
    if info.gated:
        raise refused
    return info


def _describe(asked: Question) -> Description:
    """Ask what a repository holds; raises what ASKING_FAILED names."""
    path = f"/api/models/{asked.repo}/revision/{quote(asked.revision, safe='')}?blobs=true"
    return description_in(ask_json(path, asked.token))


def description_in(found: Any) -> Description:
    """Read the Hub's answer about a repository; raises ValueError for one of any other form."""
    repo, commit, gated = at(found).get("id"), found.get("sha"), found.get("gated") or False
    terms, siblings = at(found, "cardData").get("license"), found.get("siblings") or []
    if not isinstance(repo, str) or not is_repo_id(repo):
        raise ValueError("no repository")
    if not isinstance(gated, (bool, str)) or not isinstance(siblings, list):
        raise ValueError("a description of another form")  # noqa: TRY004 - the answer's fault
    if commit is not None and not is_hash(commit):
        raise ValueError("no commit")
    # What has another name than a file can have here is read by nobody.
    files = tuple(_file_in(entry) for entry in siblings if is_file_name(at(entry).get("rfilename")))
    if len({file.name for file in files}) < len(files):
        raise ValueError("two files of one name")
    stated = printable(terms, LONGEST_TEXT) if isinstance(terms, str) else None
    return Description(repo, commit, gated, found.get("private") is True, stated, files)


def _file_in(entry: Any) -> HubFile:
    large = at(entry, "lfs")
    size = entry.get("size", large.get("size"))
    expected = large.get("sha256") or large.get("oid") if large else entry.get("blobId")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise ValueError("a size that is none")
    if expected is not None and not is_hash(expected):
        raise ValueError("a hash that is none")
    return HubFile(entry["rfilename"], size, expected)


def granted(info: Description, asked: Question, token: Token | None, notes: list[str]) -> Access:
    if info.commit is None:
        raise NetworkError(
            f"`{host()}` does not say which commit `{asked.revision}` of `{asked.repo}` is",
            hint="what stands there does not speak the Hub's protocol whole; check HF_ENDPOINT",
        )
    gated = bool(info.gated)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Access(
        requested=asked.repo,
        repo=info.repo,
        revision=asked.revision,
        commit=info.commit,
        gated=gated,
        private=info.private,
        granted_at=now if gated else None,
        license=info.license,
        files=info.files,
        token=token,
        notes=tuple(notes),
    )


def _explain(error: Exception, asked: Question, *, by_hand: bool) -> OrtkitError:
    """Turn a failure to ask the Hub into the error that says what happened and what to do.

    `by_hand`: the Hub has said before the failure that the model's owners decide on each request.
    """
    broken = network_failure(error)
    if broken is not None:
        return broken
    if not isinstance(error, HubAnswerError):
        return strange_answer(error)
    if error.code == "RevisionNotFound":
        return NotFoundError(
            f"`{asked.repo}` has no revision `{asked.revision}`",
            hint=f"its branches and commits are listed at {_page_of(asked.repo)}/commits/main",
        )
    if error.code == "GatedRepo" or error.status == 403:
        return refusal(asked, gated=True, by_hand=by_hand)
    if error.code == "RepoNotFound" or error.status in (401, 404):
        return refusal(asked, gated=False, by_hand=by_hand)
    return strange_answer(error)


def refusal(asked: Question, *, gated: bool, by_hand: bool) -> OrtkitError:
    """Why the Hub does not show a model: it is gated, or (one answer for both) it is private or not there."""
    if asked.token is None:
        return _refusal_of_nobody(asked, gated=gated)
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
        hint=f"check the name at {_page_of(asked.repo)}, signed in as the user who may",
    )


def _refusal_of_nobody(asked: Question, *, gated: bool) -> OrtkitError:
    """What to do when no token was sent: because it may not go to this host, or because there is none."""
    page = _page_of(asked.repo)
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
            f"`{asked.repo}` is gated, and {absence()} on this machine",
            hint=f"accept the terms at {page}, run `ortkit login`, then `{asked.command}` again",
        )
    return NotFoundError(
        f"`{asked.repo}` does not exist, or it is private and there is no token to show",
        hint=f"check the name at {page}; if private, run `ortkit login`, then `{asked.command}`",
    )


def gate(asked: Question, account: Account, *, by_hand: bool) -> AccessError:
    """Why a gated model does not open for a token that is valid."""
    if account.role == _FINE_GRAINED and account.reads_gated is False:
        return AccessError(
            f"the fine-grained token of `{account.user}` may not read gated repositories, such as `{asked.repo}`",
            hint="give it `Read access to contents of all public gated repos you can access` at "
            f"{SITE}/settings/tokens, then run `{asked.command}` again",
        )
    page = _page_of(asked.repo)
    if by_hand:
        return AccessError(
            f"access to `{asked.repo}` has not been granted to `{account.user}` yet: its owners decide on each request",
            hint=f"ask at {page} if you have not; once they have granted it, run `{asked.command}` again",
        )
    return AccessError(
        f"access to `{asked.repo}` has not been granted to the token of `{account.user}`",
        hint=f"accept the terms at {page}, then run `{asked.command}` again",
    )


def _page_of(repo: str) -> str:
    return f"{SITE}/{repo}"
