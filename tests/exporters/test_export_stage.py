from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from huggingface_hub import constants
from sentence_transformers import SentenceTransformer

from ortkit import (
    Bundle,
    CheckpointError,
    Embedder,
    InputError,
    Kind,
    NotFoundError,
    OutputError,
    Precision,
    UnsupportedModelError,
)
from ortkit.exporters import Exported, Origin, export
from ortkit.exporters.checkpoint.architectures import ARCHITECTURES
from ortkit.exporters.encoder.tracing import IMPLEMENTED_HERE
from ortkit.exporters.graph import external_data as graph_files
from ortkit.exporters.progress import NoProgress, Progress
from ortkit.runtime.bundle.manifest import SCHEMA
from tests.assets import MODEL
from tests.encoder_checkpoints import write_tiny_checkpoint
from tests.exporters import by_the_book
from tests.marks import slow_but

STAGES = [
    "find the checkpoint",
    "import torch, transformers and Optimum",
    "load the weights",
    "trace with Optimum",
    "run the probe set with PyTorch",
    "quantize to int8",
    "certify against PyTorch",
    "write the bundle",
]
TEXTS = ["a", "The pump runs dry.", "word " * 100, "Zwei Sätze. Noch einer!"]


class Recorder(NoProgress):
    """Remembers the stages of an export."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []

    def begin(self, stage: str) -> None:
        self.begun.append(stage)

    def end(self, stage: str, seconds: float) -> None:
        assert seconds >= 0
        self.ended.append(stage)


def tiny_export(folder: Path, out: Path, precision: Precision, progress: Progress | None = None) -> Exported:
    return export(str(folder), precision=precision, out=out, progress=progress)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
@pytest.mark.parametrize(
    "pooling", slow_but(["cls", "mean", "weightedmean"], ["cls", "mean", "max", "lasttoken", "weightedmean"])
)
def test_a_small_checkpoint_gives_the_vectors_of_sentence_transformers(
    tiny_checkpoint: Path, tmp_path: Path, precision: Precision, pooling: str
) -> None:
    key = pooling if pooling == "lasttoken" else f"{pooling}_token{'' if pooling == 'cls' else 's'}"
    config = {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": False, f"pooling_mode_{key}": True}
    (tiny_checkpoint / "1_Pooling" / "config.json").write_text(json.dumps(config))
    model = SentenceTransformer(str(tiny_checkpoint), device="cpu", local_files_only=True)
    expected = np.asarray(model.encode(TEXTS, show_progress_bar=False))

    exported = tiny_export(tiny_checkpoint, tmp_path / "bundle", precision)
    found = Embedder(exported.bundle).embed_with_report(TEXTS)

    cosines = np.einsum("ij,ij->i", found.vectors, expected)
    print(f"{precision.value}, {pooling}: cosine min {cosines.min():.6f}")
    assert cosines.min() > (0.999999 if precision is Precision.FP32 else 0.98)
    assert found.truncated == [2]


@pytest.mark.parametrize(
    "architecture",
    slow_but(
        ["bert", "jina-bert", "mpnet", "nomic_bert", "qwen3"],
        sorted(name for name, known in ARCHITECTURES.items() if Kind.EMBEDDER in known.kinds),
    ),
)
def test_every_known_architecture_gives_the_vectors_of_pytorch(
    checkpoint: Path, tmp_path: Path, architecture: str
) -> None:
    write_tiny_checkpoint(tmp_path / "tiny", checkpoint, architecture)
    (tmp_path / "tiny" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": None}))
    if architecture in IMPLEMENTED_HERE:
        expected = vectors_by_the_book(architecture, tmp_path / "tiny")
    else:
        # What batches of texts of unlike length are padded with is not to matter, so it sees one text at a time.
        model = SentenceTransformer(
            str(tmp_path / "tiny"), device="cpu", local_files_only=True, model_kwargs={"attn_implementation": "eager"}
        )
        model.max_seq_length = 64
        expected = np.asarray(model.encode(TEXTS, batch_size=1, show_progress_bar=False))

    for precision, lowest in {Precision.FP32: 0.999999, Precision.INT8: 0.98}.items():
        exported = tiny_export(tmp_path / "tiny", tmp_path / precision.value, precision)
        assert exported.bundle.manifest.tokenizer.max_length == 64
        found = Embedder(exported.bundle).embed_with_report(TEXTS)
        cosines = np.einsum("ij,ij->i", found.vectors, expected)
        print(f"{architecture}, {precision.value}: cosine min {cosines.min():.6f}")
        assert cosines.min() > lowest
        assert found.tokens.max() == 64, "the longest text uses every position"
        for text, vector in zip(TEXTS, found.vectors, strict=True):
            assert np.array_equal(Embedder(exported.bundle).embed_with_report([text]).vectors[0], vector)


def test_the_model_that_modules_name_is_exported(tiny_checkpoint: Path, checkpoint: Path, tmp_path: Path) -> None:
    """It lies in a folder, as version 1 of sentence-transformers has it, and another model lies at the top."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder / "0_Transformer")
    for name in ("modules.json", "1_Pooling"):
        shutil.move(folder / "0_Transformer" / name, folder / name)
    write_tiny_checkpoint(tmp_path / "other", checkpoint, "distilbert")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tmp_path / "other" / name, folder / name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "LICENSE").write_text("do what you like")

    bundle = tiny_export(folder, tmp_path / "bundle", Precision.FP32).bundle

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    assert bundle.manifest.architecture == "bert"
    assert np.abs(Embedder(bundle).embed_with_report(TEXTS).vectors - model.encode(TEXTS)).max() < 1e-5
    assert {"0_Transformer/config.json", "0_Transformer/model.safetensors"} <= bundle.manifest.source.files.keys()
    assert (bundle.path / "LICENSE").read_text() == "do what you like"


