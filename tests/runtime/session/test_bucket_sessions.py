from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ortkit import BundleError, InputError, Provider, ProviderError
from ortkit.runtime.bundle.manifest import Buckets
from ortkit.runtime.session.bucket_sessions import BucketSessions
from ortkit.runtime.session.config import SessionConfig
from ortkit.runtime.session.open_sessions import shared_buckets, shared_session
from ortkit.runtime.session.providers import PROVIDERS
from ortkit.runtime.session.session import Session

WIDTH = 4
BUCKETS = Buckets(tokens=(4, 8), texts=(1, 2))
CONFIG = SessionConfig(Provider.CPU, ("input_ids", "bias"))


def write_graph(path: Path, dimensions: tuple[str, str] = ("batch", "tokens")) -> Path:
    """(batch, tokens, width) of input_ids x a weight + bias."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["input_ids"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["numbers", "last"], ["column"]),
            helper.make_node("MatMul", ["column", "weight"], ["product"]),
            helper.make_node("Unsqueeze", ["bias", "last"], ["bias_column"]),
            helper.make_node("Add", ["product", "bias_column"], ["out"]),
        ],
        "buckets",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, dimensions),
            helper.make_tensor_value_info("bias", TensorProto.FLOAT, dimensions),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [*dimensions, WIDTH])],
        [
            onnx.numpy_helper.from_array(np.arange(WIDTH, dtype=np.float32)[None], "weight"),
            onnx.numpy_helper.from_array(np.array([2]), "last"),
        ],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "model.onnx")


def feeds(texts: int, tokens: int) -> dict[str, Any]:
    ids = np.arange(texts * tokens).reshape(texts, tokens)
    return {"input_ids": ids, "bias": ids.astype(np.float32) / 2}


def test_each_bucket_gives_what_the_graph_gives(path: Path) -> None:
    sessions, whole = BucketSessions(path, CONFIG, BUCKETS), Session(path, CONFIG)

    for texts, tokens in [(1, 4), (2, 4), (1, 8), (2, 8)]:
        given = feeds(texts, tokens)
        found = sessions.run(given, (texts, tokens, WIDTH), bucket=(texts, tokens))
        assert found.dtype == np.float32
        assert np.array_equal(found, whole.run(given))
        assert np.array_equal(found[..., 2], given["input_ids"] * 2 + given["bias"])


def test_a_session_has_the_shape_of_its_bucket(path: Path) -> None:
    sessions = BucketSessions(path, CONFIG, BUCKETS)

    # onnxruntime refuses feeds of another shape, so the dimensions are fixed.
    with pytest.raises(BundleError, match="onnxruntime cannot run"):
        sessions.run(feeds(1, 5), bucket=(1, 8))
    assert [list(value.shape) for value in sessions._slots[1, 8].session.session.get_inputs()] == [[1, 8], [1, 8]]


def test_sessions_are_opened_on_demand_and_the_last_ones_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortkit.runtime.session.bucket_sessions.MOST_OPEN", 3)
    opened = []

    class Recorded(Session):
        def __init__(self, path: Path, config: SessionConfig) -> None:
            opened.append(config.bucket)
            super().__init__(path, config)

    monkeypatch.setattr("ortkit.runtime.session.bucket_sessions.Session", Recorded)
    sessions = BucketSessions(path, CONFIG, BUCKETS)
    assert opened == sessions.open_buckets == [(1, 4)]

    for bucket in [(2, 8), (1, 8), (1, 4), (2, 8)]:
        sessions.run(feeds(*bucket), bucket=bucket)
    assert opened == [(1, 4), (2, 8), (1, 8)]
    assert sessions.open_buckets == [(1, 8), (1, 4), (2, 8)]

    sessions.run(feeds(2, 4), bucket=(2, 4))
    assert sessions.open_buckets == [(1, 4), (2, 8), (2, 4)]
    sessions.run(feeds(1, 8), bucket=(1, 8))
    assert opened == [(1, 4), (2, 8), (1, 8), (2, 4), (1, 8)]


def test_a_session_runs_one_call_at_a_time_and_several_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running: dict[Any, int] = {}
    most: dict[Any, int] = {}
    both = threading.Barrier(2, timeout=30)

    class Slow(Session):
        def __init__(self, path: Path, config: SessionConfig) -> None:
            super().__init__(path, config)
            self.bucket = config.bucket

        def run(self, feeds: Any, shape: Any = None) -> Any:
            running[self.bucket] = running.get(self.bucket, 0) + 1
            most[self.bucket] = max(most.get(self.bucket, 0), running[self.bucket])
            # Each bucket's run waits for one of the other: they do run at once.
            both.wait()
            time.sleep(0.01)
            running[self.bucket] -= 1
            return super().run(feeds, shape)

    monkeypatch.setattr("ortkit.runtime.session.bucket_sessions.Session", Slow)
    sessions = BucketSessions(path, CONFIG, BUCKETS)
    threads = [
        threading.Thread(target=lambda bucket=bucket: sessions.run(feeds(*bucket), bucket=bucket))
        for bucket in [(1, 4), (2, 8)] * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most == {(1, 4): 1, (2, 8): 1}


def test_a_bucket_that_is_not_the_bundles(path: Path) -> None:
    with pytest.raises(InputError) as caught:
        BucketSessions(path, CONFIG, BUCKETS).run(feeds(3, 4), bucket=(3, 4))
    assert caught.value.message == (
        f"3 texts of 4 tokens are not a bucket of `{path}`, which has texts [1, 2] and tokens [4, 8]"
    )


def test_a_graph_without_the_dimensions(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "model.onnx", ("texts", "length"))

    with pytest.raises(BundleError) as caught:
        BucketSessions(path, CONFIG, BUCKETS)
    assert caught.value.message == (
        f"the graph `{path}` cannot be opened for 1 texts of 4 tokens: `input_ids` has the shape ['texts', 'length'], "
        "and its dimensions must be `batch` and `tokens`"
    )


def test_models_of_one_bundle_share_the_sessions(path: Path) -> None:
    first = shared_buckets(path, CONFIG, BUCKETS)

    assert shared_buckets(path, CONFIG, BUCKETS) is first
    assert shared_buckets(path, CONFIG, Buckets((4,), (1,))) is not first
    assert shared_session(path, CONFIG) is not first


@pytest.mark.parametrize("probed", [True, False])
def test_a_provider_that_computes_nan_is_found_at_opening(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    probed: bool,  # noqa: FBT001
) -> None:
    """As CoreML with shapes that it does not compile well: every number is NaN, and no error is raised."""
    path = tmp_path / "model.onnx"
    graph = helper.make_graph(
        [helper.make_node("Div", ["x", "x"], ["y"])],
        "nan",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "tokens"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    config = SessionConfig(Provider.CPU, ("x",))
    monkeypatch.setitem(PROVIDERS, Provider.CPU, replace(PROVIDERS[Provider.CPU], probed=probed))

    if not probed:
        assert BucketSessions(path, config, BUCKETS).open_buckets == [(1, 4)]
        return
    with pytest.raises(ProviderError) as caught:
        BucketSessions(path, config, BUCKETS)
    assert caught.value.message == (
        f"`CPUExecutionProvider` computes `{path}` wrongly on this machine: its output is not finite"
    )
    assert caught.value.hint == "use a bundle for the CPU: `ortkit export MODEL --provider cpu`"
    assert caught.value.exit_code == 8


def test_finite_numbers_pass_the_probe(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROVIDERS, Provider.CPU, replace(PROVIDERS[Provider.CPU], probed=True))

    assert BucketSessions(path, CONFIG, BUCKETS).open_buckets == [(1, 4)]
