from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from ortkit import Kind, Precision, UnsupportedModelError
from ortkit.exporters.bundle_manifest import make_manifest, tokenizer_facts
from ortkit.exporters.checkpoint.architectures import ARCHITECTURES
from ortkit.exporters.checkpoint.checkpoint import Checkpoint
from ortkit.exporters.checkpoint.cross_encoder import Form, read_cross_encoder
from ortkit.exporters.encoder.float16 import convert_to_float16
from ortkit.exporters.encoder.tracing import rebuild, trace
from ortkit.exporters.graph.passes import tidy
from ortkit.exporters.models.tokenizer import bundle_tokenizer
from ortkit.exporters.options import ExportOptions, plan_export
from ortkit.exporters.providers.cuda_encoder import OPERATORS, rebuild_for_cuda
from ortkit.exporters.sources import find_checkpoint
from ortkit.exporters.steps import ModelFacts
from ortkit.exporters.task import task_of
from ortkit.runtime.bundle.manifest import Manifest, Provider
from ortkit.runtime.encoder.pooling import cosines
from tests.encoder_checkpoints import write_reranker, write_tiny_checkpoint
from tests.exporters.providers.cuda_rules import check_cuda
from tests.marks import slow_but

EMBEDDERS = sorted(name for name, known in ARCHITECTURES.items() if Kind.EMBEDDER in known.kinds)
RERANKERS = sorted(name for name, known in ARCHITECTURES.items() if Kind.RERANKER in known.kinds)
FORBIDDEN = {"Shape", "Size", "If", "Loop", "Scan", "Range", "ConstantOfShape", "NonZero"}


def traced(folder: Path, kind: Kind, scratch: Path) -> tuple[Checkpoint, Manifest, ir.Model]:
    """A checkpoint, its manifest without a graph, and its traced graph."""
    checkpoint = find_checkpoint(str(folder))
    plan = plan_export(checkpoint, ExportOptions(kind, Precision.FP32, None, dict.fromkeys(Kind), Provider.CUDA))
    tokenizer = bundle_tokenizer(checkpoint)
    (scratch / "tokenizer.json").write_text(tokenizer.text, encoding="utf-8")
    task = task_of(checkpoint, plan)
    facts: ModelFacts = task.facts(tokenizer_facts(checkpoint, kind, tokenizer), scratch)
    return checkpoint, make_manifest(checkpoint, plan, facts), trace(task.load(), scratch, kind)


def run(model: ir.Model, feeds: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = feeds | {"positions": np.arange(feeds["input_ids"].shape[1])}
    return session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})[0]


