"""Base class of Embedder and Reranker: an open bundle, its session and its workers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..arguments import checked_integer
from ..bundle.bundle import GRAPH, Bundle
from ..bundle.folder import BundleFolder
from ..bundle.kinds import check_kind
from ..bundle.manifest import Kind, Provider
from ..errors import BundleError
from ..session.config import SessionConfig
from ..session.cores import Cores, find_cores
from ..session.cpu import Int8Arithmetic
from ..session.onnxruntime_import import check_requirements, onnxruntime_version
from ..session.open_sessions import shared_session

BATCH_TOKENS = 256
"""Tokens in one run of the graph: more is not faster on a CPU, and the activations fit in its cache."""
CHUNK = 1024
"""Texts that a stream embeds before it yields their embeddings."""
CHUNK_CHARACTERS = 1 << 22
"""Characters at which a chunk of a stream ends early, to bound the memory for long texts."""


class TruncationWarning(UserWarning):
    """Texts were longer than the model's limit and were truncated."""


@dataclass(frozen=True)
class Plan:
    """How an embedder or a reranker runs on this machine: `embedder.plan`."""

    workers: int
    """Number of batches that run at once, each on one CPU core."""
    cores: Cores
    """CPU cores of the machine, and how many of them are usable."""
    batch_tokens: int
    """Default number of tokens in one run of the graph."""
    provider: Provider
    onnxruntime: str
    """Its version."""
    disabled_optimizers: tuple[str, ...]
    """Graph optimizers of onnxruntime that are disabled."""
    int8: Int8Arithmetic | None
    """How int8 matmuls run; None for a graph that has none."""


class Encoder:
    """An open bundle with its session; models of the same bundle share its weights."""

    def __init__(
        self,
        bundle: BundleFolder | str | os.PathLike[str],
        *,
        kind: Kind,
        inputs: Sequence[str],
        workers: int | None,
        max_memory: int | None = None,
    ) -> None:
        """Open a bundle of `kind`; its graph has the first of `inputs`, or more of them in this order."""
        self.bundle = bundle if isinstance(bundle, BundleFolder) else Bundle.open(bundle)
        manifest = self.bundle.manifest
        check_kind(self.bundle, kind)
        if workers is not None:
            workers = checked_integer(workers, "workers")
        if manifest.inputs not in [tuple(inputs[: count + 1]) for count in range(len(inputs))]:
            supported = ", ".join(f"`{name}`" for name in inputs)
            raise BundleError(
                f"`{self.bundle.path}` expects the inputs {list(manifest.inputs)}; supported: {supported}"
            )
        check_requirements(self.bundle)
        self._cores = find_cores()
        self.workers = workers or self._cores.usable
        """Number of batches that run at once."""
        self.session = shared_session(self.bundle.file(GRAPH), SessionConfig.of(self.bundle, max_memory=max_memory))

    @property
    def max_length(self) -> int:
        """The model's limit in tokens, including special tokens."""
        return self.bundle.manifest.tokenizer.max_length

    @property
    def plan(self) -> Plan:
        """How this model runs on this machine."""
        return Plan(
            workers=self.workers,
            cores=self._cores,
            batch_tokens=BATCH_TOKENS,
            provider=self.session.provider,
            onnxruntime=onnxruntime_version(),
            disabled_optimizers=self.session.disabled_optimizers,
            int8=self.session.int8,
        )


def characters(text: object) -> int:
    """The length of a text; anything else is refused later, with its index."""
    return len(text) if isinstance(text, str) else 0
