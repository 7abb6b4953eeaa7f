from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from ortkit import InputError, OutputError, Precision, Provider
from ortkit.exporters import export
from ortkit.exporters.decoder import task as decoder_task
from ortkit.exporters.decoder.layerwise import LayerwiseForward
from ortkit.exporters.decoder.recipe_search import BlockTrials
from ortkit.exporters.progress import NoProgress
from ortkit.runtime.bundle.manifest import Manifest
from ortkit.runtime.bundle.writer import BundleWriter
from ortkit.runtime.sizes import megabytes
from tests.exporters.decoder_checkpoints import write_checkpoint
from tests.exporters.gguf_files import seeded, write_gguf
from tests.seeded_checkpoints import Shape, write_seeded

SOME_STAGES = {"trace with Optimum", "run the probe set with PyTorch", "certify against PyTorch"}
SMALL = Shape(3, 128, 256, 4, 2, vocabulary=512, window=64, positions=512)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seeded(tmp_path_factory.mktemp("seeded") / "small", SMALL, shard=200_000)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Stages(NoProgress):
    """Keeps the stages and the notes of an export."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, stage: str) -> None:
        self.begun.append(stage)


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, True], ids=["some", "every"])
def test_an_export_killed_in_a_stage_ends_with_the_same_bytes(
    checkpoint: Path, tmp_path: Path, small_probe: Path, *, every: bool
) -> None:
    told = Stages()
    whole = export(str(checkpoint), out=tmp_path / "whole", progress=told).bundle
    stages = told.begun if every else [stage for stage in told.begun if stage in SOME_STAGES]

    command = [sys.executable, "-m", "tests.exporters.killed_exports", str(small_probe), str(checkpoint)]
    finished = subprocess.run(
        [*command, str(tmp_path / "killed"), "3", *stages], capture_output=True, text=True, check=False
    )

    assert finished.returncode == 0, finished.stderr
    found = dict(zip(stages, map(int, finished.stdout.split()), strict=True))
    print(found)
    assert found["trace with Optimum"] == 0 < found["certify against PyTorch"]
    assert not every or found["certify against PyTorch"] == found["write the bundle"]
    assert contents(tmp_path / "killed") == contents(whole.path)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "killed"}


KILLED = """
import sys
from ortkit.exporters import export
from ortkit import Precision
from tests.exporters.killed_exports import Struck
source, out = sys.argv[1:]
export(source, out=out, precision=Precision.INT4, progress=Struck("certify against PyTorch", 0.0001))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("whole_probe")  # as the killed process has
def test_what_a_killed_export_of_a_gguf_file_leaves(tmp_path: Path) -> None:
    """No copy of its weights, and the next export of any bundle there takes away what nobody can use."""
    model = seeded("llama", hidden_size=256, intermediate_size=512)
    file = write_gguf(tmp_path / "m.gguf", model, types={"norm.weight": Type.F32, "weight": Type.Q4_1})
    bundles = tmp_path / "bundles"
    killed = subprocess.run([sys.executable, "-c", KILLED, file, bundles / "b"], check=False)
    assert killed.returncode < 0
    (staging,) = bundles.glob(".b.*.partial")
    assert {path.name for path in bundles.iterdir()} == {staging.name, ".b.unfinished"}
    unpacked = 4 * sum(parameter.numel() for parameter in model.parameters())
    left = sum(path.stat().st_size for path in (staging / "scratch").rglob("*") if path.is_file())
    assert left < 0.5 * unpacked

    told = Stages()
    export(str(file), out=bundles / "other", progress=told)

    assert {path.name for path in bundles.iterdir()} == {"other", ".b.unfinished"}
    size = sum(path.stat().st_size for path in (bundles / ".b.unfinished").rglob("*") if path.is_file())
    (note,) = told.notes
    assert note == (
        f"`{bundles / '.b.unfinished'}` ({megabytes(size)}) is an interrupted export to `{bundles / 'b'}`: "
        "the same command resumes it, and the folder can be removed"
    )

    told = Stages()
    export(str(file), out=bundles / "b", precision=Precision.INT4, progress=told)

    assert {path.name for path in bundles.iterdir()} == {"other", "b"}
    assert not told.notes


def test_ctrl_c_names_the_work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "m.gguf", seeded("llama"), types={"attn_v.weight": Type.Q4_1})

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ortkit.exporters.decoder.task.certify_decoder", interrupted)
    told = Stages()
    with pytest.raises(KeyboardInterrupt):
        export(str(file), out=tmp_path / "b" / "b", progress=told)

    assert [path.name for path in (tmp_path / "b").iterdir()] == [".b.unfinished"]
    kept = tmp_path / "b" / ".b.unfinished"
    assert told.notes == [f"results are kept in `{kept}`; the same command resumes from there"]


