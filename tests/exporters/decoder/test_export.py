from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from ortkit import (
    Bundle,
    CheckpointError,
    Decoder,
    InputError,
    Kind,
    NotFoundError,
    OrtkitError,
    Precision,
    UnsupportedModelError,
)
from ortkit.exporters import Origin, export
from ortkit.exporters.certification.probe import probe_texts
from ortkit.exporters.checkpoint.catalog import find_model
from ortkit.exporters.checkpoint.kind import kind_of
from ortkit.exporters.checkpoint.wheel import fetch_checkpoint
from ortkit.exporters.decoder import recipe_search as block_recipes
from ortkit.exporters.decoder.certify import MAX_KL
from ortkit.exporters.decoder.recipe_search import COARSE, RECIPES, WIDE, default_recipe, find_block_recipe, recipes_for
from ortkit.exporters.decoder.tracing import rebuild
from ortkit.exporters.decoder.weight_only import BlockRecipe
from ortkit.exporters.graph.passes import RMS_NORM
from ortkit.exporters.models.loading import load_tokenizer
from ortkit.exporters.progress import NoProgress
from ortkit.exporters.sources import find_checkpoint
from ortkit.runtime.bundle.manifest import CacheType, Provider
from ortkit.runtime.decoder.model_runner import ModelRunner
from ortkit.runtime.replay import replay
from tests.assets import DECODER
from tests.commands import Finished
from tests.exporters.decoder_checkpoints import change_json, opened, write_checkpoint
from tests.exporters.decoders import loaded, logits_of
from tests.exporters.gguf_files import seeded, write_gguf
from tests.tiny_bundles import rehash

STAGES = [
    "find the checkpoint",
    "import torch, transformers and Optimum",
    "load the weights",
    "trace with Optimum",
    "run the probe set with PyTorch",
    "quantize to int4",
    "certify against PyTorch",
    "write the bundle",
]


