"""The life of a server: open sockets, keys and models, serve, reload at SIGHUP, and drain at SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from ...runtime.bundle.bundle import Bundle
from ...runtime.errors import InputError, OrtkitError, OutOfMemoryError
from ...runtime.session.memory import mebibytes
from ...runtime.session.memory_limit import max_memory_of, resident_memory, trim
from ..console.interrupts import called_if_discarded
from .operation.api_keys import ApiKeys
from .operation.connections import ConnectionTable, uvicorn_config
from .operation.limits import Bounds, Gate
from .operation.listening import Listener, open_listener
from .operation.liveness import Liveness, Progress
from .operation.metrics import OTHER, Metrics
from .operation.request_log import LibraryLog, RequestLog, ServerLog
from .operation.systemd import Notifier, inherited_sockets
from .page import PageFiles
from .settings import ServerSettings

if TYPE_CHECKING:
    from .served.indexes import ServedIndexes
    from .served.models import ServedModels

_TICK = 1.0
"""Seconds between two looks at the keys, the models and the watchdog."""
_LOAD_SECONDS = 600.0
"""What systemd grants to open one bundle."""
_SPARE_FILES = 256
"""Descriptors for what is not a connection."""
_MIB = 1 << 20


class StoppedError(BaseException):
    """SIGTERM while the models were being opened; a BaseException, so that no library takes it for its own error."""


@dataclass(frozen=True)
class Plan:
    """What to serve, and how."""

    settings: ServerSettings
    bundles: Mapping[str, str]
    """Name of a model -> the path of its bundle."""
    again: Callable[[], Mapping[str, str]]
    """Look up the paths again, at SIGHUP."""
    indexes: Mapping[str, str] = field(default_factory=dict)
    """Name of a search index -> its path."""


@dataclass(frozen=True)
class Opened:
    """A server that could serve: its socket is bound, its keys are read, its models are open."""

    settings: ServerSettings
    listener: Listener
    keys: ApiKeys | None
    bundles: dict[str, Bundle]
    digests: dict[str, str]
    """Of the bundles as they were opened: `Bundle.digest` reads the manifest that is there now."""
    models: ServedModels
    metrics: Metrics
    indexes: ServedIndexes

    def close(self) -> None:
        self.listener.close()
        self.indexes.close()
        self.models.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def open_server(
    plan: Plan,
    notifier: Notifier | None = None,
    *,
    held: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> Opened:
    """Check and open everything, what is fast first; raises OrtkitError for what cannot be served.

    `held` gives a context in which no signal raises.
    """
    from .served.indexes import bundles_of_indexes

    notifier = notifier if notifier is not None else Notifier({})
    settings = plan.settings
    if not plan.bundles and not plan.indexes:
        raise InputError("there is no bundle to serve", hint="name at least one: `ortkit serve BUNDLE`")
    keys = ApiKeys(settings.api_keys) if settings.api_keys is not None else None
    limit = max_memory_of(settings.max_memory)
    listener: Listener | None = None
    try:
        with held():
            listener = open_listener(settings, inherited_sockets())
        bundles: dict[str, Bundle] = {}
        digests: dict[str, str] = {}

        def verify(paths: Mapping[str, str | Path]) -> None:
            for name, path in paths.items():
                notifier.status(f"verifying {name}", seconds=_LOAD_SECONDS)
                bundles[name] = open_bundle(path, settings)
                digests[name] = bundles[name].digest

        verify(plan.bundles)
        if plan.indexes:
            verify(bundles_of_indexes(plan.indexes, digests))
        metrics = Metrics()
        notifier.status(f"opening {len(bundles)} models", seconds=_LOAD_SECONDS * len(bundles))
        models, indexes = _open_all(bundles, plan.indexes, listener.settings, metrics, limit)
    except BaseException:
        if listener is not None:
            listener.close()
        raise
    return Opened(listener.settings, listener, keys, bundles, digests, models, metrics, indexes)


def _open_all(
    bundles: Mapping[str, Bundle],
    paths: Mapping[str, str],
    settings: ServerSettings,
    metrics: Metrics,
    limit: int | None,
) -> tuple[ServedModels, ServedIndexes]:
    """Open models and indexes; closes those that are open where one cannot be."""
    from .served.indexes import ServedIndexes
    from .served.models import ServedModels

    with contextlib.ExitStack() as stack:
        models = ServedModels.open(bundles, settings, metrics)
        stack.callback(models.close)
        indexes = ServedIndexes.open(paths, models, settings, metrics)
        stack.callback(indexes.close)
        check_memory(limit)
        stack.pop_all()
    return models, indexes


def open_bundle(path: str | Path, settings: ServerSettings) -> Bundle:
    """Open a bundle: its hashes, its signature where the policy requires one, with `verify` its certificate."""
    bundle = Bundle.open(path)
    if settings.verify:
        from ...runtime.verify import verify

        verify(bundle)
    return bundle


def check_memory(limit: int | None) -> None:
    """Raise OutOfMemoryError where all models together have taken more than `max_memory`."""
    if limit is None:
        return
    trim()
    taken = resident_memory()
    if taken > limit:
        raise OutOfMemoryError(
            f"the models take {mebibytes(taken)} together, and `max_memory` is {mebibytes(limit)}",
            hint=f"raise it (`--max-memory {-(-taken // _MIB)}M`), serve fewer bundles, or lower `--slots`",
        )


def create_server_app(
    opened: Opened, app: Starlette, log: ServerLog, *, is_stopping: Callable[[], bool] = lambda: False
) -> ASGIApp:
    """What surrounds the APIs: log, gate, bounds and the page."""
    settings = opened.settings
    patterns = [(route.path, route.path_regex) for route in app.routes if isinstance(route, Route)]

    def endpoint_of(path: str) -> str:
        if path == "/" or path.startswith("/page/"):
            return "/"
        return next((name for name, pattern in patterns if pattern.match(path)), OTHER)

    count = len(opened.models.names) + len(opened.indexes.names)
    inner: ASGIApp = Bounds(app, settings, models=count, is_stopping=is_stopping)
    if settings.page:
        inner = PageFiles(inner)
    return RequestLog(
        Gate(inner, settings, opened.keys),
        log,
        opened.metrics,
        endpoint_of=endpoint_of,
        log_texts=settings.log_texts,
    )


def run(plan: Plan, *, started: Callable[[Opened], None] = lambda _opened: None) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code; raises OrtkitError for what cannot be served.

    `started` is called when requests are accepted.
    """
    notifier = Notifier()
    # A discarded StoppedError needs no traceback in the log: `stop.came` is read before the server accepts requests.
    with _Stop() as stop, ServerLog() as log, called_if_discarded(StoppedError, lambda: None):
        LibraryLog.install(log)
        try:
            with open_server(plan, notifier, held=stop.held) as opened:
                if not stop.came:
                    service = _Service(plan, opened, log, notifier, started)
                    return asyncio.run(service.run(is_stopped=lambda: stop.came))
        except StoppedError:
            pass
        except Exception:
            # What a library made of it: onnxruntime reports that its initialization failed.
            if not stop.came:
                raise
        log.event("stopped", reason="SIGTERM while opening")
        return 0