def test_an_export_that_is_interrupted_when_its_bundle_is_in_place(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one reads weights that the bundle has too."""
    commit = BundleWriter.commit

    def interrupted(writer: BundleWriter, manifest: Manifest) -> None:
        commit(writer, manifest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BundleWriter, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(str(checkpoint), out=tmp_path / "b")
    whole = contents(tmp_path / "b")

    bundle = export(str(checkpoint), out=tmp_path / "b").bundle

    assert contents(bundle.path) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_resumed_export_skips_completed_work(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while it certifies, an export has nothing left to read or to round."""
    whole = export(str(checkpoint), out=tmp_path / "whole").bundle

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ortkit.exporters.decoder.task.certify_decoder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(str(checkpoint), out=tmp_path / "b")
    passes: list[int] = []
    run = LayerwiseForward.run
    monkeypatch.setattr(
        LayerwiseForward, "run", lambda layerwise, told=None: (passes.append(1), run(layerwise, told))[1]
    )
    for name in ("quantize_blockwise", "gptq_quantize_blockwise"):
        monkeypatch.setattr(f"ortkit.exporters.decoder.weight_only.{name}", interrupted)

    bundle = export(str(checkpoint), out=tmp_path / "b").bundle

    assert not passes
    assert contents(bundle.path) == contents(whole.path)


def test_different_export_to_the_same_target_starts_over(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ortkit.exporters.decoder.task.certify_decoder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(str(checkpoint), out=tmp_path / "b")
    other = write_seeded(tmp_path / "other", SMALL, seed=1)

    bundle = export(str(other), precision=Precision.INT8, out=tmp_path / "b").bundle

    expected = export(str(other), precision=Precision.INT8, out=tmp_path / "expected").bundle
    assert contents(bundle.path) == contents(expected.path)


def test_resumed_search_skips_measured_recipes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []
    quantized = BlockTrials.quantized

    def third_interrupts(trials: BlockTrials, recipe: object) -> object:
        if recipe not in tried:
            tried.append(recipe)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return quantized(trials, recipe)

    with monkeypatch.context() as patch:
        patch.setattr(BlockTrials, "quantized", third_interrupts)
        with pytest.raises(KeyboardInterrupt):
            export(str(checkpoint), max_kl=1e-9, out=tmp_path / "b")
    assert len(tried) == 3
    first_two = tried[:2]

    def none_of_the_first(_: BlockTrials, recipe: object) -> object:
        assert recipe not in first_two
        raise InputError("stop here")

    monkeypatch.setattr(BlockTrials, "quantized", none_of_the_first)
    with pytest.raises(InputError, match="stop here"):
        export(str(checkpoint), max_kl=1e-9, out=tmp_path / "b")


def test_full_disk_is_reported_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ortkit.exporters.graph.external_data.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**6})
    )

    with pytest.raises(OutputError) as caught:
        export(str(checkpoint), out=tmp_path / "b")

    assert caught.value.message.startswith("the export writes about ")
    assert caught.value.message.endswith(f" MB in `{tmp_path}`, and 1.0 MB are free")
    assert caught.value.hint == "free some space, or choose another folder with `--out`"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("precision", "provider"),
    [
        *((precision, Provider.CPU) for precision in (Precision.INT4, Precision.INT8, Precision.FP32)),
        *((precision, Provider.CUDA) for precision in (Precision.INT4, Precision.FP16)),
    ],
)
def test_size_of_an_export_is_estimated(
    checkpoint: Path, tmp_path: Path, precision: Precision, provider: Provider
) -> None:
    foreseen, written = foreseen_and_written(checkpoint, precision, tmp_path / "b", provider)

    assert 0.98 * written < foreseen < 1.5 * written


def test_size_of_a_source_export_is_estimated(tmp_path: Path) -> None:
    model = seeded("llama", hidden_size=512, intermediate_size=1024)
    file = write_gguf(tmp_path / "m.gguf", model, types={"weight": Type.Q4_1})

    foreseen, written = foreseen_and_written(file, Precision.SOURCE, tmp_path / "b")

    assert 0.98 * written < foreseen < 1.8 * written


def foreseen_and_written(
    source: Path, precision: Precision, out: Path, provider: Provider = Provider.CPU
) -> tuple[int, int]:
    """Bytes that an export says it will write, and those of its weights and of what it is compared with."""
    needed: list[int] = []
    check = decoder_task.need_space
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            decoder_task, "need_space", lambda folder, size, done: (needed.append(size), check(folder, size, done=done))
        )
        bundle = export(str(source), precision=precision, provider=provider, out=out).bundle
    facts, certificate = bundle.manifest.decoder, bundle.manifest.certificate
    assert facts is not None
    assert certificate is not None
    written = bundle.manifest.files["model.onnx.data"].size + 4 * certificate.probe_size * facts.vocabulary
    print(needed, written)
    return needed[0], written


def test_the_same_export_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny")

    first, second = (export(str(folder), out=tmp_path / name).bundle for name in "ab")

    assert contents(first.path) == contents(second.path)
    assert np.isfinite(list(first.manifest.certificate.figures.values())).all()
