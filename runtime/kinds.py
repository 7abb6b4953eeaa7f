"""Which command a bundle of each kind is for."""

from __future__ import annotations

from runtime.bundle import Bundle
from runtime.errors import BundleError
from runtime.manifest import Kind

COMMANDS = {Kind.EMBEDDER: "embed", Kind.RERANKER: "rerank", Kind.DECODER: "generate"}


def check_kind(bundle: Bundle, expected: Kind) -> None:
    """Raise BundleError for a bundle of another kind, naming the command that it is for."""
    kind = bundle.manifest.kind
    if kind is not expected:
        raise BundleError(
            f"`{bundle.path}` is {kind.articled}, not {expected.articled}",
            hint=f"use `edgekit {COMMANDS[kind]} {bundle.path}`",
        )