class Recorder(NoProgress):
    """Remembers the stages of an export."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def begin(self, stage: str) -> None:
        self.stages.append(stage)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("decoder") / "tiny-llama")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With its matrices in blocks of 4 bits, and of 8."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q4_1.gguf"
    types = {"ffn_up.weight": Type.Q8_0, "norm.weight": Type.F32, ".weight": Type.Q4_1}
    return write_gguf(path, seeded("llama"), types=types)


@pytest.fixture(scope="module")
def fp32(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(str(folder), precision=Precision.FP32, out=tmp_path_factory.mktemp("b") / "fp32").bundle


@pytest.fixture(scope="module")
def int4(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(str(folder), out=tmp_path_factory.mktemp("b") / "int4").bundle


def divergence(bundle: Bundle, folder: Path, ids: np.ndarray) -> float:
    """The mean KL divergence from PyTorch, computed by PyTorch."""
    expected = torch.from_numpy(logits_of(loaded(folder), ids)).double().log_softmax(-1)
    decoder = Decoder(bundle, threads=1)
    found = torch.from_numpy(ModelRunner(decoder.session, decoder.new_cache()).run(ids.tolist(), len(ids)).copy())
    found = found.double().log_softmax(-1)
    return float(torch.nn.functional.kl_div(found, expected, log_target=True, reduction="batchmean"))


def test_an_fp32_bundle_predicts_as_pytorch_does(fp32: Bundle, folder: Path) -> None:
    certificate = fp32.manifest.certificate
    assert certificate is not None
    figures = certificate.figures
    golden, prose = certificate.answers

    assert figures["kl_mean"] < 1e-7
    assert figures["top1_agreement"] > 0.999
    assert figures["perplexity_ratio"] == pytest.approx(1, abs=1e-5)
    assert golden.reference == ()
    model = loaded(folder)
    expected = model.generate(
        torch.tensor([golden.prompt]), max_new_tokens=32, min_new_tokens=32, do_sample=False, eos_token_id=319
    )[0, len(golden.prompt) :]
    assert golden.output == tuple(expected.tolist())
    tokenizer = load_tokenizer(opened(folder))
    assert tuple(tokenizer(golden.text)["input_ids"]) == golden.prompt == prose.prompt
    text = tokenizer("\n".join(probe_texts().texts))["input_ids"]
    assert prose.output == tuple(text[len(prose.prompt) :][:32])
    for answer in (golden, prose):
        with torch.no_grad():
            logits = model(torch.tensor([answer.prompt + answer.output])).logits[0, len(answer.prompt) - 1 : -1]
        places = torch.arange(len(answer.output)), torch.tensor(answer.output)
        assert answer.logprobs == pytest.approx(logits.log_softmax(-1)[places].tolist(), abs=1e-4)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT4])
def test_the_certificates_divergence_is_that_of_pytorch(
    fp32: Bundle, int4: Bundle, folder: Path, precision: Precision
) -> None:
    bundle = {Precision.FP32: fp32, Precision.INT4: int4}[precision]
    certificate = bundle.manifest.certificate
    assert certificate is not None
    tokenizer = load_tokenizer(opened(folder))
    ids = np.array(tokenizer("\n".join(probe_texts().texts))["input_ids"][: certificate.probe_size])
    windows = [ids[start : start + 512] for start in range(0, len(ids), 512)]
    found = np.average([divergence(bundle, folder, window) for window in windows], weights=list(map(len, windows)))

    print(f"{precision.value}: {found}")
    assert certificate.figures["kl_mean"] == pytest.approx(found, rel=1e-3, abs=1e-8)


def test_int4_is_the_default(int4: Bundle) -> None:
    manifest = int4.manifest
    blocks = manifest.blocks

    assert (manifest.kind, manifest.precision, manifest.name) == (Kind.DECODER, Precision.INT4, "tiny-llama")
    assert manifest.tokenizer.max_length == 512
    assert blocks is not None
    # Of two layers: query, key and value in one; attention output; gate and up in one; down; and the output matrix.
    assert (blocks.matmuls, blocks.float32_matmuls, blocks.bits, blocks.output_bits) == (9, 0, 4, 4)
    assert (blocks.block, blocks.output_block, blocks.symmetric, blocks.rounding) == (64, 32, False, "importance")
    assert manifest.certificate is not None
    assert 1e-4 < manifest.certificate.figures["kl_mean"] < MAX_KL[Precision.INT4]
    assert replay(Decoder(int4)).same_bits


def test_int8_is_closer_than_int4(folder: Path, int4: Bundle, tmp_path: Path) -> None:
    bundle = export(str(folder), precision=Precision.INT8, out=tmp_path / "b").bundle

    finer, coarser = (one.manifest.certificate for one in (bundle, int4))
    assert finer is not None
    assert coarser is not None
    print(finer.figures["kl_mean"], coarser.figures["kl_mean"])
    assert finer.figures["kl_mean"] < coarser.figures["kl_mean"] / 5
    assert bundle.manifest.blocks is not None
    assert (bundle.manifest.blocks.bits, bundle.manifest.blocks.output_bits) == (8, 8)


def test_stages_are_reported_in_order(folder: Path, gguf: Path, tmp_path: Path) -> None:
    told = Recorder()
    export(str(folder), out=tmp_path / "b", progress=told)
    assert told.stages == STAGES

    told = Recorder()
    export(str(gguf), out=tmp_path / "b", progress=told)
    expected = [*STAGES[:2], "read the GGUF file", *STAGES[2:]]
    assert told.stages == [
        "keep the blocks of the file" if stage == "quantize to int4" else stage for stage in expected
    ]


def test_a_gguf_file_keeps_its_blocks(gguf: Path, tmp_path: Path) -> None:
    exported = export(str(gguf), out=tmp_path / "b")
    manifest = exported.bundle.manifest
    certificate, blocks, facts = manifest.certificate, manifest.blocks, manifest.decoder

    assert manifest.precision is Precision.SOURCE
    assert (manifest.name, manifest.architecture, manifest.source.license) == ("tiny.Q4_1", "llama", "apache-2.0")
    assert (manifest.source.origin, manifest.source.resolved) == ("file", "tiny.Q4_1.gguf")
    assert manifest.source.files.keys() == {"tiny.Q4_1.gguf"}
    assert exported.checkpoint_size == gguf.stat().st_size
    assert facts is not None
    assert (facts.bos_id, facts.add_bos, facts.eos_ids, facts.context_length) == (0, False, (2,), 128)
    assert blocks is not None
    assert (blocks.block, blocks.symmetric, blocks.rounding, blocks.float32_matmuls) == (32, True, "source", 0)
    assert certificate is not None
    print(certificate.figures)
    # What is left is the rounding of the activations to 8 bits.
    assert certificate.figures["kl_mean"] < 1e-3
    assert {path.name for path in exported.bundle.path.iterdir()} == {
        "manifest.json",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
    }


def test_a_gguf_file_that_is_not_quantized_is_exported_as_any_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_gguf(tmp_path / "tiny.BF16.gguf", seeded("llama"), types={"norm.weight": Type.F32, ".weight": Type.BF16})

    bundle = export("tiny.BF16.gguf").bundle

    assert bundle.path == Path("bundles/tiny.BF16-int4")
    assert bundle.manifest.certificate is not None
    assert "source_kl_mean" not in bundle.manifest.certificate.figures
    assert bundle.manifest.blocks is not None
    assert bundle.manifest.blocks.rounding == "importance"


def test_weights_lie_in_a_file_of_their_own_on_pages(fp32: Bundle, int4: Bundle) -> None:
    for bundle in (fp32, int4):
        assert bundle.manifest.files.keys() == {"model.onnx", "model.onnx.data", "tokenizer.json"}
        constants = ir.load(bundle.path / "model.onnx").graph.initializers.values()
        external = [value.const_value for value in constants if isinstance(value.const_value, ir.ExternalTensor)]
        assert all(tensor.offset % (4096 if tensor.nbytes >= 4096 else 64) == 0 for tensor in external)
        assert sum(tensor.nbytes for tensor in external) > 0.8 * bundle.manifest.files["model.onnx.data"].size
        assert bundle.manifest.files["model.onnx"].size < 60_000
        assert replay(Decoder(Bundle.open(bundle.path))).same_bits


def test_an_architecture_of_several_kinds_is_what_it_was_published_as(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny-qwen3", "qwen3")
    checkpoint = opened(folder)

    assert kind_of(checkpoint, None) is Kind.DECODER
    assert kind_of(checkpoint, Kind.RERANKER) is Kind.RERANKER
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]')
    assert kind_of(checkpoint, None) is Kind.EMBEDDER
    (folder / "modules.json").unlink()
    change_json(folder / "config.json", architectures=["Qwen3Model"])
    assert kind_of(opened(folder), None) is Kind.EMBEDDER
    change_json(folder / "config.json", architectures=["Qwen3ForSequenceClassification"])
    assert kind_of(opened(folder), None) is Kind.RERANKER


def test_qwen3_as_a_decoder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny-qwen3", "qwen3")

    bundle = export(str(folder), precision=Precision.FP32, out=tmp_path / "b").bundle

    assert (bundle.manifest.kind, bundle.manifest.architecture) == (Kind.DECODER, "qwen3")


def test_decoders_are_not_exported_as_embedders(folder: Path, gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        export(str(folder), kind=Kind.EMBEDDER, out=tmp_path / "b")
    assert caught.value.message == (
        "`tiny-llama` is an embedder of the architecture `llama`, of which ortkit exports decoders only"
    )
    with pytest.raises(UnsupportedModelError) as caught:
        export(str(gguf), kind=Kind.RERANKER, out=tmp_path / "b")
    assert caught.value.message == "`tiny.Q4_1.gguf` is a GGUF file, of which ortkit exports decoders only"


def test_unusable_files_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no file `nothing\.gguf`"):
        export("nothing.gguf", out=tmp_path / "b")
    with pytest.raises(NotFoundError, match=r"there is no file `nothing`"):
        export("nothing", origin=Origin.FILE, out=tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"config.json` is not a GGUF file: it does not begin with `GGUF`"):
        export(str(folder / "config.json"), out=tmp_path / "b")
    with pytest.raises(InputError, match="is not taken from the Hub, so it has no revision"):
        export("nothing.gguf", revision="main", out=tmp_path / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"max_kl": 0.0}, "`max_kl` must be above 0, not 0.0", None),
        ({"max_kl": float("nan")}, "`max_kl` must be above 0, not nan", None),
        ({"min_tau": 0.9}, "`min_tau` is for rerankers, and this is a decoder", "use `--max-kl`"),
        ({"min_cosine": 0.9}, "`min_cosine` is for embedders, and this is a decoder", "use `--max-kl`"),
        (
            {"precision": Precision.SOURCE},
            "`source` keeps the blocks of a GGUF file, and `tiny-llama` comes in none",
            "choose one of `int4`, `int8`, `fp32`",
        ),
        (
            {"precision": Precision.FP32, "cache": CacheType.FLOAT16},
            "`fp32` has a float32 KV cache only",
            "leave out `--cache`, or choose one of `int4`, `int8`, `source`",
        ),
        (
            {"precision": Precision.FP16, "provider": Provider.CUDA, "cache": CacheType.FLOAT32},
            "a graph for `cuda` has a float16 KV cache only",
            "leave out `--cache`",
        ),
    ],
)
def test_invalid_options_are_refused(
    folder: Path, tmp_path: Path, options: dict, message: str, hint: str | None
) -> None:
    with pytest.raises(InputError) as caught:
        export(str(folder), out=tmp_path / "b", **options)
    assert caught.value.message == message
    assert caught.value.hint == hint


def test_max_kl_is_for_decoders(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`max_kl` is for decoders, and this is an embedder"):
        export(str(tiny_checkpoint), max_kl=0.1, out=tmp_path / "b")


@pytest.mark.parametrize("cache", list(CacheType))
def test_cache_type_is_for_decoders(tiny_checkpoint: Path, tmp_path: Path, cache: CacheType) -> None:
    with pytest.raises(InputError) as caught:
        export(str(tiny_checkpoint), cache=cache, out=tmp_path / "b")
    assert caught.value.message == "`cache` is for decoders, and this is an embedder"
    assert caught.value.hint == "leave out `--cache`"
    assert caught.value.exit_code == 2


def test_max_kl_selects_a_finer_recipe(folder: Path, int4: Bundle, tmp_path: Path) -> None:
    assert int4.manifest.certificate is not None
    bar = int4.manifest.certificate.figures["kl_mean"] * 0.9

    bundle = export(str(folder), max_kl=bar, out=tmp_path / "b").bundle

    assert bundle.manifest.blocks != int4.manifest.blocks
    assert bundle.manifest.certificate is not None
    assert bundle.manifest.certificate.figures["kl_mean"] <= bar


def write_wide_checkpoint(folder: Path) -> Path:
    """A tiny decoder whose matrices fill blocks of 128, and whose predictions differ enough to be compared."""
    return write_checkpoint(folder / "wide", "llama", hidden_size=128, intermediate_size=256, initializer_range=0.05)


def test_large_blocks_are_tried_first_where_matrices_fill_them(tmp_path: Path) -> None:
    folder = write_wide_checkpoint(tmp_path)
    assert recipes_for(Precision.INT4, [128, 256]) == (COARSE, *RECIPES[Precision.INT4])
    assert recipes_for(Precision.INT4, [128, 192]) == RECIPES[Precision.INT4]
    assert recipes_for(Precision.INT8, [128, 256]) == RECIPES[Precision.INT8]

    for bar, block in ((None, 64), (0.99, 128)):
        blocks = export(str(folder), max_kl=bar, out=tmp_path / "b").bundle.manifest.blocks
        assert blocks is not None
        assert (blocks.block, blocks.output_block) == (block, 32)


def test_wide_decoders_get_large_blocks_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = RECIPES[Precision.INT4][0]
    assert default_recipe(Precision.INT4, [4096, 14336]) == COARSE
    assert default_recipe(Precision.INT4, [WIDE, 18944]) == COARSE
    assert default_recipe(Precision.INT4, [WIDE, 18944 + 64]) == first
    assert default_recipe(Precision.INT4, [3072, 8192]) == first
    assert default_recipe(Precision.INT8, [4096, 14336]) == RECIPES[Precision.INT8][0]

    folder = write_wide_checkpoint(tmp_path)
    monkeypatch.setattr(block_recipes, "WIDE", 128)
    blocks = export(str(folder), out=tmp_path / "b").bundle.manifest.blocks
    assert blocks is not None
    assert (blocks.block, blocks.output_block) == (128, 32)


def test_recipes_are_tried_in_order() -> None:
    recipes = RECIPES[Precision.INT4]
    tried: list[BlockRecipe] = []

    def divergence(recipe: BlockRecipe) -> float:
        tried.append(recipe)
        return 0.4 / len(tried)

    assert find_block_recipe(recipes, divergence, max_kl=0.2, precision=Precision.INT4) == recipes[1]
    assert tried == list(recipes[:2])


@pytest.mark.parametrize(
    ("precision", "provider", "finer"),
    [
        (Precision.INT4, Provider.CPU, "`--precision int8`"),
        (Precision.INT8, Provider.CPU, "`--precision fp32`"),
        (Precision.INT8, Provider.CUDA, "`--precision fp16`"),
    ],
)
def test_max_kl_that_no_recipe_reaches(precision: Precision, provider: Provider, finer: str) -> None:
    recipes = recipes_for(precision, [], provider)
    with pytest.raises(OrtkitError) as caught:
        find_block_recipe(recipes, lambda _: 0.25, max_kl=0.1, precision=precision, provider=provider)
    assert caught.value.message == (
        f"no {precision.value} recipe stays within KL divergence 0.1 of PyTorch: it is 0.25000 at best"
    )
    assert caught.value.hint == f"no bundle was written; ask for less, or use {finer}"


@pytest.mark.parametrize(
    ("precision", "provider", "others"),
    [
        (Precision.INT4, Provider.CPU, "`--precision int8` or `fp32`"),
        pytest.param(Precision.INT8, Provider.CPU, "`--precision fp32`", marks=pytest.mark.slow),
        pytest.param(Precision.SOURCE, Provider.CPU, "`--precision int8` or `fp32`", marks=pytest.mark.slow),
        pytest.param(Precision.INT4, Provider.CUDA, "`--precision int8` or `fp16`", marks=pytest.mark.slow),
        (Precision.FP16, Provider.CUDA, "`--provider cpu`"),
    ],
)
def test_a_bundle_that_is_too_far_from_pytorch_is_not_written(
    folder: Path,
    gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    provider: Provider,
    others: str,
) -> None:
    monkeypatch.setattr("ortkit.exporters.decoder.certify.MAX_KL", dict.fromkeys(Precision, 1e-12))
    source = gguf if precision is Precision.SOURCE else folder

    with pytest.raises(OrtkitError) as caught:
        export(str(source), precision=precision, provider=provider, out=tmp_path / "b")

    assert caught.value.message.endswith(f"on average over the probe set, and {precision.value} must stay within 1e-12")
    assert "differs from PyTorch: KL divergence 0." in caught.value.message
    assert caught.value.hint == f"no bundle was written; try {others}"
    assert not list(tmp_path.iterdir())


def test_an_fp32_bundle_that_prefers_other_tokens_is_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ortkit.exporters.decoder.certify.MIN_TOP1_AGREEMENT", 1.5)

    with pytest.raises(OrtkitError) as caught:
        export(str(folder), precision=Precision.FP32, out=tmp_path / "b")
    assert caught.value.message == (
        "the exported `tiny-llama` differs from PyTorch: its most probable token is PyTorch's for 100.00% "
        "of the probe set, and fp32 must reach 150.0%"
    )
    assert caught.value.hint == "no bundle was written"


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_a_wrong_graph_is_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    """Another epsilon in the norms, as a wrong rewrite could leave it."""

    def wrong_rebuild(graph: ir.Model) -> None:
        rebuild(graph)
        for node in graph.graph:
            if node.op_type == RMS_NORM:
                node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.5)

    monkeypatch.setattr("ortkit.exporters.decoder.task.rebuild", wrong_rebuild)
    with pytest.raises(
        OrtkitError, match=r"differs from PyTorch: KL divergence \d+\.\d+ on average over the probe set"
    ):
        export(str(folder), precision=precision, out=tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_output_of_the_command_line(ortkit: object, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    finished: Finished = ortkit("export", folder, "--precision", "int8", "--max-kl", "0.5", "--out", out)

    assert finished.code == 0
    lines = finished.err.splitlines()
    assert "tiny-llama, int8" in lines
    assert any(line.startswith("  KL       0.0") and "of the most probable tokens agree" in line for line in lines)
    assert "  int8     9 matmuls, 8 bits, block size 64, with zero points, round to nearest" in lines
    assert f'  next     ortkit generate {out} "some prompt"' in lines

    shown = ortkit("inspect", out, "--runtime")
    told = dict(line.split(None, 1) for line in shown.out.decode().splitlines() if not line.startswith("made"))
    assert told["kind"] == "decoder, architecture llama"
    assert told["context"] == "512 tokens, prompt and answer together"
    assert re.fullmatch(r"weights \d MiB, KV cache 0 MiB for 512 tokens", told["memory"])
    assert told["template"] == "chat template"
    assert told["sampling"] == "greedy"
    assert told["certificate"].startswith("kl mean 0.0")
    assert " tokens against torch " in told["certificate"]
    assert "layers" not in told
    assert told["fits"] == "the whole context: the KV cache that the free memory has room for now"
    printed = json.loads(ortkit("inspect", out, "--runtime", "--json").out)
    del printed["digest"]
    assert printed.pop("memory").keys() == {"weights", "prefill_weights", "lengths"}
    assert printed.pop("runtime").keys() == {
        "threads",
        "cores",
        "context",
        "fits",
        "max_memory",
        "provider",
        "onnxruntime",
        "cpu_class",
        "prefill",
    }
    assert printed == json.loads((out / "manifest.json").read_text())

    def add_old_figures(manifest: dict) -> None:
        certificate = manifest["certificate"]
        certificate["figures"]["greedy_tokens_equal"] = 12.0
        certificate["layer_errors"] = [0.01, 0.03]
        certificate["answers"][0]["reference"] = certificate["answers"][0]["output"][:13]

    rehash(out, add_old_figures)
    shown = ortkit("inspect", out)
    told = dict(line.split(None, 1) for line in shown.out.decode().splitlines() if not line.startswith("made"))
    assert "greedy tokens equal 12," in told["certificate"]
    assert told["layers"] == (
        "relative error of the hidden states against PyTorch: 1.00% after layer 1, 3.00% after layer 2, at most "
        "3.00% (layer 2)"
    )
    assert replay(Decoder(out)).same_bits

    verified = ortkit("verify", out)
    assert verified.code == 0
    assert verified.out.decode().splitlines()[2:] == [
        "signature    none",
        "graph        opens on cpu; inputs match the manifest",
        (
            "certificate  64 golden tokens: log-probabilities within 0.00000 on average; "
            "bits identical to the exporting machine's"
        ),
        f"ok: {out}",
    ]


def test_requantizing_a_gguf_file_reports_its_own_divergence(ortkit: object, gguf: Path, tmp_path: Path) -> None:
    """Beside what the file's own blocks give, which is what their own bundle says of itself."""
    own = export(str(gguf), out=tmp_path / "own").bundle.manifest.certificate
    assert own is not None

    finished: Finished = ortkit("export", gguf, "--precision", "int4", "--out", tmp_path / "int4")

    certificate = Bundle.open(tmp_path / "int4").manifest.certificate
    assert certificate is not None
    figures = certificate.figures
    print(figures)
    assert (figures["source_kl_mean"], figures["source_top1_agreement"]) == (
        own.figures["kl_mean"],
        own.figures["top1_agreement"],
    )
    assert figures["kl_mean"] > 2 * figures["source_kl_mean"]
    lines = finished.err.splitlines()
    kl, top = own.figures["kl_mean"], own.figures["top1_agreement"]
    line = f"  source   KL {kl:.5f} and {top:.1%} with the file's own blocks: leave out `--precision` to keep them"
    assert line in lines
    shown = ortkit("inspect", tmp_path / "int4").out.decode()
    assert "source kl mean 0.0" in shown
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["int4", "own"]


