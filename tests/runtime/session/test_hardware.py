"""What only the hardware shows: sessions on a GPU and on a Mac. See tests/hardware.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from ortkit import OutOfMemoryError, Provider, ProviderError
from ortkit.runtime.bundle.manifest import Buckets
from ortkit.runtime.session.bucket_sessions import BucketSessions
from ortkit.runtime.session.config import SessionConfig
from ortkit.runtime.session.session import Session

WIDTH, HEADS = 64, 4
CUDA = SessionConfig(Provider.CUDA, ("x",))
COREML = SessionConfig(Provider.COREML, ("x",))


def save(
    path: Path, nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray], *, kind: int = TensorProto.FLOAT
) -> Path:
    """A graph from `x` (batch, tokens, width) to `y`, float32 of the same shape."""
    shape = ["batch", "tokens", WIDTH]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def matrix(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, shape[0] ** -0.5, shape)


def attention_layer(path: Path, kind: type[np.floating] = np.float32) -> Path:
    """Projections, com.microsoft.MultiHeadAttention and LayerNormalization in `kind`, as encoders for CUDA."""
    weights = {name: matrix(place, WIDTH, WIDTH).astype(kind) for place, name in enumerate(("q", "k", "v", "o"))}
    weights |= {"scale": np.ones(WIDTH, kind), "bias": np.zeros(WIDTH, kind)}
    code = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [
        helper.make_node("Cast", ["x"], ["cast"], to=code),
        *(helper.make_node("MatMul", ["cast", name], [f"{name}_out"]) for name in ("q", "k", "v")),
        helper.make_node(
            "MultiHeadAttention", ["q_out", "k_out", "v_out"], ["attended"], domain="com.microsoft", num_heads=HEADS
        ),
        helper.make_node("MatMul", ["attended", "o"], ["projected"]),
        helper.make_node("LayerNormalization", ["projected", "scale", "bias"], ["normed"], axis=-1),
        helper.make_node("Cast", ["normed"], ["y"], to=TensorProto.FLOAT),
    ]
    return save(path, nodes, weights)


def plain_layer(path: Path) -> Path:
    """What CoreML has: MatMul, Add, Gelu, LayerNormalization."""
    weights = {"w": matrix(1, WIDTH, WIDTH).astype(np.float32), "b": matrix(2, WIDTH).astype(np.float32)}
    weights |= {"scale": np.ones(WIDTH, np.float32), "bias": np.zeros(WIDTH, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("Gelu", ["sum"], ["active"]),
        helper.make_node("LayerNormalization", ["active", "scale", "bias"], ["y"], axis=-1),
    ]
    return save(path, nodes, weights)


def rows(texts: int, tokens: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(3).normal(0, 1, (texts, tokens, WIDTH)).astype(np.float32)}


def on_cpu(path: Path) -> Session:
    return Session(path, replace(CUDA, provider=Provider.CPU))


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "tolerance"), [(np.float32, 1e-4), (np.float16, 2e-2)])
def test_a_graph_on_cuda_computes_what_it_computes_on_the_cpu(
    tmp_path: Path, kind: type[np.floating], tolerance: float
) -> None:
    """Attention and matmuls on CUDA give the CPU's numbers: float32 without TF32 within 1e-4, float16 within 0.02."""
    path = attention_layer(tmp_path / "model.onnx", kind)

    for texts, tokens in [(1, 1), (1, 200), (7, 33)]:
        found = Session(path, CUDA).run(rows(texts, tokens))
        assert np.abs(found - on_cpu(path).run(rows(texts, tokens))).max() < tolerance


