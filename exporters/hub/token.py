"""The Hub token: found where every Hugging Face tool looks, stored there, shown masked, sent to one host only."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants

from exporters.hub.failures import host
from exporters.hub.settings import SITE, endpoint
from runtime.errors import InputError, NotSignedInError, OutputError

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
    path = token_path()
    text = read_token_file(path)
    if text is not None:
        return checked(renewed_token() or text, f"the file `{path}`")
    other = huggingface_hub.get_token()
    return checked(other, "huggingface_hub's own sources") if other else None


def token_path() -> Path:
    """The token file: `HF_TOKEN_PATH`, else `token` in `HF_HOME`, else in `~/.cache/huggingface`."""
    return Path(constants.HF_TOKEN_PATH)


def read_token_file(path: Path) -> str | None:
    """The content of the token file, None where there is no file or nothing in it."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NotSignedInError(
            f"the token file `{path}` cannot be read: {error.strerror}", hint=f"`chmod 600 {path}` as its owner"
        ) from error
    # Windows' shells write UTF-16 when a token is put into a file with `echo`.
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return content.decode(encoding, errors="replace").strip() or None


def renewed_token() -> str | None:
    """The stored token as huggingface_hub gives it: those of a browser login expire, and only it can renew them."""
    try:
        return huggingface_hub.get_token()
    except UnicodeDecodeError:
        # It reads UTF-8 only, and what it writes itself is UTF-8.
        return None


def checked(value: str, source: str, variable: str | None = None) -> Token:
    cleaned = clean(value)
    if not can_be_token(cleaned):
        raise NotSignedInError(
            f"the token from {source} holds characters that no token has",
            hint="write the token alone, as copied from the site, or run `edgekit login`",
        )
    return Token(cleaned, source, variable)


def clean(text: str) -> str:
    return text.strip().strip("\ufeff").strip()


def can_be_token(text: str) -> bool:
    """A token is one word of printable ASCII; anything else would not even survive in a header."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def token_for_host(token: Token | None, token_host: str | None) -> Token | None:
    """The token, when it may be sent to where `HF_ENDPOINT` points: the Hub itself, or a host that the user named."""
    return token if endpoint() == SITE or host() == token_host else None


def store_token(value: str) -> Path:
    """Write a token to the token file, readable by its owner only (file 0600, folder 0700).

    A folder that `HF_TOKEN_PATH` names and that others use too, such as /tmp, keeps its rights.
    """
    path = token_path()
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        own_folder = not path.parent.exists() or path.parent == Path(constants.HF_HOME)
        path.parent.mkdir(parents=True, exist_ok=True)
        if own_folder:
            path.parent.chmod(0o700)
        # Beside the file and then in its place, so that it is never there with other rights or half.
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(value)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise OutputError(f"the token cannot be written to `{path}`: {error.strerror}") from error
    return path


def remove_token() -> Path | None:
    """Delete the token file; None when there was none."""
    path = token_path()
    try:
        path.unlink()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"the token file `{path}` cannot be removed: {error.strerror}") from error
    return path


def read_new_token(text: str) -> str:
    """Check what a person typed or piped in; raises InputError for what cannot be a token."""
    cleaned = clean(text)
    if not can_be_token(cleaned):
        raise InputError("that is no token", hint=f"copy one from {SITE}/settings/tokens; it begins with `hf_`")
    return cleaned


def exposure() -> str | None:
    """What to say when others than its owner may read the token file; None when they may not."""
    path = token_path()
    try:
        open_to_others = bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except OSError:
        return None
    return f"others on this machine can read `{path}`: run `chmod 600 {path}`" if open_to_others else None
