"""What a catalog name or a Hub id asks of the Hub, and what is to be told of a model that can be downloaded."""

from __future__ import annotations

from dataclasses import dataclass

from ...runtime.errors import InputError, NotFoundError
from ..checkpoint.catalog import ModelSpec, find_model, is_address
from .access import Access
from .names import is_repo_id


@dataclass(frozen=True)
class HubRequest:
    """What the user wants from the Hub."""

    requested: str
    repo: str
    revision: str
    spec: ModelSpec | None

    @property
    def name(self) -> str:
        return self.spec.name if self.spec is not None else self.repo.rpartition("/")[2]


def hub_request(
    source: str, revision: str | None = None, *, no: str = "neither a catalog name nor a Hub id"
) -> HubRequest:
    """What a catalog name or a Hub id asks for; raises NotFoundError when it is neither, as `find_model` does."""
    try:
        spec = find_model(source, no=no)
    except NotFoundError:
        if source.count("/") != 1 or source.endswith("/") or is_address(source):
            raise
        if not is_repo_id(source):
            raise InputError(f"`{source}` cannot be the id of a repository", hint="an id reads `owner/name`") from None
        return HubRequest(source, source, revision or "main", None)
    return HubRequest(source, spec.hub, revision or spec.revision, spec)


def notes_on(access: Access) -> list[str]:
    """What a person should know about a model that can be downloaded."""
    found = list(access.notes)
    if access.repo != access.requested:
        found.append(f"`{access.requested}` is called `{access.repo}` now")
    if access.gated:
        terms = access.license or "not stated"
        found.append(f"`{access.repo}` is gated, its license is {terms}: {access.page} has the terms")
    return found
