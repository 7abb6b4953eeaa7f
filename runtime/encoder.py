"""An encoder's graph with what it runs on: what embedders and rerankers have in common."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.bundle import GRAPH, Bundle
from runtime.cores import Cores, find_cores
from runtime.cpu import Int8Arithmetic
from runtime.errors import BundleError, InputError
from runtime.kinds import check_kind
from runtime.manifest import Kind, Precision, Provider
from runtime.session import DISABLED_OPTIMIZERS, check_requirements, onnxruntime_version, shared_session

INPUT_IDS = "input_ids"
TOKEN_TYPE_IDS = "token_type_ids"  # noqa: S105
"""The inputs of encoders' graphs: batches are not padded, so there is nothing to mask."""
BATCH_TOKENS = 256
"""Tokens in one run of the graph: more is not faster on a CPU, and its activations stay in the cache."""
CHUNK = 1024
"""Texts that a stream embeds before it gives their vectors."""
CHUNK_CHARACTERS = 1 << 22
"""Characters that end a chunk of a stream early, so that its memory is bounded for long texts too."""


class TruncationWarning(UserWarning):
    """Texts were longer than the model reads and were cut."""


@dataclass(frozen=True)
class Plan:
    """What an encoder runs with on this machine."""

    workers: int
    """Batches that run at once, each on one core."""
    cores: Cores
    batch_tokens: int
    provider: Provider
    onnxruntime: str
    """Its version."""
    disabled_optimizers: tuple[str, ...]
    int8: Int8Arithmetic | None
    """How int8 matmuls run; None for a graph that has none."""


class Encoder:
    """A bundle of one kind, opened, and its graph ready to run; bundles that are open already share their weights."""

    def __init__(
        self, bundle: Bundle | str | os.PathLike[str], *, kind: Kind, inputs: Sequence[str], workers: int | None
    ) -> None:
        """Open a bundle of `kind` whose graph may have these `inputs`, of which INPUT_IDS must be the first."""
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        manifest = self.bundle.manifest
        check_kind(self.bundle, kind)
        if workers is not None and workers < 1:
            raise InputError(f"`workers` must be at least 1, not {workers}")
        if manifest.inputs not in [tuple(inputs[: count + 1]) for count in range(len(inputs))]:
            known = " and ".join(f"`{name}`" for name in inputs)
            raise BundleError(f"`{self.bundle.path}` wants the inputs {list(manifest.inputs)}, and known are {known}")
        check_requirements(self.bundle)
        self.cores = find_cores()
        self.workers = workers or self.cores.usable
        self.session = shared_session(
            self.bundle.file(GRAPH),
            provider=manifest.provider,
            inputs=manifest.inputs,
            int8=manifest.precision is Precision.INT8,
        )

    @property
    def max_length(self) -> int:
        """In tokens, special tokens included."""
        return self.bundle.manifest.tokenizer.max_length

    @property
    def plan(self) -> Plan:
        """What runs here, and with how much of the machine."""
        return Plan(
            workers=self.workers,
            cores=self.cores,
            batch_tokens=BATCH_TOKENS,
            provider=self.session.provider,
            onnxruntime=onnxruntime_version(),
            disabled_optimizers=tuple(DISABLED_OPTIMIZERS),
            int8=self.session.int8,
        )


def stacked(rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Token ids (batch, tokens) of texts that have the same number of them."""
    return rows[0][np.newaxis] if len(rows) == 1 else np.stack(rows)


def characters(text: object) -> int:
    """The size of a text in a chunk; what is no text is refused later, by its place."""
    return len(text) if isinstance(text, str) else 0


def checked_batch_tokens(batch_tokens: int) -> int:
    """Raises InputError for a bound that no text could keep."""
    if batch_tokens < 1:
        raise InputError(f"`batch_tokens` must be at least 1, not {batch_tokens}")
    return batch_tokens
