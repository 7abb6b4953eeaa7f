"""A checkpoint that was found, to a bundle: graph -> quantize -> certify -> write, read from top to bottom."""

from __future__ import annotations

import dataclasses
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .checkpoint.checkpoint import Checkpoint
from .checkpoint.files import license_files
from .options import ExportPlan
from .gguf.file import described_checkpoint
from .gguf.metadata import open_gguf
from .checkpoint.kind import lower_case, max_length
from .progress import Progress, stage
from .task import ResumableTask, Task, task_of
from .models.tokenizer import BundleTokenizer, bundle_tokenizer
from .workdir import Unfinished
from .models.weights_format import with_format
from ..runtime.bundle.bundle import TOKENIZER, Bundle
from ..runtime.bundle.writer import BundleWriter
from ..runtime.bundle.manifest import SCHEMA, Kind, Manifest, Precision, Provider, TokenizerFacts, manifest_to_json
from ..runtime.session.onnxruntime_import import OLDEST_ONNXRUNTIME, ONNXRUNTIME
from ..runtime.version import __version__

CONVERSIONS = {Precision.SOURCE: "keep the blocks of the file", Precision.FP16: "round to float16"}
"""What becomes of a float32 graph, where it is not quantized."""
LIBRARIES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "optimum",
    "optimum-onnx",
    "onnxruntime",
    "tokenizers",
    "numpy",
)


@dataclass(frozen=True)
class Exported:
    """What an export made, and the size in bytes of the weights it was made from."""

    bundle: Bundle
    checkpoint_size: int


def convert(
    checkpoint: Checkpoint, plan: ExportPlan, provider: Provider, writer: BundleWriter, progress: Progress
) -> Exported:
    """Make the bundle of a checkpoint that was chosen."""
    if checkpoint.gguf is not None:
        with stage(progress, "read the GGUF file"):
            checkpoint = described_checkpoint(checkpoint, open_gguf(checkpoint.gguf), writer.scratch / "checkpoint")
    else:
        checkpoint = with_format(checkpoint, writer.scratch / "weights")
    tokenizer = bundle_tokenizer(checkpoint)
    (writer.folder / TOKENIZER).write_bytes(tokenizer.text.encode("utf-8"))
    draft = draft_manifest(checkpoint, plan.kind, plan.precision, provider, tokenizer)
    bundle = build(task_of(checkpoint, plan.kind, plan.cache), draft, writer, progress, plan.threshold)
    return Exported(bundle, checkpoint.weights_size)


def build(
    task: Task[Any], draft: Manifest, writer: BundleWriter, progress: Progress, threshold: float | None
) -> Bundle:
    precision = draft.precision
    copy_licenses(task.checkpoint, writer.folder)
    manifest = task.described(draft, writer.folder)
    with ExitStack() as stack:
        if isinstance(task, ResumableTask):
            unfinished = stack.enter_context(Unfinished(writer.target, key_of(manifest, threshold), progress.note))
            task.begin(unfinished.folder, progress)
        with stage(progress, "load the weights"):
            model = task.load()
        with stage(progress, "trace with Optimum"):
            graph = task.graph(model, writer.scratch, manifest)
        manifest = dataclasses.replace(manifest, inputs=tuple(value.name or "" for value in graph.graph.inputs))
        with stage(progress, "run the probe set with PyTorch"):
            expected = task.reference(model, manifest)
        del model
        if precision is not Precision.FP32:
            with stage(progress, CONVERSIONS.get(precision, f"quantize to {precision.value}")):
                graph, manifest = task.quantized(graph, Bundle(writer.folder, manifest), expected, threshold)
        task.write(graph, writer.folder)
        with stage(progress, "certify against PyTorch"):
            certificate = task.certify(Bundle(writer.folder, manifest), expected, threshold)
        with stage(progress, "write the bundle"):
            return writer.commit(dataclasses.replace(manifest, certificate=certificate))


def key_of(manifest: Manifest, threshold: float | None) -> str:
    """The identity of an export for resuming: the checkpoint's hashes, versions, precision, threshold."""
    return f"{manifest_to_json(manifest)}{threshold}\n"


def draft_manifest(
    checkpoint: Checkpoint, kind: Kind, precision: Precision, provider: Provider, tokenizer: BundleTokenizer
) -> Manifest:
    """All of the manifest that the checkpoint's own files decide."""
    return Manifest(
        schema=SCHEMA,
        kind=kind,
        name=checkpoint.name,
        precision=precision,
        provider=provider,
        architecture=checkpoint.architecture.name,
        inputs=(),
        source=checkpoint.source,
        files={},
        tokenizer=TokenizerFacts(
            max_length(checkpoint),
            lower_case(checkpoint),
            tokenizer.special_tokens,
            tokenizer.truncation_side,
            None if kind is Kind.DECODER else tokenizer.known_tokens,
        ),
        embedder=None,
        certificate=None,
        requires={ONNXRUNTIME: OLDEST_ONNXRUNTIME},
        made_with={"ortkit": __version__} | {library: version(library) for library in LIBRARIES},
    )


def copy_licenses(checkpoint: Checkpoint, folder: Path) -> None:
    for path in license_files(checkpoint.top):
        shutil.copyfile(path, folder / path.name)
