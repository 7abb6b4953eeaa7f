from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnxruntime.tools.mobile_helpers.usability_checker import check_coreml_partitions

from ortkit import Kind, UnsupportedModelError
from ortkit.exporters.checkpoint.architectures import ARCHITECTURES
from ortkit.exporters.encoder.tracing import rebuild
from ortkit.exporters.graph.external_data import save_graph
from ortkit.exporters.graph.passes import tidy
from ortkit.exporters.providers.coreml_encoder import check_size, rebuild_for_coreml
from ortkit.exporters.providers.coreml_float16 import convert_for_coreml
from ortkit.exporters.providers.coreml_partition import check_one_partition, folded, partition_faults
from ortkit.runtime.bundle.manifest import Manifest, Provider
from ortkit.runtime.encoder.buckets import pad_to
from tests.encoder_checkpoints import write_reranker, write_tiny_checkpoint
from tests.exporters.graphs import run
from tests.exporters.traced_encoders import traced_encoder
from tests.marks import slow_but

EMBEDDERS = sorted(name for name, known in ARCHITECTURES.items() if Kind.EMBEDDER in known.kinds)
RERANKERS = sorted(name for name, known in ARCHITECTURES.items() if Kind.RERANKER in known.kinds)
AT_ONCE = {"bert", "qwen3"}
"""The few that run with the fast tests."""
WITHOUT_FORM = {"deberta-v2"}
"""Their attention picks scores by distance with GatherElements, which CoreML does not have."""
Row = dict[str, NDArray[np.int64]]


