"""Base class of Embedder and Reranker: an open bundle, its session and its workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ..arguments import checked_integer
from ..bundle.bundle import GRAPH, Bundle
from ..bundle.folder import BundleFolder
from ..bundle.graph_io import BIAS, POSITIONS
from ..bundle.kinds import check_kind
from ..bundle.manifest import Buckets, Golden, Kind, Manifest, Provider
from ..errors import BundleError
from ..session.config import SessionConfig
from ..session.cores import Cores, find_cores
from ..session.cpu import BATCH_TOKENS, Int8Arithmetic, encoder_workers
from ..session.cpu_class import CpuClass, this_cpu_class
from ..session.first_use import check_first_use
from ..session.memory_limit import MemoryLimit, max_memory_of, trim
from ..session.onnxruntime_import import check_requirements, onnxruntime_version
from ..session.open_sessions import shared_buckets, shared_session
from ..session.opening import check_opening, size_of_graph, smaller
from ..session.parallel_opening import open_in_parallel
from ..session.session import Session
from ..session.tolerance import as_disagreement
from ..text.safe_tokenizer import SafeTokenizer
from .batching import TokenBudget, batches
from .buckets import PADDED_TOKENS, Bucket, BucketChoice
from .golden import compare_outputs, shortest
from .run_memory import SMALLEST, RunCost, RunMemory, estimated_width
from .shared_batches import SharedRow

Item = TypeVar("Item")

GPU_BATCH_TOKENS = 16_384
"""Tokens in one run of the graph on a GPU, which computes them all at once. Not measured on one yet."""
CHUNK = 1024
"""Texts that a stream embeds before it yields their embeddings."""
CHUNK_CHARACTERS = 1 << 22
"""Characters at which a chunk of a stream ends early, to bound the memory for long texts."""
_BYTES_PER_CHARACTER = 8
"""Memory of a chunk for each of its characters: the text, and the ids of its tokens."""
_TEXTS_SHARE = 8
"""The texts of a chunk, and their tokenizer, take this part each of what a limit leaves; runs take the rest."""


class TruncationWarning(UserWarning):
    """Texts were longer than the model's limit and were truncated."""


