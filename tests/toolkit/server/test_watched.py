"""What the lifecycle asks of models and of the system, in this process."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import pytest

from ortkit import OutOfMemoryError
from ortkit.runtime.session.memory_limit import resident_memory
from ortkit.toolkit.server.lifecycle import check_memory, progress_of, with_enough_files
from ortkit.toolkit.server.operation.metrics import Metrics
from ortkit.toolkit.server.served.indexes import ServedIndexes
from ortkit.toolkit.server.served.models import ServedModels
from ortkit.toolkit.server.settings import ServerSettings
from tests.decoders import write_decoder
from tests.tiny_bundles import write_embedder


def test_progress_is_seen(tmp_path: Path) -> None:
    """What an engine has done changes with every answer and every batch, so that a working one is never stalled."""
    bundles = {"writer": write_decoder(tmp_path / "writer")[0], "searcher": write_embedder(tmp_path / "searcher")}
    metrics = Metrics()
    models = ServedModels.open(bundles, ServerSettings(slots=2, threads=1), metrics)
    indexes = ServedIndexes(models, ServerSettings(threads=1), metrics)
    try:
        idle = progress_of(models, metrics, indexes)
        batch = models.find("writer").batch
        assert batch is not None
        with batch.submit("the quick", max_tokens=900, logit_bias={2: -100}) as stream:
            next(stream)
            first = progress_of(models, metrics, indexes)["writer"]
            # The engine runs ahead of the reader, but not so far.
            for _ in range(700):
                next(stream)
            second = progress_of(models, metrics, indexes)["writer"]
        metrics.encoder_batch("searcher", 2, 6)
        searcher = progress_of(models, metrics, indexes)["searcher"]
        searching = asyncio.run(indexes.pool.run(lambda: progress_of(models, metrics, indexes)["search in indexes"]))
        searched = progress_of(models, metrics, indexes)["search in indexes"]
    finally:
        indexes.close()
        models.close()

    assert [idle[name].busy for name in ("writer", "searcher")] == [False, False]
    assert first.busy
    assert second.busy
    assert first.done != second.done
    assert searcher.done != idle["searcher"].done
    assert (idle["search in indexes"].busy, searching.busy, searched.busy) == (False, True, False)
    assert searched.done != searching.done


def test_memory_of_all_models() -> None:
    check_memory(None)
    check_memory(resident_memory() + (1 << 30))
    with pytest.raises(OutOfMemoryError) as caught:
        check_memory(20 << 20)
    assert caught.value.exit_code == 9
    assert caught.value.message.endswith(" together, and `max_memory` is 20 MiB")
    assert (caught.value.hint or "").startswith("raise it (`--max-memory ")
    assert (caught.value.hint or "").endswith("M`), serve fewer bundles, or lower `--slots`")


def test_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is raised where it may be; else there are fewer connections."""
    limits = [(1024, 4096)]

    def set_limit(_what: int, limit: tuple[int, int]) -> None:
        if limit[0] > limit[1]:
            raise ValueError
        limits[0] = limit

    monkeypatch.setattr(resource, "getrlimit", lambda _what: limits[0])
    monkeypatch.setattr(resource, "setrlimit", set_limit)

    assert with_enough_files(ServerSettings()).max_connections == 1024
    assert limits == [(1280, 4096)]
    assert with_enough_files(ServerSettings(max_connections=50_000)).max_connections == 4096 - 256
    limits[:] = [(resource.RLIM_INFINITY, resource.RLIM_INFINITY)]
    assert with_enough_files(ServerSettings(max_connections=50_000)).max_connections == 50_000
