"""Open indexes: which embedder they use, and what an update of the folder changes while requests run."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ortkit import BundleError, NotFoundError
from ortkit.toolkit.search.index import Index
from ortkit.toolkit.server.operation.metrics import Metrics
from ortkit.toolkit.server.served.indexes import ServedIndexes, bundles_of_indexes
from ortkit.toolkit.server.served.models import ServedModels
from ortkit.toolkit.server.settings import ServerSettings
from tests.tiny_bundles import write_embedder
from tests.toolkit.server.conftest import running, write_folder

SETTINGS = ServerSettings(threads=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "texts", {"a.txt": "The quick brown fox."})


@pytest.fixture
def path(tmp_path: Path, folder: Path, bundles: dict[str, Path]) -> Path:
    with Index.build(tmp_path / "texts.index", folder, bundles["tiny-embedder"]):
        return tmp_path / "texts.index"


@pytest.fixture
def models(bundles: dict[str, Path]) -> Iterator[ServedModels]:
    found = ServedModels.open({"embedder": bundles["tiny-embedder"]}, SETTINGS)
    yield found
    found.close()


@pytest.fixture
def indexes(path: Path, models: ServedModels) -> Iterator[ServedIndexes]:
    found = ServedIndexes.open({"texts": path}, models, SETTINGS, Metrics())
    yield found
    found.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_closed(index: Index) -> bool:
    return repr(index).endswith("closed>")


def test_an_index_shares_the_served_embedder(models: ServedModels, indexes: ServedIndexes) -> None:
    with indexes.using(None, "index") as served:
        assert served.index.embedder is models.find("embedder").embedder
        assert indexes.follow() == []


def test_an_update_is_followed_and_the_old_generation_closes_after_its_last_request(
    path: Path, folder: Path, bundles: dict[str, Path], indexes: ServedIndexes
) -> None:
    with indexes.using("texts", "index") as old:
        write_folder(folder, {"b.txt": "The lazy dog."})
        Index.build(path, folder, bundles["tiny-embedder"]).close()
        [change] = indexes.follow()
        assert (change.name, change.error, change.facts and change.facts.files) == ("texts", None, 2)
        with indexes.using("texts", "index") as new:
            assert {hit.file for hit in new.index.search("dog")} == {"a.txt", "b.txt"}
        # It still answers, from files that are no longer there.
        assert {hit.file for hit in old.index.search("dog")} == {"a.txt"}
    until(lambda: is_closed(old.index))
    assert not is_closed(new.index)
    assert indexes.follow() == []


def test_a_broken_update_leaves_the_old_one_in_use(path: Path, indexes: ServedIndexes) -> None:
    good = (path / "index.json").read_bytes()
    (path / "index.json").write_text("{")
    [change] = indexes.follow()
    assert (change.facts, type(change.error)) == (None, BundleError)
    assert indexes.follow() == [], "it is not tried again before it changes"
    with indexes.using("texts", "index") as served:
        assert served.index.search("fox")
    (path / "index.json").unlink()
    [change] = indexes.follow()
    assert isinstance(change.error, NotFoundError)
    (path / "index.json").write_bytes(good)
    [change] = indexes.follow()
    assert change.error is None


def test_an_index_keeps_its_embedder_until_it_fits_the_new_one(
    path: Path, folder: Path, tmp_path: Path, models: ServedModels, indexes: ServedIndexes
) -> None:
    """Vectors of another bundle must never be compared with those of the index."""
    other = write_embedder(tmp_path / "other", dense=True)
    with indexes.using("texts", "index") as old:
        before = old.index.search("fox")
    models.replace("embedder", other)
    [change] = indexes.follow()
    assert change.error is not None
    assert "was built with another bundle `tiny-embedder` than those that are served" in str(change.error)
    with indexes.using("texts", "index") as served:
        assert served is old
        assert served.index.search("fox") == before
    Index.build(path, folder, other.path, restart=True).close()
    [change] = indexes.follow()
    assert change.error is None
    with indexes.using("texts", "index") as new:
        assert new.embedder is models.find("embedder")
    until(lambda: repr(old.embedder.embedder).endswith("closed>"))


def test_no_request_fails_while_an_index_is_updated(
    path: Path, folder: Path, bundles: dict[str, Path], models: ServedModels, indexes: ServedIndexes
) -> None:
    counts: list[int] = []
    with running(models, SETTINGS, Metrics(), indexes) as server:
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                answer = server.post("/v1/search", {"query": "the fox", "mode": "vector"})
                counts.append(len(answer.json()["data"]))

        clients = [threading.Thread(target=ask) for _ in range(3)]
        for client in clients:
            client.start()
        for number in range(3):
            write_folder(folder, {f"more-{number}.txt": f"The fox number {number}."})
            Index.build(path, folder, bundles["tiny-embedder"]).close()
            [change] = indexes.follow()
            assert change.error is None
        last = len(counts)
        until(lambda: len(counts) > last + 3)
        done.set()
        for client in clients:
            client.join()
    assert counts[0] == 1
    assert counts[-1] == 4
    assert set(counts) <= {1, 2, 3, 4}


def test_a_slow_search_stops_nobody_and_the_queue_is_bounded(
    path: Path, models: ServedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, release, body = ServerSettings(threads=1, max_waiting=1), threading.Event(), {"query": "fox"}
    find = Index.search

    def slow(index: Index, *arguments: Any, **options: Any) -> Any:
        assert release.wait(60)
        return find(index, *arguments, **options)

    monkeypatch.setattr(Index, "search", slow)
    indexes, statuses = ServedIndexes.open({"texts": path}, models, settings, Metrics()), []
    with running(models, settings, Metrics(), indexes) as server:

        def ask() -> None:
            statuses.append(httpx.post(f"{server.url}/v1/search", json=body, timeout=60).status_code)

        clients = [threading.Thread(target=ask) for _ in range(2)]
        for client in clients:
            client.start()
        until(lambda: indexes.pool.waiting == 1)
        assert server.get("/health").status_code == 200
        assert server.post("/v1/embeddings", {"model": "embedder", "input": "fox"}).status_code == 200
        refused = server.post("/v1/search", body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert refused.headers["retry-after"] == "1"
        release.set()
        for client in clients:
            client.join()
        assert statuses == [200, 200]
    indexes.close()


def test_a_client_that_goes_away_leaves_the_queue(
    path: Path, models: ServedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, release, body = ServerSettings(threads=1), threading.Event(), {"query": "fox"}
    asked: list[str] = []

    def slow(_index: Index, query: str, **_options: Any) -> Any:
        asked.append(query)
        assert release.wait(60)
        return []

    monkeypatch.setattr(Index, "search", slow)
    indexes = ServedIndexes.open({"texts": path}, models, settings, Metrics())
    with running(models, settings, Metrics(), indexes) as server:
        first = threading.Thread(target=lambda: server.post("/v1/search", body))
        first.start()
        until(lambda: indexes.pool.running == 1)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/search", json={"query": "dog"}, timeout=0.5)
        until(lambda: indexes.pool.waiting == 0)
        assert indexes.pool.running == 1
        release.set()
        first.join()
    indexes.close()
    assert asked == ["fox"]


def test_the_bundles_that_indexes_need(
    path: Path, bundles: dict[str, Path], models: ServedModels, tmp_path: Path
) -> None:
    paths = {"texts": str(path), "again": str(path)}
    digest = models.find("embedder").digest
    assert bundles_of_indexes(paths, {"embedder": digest}) == {}
    assert bundles_of_indexes(paths, {"other": "0"}) == {"embedder": bundles["tiny-embedder"]}
    assert bundles_of_indexes(paths, {"embedder": "0"}) == {"embedder-2": bundles["tiny-embedder"]}
    with pytest.raises(NotFoundError, match="there is no index at"):
        bundles_of_indexes({"x": str(tmp_path / "none")}, {})


def test_what_was_open_closes_where_an_index_is_broken(path: Path, tmp_path: Path, models: ServedModels) -> None:
    broken = Path(shutil.copytree(path, tmp_path / "broken"))
    (broken / "index.json").write_text("[]")
    with pytest.raises(BundleError):
        ServedIndexes.open({"good": path, "bad": broken}, models, SETTINGS, Metrics())
    assert models.find("embedder").users == 0