@dataclass(frozen=True)
class Plan:
    """How an embedder or a reranker runs on this machine: `embedder.plan`."""

    workers: int
    """Number of batches that run at once, on a CPU each on one core."""
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
    cpu_class: CpuClass
    """The class of this machine's CPU, on which speed depends."""
    buckets: Buckets | None = None
    """The fixed shapes to which batches are padded; None where they are not padded."""
    max_memory: int | None = None
    """Limit on the memory, in bytes; None without one."""
    fits: int | None = None
    """Tokens of the longest text that there is room for within the limit; None without one, and on a GPU."""


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
        more = POSITIONS if manifest.buckets is None else BIAS
        own = tuple(name for name in manifest.inputs if name != more)
        ordered = manifest.inputs in ((own, (*own, more)) if manifest.buckets is None else ((*own, more),))
        if not ordered or own not in [tuple(inputs[: count + 1]) for count in range(len(inputs))]:
            supported = ", ".join(f"`{name}`" for name in (*inputs, more))
            raise BundleError(
                f"`{self.bundle.path}` expects the inputs {list(manifest.inputs)}; supported: {supported}"
            )
        check_requirements(self.bundle)
        self.max_memory = max_memory_of(max_memory)
        """Limit on the memory, in bytes: of the process on the CPU, of the model on a GPU; None without one."""
        self.chunk_characters = CHUNK_CHARACTERS
        """Characters at which a chunk of a stream ends early, to bound the memory for long texts."""
        self._runs: RunMemory | None = None
        self._cores = find_cores()
        self._buckets = BucketChoice.of(self.bundle)
        batching = batching_for(self.bundle.provider, self._cores, padded=self._buckets is not None)
        self.workers = workers or batching.workers
        """Number of batches that run at once."""
        self.batch_tokens = batching.tokens
        """Default number of tokens in one run of the graph."""
        on_cpu = self.bundle.provider is Provider.CPU
        config = SessionConfig.of(self.bundle, max_memory=None if on_cpu else self.max_memory)
        self._limit = MemoryLimit(self.max_memory) if on_cpu and self.max_memory is not None else None
        if self._limit is not None:
            check_opening(self._limit, self.bundle, config)
        self.session = open_in_parallel(
            lambda begins: self._open_session(config, begins),
            self._open_tokenizer,
            parallel=self._limit is None and self._cores.usable > 1,
        )
        self._budget = TokenBudget()
        self._compared: set[Bucket | None] = set()
        """Buckets in which a golden text was compared; None for a graph without buckets."""

    def _open_tokenizer(self) -> None:
        """Open `self.tokenizer`, while the session opens."""
        raise NotImplementedError

    def _open_session(self, config: SessionConfig, begins: Callable[[], None]) -> Session:
        """One session for all shapes, or one for each bucket where the provider compiles a graph for its shape.

        `begins` is called once onnxruntime needs no more Python lock (GIL) to open it, if it opens one.
        """
        graph, buckets = self.bundle.file(GRAPH), self.bundle.manifest.buckets
        # The CPU, on which bundles are certified, runs the graph in any shape: one copy of the weights.
        if buckets is None or config.provider is Provider.CPU:
            return shared_session(graph, config, begins=begins)
        # It has what encoders use of a session.
        return cast("Session", shared_buckets(graph, config, buckets))

    def _bound_memory(self, tokenizer: SafeTokenizer, width: int | None) -> None:
        """Divide what the limit leaves between texts and runs, once everything is open.

        `width` is that of the hidden states, None where it is not known. Raises OutOfMemoryError where not even a short
        text fits.
        """
        if self._limit is None:
            return
        trim()
        left = self._limit.left()
        # Characters of a chunk, its tokenizer's call, and runs: what one takes is not returned before the others.
        chunk = left // _TEXTS_SHARE
        texts = chunk + tokenizer.limit_memory(left // _TEXTS_SHARE)
        vocabulary = tokenizer.tokenizer.get_vocab_size()
        cost = RunCost(width or estimated_width(self.bundle.manifest, size_of_graph(self.bundle), vocabulary))
        needed = texts + cost.of(1, SMALLEST)
        self._limit.check(needed, f"a short text with `{self.bundle.path}`", instead=smaller(self.bundle))
        self._runs = RunMemory(self._limit, left - texts, cost)
        self.batch_tokens = min(self.batch_tokens, self._runs.largest)
        self.chunk_characters = min(CHUNK_CHARACTERS, max(1, chunk // _BYTES_PER_CHARACTER))

    def _check_memory(self, lengths: Iterable[int], name: str, before: int) -> None:
        """Raise OutOfMemoryError for the first text that does not fit within the limit, before any runs."""
        if self._runs is None:
            return
        largest = self._runs.largest
        for index, tokens in enumerate(lengths, before):
            if tokens > largest:
                self._runs.check(tokens, f"{name} {index}")

    def _reserved(self, texts: int, tokens: int) -> AbstractContextManager[None]:
        """Hold the memory of a run within the limit."""
        return nullcontext() if self._runs is None else self._runs.reserved(texts, tokens)

    def _batches(self, items: Iterable[Item], batch_tokens: int, *, length: Callable[[Item], int]) -> list[list[Item]]:
        """Group items into batches of one length, or into batches that fit a bucket."""
        if self._buckets is None:
            return batches(items, batch_tokens, length=length)
        return self._buckets.batches(items, batch_tokens, length=length)

    def batch_key(self, row: SharedRow) -> tuple[int, int]:
        """Rows of different keys never run together: pooling of as many tokens, and of one length without buckets."""
        return row.call.skip, row.tokens if self._buckets is None else 0

    def next_batch(self, rows: Sequence[SharedRow]) -> list[SharedRow]:
        """The rows that run together with the first one; all of one `batch_key`, of any calls, and at least one."""
        groups = self._batches(rows, self.batch_tokens, length=_tokens_of)
        return next(group for group in groups if rows[0] in group)

    def run_batch(self, batch: Sequence[SharedRow]) -> None:
        """Run rows that `next_batch` selected, and add what they give to their calls; may run on several threads."""
        self._budget.run(self._run_rows, list(batch), length=_tokens_of)

    def _run_rows(self, rows: list[SharedRow]) -> None:
        """Run rows of any calls, and add what they give to their calls."""
        raise NotImplementedError

    def _compare_first_use(self, bucket: Bucket | None) -> None:
        """Compare a golden text where this machine has not run the graph before, in this bucket where it has buckets.

        A provider compiles a program for each bucket, so that one says nothing about the others. Raises ProviderError.
        """
        if bucket not in self._compared:
            shape = "" if bucket is None else f"{bucket[0]}x{bucket[1]}"
            check_first_use(self.bundle, lambda: self._compare_golden(bucket), shape=shape)
            self._compared.add(bucket)

    def _compare_golden(self, bucket: Bucket | None) -> None:
        """Run the shortest golden text; raises DisagreementError where its output is not the certified one."""
        certificate = self.bundle.manifest.certificate
        if certificate is not None and certificate.golden:
            golden = shortest(certificate.golden)
            with as_disagreement():
                found = self._golden_output(golden, bucket)
            compare_outputs(self.bundle, [golden], found)

    def _golden_output(self, golden: Golden, bucket: Bucket | None) -> NDArray[np.float32]:
        """The output (1, width) for a golden text, which is padded to a bucket of at least this size."""
        raise NotImplementedError

    @property
    def max_length(self) -> int:
        """The model's limit in tokens, including special tokens."""
        return self.bundle.manifest.tokenizer.max_length

    def _checked_batch_tokens(self, batch_tokens: int | None) -> int:
        """The number of tokens in one run of the graph; raises InputError for one that is not valid."""
        if batch_tokens is None:
            return self.batch_tokens
        checked = checked_integer(batch_tokens, "batch_tokens")
        return checked if self._runs is None else min(checked, self._runs.largest)

    @property
    def plan(self) -> Plan:
        """How this model runs on this machine."""
        return Plan(
            workers=self.workers,
            cores=self._cores,
            batch_tokens=self.batch_tokens,
            provider=self.session.provider,
            onnxruntime=onnxruntime_version(),
            disabled_optimizers=self.session.disabled_optimizers,
            int8=self.session.int8,
            cpu_class=this_cpu_class(),
            buckets=self.bundle.manifest.buckets,
            max_memory=self.max_memory,
            fits=None if self._runs is None else min(self._runs.largest, self.max_length),
        )


@dataclass(frozen=True)
class Batching:
    """Defaults for how texts are batched."""

    workers: int
    """Number of batches that run at once."""
    tokens: int
    """Number of tokens in one run of the graph."""


def batching_for(provider: Provider, cores: Cores, *, padded: bool = False) -> Batching:
    """Batching on a provider: a small batch for each CPU core, or one large batch for all of another device.

    `padded` is for a graph that runs in buckets, on whatever provider.
    """
    workers = encoder_workers(cores) if provider is Provider.CPU else 1
    if padded:
        return Batching(workers, PADDED_TOKENS)
    return Batching(workers, BATCH_TOKENS if provider is Provider.CPU else GPU_BATCH_TOKENS)


def graph_feeds(feeds: Mapping[str, NDArray[np.int64]], manifest: Manifest) -> dict[str, NDArray[np.int64]]:
    """The graph's inputs, from token ids, and token types where it has them: each (texts, tokens)."""
    if POSITIONS not in manifest.inputs:
        return dict(feeds)
    tokens = next(iter(feeds.values())).shape[1]
    return {**feeds, POSITIONS: np.arange(tokens, dtype=np.int64)}


def _tokens_of(row: SharedRow) -> int:
    return row.tokens


def characters(text: object) -> int:
    """The length of a text; anything else is refused later, with its index."""
    return len(text) if isinstance(text, str) else 0
