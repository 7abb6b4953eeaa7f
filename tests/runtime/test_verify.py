"""Graphs made to do harm: whoever tries a bundle gets a sentence, in bounded time and memory."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ortkit import Bundle, BundleError, OrtkitError, OutOfMemoryError, Provider
from ortkit.runtime.replay import Replay
from ortkit.runtime.verify import _CHILD, limits_data, memory_for, private_memory, verify
from tests.commands import Finished
from tests.tiny_bundles import (
    WIDTH,
    embedder_graph,
    graph,
    rehash,
    replace_graph,
    write_certified_decoder,
    write_embedder,
    write_reranker,
)

Ortkit = Callable[..., Finished]
OUTPUT = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["tokens", "texts", WIDTH])


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_embedder(tmp_path_factory.mktemp("tiny") / "embedder")


@pytest.fixture
def folder(embedder: Bundle, tmp_path: Path) -> Path:
    shutil.copytree(embedder.path, tmp_path / "bundle")
    return tmp_path / "bundle"


def refusal(folder: Path, **options: float) -> OrtkitError:
    with pytest.raises(OrtkitError) as caught:
        verify(Bundle.open(folder), **options)
    return caught.value


def loop(steps: int) -> onnx.ModelProto:
    """A graph that goes around so many times before it gives the right vectors."""
    number = helper.make_tensor_value_info("number", TensorProto.INT64, [])
    going = helper.make_tensor_value_info("going", TensorProto.BOOL, [])
    on = helper.make_tensor_value_info("on", TensorProto.BOOL, [])
    body = helper.make_graph([helper.make_node("Identity", ["going"], ["on"])], "body", [number, going], [on])
    found = embedder_graph(320)
    found.graph.initializer.extend(
        [numpy_helper.from_array(np.array(steps), "steps"), numpy_helper.from_array(np.array(True), "yes")]
    )
    # Nothing comes out of the loop but what the vectors are multiplied with.
    state = helper.make_tensor_value_info("state", TensorProto.FLOAT, [])
    after = helper.make_tensor_value_info("after", TensorProto.FLOAT, [])
    body.input.append(state)
    body.output.append(after)
    body.node.append(helper.make_node("Abs", ["state"], ["after"]))
    found.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "one"))
    found.graph.node[-1].output[0] = "plain"
    found.graph.node.extend(
        [
            helper.make_node("Loop", ["steps", "yes", "one"], ["factor"], body=body),
            helper.make_node("Mul", ["plain", "factor"], ["vectors"]),
        ]
    )
    return found


def test_bundles_of_each_kind(tmp_path: Path) -> None:
    told: list[str] = []
    found = {
        write.__name__: verify(write(tmp_path / write.__name__), opened=told.append)
        for write in (write_embedder, write_reranker, write_certified_decoder)
    }

    assert told == ["cpu"] * 3
    assert {name: replay.count for name, replay in found.items()} == {
        "write_embedder": 3,
        "write_reranker": 3,
        "write_certified_decoder": 6,
    }
    assert found["write_certified_decoder"] == Replay(6, "log-probabilities within 0.00000 on average", same_bits=True)
    assert found["write_embedder"].agreement == "cosine 1.00000 min to PyTorch"


def test_a_graph_that_loops_a_little(folder: Path) -> None:
    assert verify(Bundle.open(replace_graph(folder, loop(3)))).count == 3


def test_a_graph_that_loops_for_ever(ortkit: Ortkit, folder: Path) -> None:
    replace_graph(folder, loop(1 << 62))
    begun = time.monotonic()

    finished = ortkit("verify", folder, "--time-limit", 4)

    assert time.monotonic() - begun < 8
    assert finished.code == 7
    assert finished.err == (
        f"error: `{folder}` was not verified within 4 s\n\n"
        "hint: the graph may never end; on a slow machine, raise the limit: `--time-limit SECONDS`\n"
    )


def large(operator: str, size: int = 1 << 42) -> onnx.ModelProto:
    """A graph that asks for so many bytes, of which it gives a few."""
    shape = np.array([size // 4])
    index = helper.make_node("ReduceMax", ["input_ids"], ["id"], keepdims=0)
    makers = {
        # Of constants, so that it may be computed when the graph is opened.
        "ConstantOfShape": [helper.make_node("ConstantOfShape", ["shape"], ["all"])],
        "Expand": [helper.make_node("Expand", ["zero", "shape"], ["all"])],
        # Of an input, so that it is computed when the graph runs.
        "Tile": [
            helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["floats", "flat"], ["row"]),
            helper.make_node("Tile", ["row", "shape"], ["all"]),
        ],
        "Range": [
            helper.make_node("Range", ["first", "last", "step"], ["numbers"]),
            helper.make_node("Cast", ["numbers"], ["all"], to=TensorProto.FLOAT),
        ],
    }
    nodes = [
        *makers[operator],
        index,
        helper.make_node("Gather", ["all", "id"], ["one"]),
        helper.make_node("Gather", ["embedding", "input_ids"], ["embedded"]),
        helper.make_node("Transpose", ["embedded"], ["plain"], perm=[1, 0, 2]),
        helper.make_node("Add", ["plain", "one"], ["vectors"]),
    ]
    constants = {
        "shape": shape,
        "zero": np.zeros(1, np.float32),
        "flat": np.array([-1]),
        "first": np.array(0),
        "last": np.array(size // 8),
        "step": np.array(1),
        "embedding": numpy_helper.to_array(embedder_graph(320).graph.initializer[0]),
    }
    return graph(nodes, constants, ["input_ids"], OUTPUT)


@pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand", "Tile", "Range"])
def test_a_graph_that_asks_for_terabytes(folder: Path, operator: str) -> None:
    error = refusal(replace_graph(folder, large(operator)), seconds=30)

    assert isinstance(error, (BundleError, OutOfMemoryError))
    assert not error.message.endswith("within 30 s")


@pytest.mark.parametrize("operator", ["ConstantOfShape", "Tile"])
def test_a_graph_that_asks_for_what_the_machine_has_but_not_such_a_model(folder: Path, operator: str) -> None:
    """8 GiB, where a model of some kilobytes may take 2."""
    begun = time.monotonic()
    error = refusal(replace_graph(folder, large(operator, 8 << 30)), seconds=60)

    assert isinstance(error, (BundleError, OutOfMemoryError))
    assert not error.message.endswith("within 60 s")
    assert time.monotonic() - begun < 30


def test_memory_follows_the_files(embedder: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortkit.runtime.verify.available_memory", lambda: 1 << 40)
    assert memory_for(embedder) == (2 << 30) + 8 * embedder.size
    on_cuda = Bundle(embedder.path, dataclasses.replace(embedder.manifest, provider=Provider.CUDA))
    assert memory_for(on_cuda) == memory_for(embedder)
    monkeypatch.setattr("ortkit.runtime.verify.available_memory", lambda: 1 << 20)
    assert memory_for(embedder) == 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
def test_what_cuda_maps_does_not_count(embedder: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose memory is watched from outside may map what it does not use."""
    assert (limits_data(Provider.CPU), limits_data(Provider.CUDA)) == (True, False)
    mapped = "import mmap, sys, time; held = mmap.mmap(-1, 8 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); "
    monkeypatch.setattr("ortkit.runtime.verify.limits_data", lambda _: False)
    monkeypatch.setattr("ortkit.runtime.verify.memory_for", lambda _: 256 << 20)
    monkeypatch.setattr("ortkit.runtime.verify._CHILD", mapped + "time.sleep(0.2); sys.exit(3)")

    assert "crashes the process that opens it (exit code 3)" in refusal(embedder.path).message

    monkeypatch.setattr("ortkit.runtime.verify._CHILD", mapped + "used = bytearray(b'x') * (300 << 20); time.sleep(60)")
    begun = time.monotonic()
    error = refusal(embedder.path)

    assert isinstance(error, OutOfMemoryError)
    assert error.message == f"`{embedder.path}` takes more memory than a model of its size needs"
    assert error.exit_code == 9
    assert time.monotonic() - begun < 30


