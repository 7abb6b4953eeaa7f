"""The Hub token: found where every Hugging Face tool looks, stored there, shown masked, sent to one host only."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants

from ...runtime.errors import InputError, NotSignedInError, OutputError
from .errors import host
from .settings import SITE, endpoint

_FORM = re.compile(r"[!-~]+")
"""One word of printable ASCII; anything else would not even survive in a header."""
_QUOTED = re.compile(r"""(["'`]).*\1""")
_ASSIGNED = re.compile(r"(?:export\s+|set\s+)?\$?[A-Za-z_]\w*\s*[:=].*|\{.*\}|Bearer\s.*", re.DOTALL | re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"hf_(?:[.*\u2026_-]*|x+)|[.\u2026]+|<.*>|\[.*\]|\$\{?\w+\}?|(?:hf_)?(?:your|my)[-_ ].*|.*token[-_ ]here",
    re.IGNORECASE,
)
_MAX_FILE = 64 * 1024
_LEFT_BEHIND = re.compile(r"\d+|partial")
"""How the names of files end that a killed `login` left beside the token file, after a dot."""
VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""What huggingface_hub reads before the file, in this order."""


@dataclass(frozen=True)
class Token:
    """A Hub token and where it came from."""

    value: str = field(repr=False)
    source: str
    """Such as "the environment variable `HF_TOKEN`"."""
    variable: str | None = None
    """The environment variable, when it came from one."""

    @property
    def masked(self) -> str:
        return f"hf_****{self.value[-4:]}" if len(self.value) >= 12 else "hf_****"


def find_token() -> Token | None:
    """The token in force, as huggingface_hub resolves it: an environment variable, else the token file, else nothing.

    Blank lines, spaces, a byte order mark and UTF-16 in the file are tolerated. Raises NotSignedInError for what cannot
    be a token.
    """
    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    for variable in VARIABLES:
        if os.environ.get(variable, "").strip():
            return checked(os.environ[variable], f"the environment variable `{variable}`", variable)
    path = _token_path()
    text = _read_token_file(path)
    if text is not None:
        return checked(_renewed_token() or text, f"the file `{path}`")
    other = _renewed_token()
    return checked(other, "huggingface_hub's own sources") if other else None


def _token_path() -> Path:
    """The token file: `HF_TOKEN_PATH`, else `token` in `HF_HOME`, else in `~/.cache/huggingface`."""
    return Path(constants.HF_TOKEN_PATH)


def stored_tokens_path() -> Path:
    """Where `hf auth login` keeps tokens by name."""
    return Path(constants.HF_STORED_TOKENS_PATH)


def _read_token_file(path: Path) -> str | None:
    """The content of the token file, None where there is no file or nothing in it."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE)
    # NotADirectoryError: a part of the path is a file, so that there is none behind it either.
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError as error:
        raise NotSignedInError(
            f"`{path}` is a folder, and the token is kept in a file of that name",
            hint=f"remove it with `rmdir {path}`, or set HF_TOKEN_PATH to a file; then run `ortkit login`",
        ) from error
    except PermissionError as error:
        raise NotSignedInError(
            f"the token file `{path}` cannot be read: {error.strerror}", hint=f"`chmod 600 {path}` as its owner"
        ) from error
    except OSError as error:
        raise NotSignedInError(
            f"the token file `{path}` cannot be read: {error.strerror}",
            hint="set HF_TOKEN_PATH to another file, or HF_TOKEN to the token",
        ) from error
    # Windows' shells write UTF-16 when a token is put into a file with `echo`.
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return content.decode(encoding, errors="replace").strip() or None


def no_token() -> NotSignedInError:
    """What to say where a token is needed and there is none."""
    return NotSignedInError(f"{absence()} on this machine", hint="run `ortkit login`")


def absence() -> str:
    """Why there is no token, in words."""
    path = _token_path()
    if path.is_file() and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return f"the token file `{path}` is empty, and there is no other token"
    return "there is no Hugging Face token"


def _renewed_token() -> str | None:
    """The stored token as huggingface_hub gives it: those of a browser login expire, and only it can renew them."""
    try:
        return huggingface_hub.get_token()
    except (UnicodeDecodeError, OSError):
        # It reads UTF-8 only, and what it writes itself is UTF-8; and a path behind a file is an error to it.
        return None


def checked(value: str, source: str, variable: str | None = None) -> Token:
    cleaned = _clean(value)
    problem = problem_of(cleaned)
    if problem is not None:
        alone = "as copied from the site"
        raise NotSignedInError(
            f"the token from {source} {problem}",
            hint=f"set `{variable}` to the token alone, {alone}"
            if variable is not None
            else f"write the token alone, {alone}, or run `ortkit login`",
        )
    return Token(cleaned, source, variable)


def _clean(text: str) -> str:
    return text.strip().strip("\ufeff").strip()


def problem_of(text: str) -> str | None:
    """Why a text cannot be a token, None where it can be one."""
    problems = (
        (_PLACEHOLDER.fullmatch(text.strip("\"'`")), "is the placeholder of some instructions"),
        (_QUOTED.fullmatch(text), "stands in quotation marks"),
        (_ASSIGNED.fullmatch(text), "has more before it, such as a name"),
        (not _FORM.fullmatch(text), "holds characters that no token has"),
    )
    return next((problem for found, problem in problems if found), None)


def may_be_sent(token_host: str | None) -> bool:
    """Whether a token may go to where `HF_ENDPOINT` points: the Hub itself, or a host that the user named."""
    return endpoint() == SITE or host() == token_host


def token_for_host(token: Token | None, token_host: str | None) -> Token | None:
    """The token, when it may be sent to the host that is asked."""
    return token if may_be_sent(token_host) else None


def store_token(value: str) -> Path:
    """Write a token to the token file, readable by its owner only (file 0600, folder 0700).

    A folder that `HF_TOKEN_PATH` names and that others use too, such as /tmp, keeps its rights.
    """
    path = _token_path()
    if not path.is_absolute() and str(path).startswith("~"):
        raise OutputError(
            f"this user, number {os.getuid()}, has no home folder, so there is no place for the token",
            hint="set HF_TOKEN_PATH to a file, or HOME to a folder",
        )
    partial = path.with_name(f".{path.name}.partial")
    try:
        own_folder = not path.parent.exists() or path.parent == Path(constants.HF_HOME)
        path.parent.mkdir(parents=True, exist_ok=True)
        if own_folder:
            path.parent.chmod(0o700)
        for leftover in _leftovers():
            leftover.unlink(missing_ok=True)
        try:
            # Beside the file and then in its place, so that it is never there with other rights or half.
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(value)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"the token cannot be written to `{path}`: {error.strerror}") from error
    return path