def test_a_bundle_of_before_opens_and_gives_the_same(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """What manifests have now and had not then is left out."""
    shutil.copytree(tiny_bundle.path, tmp_path / "old")
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    for record, key in (
        ("embedder", "further_poolings"),
        ("embedder", "unpooled_tokens"),
        ("tokenizer", "truncation_side"),
    ):
        del manifest[record][key]
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))

    vectors = Embedder(tmp_path / "old").embed_with_report(TEXTS).vectors

    assert np.array_equal(vectors, Embedder(tiny_bundle).embed_with_report(TEXTS).vectors)


def test_prompts_that_are_left_out_of_pooling(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """For long texts in chunks too: each chunk has the prompt, and what is pooled is the text alone."""
    config = {"embedding_dimension": 48, "pooling_mode": ["mean", "cls"], "include_prompt": False}
    (tiny_checkpoint / "1_Pooling" / "config.json").write_text(json.dumps(config))
    prompts = {"prompts": {"q": "Represent this: "}, "default_prompt_name": "q"}
    (tiny_checkpoint / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    bundle = tiny_export(tiny_checkpoint, tmp_path / "bundle", Precision.FP32).bundle
    model = SentenceTransformer(str(tiny_checkpoint), device="cpu", local_files_only=True)
    embedder = Embedder(bundle)

    assert bundle.manifest.embedder.unpooled_tokens == {"q": 4}
    assert np.abs(embedder.embed_with_report(TEXTS).vectors - model.encode(TEXTS)).max() < 1e-5
    short = TEXTS[1]
    assert np.array_equal(embedder.embed([short], long="mean"), embedder.embed([short]))
    assert np.isfinite(embedder.embed(["word " * 300], long="mean")).all()


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_weights_that_one_file_cannot_hold_lie_beside_it(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    """Protobuf ends at 2 GiB; here it ends at 100 kB."""
    bar = 0.99 if precision is Precision.INT8 else None
    small = export(str(tiny_checkpoint), precision=precision, min_cosine=bar, out=tmp_path / "small").bundle
    monkeypatch.setattr(graph_files, "LARGEST_PROTOBUF", 100_000)
    large = export(str(tiny_checkpoint), precision=precision, min_cosine=bar, out=tmp_path / "large").bundle

    assert "model.onnx.data" not in small.manifest.files
    assert large.manifest.files["model.onnx"].size < 100_000 < large.manifest.files["model.onnx.data"].size
    assert large.manifest.certificate == small.manifest.certificate
    shutil.move(large.path, tmp_path / "moved")
    vectors = Embedder(tmp_path / "moved").embed_with_report(TEXTS).vectors
    assert np.array_equal(vectors, Embedder(small).embed_with_report(TEXTS).vectors)


def vectors_by_the_book(architecture: str, folder: Path) -> np.ndarray:
    """Mean-pooled vectors of length 1 of TEXTS, from an implementation that shares nothing with ortkit's."""
    weights = by_the_book.load_weights(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    vectors = []
    for text in TEXTS:
        ids = torch.tensor(tokenizer(text, truncation=True, max_length=64)["input_ids"])
        if architecture == "jina-bert":
            tokens = by_the_book.jina_bert(weights, ids, heads=6)
        else:
            tokens = by_the_book.nomic_bert(weights, ids, heads=4, base=1000)
        vector = tokens.mean(0).numpy()
        vectors.append(vector / np.linalg.norm(vector))
    return np.stack(vectors)


def test_the_stages_are_told_in_order(tiny_checkpoint: Path, tmp_path: Path) -> None:
    told = Recorder()
    tiny_export(tiny_checkpoint, tmp_path / "bundle", Precision.INT8, told)

    assert told.begun == told.ended == STAGES


class AtWork(NoProgress):
    """Looks at the bundle that is being made after quantization, and changes the checkpoint before the end."""

    def __init__(self, changed: Path, parent: Path) -> None:
        self.changed = changed
        self.parent = parent
        self.files: set[str] = set()

    def begin(self, stage: str) -> None:
        if stage == "write the bundle":
            self.changed.write_bytes(self.changed.read_bytes() + b" ")

    def end(self, stage: str, seconds: float) -> None:  # noqa: ARG002
        if stage == "quantize to int8":
            (bundle,) = self.parent.glob(".*.partial/bundle")
            self.files = {path.name for path in bundle.iterdir()}


def test_a_checkpoint_that_changes_meanwhile_gives_no_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What is tried on the way is tried elsewhere than in the bundle."""
    (tmp_path / "out").mkdir()
    at_work = AtWork(tiny_checkpoint / "modules.json", tmp_path / "out")

    with pytest.raises(CheckpointError) as caught:
        tiny_export(tiny_checkpoint, tmp_path / "out" / "bundle", Precision.INT8, at_work)
    assert caught.value.message == f"`{tiny_checkpoint / 'modules.json'}` was changed during the export"
    assert list((tmp_path / "out").iterdir()) == []
    assert at_work.files == {"tokenizer.json"}


def test_the_manifest_tells_the_whole_truth(int8_bundle: Bundle, checkpoint: Path) -> None:
    manifest = Bundle.open(int8_bundle.path).manifest

    assert manifest.schema == SCHEMA
    assert (manifest.name, manifest.architecture, manifest.inputs) == ("all-MiniLM-L6-v2", "bert", ("input_ids",))
    assert (manifest.source.requested, manifest.source.license) == ("all-MiniLM-L6-v2", "apache-2.0")
    assert manifest.source.files.keys() == {
        path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()
    }
    special = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    assert manifest.tokenizer.special_tokens == special
    assert manifest.made_with.keys() >= {"ortkit", "torch", "transformers", "optimum", "onnxruntime"}


def test_the_license_file_goes_along(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tiny_checkpoint / "LICENSE").write_text("do what you like")

    bundle = tiny_export(tiny_checkpoint, tmp_path / "bundle", Precision.FP32).bundle

    assert (bundle.path / "LICENSE").read_text() == "do what you like"
    assert "LICENSE" in bundle.manifest.files


def test_the_default_place_and_precision(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    bundle = export(str(tiny_checkpoint)).bundle

    assert bundle.path == Path("bundles/tiny-bert-int8")
    assert bundle.manifest.precision is Precision.INT8


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT4])
def test_a_precision_that_embedders_do_not_have(tiny_checkpoint: Path, tmp_path: Path, precision: Precision) -> None:
    with pytest.raises(InputError, match=f"embedders are not exported to `{precision.value}`"):
        tiny_export(tiny_checkpoint, tmp_path / "bundle", precision)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("tokenizer.json", None, CheckpointError),
        ("modules.json", None, CheckpointError),
        ("model.safetensors", None, CheckpointError),
        ("config.json", '{"model_type": "mamba"}', UnsupportedModelError),
    ],
)
def test_a_checkpoint_that_cannot_be_used_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, name: str, content: str | None, error: type[Exception]
) -> None:
    if content is None:
        (tiny_checkpoint / name).unlink()
    else:
        (tiny_checkpoint / name).write_text(content)

    with pytest.raises(error):
        tiny_export(tiny_checkpoint, tmp_path / "out" / "bundle", Precision.INT8)
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_a_folder_is_named_as_such(tiny_checkpoint: Path, tmp_path: Path) -> None:
    exported = export(str(tiny_checkpoint), origin=Origin.FOLDER, precision=Precision.FP32, out=tmp_path / "b")

    assert exported.bundle.manifest.source.origin == "folder"


def test_a_place_that_cannot_be_written(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(OutputError, match=r"the bundle cannot be written to `.*`: Not a directory"):
        tiny_export(tiny_checkpoint, tmp_path / "file" / "bundle", Precision.FP32)


def test_a_checkpoint_that_cannot_be_read_is_not_called_unwritable(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(_text: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tiny_checkpoint / "tokenizer.json"))

    monkeypatch.setattr("ortkit.exporters.pipeline.bundle_tokenizer", unreadable)
    with pytest.raises(PermissionError) as caught:
        tiny_export(tiny_checkpoint, tmp_path / "bundle", Precision.FP32)
    assert not isinstance(caught.value, OutputError)


COMMAND = [sys.executable, "-m", "ortkit", "export"]


def has_namespaces() -> bool:
    return subprocess.run(["unshare", "--map-root-user", "--mount", "true"], check=False).returncode == 0


@pytest.fixture(scope="module")
def old_bundle(tiny_checkpoint_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_export(tiny_checkpoint_base, tmp_path_factory.mktemp("old") / "bundle", Precision.FP32).bundle


@pytest.mark.slow
def test_no_space_left_leaves_the_old_bundle(tiny_checkpoint: Path, tmp_path: Path, old_bundle: Bundle) -> None:
    """On a file system of its own that is too small for the trace."""
    assert has_namespaces(), "this test mounts a small file system in a namespace of its own"
    old = old_bundle.path
    place = tmp_path / "small"
    place.mkdir()
    script = f"""
mount -t tmpfs -o size=1m tmpfs {place} || exit 99
mkdir {place}/bundle && cp {old}/manifest.json {place}/bundle/
{" ".join(COMMAND)} {tiny_checkpoint} --precision fp32 --out {place}/bundle
code=$?
echo LEFT $(ls -A {place}) / $(ls -A {place}/bundle)
exit $code
"""
    finished = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False
    )

    assert finished.returncode == 1, finished.stderr
    assert f"error: the bundle cannot be written to `{place}/bundle`: No space left on device" in finished.stderr
    assert "hint: free some space, or choose another folder with `--out`" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert "LEFT bundle / manifest.json" in finished.stdout


def test_no_space_left_for_the_graph_leaves_the_old_bundle(
    tiny_checkpoint: Path, tmp_path: Path, old_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trace is as large and gone by then, so that no file system has room for it alone."""
    out = tmp_path / "place" / "bundle"
    shutil.copytree(old_bundle.path, out)

    def full(_: ir.Model, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ortkit.exporters.encoder.encoder_task.save_graph", full)
    with pytest.raises(OutputError) as caught:
        tiny_export(tiny_checkpoint, out, Precision.FP32)

    assert caught.value.message == f"the bundle cannot be written to `{out}`: No space left on device"
    assert caught.value.hint == "free some space, or choose another folder with `--out`"
    assert list(out.parent.iterdir()) == [out]
    assert Bundle.open(out).manifest == old_bundle.manifest


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_an_interrupted_export_leaves_the_old_bundle(
    tiny_checkpoint: Path, tmp_path: Path, old_bundle: Bundle, how: signal.Signals
) -> None:
    out = tmp_path / "place" / "bundle"
    shutil.copytree(old_bundle.path, out)
    old = Bundle.open(out)
    before = (out / "manifest.json").read_bytes()
    process = subprocess.Popen(
        [*COMMAND, str(tiny_checkpoint), "--out", str(out)], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    deadline = time.monotonic() + 60
    while not list(out.parent.glob(".bundle.*.partial/bundle/tokenizer.json")):
        assert time.monotonic() < deadline, "the export did not begin to write"
        time.sleep(0.005)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)

    assert (out / "manifest.json").read_bytes() == before
    assert Bundle.open(out).manifest == old.manifest
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert errors.splitlines()[-1] == "interrupted"
        assert "Traceback" not in errors
        assert [path.name for path in out.parent.iterdir()] == ["bundle"]
    else:
        (left,) = (path for path in out.parent.iterdir() if path.name != "bundle")
        assert not list(left.rglob("manifest.json")), "what is left is not a bundle"
        tiny_export(tiny_checkpoint, out, Precision.FP32)
        assert [path.name for path in out.parent.iterdir()] == ["bundle"], "the next export cleans up"


def test_a_checkpoint_is_converted_without_a_network(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """What its files name of the Hub is not asked for, with whatever token is in force."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    seen = []
    monkeypatch.setattr("ortkit.exporters.pipeline.convert", lambda *_: seen.append(constants.HF_HUB_OFFLINE))

    export(str(tiny_checkpoint), out=tmp_path / "bundle")

    assert seen == [True]
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (None, {}, "`source` must be a name or a path, not NoneType"),
        (b"model", {}, "`source` must be a name or a path, not bytes"),
        ("", {}, "`source` is empty"),
        (MODEL, {"precision": "int3"}, "`precision` must be one of fp32, fp16, int8, int4, source, not `int3`"),
        (MODEL, {"provider": "gpu"}, "`provider` must be one of cpu, cuda, coreml, not `gpu`"),
        (MODEL, {"provider": None}, "`provider` must be one of cpu, cuda, coreml, not null"),
        (MODEL, {"kind": "embedders"}, "`kind` must be one of embedder, reranker, decoder, not `embedders`"),
        (MODEL, {"cache": "fp16"}, "`cache` must be one of float32, float16, int8, not `fp16`"),
        (MODEL, {"origin": "pypi"}, "`origin` must be one of hub, folder, wheel, file, not `pypi`"),
        (MODEL, {"revision": 5}, "`revision` must be a string, not int"),
        (MODEL, {"token_host": 5}, "`token_host` must be a string, not int"),
        (MODEL, {"offline": "no"}, "`offline` must be True or False, not str"),
        (MODEL, {"out": 5}, "`out` must be a path, not int"),
        (MODEL, {"min_cosine": "0.9"}, "`min_cosine` must be a number, not str"),
        (MODEL, {"min_tau": True}, "`min_tau` must be a number, not bool"),
        (MODEL, {"max_kl": 0}, "`max_kl` must be above 0, not 0"),
    ],
)
def test_invalid_arguments_are_errors(source: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        export(source, **options)

    assert caught.value.message == message


def test_choices_may_be_given_by_their_values() -> None:
    for precision in ("int4", Precision.INT4):
        with pytest.raises(InputError, match="`int4`"):
            export(MODEL, precision=precision, offline=True)
    # Compared with the members, an unknown string was the Hub.
    for origin in ("folder", Origin.FOLDER):
        with pytest.raises(NotFoundError, match=f"there is no folder `{MODEL}`"):
            export(MODEL, origin=origin)