class _Stop:
    """SIGTERM while the models are opened: leave, with what is open closed. SIGHUP is for later."""

    def __init__(self) -> None:
        self.came = False
        self._is_held = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.came = True
        if not self._is_held:
            raise StoppedError

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Raise after the block, for what must not be left half done, such as a socket that nobody would remove."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self.came:
            raise StoppedError


class _Server(uvicorn.Server):
    """Uvicorn's server without its signal handlers, which raise the signal again at the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Service:
    """One run of a server."""

    def __init__(
        self,
        plan: Plan,
        opened: Opened,
        log: ServerLog,
        notifier: Notifier,
        started: Callable[[Opened], None],
    ) -> None:
        from .app import create_app

        self._plan = plan
        self._opened = opened
        self._log = log
        self._notifier = notifier
        self._started = started
        self._settings = opened.settings
        table = ConnectionTable(with_enough_files(opened.settings))
        opened.metrics.watch_connections(table.count)
        app = create_app(opened.models, opened.settings, opened.metrics, opened.indexes)
        outer = create_server_app(opened, app, log, is_stopping=lambda: self._server.should_exit)
        config = uvicorn_config(
            outer, table.settings, table, timeout_graceful_shutdown=self._settings.drain_seconds or 0.001
        )
        self._server = _Server(config)
        self._liveness = Liveness(lambda: progress_of(opened.models, opened.metrics, opened.indexes))
        self._stalled: list[str] = []
        self._interrupted = False
        self._reload: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None

    async def run(self, *, is_stopped: Callable[[], bool] = lambda: False) -> int:
        """Serve until a signal; raises StoppedError where one came before, in `is_stopped`, and its error was lost.

        Python drops what is raised in a callback of a weak reference or in `__del__`, as they run during imports.
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop, "SIGTERM")
        loop.add_signal_handler(signal.SIGINT, self._stop, "SIGINT")
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        if is_stopped():
            raise StoppedError
        self._opened.listener.listen()
        serving = asyncio.create_task(self._server.serve(sockets=list(self._opened.listener.sockets)))
        ticking: asyncio.Task[None] | None = None
        try:
            while not self._server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.01)
            if not serving.done():
                self._begin()
                ticking = asyncio.create_task(self._tick())
            await serving
        finally:
            for task in (ticking, self._reload, self._following):
                if task is not None:
                    task.cancel()
        self._log.event("stopped", requests=self._server.server_state.total_requests)
        if self._interrupted:
            raise KeyboardInterrupt
        return 0

    def _begin(self) -> None:
        addresses = self._opened.listener.addresses
        keys = len(self._opened.keys) if self._opened.keys is not None else None
        models = sorted(self._opened.bundles)
        indexes = sorted(self._opened.indexes.names) or None
        self._log.event(
            "started", addresses=addresses, models=models, indexes=indexes, keys=keys, memory=resident_memory()
        )
        self._notifier.ready(self._status())
        self._started(self._opened)

    def _status(self) -> str:
        return f"serving {', '.join(sorted(self._opened.bundles))} at {', '.join(self._opened.listener.addresses)}"

    def _stop(self, name: str) -> None:
        """Accept no more requests, and end when the running ones have; a second signal ends at once."""
        self._interrupted |= name == "SIGINT"
        if self._server.should_exit:
            self._server.force_exit = True
            return
        self._log.event("stopping", signal=name, seconds=self._settings.drain_seconds)
        self._notifier.stopping("ending the running requests")
        self._opened.models.draining = True
        self._server.should_exit = True

    def _hang_up(self) -> None:
        if self._reload is None or self._reload.done():
            self._reload = asyncio.create_task(self._reload_all())
        else:
            self._log.event("reload refused", level="warning", reason="the last one is still running")

    async def _reload_all(self) -> None:
        """Read the keys again, and replace the bundles that have changed; what is broken leaves the old in use."""
        self._notifier.reloading()
        self._reload_keys()
        try:
            again = await asyncio.to_thread(self._plan.again)
        except OrtkitError as error:
            self._failed("bundle", error)
            again = {}
        for name in self._opened.bundles:
            if name in again:
                await self._reload_bundle(name, again[name])
            elif again and name in self._plan.bundles:
                self._log.event("bundle kept", level="warning", model=name, reason="it is not named any more; restart")
        for name in again.keys() - self._opened.bundles.keys():
            self._log.event("bundle left out", level="warning", model=name, reason="it is new; restart to serve it")
        self._notifier.ready(self._status())

    async def _reload_bundle(self, name: str, path: str) -> None:
        old_digest = self._opened.digests[name]
        try:
            new = await asyncio.to_thread(open_bundle, path, self._settings)
            digest = new.digest
            if digest == old_digest and new.path == self._opened.bundles[name].path:
                return
            await asyncio.to_thread(self._opened.models.replace, name, new)
        except (OrtkitError, OSError, MemoryError) as error:
            self._failed("bundle", error, model=name)
            return
        self._opened.bundles[name], self._opened.digests[name] = new, digest
        self._opened.metrics.reloaded("bundle", worked=True)
        self._log.event("bundle replaced", model=name, digest=digest, old_digest=old_digest)

    def _reload_keys(self) -> None:
        keys = self._opened.keys
        if keys is None:
            return
        try:
            count = keys.reload()
        except OrtkitError as error:
            self._failed("keys", error)
            return
        self._opened.metrics.reloaded("keys", worked=True)
        self._log.event("keys read", keys=count)

    def _failed(self, what: str, error: Exception, **fields: object) -> None:
        self._opened.metrics.reloaded(what, worked=False)
        message = error.message if isinstance(error, OrtkitError) else type(error).__name__
        self._log.event(f"{what} not replaced", level="error", message=message, **fields)

    async def _follow(self) -> None:
        """Serve the newest generation of each index; in a task, as the disk that it is on may be slow."""
        for change in await asyncio.to_thread(self._opened.indexes.follow):
            if change.facts is None:
                self._failed("index", change.error or OSError(), index=change.name)
                continue
            self._opened.metrics.reloaded("index", worked=True)
            self._log.event(
                "index replaced",
                index=change.name,
                generation=change.facts.generation,
                files=change.facts.files,
                chunks=change.facts.chunks,
            )

    async def _tick(self) -> None:
        seconds = self._notifier.watchdog_seconds
        pause = _TICK if seconds is None else min(_TICK, seconds / 3)
        while True:
            if self._opened.keys is not None and self._opened.keys.has_changed():
                self._reload_keys()
            if self._following is None or self._following.done():
                self._following = asyncio.create_task(self._follow())
            stalled = self._liveness.stalled()
            if stalled and not self._stalled:
                self._log.event("stalled", level="error", models=stalled)
            self._stalled = stalled
            # Without it, systemd ends this process and starts another one.
            if not stalled:
                self._notifier.alive()
            await asyncio.sleep(pause)


def progress_of(models: ServedModels, metrics: Metrics, indexes: ServedIndexes) -> dict[str, Progress]:
    """What the engines of the models have done, and the threads that search, under a name that no model can have."""
    found = {"search in indexes": Progress(indexes.pool.running > 0, indexes.pool.finished)}
    for served in models.all():
        if served.batch is not None:
            stats = served.batch.stats
            found[served.name] = Progress(stats.running + stats.waiting > 0, stats)
        elif served.queue is not None:
            busy = served.queue.running + served.queue.waiting > 0
            found[served.name] = Progress(busy, metrics.batches(served.name))
    return found


def with_enough_files(settings: ServerSettings) -> ServerSettings:
    """Raise the limit on open files, or lower the number of connections to what it leaves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.max_connections + _SPARE_FILES
    if soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return settings
    return replace(settings, max_connections=max(8, soft - _SPARE_FILES))
