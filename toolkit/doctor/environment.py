"""Checks of environment variables: those of ortkit, misspelt ones, and what does not belong on an appliance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...runtime.arguments import size_of
from ...runtime.errors import InputError
from ..console.help import close_names
from .finding import Finding, error, note, ok, warning
from .host import Host

PREFIX = "ORTKIT_"
VARIABLES = {
    "ORTKIT_BUNDLES": "the folder of bundles",
    "ORTKIT_CACHE": "the folder for caches",
    "ORTKIT_LINK": "the form of links to passages",
    "ORTKIT_MAX_MEMORY": "the limit on a model's memory",
    "ORTKIT_POLICY": "the file with the policy on signatures",
    "ORTKIT_PYTHON": "the Python that the installer of a kit runs with",
    "ORTKIT_TOKEN_HOST": "a host that gets the Hub's token beside the Hub",
    "ORTKIT_TRACEBACK": "tracebacks for internal errors",
}
"""All variables that ortkit reads."""
_FORMER_PREFIX = "EDGEKIT_"
"""Of the name that ortkit had before its first release."""
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_USAGE_EXIT, _NOT_FOUND_EXIT = 2, 5


def check_variables(host: Host) -> Iterator[Finding]:
    """Variables of ortkit: unknown ones, and values that name nothing."""
    found = [*_unknown(host), *_values(host)]
    yield from found
    if not found:
        given = [name for name in VARIABLES if name in host.environment]
        yield ok("variables", f"variables of ortkit: {', '.join(given) or 'none is set'}", variables=given)


def _unknown(host: Host) -> Iterator[Finding]:
    for name in sorted(host.environment):
        former = name.startswith(_FORMER_PREFIX)
        if not former and (not name.upper().startswith(PREFIX) or name in VARIABLES):
            continue
        close = close_names(name.replace(_FORMER_PREFIX, PREFIX), VARIABLES)
        meant = f"did you mean `{close[0]}`? " if close else ""
        yield warning(
            "variables",
            f"ortkit reads no variable `{name}`",
            "a setting that is misspelt has no effect" if not former else "ortkit had another name before its release",
            f"{meant}remove it: `unset {name}`; variables: {', '.join(VARIABLES)}",
            variable=name,
        )


def _values(host: Host) -> Iterator[Finding]:
    environment = host.environment
    bundles = environment.get("ORTKIT_BUNDLES")
    if bundles and host.bundles is not None and not host.bundles.exists:
        yield warning(
            "variables",
            f"ORTKIT_BUNDLES names `{bundles}`, which is not a folder",
            "no bundle is found by its name",
            f"make it, or name another: `mkdir -p {bundles}`",
            variable="ORTKIT_BUNDLES",
        )
    policy = environment.get("ORTKIT_POLICY")
    if policy and not _is_file(policy):
        yield error(
            "variables",
            f"ORTKIT_POLICY names `{policy}`, which is not a file",
            "ortkit opens no bundle without the policy that was asked for",
            "name the file, or `unset ORTKIT_POLICY`",
            _NOT_FOUND_EXIT,
            variable="ORTKIT_POLICY",
        )
    limit = environment.get("ORTKIT_MAX_MEMORY")
    if limit is not None:
        try:
            size_of(limit, "ORTKIT_MAX_MEMORY")
        except InputError as problem:
            yield error(
                "variables",
                problem.message,
                "ortkit opens no model with a limit that it cannot read",
                "give a size: `export ORTKIT_MAX_MEMORY=512M`",
                _USAGE_EXIT,
                variable="ORTKIT_MAX_MEMORY",
            )
    if environment.get("ORTKIT_TOKEN_HOST"):
        yield note(
            "variables",
            f"ORTKIT_TOKEN_HOST lets `{environment['ORTKIT_TOKEN_HOST']}` have the Hub's token",
            "an appliance needs no token",
            "`unset ORTKIT_TOKEN_HOST`",
            variable="ORTKIT_TOKEN_HOST",
        )


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def check_secrets(host: Host) -> Iterator[Finding]:
    """Tokens and proxies, of which an appliance needs none; their values are not shown."""
    tokens = [name for name in _TOKENS if host.environment.get(name)]
    if tokens or host.token_files:
        where = ", ".join([*tokens, *(f"`{path}`" for path in host.token_files)])
        yield note(
            "secrets",
            f"a token of the Hugging Face Hub is here: {where}",
            "bundles run without it, and whoever reads this machine can use it",
            "run `ortkit logout` here, and remove the variable where it is set; `export` needs the token on the "
            "connected machine alone",
            variables=tokens,
            files=list(host.token_files),
        )
    proxies = [name for name in host.environment if name.upper() in _PROXIES and host.environment[name]]
    if proxies:
        yield note(
            "secrets",
            f"a proxy is set: {', '.join(sorted(proxies))}",
            "running bundles opens no connection; `export`, `login` and `access` use it",
            variables=sorted(proxies),
        )
    if not tokens and not host.token_files and not proxies:
        yield ok("secrets", "no token of the Hub and no proxy")
