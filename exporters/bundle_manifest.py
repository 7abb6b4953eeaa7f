"""The manifest of a bundle that is exported: built here, from what each step of the export found out."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

import onnx_ir as ir

from ..runtime.bundle.manifest import SCHEMA, Certificate, Kind, Layout, Manifest, Provider, TokenizerFacts
from ..runtime.session.onnxruntime_import import OLDEST_COREML, OLDEST_ONNXRUNTIME, ONNXRUNTIME
from ..runtime.version import __version__
from .checkpoint.checkpoint import Checkpoint
from .checkpoint.kind import lower_case, max_length
from .models.tokenizer import BundleTokenizer
from .options import ExportPlan
from .providers.coreml import buckets_for
from .steps import ModelFacts, QuantizedGraph

_LIBRARIES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "optimum",
    "optimum-onnx",
    "onnxruntime",
    "tokenizers",
    "numpy",
)


def tokenizer_facts(checkpoint: Checkpoint, kind: Kind, tokenizer: BundleTokenizer) -> TokenizerFacts:
    """What the checkpoint's files say of its tokenizer, for any kind of model."""
    return TokenizerFacts(
        max_length(checkpoint),
        lower_case(checkpoint),
        tokenizer.special_tokens,
        tokenizer.truncation_side,
        None if kind is Kind.DECODER else tokenizer.known_tokens,
    )


def make_manifest(
    checkpoint: Checkpoint,
    plan: ExportPlan,
    facts: ModelFacts,
    graph: ir.Model | None = None,
    quantized: QuantizedGraph | None = None,
    certificate: Certificate | None = None,
) -> Manifest:
    """Build a manifest, complete but for the list of files once the graph and the certificate are there."""
    return Manifest(
        schema=SCHEMA,
        kind=plan.kind,
        name=checkpoint.name,
        precision=plan.precision,
        provider=plan.provider,
        architecture=checkpoint.architecture.name,
        inputs=() if graph is None else tuple(value.name or "" for value in graph.graph.inputs),
        source=checkpoint.source,
        files={},
        tokenizer=facts.tokenizer,
        embedder=facts.embedder,
        reranker=facts.reranker,
        decoder=facts.decoder,
        quantization=None if quantized is None else quantized.quantization,
        blocks=None if quantized is None else quantized.blocks,
        prefill=None if quantized is None else quantized.prefill_facts,
        certificate=certificate,
        requires={ONNXRUNTIME: OLDEST_COREML if plan.provider is Provider.COREML else OLDEST_ONNXRUNTIME},
        layout=_layout_of(plan),
        buckets=buckets_for(facts.tokenizer.max_length) if plan.provider is Provider.COREML else None,
        made_with={"ortkit": __version__} | _versions(),
    )


@cache
def _versions() -> dict[str, str]:
    """The versions of the libraries; a manifest is made several times an export, and each reads eight files."""
    return {library: version(library) for library in _LIBRARIES}


def _layout_of(plan: ExportPlan) -> Layout:
    """The layout of an encoder's graph for the provider; decoders have the default one."""
    cpu = plan.provider is Provider.CPU or plan.kind is Kind.DECODER
    return Layout.TOKENS_FIRST if cpu else Layout.TEXTS_FIRST
