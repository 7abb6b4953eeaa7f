"""The bundles that a server has open, by the names under which requests ask for them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import time
from typing import TYPE_CHECKING, cast

from ....runtime.bundle.bundle import Bundle
from ....runtime.bundle.folder import BundleFolder
from ....runtime.bundle.manifest import Kind
from ....runtime.encoder.base import Encoder
from ....runtime.errors import InputError, NotFoundError, WrongKindError
from ..errors import UnknownModelError, WrongModelError, listed, printable
from .encoder_queue import EncoderQueue

if TYPE_CHECKING:
    from ....runtime.decoder.batch.batch import Batch
    from ....runtime.decoder.decoder import Decoder
    from ....runtime.encoder.embedder import Embedder
    from ....runtime.encoder.reranker import Reranker
    from ..operation.metrics import Metrics
    from ..settings import ServerSettings

_ENDPOINTS = {
    Kind.EMBEDDER: "/v1/embeddings",
    Kind.RERANKER: "/v1/rerank",
    Kind.DECODER: "/v1/chat/completions",
}


@dataclass(eq=False)
class ServedModel:
    """An open bundle, and what shares it between requests."""

    name: str
    model: Embedder | Reranker | Decoder
    fingerprint: str
    """Begins with `fp_`; a hash over the files of the bundle."""
    queue: EncoderQueue | None = None
    """Of an embedder or a reranker."""
    batch: Batch | None = None
    """Of a decoder."""
    created: int = field(default_factory=lambda: int(time()))
    users: int = 0
    """Number of requests that use it."""
    retired: bool = False
    """Whether another one has replaced it; it closes when the last request ends."""
    digest: str = ""
    """Of the bundle as it was opened: `Bundle.digest` reads the manifest that is there now."""

    @property
    def kind(self) -> Kind:
        return self.model.bundle.manifest.kind

    # `get` has checked the kind.
    @property
    def embedder(self) -> Embedder:
        return cast("Embedder", self.model)

    @property
    def reranker(self) -> Reranker:
        return cast("Reranker", self.model)

    @property
    def decoder(self) -> Decoder:
        return cast("Decoder", self.model)

    @property
    def context(self) -> int:
        """Limit of prompt and answer of an LLM together, in tokens."""
        return self.decoder.context if self.batch is None else self.batch.context

    def close(self) -> None:
        """Close the model; requests that use it fail."""
        if self.queue is not None:
            self.queue.close()
        if self.batch is not None:
            self.batch.close()
        self.model.close()


class ServedModels:
    """Name -> open bundle. Thread-safe."""

    def __init__(
        self, models: Mapping[str, ServedModel], settings: ServerSettings, metrics: Metrics | None = None
    ) -> None:
        self._models = dict(models)
        self._settings = settings
        self._metrics = metrics
        self._lock = threading.Lock()
        self.draining = False
        """Whether the server is ending; `/ready` says so."""
        self.replaced = 0
        """How many models have been replaced: what was made from them before is out of date."""
        for served in self._models.values():
            self._watch(served)

    @classmethod
    def open(
        cls,
        bundles: Mapping[str, BundleFolder | str | os.PathLike[str]],
        settings: ServerSettings,
        metrics: Metrics | None = None,
    ) -> ServedModels:
        """Open and check bundles; raises as the classes of their kinds do, and closes those that were open then."""
        if not bundles:
            raise InputError("there is no bundle to serve", hint="name at least one: `ortkit serve BUNDLE`")
        opened: dict[str, ServedModel] = {}
        try:
            for name, bundle in bundles.items():
                opened[name] = open_model(name, bundle, settings, metrics)
        except BaseException:
            for served in opened.values():
                served.close()
            raise
        return cls(opened, settings, metrics)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._models)

    def of_kind(self, kind: Kind) -> list[ServedModel]:
        """The models of a kind, in the order in which they were named."""
        return [served for served in list(self._models.values()) if served.kind is kind]

    def all(self) -> list[ServedModel]:
        return list(self._models.values())

    def find(self, name: str) -> ServedModel:
        """The model of any kind with this name; raises UnknownModelError."""
        found = self._models.get(name)
        if found is None:
            raise UnknownModelError(
                f"there is no model `{printable(name)}`", param="model", hint=f"served: {listed(self._models)}"
            )
        return found

    def get(self, name: str | None, kind: Kind) -> ServedModel:
        """The model with this name, or the only one of its kind where a request names none.

        Raises UnknownModelError, and WrongModelError for a model of another kind.
        """
        if name is None:
            found = self.of_kind(kind)
            if len(found) == 1:
                return found[0]
            what = f"`model` is missing, and {len(found)} models of kind {kind.value} are served"
            raise UnknownModelError(what, param="model", hint=f"served: {listed([one.name for one in found])}")
        served = self.find(name)
        if served.kind is not kind:
            others = listed([one.name for one in self.of_kind(kind)])
            raise WrongModelError(
                f"`{name}` is {served.kind.articled}, not {kind.articled}; it answers at {_ENDPOINTS[served.kind]}",
                param="model",
                hint=f"models of kind {kind.value}: {others}",
            )
        return served

    @contextmanager
    def using(self, name: str | None, kind: Kind) -> Iterator[ServedModel]:
        """`get` a model, which stays open during the block even where it is replaced."""
        with self._lock:
            served = self.get(name, kind)
            served.users += 1
        try:
            yield served
        finally:
            self.release(served)

    def hold_embedder(self, digest: str) -> ServedModel | None:
        """The embedder of the bundle with this digest, which stays open until `release`; None where none is served."""
        with self._lock:
            found = next((served for served in self.of_kind(Kind.EMBEDDER) if served.digest == digest), None)
            if found is not None:
                found.users += 1
        return found

    def release(self, served: ServedModel) -> None:
        """Use a model no more; one that was replaced closes after its last user."""
        with self._lock:
            served.users -= 1
            unused = served.retired and served.users == 0
        if unused:
            # Waits for threads, and a request must not.
            threading.Thread(target=served.close, name="ortkit-close", daemon=True).start()

    def replace(self, name: str, path: BundleFolder | str | os.PathLike[str]) -> None:
        """Open another bundle under a name: requests from now on get it, and the old one closes after its last request.

        Raises as `open` does, NotFoundError for a name that is not served, and WrongKindError for a bundle of another
        kind; the old bundle is served on then.
        """
        old = self._models.get(name)
        if old is None:
            raise NotFoundError(f"there is no model `{name}`", hint=f"served: {listed(self._models)}")
        bundle = path if isinstance(path, BundleFolder) else Bundle.open(path)
        if bundle.manifest.kind is not old.kind:
            raise WrongKindError(
                f"`{bundle.path}` is {bundle.manifest.kind.articled}, and `{name}` is {old.kind.articled}",
                hint="serve it under another name",
            )
        new = open_model(name, bundle, self._settings, self._metrics)
        with self._lock:
            old = self._models[name]
            self._models[name] = new
            self.replaced += 1
            old.retired = True
            unused = old.users == 0
        self._watch(new)
        if unused:
            old.close()

    def close(self) -> None:
        """Close all models."""
        for served in self._models.values():
            served.close()

    def _watch(self, served: ServedModel) -> None:
        """Let the metrics ask for the queue of a model."""
        if self._metrics is None:
            return
        if served.queue is not None:
            queue = served.queue
            self._metrics.watch(served.name, running=lambda: queue.running, waiting=lambda: queue.waiting)
        elif served.batch is not None:
            batch = served.batch
            self._metrics.watch(
                served.name,
                running=lambda: batch.stats.running,
                waiting=lambda: batch.stats.waiting,
                prefix_bytes=lambda: batch.stats.prefix_bytes,
            )


def open_model(
    name: str,
    bundle: BundleFolder | str | os.PathLike[str],
    settings: ServerSettings,
    metrics: Metrics | None = None,
) -> ServedModel:
    """Open a bundle with what shares it between requests."""
    from ....runtime.decoder.cache.prompt_cache import identity_of

    bundle = bundle if isinstance(bundle, BundleFolder) else Bundle.open(bundle)
    fingerprint, digest = f"fp_{identity_of(bundle)[:16]}", bundle.digest
    kind = bundle.manifest.kind
    if kind is Kind.DECODER:
        from ....runtime.decoder.batch.batch import Batch
        from ....runtime.decoder.decoder import Decoder

        decoder = Decoder(
            bundle,
            threads=settings.threads,
            context=_context(bundle, settings),
            max_memory=settings.max_memory,
            prefill=settings.prefill,
        )
        batch = Batch(decoder, slots=settings.slots, prefix_bytes=settings.prefix_memory, waiting=settings.max_waiting)
        return ServedModel(name, decoder, fingerprint, batch=batch, digest=digest)
    encoder: Embedder | Reranker
    if kind is Kind.EMBEDDER:
        from ....runtime.encoder.embedder import Embedder

        encoder = Embedder(bundle, workers=settings.threads, max_memory=settings.max_memory)
    else:
        from ....runtime.encoder.reranker import Reranker

        encoder = Reranker(bundle, workers=settings.threads, max_memory=settings.max_memory)
    return ServedModel(name, encoder, fingerprint, queue=queue_of(name, encoder, settings, metrics), digest=digest)


def queue_of(name: str, encoder: Encoder, settings: ServerSettings, metrics: Metrics | None) -> EncoderQueue:
    """The queue of an embedder or a reranker."""

    def measure(texts: int, tokens: int) -> None:
        if metrics is not None:
            metrics.encoder_batch(name, texts, tokens)

    # It has no slots: how many run at once depends on their texts, so those that may run count as waiting.
    return EncoderQueue(encoder, waiting=settings.requests_per_model, measure=measure)


def _context(bundle: BundleFolder, settings: ServerSettings) -> int | None:
    """The context of a model: the settings' where the model has so much."""
    facts = bundle.manifest.decoder
    if facts is None or settings.context is None:
        return settings.context
    return min(settings.context, facts.context_length)