def rows_of(manifest: Manifest) -> list[Row]:
    """Inputs of texts of several lengths up to the model's limit, with special tokens, among them padding tokens."""
    rng = np.random.default_rng(3)
    rows = []
    for tokens in (1, 2, 19, manifest.tokenizer.max_length):
        ids = rng.integers(0, 20000, size=(1, tokens))
        ids[:, 3::5] = rng.integers(0, 4, size=ids[:, 3::5].shape)
        row = {"input_ids": ids}
        if manifest.reranker is not None and manifest.reranker.pair.document_type:
            row["token_type_ids"] = np.array([[0] * (tokens // 2) + [1] * (tokens - tokens // 2)])
        rows.append(row)
    return rows


def run_padded(model: ir.Model, bucket: tuple[int, int], rows: list[Row]) -> list[NDArray[np.float32]]:
    """What a graph for CoreML gives for each text: token embeddings without those of padding, or logits."""
    padded = pad_to(bucket, rows)
    found = run(model, **padded.feeds)[: len(rows)]
    return list(found) if found.ndim == 2 else [text[:count] for text, count in zip(found, padded.lengths, strict=True)]


def check(folder: Path, kind: Kind, scratch: Path) -> ir.Model:
    """Assert that CoreML takes a model's graph whole, and that it gives what the CPU graph gives, padded or not."""
    checkpoint, manifest, cpu = traced_encoder(folder, kind, scratch, provider=Provider.COREML)
    coreml = cpu.clone()
    rebuild(cpu, checkpoint, manifest)
    rebuild_for_coreml(coreml, checkpoint, manifest)
    save_graph(coreml, scratch / "coreml.onnx")
    assert partition_faults(scratch / "coreml.onnx", texts=8, tokens=48) == []
    # onnxruntime's own checker, whose list of operators lacks one that its CoreML provider has.
    fixed = ir.to_proto(folded(scratch / "coreml.onnx", texts=8, tokens=48))
    assert check_coreml_partitions(fixed, True, "coreml_supported_mlprogram_ops.md").unsupported_ops <= {
        "ai.onnx:Gather"
    }
    rows, longest = rows_of(manifest), manifest.tokenizer.max_length
    # As a batch of several texts, with and without others that fill the bucket.
    together = {bucket: run_padded(coreml, bucket, rows) for bucket in ((4, longest), (8, longest))}
    for place, row in enumerate(rows):
        expected = run(cpu, **row)
        expected = expected[:, 0] if kind is Kind.EMBEDDER else expected[0]
        alone = run_padded(coreml, (1, row["input_ids"].shape[1]), [row])[0]
        tolerance = 1e-5 * max(1, np.abs(expected).max())
        for found in (alone, *(texts[place] for texts in together.values())):
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= tolerance
    return coreml


@pytest.mark.parametrize("architecture", slow_but(AT_ONCE, EMBEDDERS))
def test_every_embedder_in_one_partition(architecture: str, checkpoint: Path, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "tiny", checkpoint, architecture)

    graph = check(tmp_path / "tiny", Kind.EMBEDDER, tmp_path).graph

    assert [value.name for value in graph.inputs] == ["input_ids", "bias"]
    assert [str(size) for size in graph.inputs[0].shape] == ["batch", "tokens"]
    assert [str(size) for size in graph.outputs[0].shape] == ["batch", "tokens", "48"]


@pytest.mark.parametrize(
    "architecture", slow_but(["bert", "qwen3"], [name for name in RERANKERS if name not in WITHOUT_FORM])
)
def test_every_reranker_in_one_partition(architecture: str, checkpoint: Path, tmp_path: Path) -> None:
    write_reranker(tmp_path / "tiny", checkpoint, architecture)

    graph = check(tmp_path / "tiny", Kind.RERANKER, tmp_path).graph

    assert [str(size) for size in graph.outputs[0].shape] == ["batch", "1"]


@pytest.mark.parametrize("architecture", sorted(WITHOUT_FORM))
def test_an_attention_that_coreml_has_no_form_for(
    architecture: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_reranker(tmp_path / "tiny", checkpoint, architecture)
    # Refused before it is loaded.
    message = f"`tiny` \\(`{architecture}`\\) is not exported for `coreml`: .* `GatherElements`, which CoreML lacks"
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        traced_encoder(tmp_path / "tiny", Kind.RERANKER, tmp_path, provider=Provider.COREML)
    assert caught.value.exit_code == 10
    assert caught.value.hint == "use `--provider cpu`"

    # And so it would be by its graph.
    monkeypatch.setattr("ortkit.exporters.options.check_architecture", lambda *_: None)
    found, manifest, traced = traced_encoder(tmp_path / "tiny", Kind.RERANKER, tmp_path, provider=Provider.COREML)
    rebuild_for_coreml(traced, found, manifest)
    save_graph(traced, tmp_path / "coreml.onnx")
    with pytest.raises(UnsupportedModelError, match="`tiny`: `GatherElements` has no CoreML form") as caught:
        check_one_partition(tmp_path / "coreml.onnx", name="tiny", texts=1, tokens=16)
    assert caught.value.exit_code == 10


@pytest.mark.parametrize("architecture", ["bert", "qwen3"])
def test_the_cpu_graph_is_not_one_partition(architecture: str, checkpoint: Path, tmp_path: Path) -> None:
    """What the rules are for: they can fail."""
    write_tiny_checkpoint(tmp_path / "tiny", checkpoint, architecture)
    found, manifest, traced = traced_encoder(tmp_path / "tiny", Kind.EMBEDDER, tmp_path, provider=Provider.CPU)
    rebuild(traced, found, manifest)
    traced.graph.inputs[0].shape = ir.Shape(["batch", "tokens"])
    save_graph(traced, tmp_path / "cpu.onnx")

    faults = partition_faults(tmp_path / "cpu.onnx", texts=8, tokens=48)

    expected = {
        "bert": "`FusedMatMul` of `com.microsoft` has no CoreML form",
        "qwen3": "`SimplifiedLayerNormalization` has no CoreML form",
    }
    assert expected[architecture] in faults


def test_weights_are_transposed_for_coreml(checkpoint: Path, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "tiny", checkpoint, "bert")
    found, manifest, traced = traced_encoder(tmp_path / "tiny", Kind.EMBEDDER, tmp_path, provider=Provider.COREML)
    rebuild_for_coreml(traced, found, manifest)

    products = [node for node in traced.graph if node.op_type in ("Gemm", "MatMul")]

    # Query, key and value in one, the output of attention, and two of the feed-forward part; and two of attention.
    assert [node.op_type for node in products] == ["Gemm", "MatMul", "MatMul", "Gemm", "Gemm", "Gemm"] * 2
    for node in products:
        assert (node.inputs[1].const_value is not None) == (node.op_type == "Gemm")
    assert not {"If", "Loop", "Where", "Expand"} & {node.op_type for node in traced.graph}


def test_layers_run_on_rows(checkpoint: Path, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "tiny", checkpoint, "bert")
    found, manifest, traced = traced_encoder(tmp_path / "tiny", Kind.EMBEDDER, tmp_path, provider=Provider.COREML)
    rebuild_for_coreml(traced, found, manifest)
    save_graph(traced, tmp_path / "coreml.onnx")

    fixed = folded(tmp_path / "coreml.onnx", texts=8, tokens=48).graph

    # Embeddings to rows and rows to the output; in each of two layers three parts into heads, and heads to rows.
    assert sum(node.op_type == "Reshape" for node in fixed) == 2 + 2 * 4
    assert [value.shape for node in fixed for value in node.outputs if node.op_type == "Gelu"] == [[8 * 48, 96]] * 2


@pytest.mark.parametrize("architecture", slow_but(["bert"], ["bert", "qwen3", "roberta"]))
def test_float16_is_one_partition_too(architecture: str, checkpoint: Path, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "tiny", checkpoint, architecture)
    found, manifest, exact = traced_encoder(tmp_path / "tiny", Kind.EMBEDDER, tmp_path, provider=Provider.COREML)
    rebuild_for_coreml(exact, found, manifest)
    half = exact.clone()

    convert_for_coreml(half.graph)
    tidy(half)
    save_graph(half, tmp_path / "half.onnx")

    assert partition_faults(tmp_path / "half.onnx", texts=8, tokens=48) == []
    constants = [value.const_value for value in half.graph.initializers.values()]
    matrices = [tensor for tensor in constants if len(tensor.shape) == 2 and tensor.size > 1000]
    assert {tensor.dtype for tensor in matrices} == {ir.DataType.FLOAT16}
    # What squares stays in float32, and no input of the graph is cast: CoreML has no form for that.
    assert all(node.inputs[0].dtype is ir.DataType.FLOAT for node in half.graph if node.op_type == "Pow")
    assert all(not node.inputs[0].is_graph_input() for node in half.graph if node.op_type == "Cast")
    for row in rows_of(manifest):
        [expected], [rounded] = (run_padded(model, (1, 64), [row]) for model in (exact, half))
        cosines = (expected * rounded).sum(-1) / np.linalg.norm(expected, axis=-1) / np.linalg.norm(rounded, axis=-1)
        assert cosines.min() >= 0.9999


def test_weights_that_do_not_fit_the_graphs_own_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_checkpoint(tmp_path / "tiny", checkpoint, "bert")
    _, manifest, traced = traced_encoder(tmp_path / "tiny", Kind.EMBEDDER, tmp_path, provider=Provider.COREML)
    monkeypatch.setattr("ortkit.exporters.providers.coreml_encoder.LARGEST_PROTOBUF", 5_000_000)

    with pytest.raises(
        UnsupportedModelError, match=r"`tiny` has 0\.0 GB of weights, and a graph for CoreML holds at"
    ) as e:
        check_size(traced, manifest)

    assert e.value.exit_code == 10
