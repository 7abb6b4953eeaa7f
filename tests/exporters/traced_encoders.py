"""Small encoders traced to float32 graphs, as an export does before it rebuilds them."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ortkit import Kind, Precision
from ortkit.exporters.bundle_manifest import make_manifest, tokenizer_facts
from ortkit.exporters.checkpoint.checkpoint import Checkpoint
from ortkit.exporters.encoder.tracing import trace
from ortkit.exporters.models.tokenizer import bundle_tokenizer
from ortkit.exporters.options import ExportOptions, plan_export
from ortkit.exporters.sources import find_checkpoint
from ortkit.exporters.task import task_of
from ortkit.runtime.bundle.bundle import TOKENIZER
from ortkit.runtime.bundle.manifest import Manifest, Provider


def traced_encoder(
    folder: Path, kind: Kind, scratch: Path, *, provider: Provider, precision: Precision = Precision.FP32
) -> tuple[Checkpoint, Manifest, ir.Model]:
    """A checkpoint, its manifest without a graph, and its traced graph; `scratch` takes the tokenizer."""
    checkpoint = find_checkpoint(str(folder))
    plan = plan_export(checkpoint, ExportOptions(kind, precision, None, dict.fromkeys(Kind), provider))
    tokenizer = bundle_tokenizer(checkpoint)
    (scratch / TOKENIZER).write_text(tokenizer.text, encoding="utf-8")
    task = task_of(checkpoint, plan)
    facts = task.facts(tokenizer_facts(checkpoint, kind, tokenizer), scratch)
    return checkpoint, make_manifest(checkpoint, plan, facts), trace(task.load(), scratch, kind)
