"""From a planned checkpoint to a bundle: checkpoint -> graph -> quantized graph -> certificate -> bundle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..runtime.bundle.bundle import PREFILL_GRAPH, TOKENIZER, Bundle
from ..runtime.bundle.folder import DraftBundle
from ..runtime.bundle.manifest import Manifest, Precision
from ..runtime.bundle.manifest_json import manifest_to_json
from ..runtime.bundle.writer import BundleWriter
from .bundle_manifest import make_manifest, tokenizer_facts
from .certification.probe import calibration_texts, probe_texts
from .checkpoint.checkpoint import Checkpoint
from .checkpoint.files import license_files
from .checkpoint.hashed_file import check_unchanged
from .gguf.file import described_checkpoint
from .gguf.metadata import open_gguf
from .graph.external_data import weights_file, write_stored_graph
from .graph.nodes import required
from .models.tokenizer import bundle_tokenizer
from .models.weights_format import with_format
from .options import ExportPlan
from .progress import Progress, stage
from .steps import QuantizedGraph, Workspace
from .task import Task, task_of
from .workdir import ResumableFolder

_CONVERSIONS = {Precision.SOURCE: "keep the blocks of the file", Precision.FP16: "round to float16"}
"""Names of the stage that changes the precision, where it does not quantize."""


@dataclass(frozen=True)
class Exported:
    """What an export made, and the size in bytes of the weights it was made from."""

    bundle: Bundle
    checkpoint_size: int


def convert(found: Checkpoint, plan: ExportPlan, writer: BundleWriter, progress: Progress) -> Exported:
    """Make the bundle of a checkpoint as planned; `writer` is open."""
    checkpoint = _readable(found, writer.scratch, progress)
    tokenizer = bundle_tokenizer(checkpoint)
    (writer.folder / TOKENIZER).write_bytes(tokenizer.text.encode("utf-8"))
    copy_licenses(checkpoint, writer.folder)
    task = task_of(checkpoint, plan)
    facts = task.facts(tokenizer_facts(checkpoint, plan.kind, tokenizer), writer.folder)
    described = make_manifest(checkpoint, plan, facts)
    with _workspace(task, writer, _key_of(described, plan.threshold), progress) as work:
        with stage(progress, "load the weights"):
            model = task.load()
        with stage(progress, "trace with Optimum"):
            graph = task.trace(model, described, work)
        exact = DraftBundle(writer.folder, make_manifest(checkpoint, plan, facts, graph))
        with stage(progress, "run the probe set with PyTorch"):
            reference = task.reference(model, exact, work)
        del model
        quantized = QuantizedGraph(graph)
        if plan.precision is not Precision.FP32:
            with (
                stage(progress, _CONVERSIONS.get(plan.precision, f"quantize to {plan.precision.value}")),
                _trial_of(exact, writer.scratch) as trial,
            ):
                quantized = task.quantize(graph, trial, reference, plan.threshold, work)
        task.write(quantized.graph, writer.folder, work)
        if quantized.prefill is not None:
            weights = required(weights_file(quantized.prefill))
            write_stored_graph(quantized.prefill, weights, writer.folder / PREFILL_GRAPH)
        draft = DraftBundle(writer.folder, make_manifest(checkpoint, plan, facts, graph, quantized))
        with stage(progress, "certify against PyTorch"):
            certificate = task.certify(draft, reference, plan.threshold, work)
        with stage(progress, "write the bundle"):
            check_unchanged(found.hashed)
            bundle = writer.commit(make_manifest(checkpoint, plan, facts, graph, quantized, certificate))
    return Exported(bundle, found.weights_size)


def _readable(checkpoint: Checkpoint, scratch: Path, progress: Progress) -> Checkpoint:
    """The checkpoint in a form that transformers reads: a GGUF file described, weights that say their format."""
    if checkpoint.gguf is None:
        return with_format(checkpoint, scratch / "weights")
    with stage(progress, "read the GGUF file"):
        return described_checkpoint(checkpoint, open_gguf(checkpoint.gguf), scratch / "checkpoint")


@contextmanager
def _workspace(task: Task[Any], writer: BundleWriter, key: str, progress: Progress) -> Iterator[Workspace]:
    """Open the folders for temporary files and, for a task that resumes, for results that are kept."""
    if not task.resumable:
        yield Workspace(writer.scratch, writer.scratch, progress)
        return
    with ResumableFolder(writer.target, key, progress.note) as unfinished:
        yield Workspace(writer.scratch, unfinished.folder, progress)


@contextmanager
def _trial_of(draft: DraftBundle, scratch: Path) -> Iterator[DraftBundle]:
    """Copy a bundle that has no graph yet, to try graphs in it."""
    with TemporaryDirectory(dir=scratch) as folder:
        shutil.copytree(draft.path, folder, dirs_exist_ok=True)
        yield DraftBundle(Path(folder), draft.manifest)


def _key_of(manifest: Manifest, threshold: float | None) -> str:
    """The identity of an export for resuming: the checkpoint's hashes, versions, precision, threshold, texts."""
    sets = "\n".join(f"{one.name} {one.sha256}" for one in (probe_texts(), calibration_texts()))
    return f"{manifest_to_json(manifest)}{threshold}\n{sets}\n"


def copy_licenses(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy the files with the license terms into the bundle."""
    for path in license_files(checkpoint.top):
        shutil.copyfile(path, folder / path.name)