def test_the_memory_of_a_process() -> None:
    before = private_memory(os.getpid())
    held = bytearray(b"x") * (64 << 20)

    assert private_memory(os.getpid()) - before > 60 << 20
    del held
    assert private_memory(1 << 30) == 0


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os.abort()", "SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
        ("import os; os._exit(3)", "exit code 3"),
    ],
)
def test_a_process_that_crashes(embedder: Bundle, monkeypatch: pytest.MonkeyPatch, code: str, how: str) -> None:
    monkeypatch.setattr("ortkit.runtime.verify._CHILD", code)
    error = refusal(embedder.path)

    assert isinstance(error, BundleError)
    assert error.message == f"`{embedder.path}` crashes the process that opens it ({how})"
    assert error.hint == "do not use it"


def test_the_version_that_made_the_bundle_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rehash(folder, lambda manifest: manifest.update(made_with={"onnxruntime": "1.30.0"}))
    monkeypatch.setattr("ortkit.runtime.verify._CHILD", "import os; os.abort()")

    assert refusal(folder).hint == (
        "do not use it with this onnxruntime: it was made with onnxruntime 1.30.0; if it comes from someone you trust, "
        "verify it with that version"
    )


def test_errors_come_back_as_they_are(ortkit: Ortkit, folder: Path) -> None:
    rehash(folder, lambda manifest: manifest.update(certificate=None))

    finished = ortkit("verify", folder)

    assert finished.code == 7
    assert finished.err == f"error: the bundle `{folder}` has no certificate to replay\n"


def test_other_failures_are_bundle_errors(embedder: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = _CHILD.replace("from ortkit.runtime.verify import child;", "import ortkit.runtime.verify as tried;")
    broken = replaced.replace(" child()", " tried.replay = lambda _: 1 / 0; tried.child()")
    monkeypatch.setattr("ortkit.runtime.verify._CHILD", broken)

    assert refusal(embedder.path).message == (
        f"`{embedder.path}` cannot be verified: ZeroDivisionError: division by zero"
    )
