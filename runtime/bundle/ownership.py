"""Who can change a file that decides what is trusted: only root and this user may."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import InputError

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def check_ownership(path: Path, what: str) -> None:
    """Raise InputError where another user than root and this one can change a file, or replace it, as ssh does.

    The folders above it count too, apart from those in which users can only replace their own files (/tmp).
    """
    try:
        resolved = path.resolve(strict=True)
        for place in (resolved, *resolved.parents):
            problem = _problem_of(place.stat(), is_above=place != resolved)
            if problem is not None:
                raise InputError(
                    f"{what} `{path}` is not used, because other users can change it: `{place}` {problem}",
                    hint=f"`chmod go-w {place}`, as its owner" if "writable" in problem else f"`chown root {place}`",
                )
    except OSError as error:
        raise InputError(f"{what} `{path}` cannot be read: {error.strerror or error}") from error


def _problem_of(status: os.stat_result, *, is_above: bool) -> str | None:
    if status.st_uid not in {0, os.geteuid()}:
        return f"belongs to the user {status.st_uid}"
    sticky = is_above and status.st_mode & stat.S_ISVTX
    if status.st_mode & _OTHERS and not sticky:
        return "is writable for its group or for all users"
    return None