def _leftovers() -> list[Path]:
    """Files with a token beside the token file, which a `login` left that was killed."""
    path = _token_path()
    try:
        beside = sorted(path.parent.iterdir())
    except OSError:
        return []
    start = f".{path.name}."
    return [
        other
        for other in beside
        if other.name.startswith(start) and _LEFT_BEHIND.fullmatch(other.name.removeprefix(start)) and other.is_file()
    ]


def remove_token() -> list[Path]:
    """Delete the token file and what a killed `login` left beside it; returns what was there."""
    path, removed = _token_path(), []
    for found in (path, *_leftovers()):
        try:
            found.unlink()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise OutputError(f"the token file `{found}` cannot be removed: {error.strerror}") from error
        removed.append(found)
    return removed


def read_new_token(text: str) -> str:
    """Check what a person typed or piped in; raises InputError for what cannot be a token."""
    cleaned = _clean(text)
    problem = problem_of(cleaned)
    if problem is not None:
        known = f": it {problem}" if cleaned else ""
        raise InputError(
            f"that is not a token{known}", hint=f"copy one from {SITE}/settings/tokens; it begins with `hf_`"
        )
    return cleaned


def exposure() -> str | None:
    """What to say when others than its owner may read the token file; None when they may not."""
    path = _token_path()
    try:
        open_to_others = bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except OSError:
        return None
    return f"others on this machine can read `{path}`: run `chmod 600 {path}`" if open_to_others else None
