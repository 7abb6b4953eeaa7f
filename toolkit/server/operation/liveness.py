"""Whether the engines of a server make progress: what the watchdog of systemd is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

STALLED_SECONDS = 120.0
"""A model with work and without progress for so long is stalled; the longest single run of a graph takes seconds."""


@dataclass(frozen=True)
class Progress:
    """What an engine has done: it makes progress if `done` changes while it is `busy`."""

    busy: bool
    done: object


@dataclass
class _Seen:
    done: object
    since: float


@dataclass
class Liveness:
    """Compares what engines have done with what they had done before."""

    progress: Callable[[], Mapping[str, Progress]]
    seconds: float = STALLED_SECONDS
    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, _Seen] = field(default_factory=dict)

    def stalled(self) -> list[str]:
        """The names of the engines that have work and have done nothing of it for `seconds`."""
        now, found = self.clock(), self.progress()
        for name in [name for name in self._seen if name not in found]:
            del self._seen[name]
        return list(self._stalled(found, now))

    def _stalled(self, found: Mapping[str, Progress], now: float) -> Iterable[str]:
        for name, progress in found.items():
            seen = self._seen.get(name)
            if seen is None or not progress.busy or progress.done != seen.done:
                self._seen[name] = _Seen(progress.done, now)
            elif now - seen.since > self.seconds:
                yield name