def batches(length: int) -> list[dict[str, NDArray[np.int64]]]:
    """Batches of one length each, up to the model's limit, with ids that are padding tokens among others."""
    rng = np.random.default_rng(3)
    found = []
    for texts, tokens in ((3, 1), (1, 2), (2, min(19, length)), (1, length)):
        ids = rng.integers(0, 600, size=(texts, tokens))
        ids[:, 3::5] = rng.integers(0, 4, size=ids[:, 3::5].shape)
        types = np.repeat([[0] * (tokens // 2) + [1] * (tokens - tokens // 2)], texts, axis=0)
        found.append({"input_ids": ids, "token_type_ids": types})
    return found


def compare(folder: Path, kind: Kind, scratch: Path) -> ir.Model:
    """Assert that the graphs for CPU and CUDA give the same; returns the latter."""
    checkpoint, manifest, cpu = traced(folder, kind, scratch)
    cuda = cpu.clone()
    pooled = kind is Kind.RERANKER and read_cross_encoder(checkpoint).form is Form.MODULES
    rebuild(cpu, checkpoint, manifest, pooled=pooled)
    rebuild_for_cuda(cuda, checkpoint, manifest, scratch=scratch)
    for feeds in batches(manifest.tokenizer.max_length):
        expected, found = run(cpu, feeds), run(cuda, feeds)
        if kind is Kind.EMBEDDER:
            expected = expected.swapaxes(0, 1)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    check_float16(cuda, manifest.tokenizer.max_length)
    return cuda


def check_float16(exact: ir.Model, length: int) -> None:
    """Assert that a graph in float16 has its weights in it, gives float32, and gives nearly what the exact one does."""
    half = exact.clone()
    convert_to_float16(half.graph)
    tidy(half)
    large = [value for value in half.graph.initializers.values() if value.const_value.size >= 48]
    floats = [value for value in large if value.const_value.dtype.is_floating_point()]
    assert {value.const_value.dtype for value in floats} == {ir.DataType.FLOAT16}
    assert half.graph.outputs[0].dtype is ir.DataType.FLOAT
    check_cuda(exact)
    check_cuda(half)
    for feeds in batches(length):
        expected, found = run(exact, feeds), run(half, feeds)
        assert found.dtype == np.float32
        if expected.ndim == 3:
            width = expected.shape[-1]
            assert cosines(found.reshape(-1, width), expected.reshape(-1, width)).min() >= 0.9999
        else:
            assert np.abs(found - expected).max() <= 5e-3


def check_form(graph: ir.Graph) -> None:
    """Assert that a graph has nothing that onnxruntime would leave to the CPU."""
    operators = {node.op_type for node in graph}
    assert not operators & FORBIDDEN
    assert "MultiHeadAttention" in operators
    assert not operators & {"Softmax"}


@pytest.mark.parametrize("architecture", slow_but(["bert", "jina-bert", "nomic_bert"], EMBEDDERS))
def test_every_embedder_gives_what_the_cpu_graph_gives(architecture: str, checkpoint: Path, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "tiny", checkpoint, architecture)

    graph = compare(tmp_path / "tiny", Kind.EMBEDDER, tmp_path).graph

    check_form(graph)
    assert graph.inputs[0].name == "input_ids"


@pytest.mark.parametrize("architecture", slow_but(["bert", "modernbert"], RERANKERS))
def test_every_reranker_gives_what_the_cpu_graph_gives(architecture: str, checkpoint: Path, tmp_path: Path) -> None:
    write_reranker(tmp_path / "tiny", checkpoint, architecture)

    check_form(compare(tmp_path / "tiny", Kind.RERANKER, tmp_path).graph)


@pytest.fixture(scope="module")
def small(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Manifest, bytes]:
    """The traced graph of a small BERT."""
    folder = tmp_path_factory.mktemp("cuda")
    write_tiny_checkpoint(folder / "tiny", checkpoint, "bert")
    found, manifest, graph = traced(folder / "tiny", Kind.EMBEDDER, folder)
    return found, manifest, ir.to_proto(graph).SerializeToString()


def test_axes_and_inputs_have_names(small: tuple[Checkpoint, Manifest, bytes]) -> None:
    found, manifest, proto = small
    model = ir.from_proto(onnx.load_from_string(proto))
    rebuild_for_cuda(model, found, manifest)

    graph = model.graph
    assert [(value.name, list(map(str, value.shape))) for value in graph.inputs] == [
        ("input_ids", ["batch", "tokens"]),
        ("positions", ["tokens"]),
    ]
    assert list(map(str, graph.outputs[0].shape)) == ["batch", "tokens", "48"]


def test_an_operator_that_cuda_does_not_have(
    small: tuple[Checkpoint, Manifest, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, manifest, proto = small
    monkeypatch.setattr("ortkit.exporters.providers.cuda_encoder.OPERATORS", OPERATORS - {"Gelu"})

    with pytest.raises(UnsupportedModelError) as caught:
        rebuild_for_cuda(ir.from_proto(onnx.load_from_string(proto)), found, manifest)
    assert caught.value.message == (
        "`tiny` traces to a graph that is not supported on CUDA: it has the operator `Gelu`"
    )
    assert caught.value.hint == "use `--provider cpu`"
    assert caught.value.exit_code == 10


def test_attention_that_is_not_known(small: tuple[Checkpoint, Manifest, bytes]) -> None:
    """As where a config asks for another activation of the scores."""
    found, manifest, proto = small
    model = ir.from_proto(onnx.load_from_string(proto))
    last = [node for node in model.graph if node.op_type == "Softmax"][-1]
    last.op_type = "Sigmoid"
    last.attributes.pop("axis")

    with pytest.raises(UnsupportedModelError, match="the attention of a layer is not plain softmax attention"):
        rebuild_for_cuda(model, found, manifest)


@pytest.mark.slow
def test_the_real_minilm_gives_what_its_cpu_graph_gives(checkpoint: Path, tmp_path: Path) -> None:
    check_form(compare(checkpoint, Kind.EMBEDDER, tmp_path).graph)
