from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest

from ortkit import BundleError, InputError, Kind, NotFoundError, WrongKindError
from ortkit.runtime.errors import QueueFullError
from ortkit.toolkit.server.api.models_list import tei_info
from ortkit.toolkit.server.errors import UnknownModelError, WrongModelError
from ortkit.toolkit.server.operation.metrics import Metrics
from ortkit.toolkit.server.served.models import ServedModels
from ortkit.toolkit.server.settings import ServerSettings
from tests.tiny_bundles import write_embedder
from tests.toolkit.server.conftest import running

SETTINGS = ServerSettings(threads=1)


@pytest.fixture
def copy(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(bundles["tiny-embedder"], tmp_path / "copy"))


def test_models_are_found_by_name_and_kind(bundles: dict[str, Path]) -> None:
    models = ServedModels.open({name: bundles[name] for name in ("tiny-embedder", "tiny-reranker")}, SETTINGS)
    assert models.names == ("tiny-embedder", "tiny-reranker")
    assert models.get("tiny-embedder", Kind.EMBEDDER) is models.get(None, Kind.EMBEDDER)
    with pytest.raises(UnknownModelError, match="there is no model `x`"):
        models.get("x", Kind.EMBEDDER)
    with pytest.raises(WrongModelError, match="`tiny-embedder` is an embedder, not a reranker; it answers at /v1/emb"):
        models.get("tiny-embedder", Kind.RERANKER)
    with pytest.raises(UnknownModelError, match="`model` is missing, and 0 models of kind decoder are served"):
        models.get(None, Kind.DECODER)
    models.close()


def test_a_model_takes_as_many_requests_as_info_says(bundles: dict[str, Path]) -> None:
    """Even where none of them has started; one more is refused."""
    settings = ServerSettings(threads=1, slots=2, max_waiting=3)
    models = ServedModels.open({"a": bundles["tiny-embedder"]}, settings)
    served = models.find("a")
    said = tei_info(models, settings, "a")["max_concurrent_requests"]
    assert said == 5
    # The threads of the queue wait for it.
    with served.queue._changed:
        accepted = [served.queue.submit(served.embedder.open_call(["fox"])) for _ in range(said)]
        with pytest.raises(QueueFullError):
            served.queue.submit(served.embedder.open_call(["fox"]))
    for future in accepted:
        assert future.result(30).result().vectors.shape == (1, 8)
    models.close()


def test_nothing_to_serve() -> None:
    with pytest.raises(InputError, match="there is no bundle to serve"):
        ServedModels.open({}, SETTINGS)


def test_what_was_open_closes_where_another_bundle_is_broken(bundles: dict[str, Path], copy: Path) -> None:
    (copy / "model.onnx").write_bytes(b"broken")
    before = threading.active_count()
    with pytest.raises(BundleError):
        ServedModels.open({"first": bundles["tiny-embedder"], "second": copy}, SETTINGS)
    assert threading.active_count() == before


def test_a_broken_bundle_replaces_nothing(bundles: dict[str, Path], copy: Path) -> None:
    models = ServedModels.open({"a": bundles["tiny-embedder"]}, SETTINGS)
    before = models.find("a")
    (copy / "model.onnx").write_bytes(b"broken")
    with pytest.raises(BundleError):
        models.replace("a", copy)
    with pytest.raises(WrongKindError, match="is a reranker, and `a` is an embedder"):
        models.replace("a", bundles["tiny-reranker"])
    with pytest.raises(NotFoundError, match="there is no model `b`"):
        models.replace("b", bundles["tiny-embedder"])
    assert models.find("a") is before
    assert before.embedder.embed("fox").shape == (8,)
    models.close()


def test_the_old_bundle_closes_after_its_last_request(bundles: dict[str, Path], tmp_path: Path) -> None:
    other = write_embedder(tmp_path / "other", dense=True)
    models = ServedModels.open({"a": bundles["tiny-embedder"]}, SETTINGS)
    with models.using("a", Kind.EMBEDDER) as old:
        models.replace("a", other)
        with models.using("a", Kind.EMBEDDER) as new:
            assert (old.embedder.dimension, new.embedder.dimension) == (8, 6)
            assert old.fingerprint != new.fingerprint
        # It still answers.
        call = old.queue.submit(old.embedder.open_call(["fox"])).result(30)
        assert call.result().vectors.shape == (1, 8)
    deadline = time.monotonic() + 20
    while not repr(old.embedder).endswith("closed>"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert new.embedder.embed("fox").shape == (6,)
    models.close()


def test_no_request_fails_while_a_bundle_is_replaced(bundles: dict[str, Path], tmp_path: Path) -> None:
    other = write_embedder(tmp_path / "other", dense=True)
    models, metrics = ServedModels.open({"a": bundles["tiny-embedder"]}, SETTINGS), Metrics()
    sizes: list[set[int]] = []
    with running(models, SETTINGS, metrics) as server:
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                answer = server.post("/v1/embeddings", {"model": "a", "input": ["fox", "dog"]})
                sizes.append({len(one["embedding"]) for one in answer.json()["data"]})

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        for bundle in (other, bundles["tiny-embedder"], other):
            models.replace("a", bundle)
        done.set()
        for client in clients:
            client.join()
    # Each answer comes from one of the two.
    assert {8} in sizes
    assert all(size in ({8}, {6}) for size in sizes)
    models.close()