@pytest.mark.slow
def test_the_real_model_in_4_bits(smollm_bundle: Bundle) -> None:
    """From its GGUF file, whose own rounding the other one here comes on top of."""
    manifest = smollm_bundle.manifest
    certificate, facts = manifest.certificate, manifest.decoder
    assert certificate is not None
    assert facts is not None
    print(certificate.figures, manifest.blocks, smollm_bundle.size)

    assert (manifest.name, manifest.source.origin) == ("SmolLM2-135M-Instruct", "wheel")
    assert smollm_bundle.size < 95e6
    # Plain rounding in blocks of 32 is at 0.431.
    assert certificate.figures["kl_mean"] < 0.6 * 0.431
    assert certificate.figures["top1_agreement"] > 0.6
    # What is kept of it by default.
    assert certificate.figures["source_kl_mean"] < 0.006
    assert certificate.figures["source_top1_agreement"] > 0.92
    assert (facts.context_length, facts.add_bos, facts.eos_ids) == (8192, False, (2, 0))
    assert [len(answer.output) for answer in certificate.answers] == [32, 32]
    decoder = Decoder(smollm_bundle)
    assert replay(decoder).same_bits
    answer = decoder.generate("The capital of France is", max_tokens=8)
    print(answer.text)
    assert answer.text.startswith(" Paris")


@pytest.mark.slow
def test_the_wheels_checkpoint_may_also_be_named_by_its_file(smollm_bundle: Bundle) -> None:
    (name,) = smollm_bundle.manifest.source.files
    path = fetch_checkpoint(find_model(DECODER), offline=True) / name
    checkpoint = find_checkpoint(str(path))

    assert (checkpoint.name, checkpoint.gguf) == ("SmolLM2-135M-Instruct.Q4_1", path)
    assert checkpoint.source.files == smollm_bundle.manifest.source.files