@pytest.mark.gpu
def test_values_on_cuda_are_written_in_place(tmp_path: Path) -> None:
    """A device value that is bound once shows each `update_inplace` to the next run."""
    path = attention_layer(tmp_path / "model.onnx")
    session = Session(path, CUDA)
    first, second = rows(1, 8)["x"], rows(1, 8)["x"] + 1
    value, output = session.value(first), np.zeros((1, 8, WIDTH), np.float32)
    binding = session.session.io_binding()
    binding.bind_ortvalue_input("x", value)
    binding.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_numpy(output))

    assert value.device_name().lower() == "cuda"
    for array in (first, second):
        value.update_inplace(array)
        session.session.run_with_iobinding(binding)
        assert np.abs(output - on_cpu(path).run({"x": array})).max() < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("use", [lambda one: one.empty((1 << 20, 64), np.float32), lambda one: one.run(rows(64, 2000))])
def test_the_limit_on_gpu_memory(tmp_path: Path, use: Callable[[Session], object]) -> None:
    """Exceeding `max_memory`, with a value or with a run, is OutOfMemoryError, and the session still works."""
    path = attention_layer(tmp_path / "model.onnx")
    session = Session(path, replace(CUDA, max_memory=32 << 20))

    with pytest.raises(OutOfMemoryError):
        use(session)
    assert np.isfinite(session.run(rows(1, 4))).all()


@pytest.mark.gpu
def test_a_graph_that_cuda_cannot_run_whole(tmp_path: Path) -> None:
    """An int8 matmul, for which CUDA has no kernel, is refused by name, not run on the CPU."""
    weights = {
        "w": np.ones((WIDTH, WIDTH), np.int8),
        "a": np.array(1, np.float32),
        "b": np.array(1, np.float32),
        "z": np.array(0, np.uint8),
    }
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["rows", "scale", "zero"]),
        helper.make_node("MatMulIntegerToFloat", ["rows", "w", "scale", "b", "zero"], ["y"], domain="com.microsoft"),
    ]
    path = save(tmp_path / "model.onnx", nodes, weights)

    with pytest.raises(ProviderError, match=r"MatMulIntegerToFloat|DynamicQuantizeMatMul"):
        Session(path, CUDA)


@pytest.mark.gpu
def test_two_sessions_share_a_gpu(tmp_path: Path) -> None:
    """Two sessions, each with a limit of its own, run in turn and give the same bits."""
    path = attention_layer(tmp_path / "model.onnx")
    first, second = Session(path, replace(CUDA, max_memory=64 << 20)), Session(path, replace(CUDA, max_memory=96 << 20))

    for _ in range(3):
        assert np.array_equal(first.run(rows(2, 16)), second.run(rows(2, 16)))


@pytest.mark.coreml
def test_buckets_on_coreml_compute_what_the_graph_computes_on_the_cpu(tmp_path: Path) -> None:
    """Each bucket is one program, and its float32 numbers are the CPU's within 1e-3."""
    path = plain_layer(tmp_path / "model.onnx")
    sessions = BucketSessions(path, COREML, Buckets(tokens=(64, 128), texts=(1, 8)))

    for bucket in [(1, 64), (8, 64), (1, 128), (8, 128)]:
        found = sessions.run(rows(*bucket), (*bucket, WIDTH), bucket=bucket)
        assert np.abs(found - on_cpu(path).run(rows(*bucket))).max() < 1e-3


@pytest.mark.coreml
def test_a_graph_that_coreml_cannot_run_whole(tmp_path: Path) -> None:
    """An operator that CoreML lacks is refused by name, not run on the CPU."""
    path = attention_layer(tmp_path / "model.onnx")

    with pytest.raises(ProviderError, match="MultiHeadAttention"):
        BucketSessions(path, COREML, Buckets(tokens=(64,), texts=(1,)))


@pytest.mark.coreml
def test_a_compiled_program_is_used_again(tmp_path: Path) -> None:
    """The second opening of a bucket reads the compiled program from the cache folder, and gives the same bits."""
    path = plain_layer(tmp_path / "model.onnx")
    config = replace(COREML, model_cache=tmp_path / "cache")
    found = [
        BucketSessions(path, config, Buckets(tokens=(64,), texts=(1,))).run(rows(1, 64), bucket=(1, 64)) for _ in "ab"
    ]

    assert any((tmp_path / "cache" / "1x64").rglob("*"))
    assert np.array_equal(*found)
