"""The class and the command for each kind of bundle."""

from __future__ import annotations

from ..errors import WrongKindError
from .folder import BundleFolder
from .manifest import Kind

_COMMANDS = {Kind.EMBEDDER: "embed", Kind.RERANKER: "rerank", Kind.DECODER: "generate"}
_CLASSES = {Kind.EMBEDDER: "Embedder", Kind.RERANKER: "Reranker", Kind.DECODER: "Decoder"}


def check_kind(bundle: BundleFolder, expected: Kind) -> None:
    """Raise WrongKindError for a bundle of another kind, naming the class and the command that it is for."""
    kind = bundle.manifest.kind
    if kind is not expected:
        raise WrongKindError(
            f"`{bundle.path}` is {kind.articled}, not {expected.articled}",
            hint=f"open it with `{_CLASSES[kind]}({str(bundle.path)!r})`, or with `load`, which selects the class",
            command=f"ortkit {_COMMANDS[kind]} {bundle.path}",
        )
