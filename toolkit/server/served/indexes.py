"""The search indexes that a server has open; an index that `ortkit index` updates is followed without lost requests."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ....runtime.errors import BundleError, OrtkitError
from ..errors import UnknownIndexError, listed, printable
from .search_pool import SearchPool

if TYPE_CHECKING:
    from ...search.facts import IndexFacts
    from ...search.index import Index
    from ..operation.metrics import Metrics
    from ..settings import ServerSettings
    from .models import ServedModel, ServedModels

_T = TypeVar("_T")
_Identity = tuple[int, ...]


@dataclass(eq=False)
class ServedIndex:
    """One generation of an index, open, with the embedder of its bundle."""

    name: str
    index: Index
    embedder: ServedModel
    """Held until this index closes, so that it stays open where another bundle replaces it."""
    users: int = 0
    """Number of requests and searches that use it."""
    retired: bool = False
    """Whether another generation has replaced it; it closes after its last user."""

    @property
    def facts(self) -> IndexFacts:
        return self.index.facts


@dataclass(frozen=True)
class IndexChange:
    """What `ServedIndexes.follow` did about an index that was updated."""

    name: str
    facts: IndexFacts | None
    """Of the new generation; None where it cannot be served, and the old one stays."""
    error: Exception | None = None


class ServedIndexes:
    """Name -> open index. Thread-safe."""

    def __init__(self, models: ServedModels, settings: ServerSettings, metrics: Metrics) -> None:
        from ....runtime.session.cores import find_cores

        self._models = models
        self._metrics = metrics
        self._paths: dict[str, Path] = {}
        self._indexes: dict[str, ServedIndex] = {}
        self._seen: dict[str, tuple[_Identity | None, int]] = {}
        """Of each index: which `index.json` was looked at last, and how many models had been replaced then."""
        self._refused: set[str] = set()
        """Indexes whose newest generation could not be opened."""
        self._lock = threading.Lock()
        self.pool = SearchPool(settings.threads or find_cores().usable, settings.max_waiting)
        metrics.watch_searches(running=lambda: self.pool.running, waiting=lambda: self.pool.waiting)
        self.replaced = 0
        """How many generations have been replaced: what was made from them before is out of date."""

    @classmethod
    def open(
        cls, paths: Mapping[str, str | Path], models: ServedModels, settings: ServerSettings, metrics: Metrics
    ) -> ServedIndexes:
        """Open indexes, whose embedders are among the models; raises OrtkitError, and closes those that were open."""
        found = cls(models, settings, metrics)
        try:
            for name, path in paths.items():
                found._add(name, Path(path))
        except BaseException:
            found.close()
            raise
        return found

    def _add(self, name: str, path: Path) -> None:
        self._paths[name] = path
        self._seen[name] = _identity_of(path), self._models.replaced
        self._indexes[name] = self._opened(name)
        self._metrics.watch_index(name, chunks=lambda: self._indexes[name].facts.chunks)

    def _opened(self, name: str) -> ServedIndex:
        from ...search.index import Index
        from ...search.storage.index_file import read_index_file

        path = self._paths[name]
        record = read_index_file(path).origin.bundle
        embedder = self._models.hold_embedder(record.digest)
        if embedder is None:
            raise BundleError(
                f"the index `{path}` was built with another bundle `{record.name}` than those that are served",
                hint="replace the bundle (SIGHUP), or start the server again",
            )
        try:
            return ServedIndex(name, Index.open(path, embedder=embedder.embedder), embedder)
        except BaseException:
            self._models.release(embedder)
            raise

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._indexes)

    def all(self) -> list[ServedIndex]:
        return list(self._indexes.values())

    def get(self, name: str | None, param: str) -> ServedIndex:
        """The index with this name, or the only one where a request names none; raises UnknownIndexError."""
        if name is None:
            if len(self._indexes) == 1:
                return next(iter(self._indexes.values()))
            what = f"`{param}` is missing, and {len(self._indexes)} indexes are served"
            raise UnknownIndexError(what, param=param, hint=f"served: {listed(self._indexes)}")
        found = self._indexes.get(name)
        if found is None:
            raise UnknownIndexError(
                f"there is no index `{printable(name)}`", param=param, hint=f"served: {listed(self._indexes)}"
            )
        return found

    @contextmanager
    def using(self, name: str | None, param: str) -> Iterator[ServedIndex]:
        """`get` an index, which stays open during the block even where another generation replaces it."""
        with self._lock:
            served = self.get(name, param)
            served.users += 1
        try:
            yield served
        finally:
            self._release(served)

    async def run(self, served: ServedIndex, search: Callable[[], _T]) -> _T:
        """Search in an index that is in use, in a thread; it stays open until the thread is done."""
        with self._lock:
            served.users += 1
        return await self.pool.run(search, ended=lambda: self._release(served))

    def _release(self, served: ServedIndex) -> None:
        with self._lock:
            served.users -= 1
            unused = served.retired and served.users == 0
        if unused:
            # Unmaps files, and a request must not wait for that.
            threading.Thread(target=self._end, args=(served,), name="ortkit-close", daemon=True).start()

    def _end(self, served: ServedIndex) -> None:
        served.index.close()
        self._models.release(served.embedder)

    def follow(self) -> list[IndexChange]:
        """Open the newest generation of each index that has changed; what cannot be served leaves the old one in use.

        Blocks while files are opened; not to be called twice at once. Where models were replaced, an update that was
        refused before may fit, and an index whose embedder was replaced takes the one that is served now.
        """
        changes = []
        for name, old in list(self._indexes.items()):
            identity, replaced = _identity_of(self._paths[name]), self._models.replaced
            before = self._seen[name]
            if (identity, replaced) == before:
                continue
            self._seen[name] = identity, replaced
            if identity != before[0] or old.embedder.retired or name in self._refused:
                changes.append(self._follow(name))
        return changes

    def _follow(self, name: str) -> IndexChange:
        try:
            new = self._opened(name)
        except (OrtkitError, OSError, MemoryError) as error:
            self._refused.add(name)
            return IndexChange(name, None, error)
        self._refused.discard(name)
        with self._lock:
            old = self._indexes[name]
            self._indexes[name] = new
            self.replaced += 1
            old.retired = True
            unused = old.users == 0
        if unused:
            self._end(old)
        return IndexChange(name, new.facts)

    def close(self) -> None:
        """Wait for the searches that run, and close all indexes."""
        self.pool.close()
        for served in self._indexes.values():
            self._end(served)
        self._indexes.clear()


def bundles_of_indexes(paths: Mapping[str, str], digests: Mapping[str, str]) -> dict[str, Path]:
    """Name -> path of the bundles that indexes need beside the served ones, of which `digests` has names and digests.

    A bundle has the name of its folder, with a number where that is taken. Raises OrtkitError for an index that cannot
    be read, and where its bundle is not found.
    """
    from ...search.bundle_of_index import find_bundle
    from ...search.storage.index_file import read_index_file

    known, found = set(digests.values()), {}
    for path in map(Path, paths.values()):
        record = read_index_file(path).origin.bundle
        if record.digest in known:
            continue
        known.add(record.digest)
        bundle = find_bundle(path, record)
        names = (bundle.name if number == 1 else f"{bundle.name}-{number}" for number in itertools.count(1))
        found[next(name for name in names if name not in digests and name not in found)] = bundle
    return found


def _identity_of(path: Path) -> _Identity | None:
    """What changes when another generation is published; None where there is no index any more."""
    try:
        found = (path / "index.json").stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
