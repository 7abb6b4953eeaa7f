"""Encoders -> ONNX: loaded with transformers, traced through Optimum's exporter, then rebuilt for speed.

Embedders give the vectors of tokens, rerankers the logits of a classifier over pairs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import transformers
from optimum.exporters.onnx.config import TextEncoderOnnxConfig
from optimum.exporters.tasks import TasksManager
from optimum.utils import NormalizedTextConfig

from ...runtime.bundle.graph_io import INPUT_IDS, TOKEN_TYPE_IDS
from ...runtime.bundle.manifest import Kind, Manifest, Provider
from ...runtime.errors import UnsupportedModelError
from ..checkpoint.architectures import JINA_BERT, NOMIC_BERT
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.cross_encoder import CrossEncoderFiles, Form, labels_of
from ..checkpoint.kind import required_int
from ..graph.attention import merge_attention
from ..graph.flatten import (
    assume_whole_texts,
    drop_token_types,
    give_tokens_first,
    rows_at_products,
    run_on_rows,
    set_head_apart,
    shapes_from_ids,
)
from ..graph.passes import drop_unused_inputs, fold_constants, fuse_rms_norms, merge_products, tidy
from ..models.jina_bert import JinaBertModel, alibi_slopes
from ..models.last_token_classifier import LastTokenClassifier, classifier_of_answers
from ..models.library_errors import library_errors
from ..models.loading import load_tokenizer, load_weights, quiet
from ..models.nomic_bert import NomicBertModel
from ..models.optimum_trace import UNTESTED, trace_with_optimum
from ..models.pooled_classifier import classifier_of_modules
from ..providers.coreml_encoder import rebuild_for_coreml
from ..providers.cuda_encoder import rebuild_for_cuda
from .cls_token import narrow_last_layer
from .reranker_config import answer_ids

IMPLEMENTED_HERE = {JINA_BERT.name: JinaBertModel, NOMIC_BERT.name: NomicBertModel}
"""What transformers does not have."""


class TokenIdsOnnxConfig(TextEncoderOnnxConfig):  # type: ignore[misc] # Optimum has no types
    """Tells Optimum that a model reads token ids and nothing else."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {INPUT_IDS: {0: "batch_size", 1: "sequence_length"}}


def load_model(checkpoint: Checkpoint, files: CrossEncoderFiles | None = None) -> Any:
    """The PyTorch model in float32, ready to run: an embedder, or the reranker that `files` describe.

    Raises CheckpointError when its weights do not fit its config.
    """
    if files is None:
        return load_weights(checkpoint, IMPLEMENTED_HERE.get(checkpoint.architecture.name, transformers.AutoModel))
    if files.form is Form.ANSWER:
        model = load_weights(checkpoint, transformers.AutoModelForCausalLM)
        return classifier_of_answers(model, *answer_ids(checkpoint, files, load_tokenizer(checkpoint)))
    if files.form is Form.MODULES:
        model = load_weights(checkpoint, transformers.AutoModel)
        return classifier_of_modules(checkpoint, model, files.modules)
    model = load_weights(_with_labels(checkpoint), transformers.AutoModelForSequenceClassification)
    if checkpoint.architecture.reads_last_token:
        return LastTokenClassifier(model.model, model.score, padding=model.config.pad_token_id)
    return model


def _with_labels(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with as many labels in its config as sentence-transformers reads from it."""
    labels = dict(enumerate(labels_of(checkpoint)))
    config = {key: value for key, value in checkpoint.config.items() if key not in ("num_labels", "label2id")}
    return replace(checkpoint, config=config | {"id2label": labels})


def trace(model: Any, scratch: Path, kind: Kind = Kind.EMBEDDER) -> ir.Model:
    """Trace a model to float32 ONNX through files in `scratch`; raises CheckpointError where PyTorch cannot run it."""
    task = "feature-extraction" if kind is Kind.EMBEDDER else "text-classification"
    if isinstance(model, tuple(IMPLEMENTED_HERE.values())):
        config_class = TokenIdsOnnxConfig
    else:
        config_class = TasksManager.get_exporter_config_constructor(
            "onnx", model, task=task, library_name="transformers"
        )
    message = f"PyTorch cannot run `{model.config.model_type}` with the settings of its config.json"
    with quiet(), library_errors(message):
        return trace_with_optimum(model, config_class(model.config), scratch, smallest_constant=0)


def rebuilt(
    graph: ir.Model, checkpoint: Checkpoint, manifest: Manifest, *, scratch: Path, pooled: bool = False
) -> ir.Model:
    """A traced graph, rebuilt for the provider; `pooled` says whether a reranker pools its tokens in the graph."""
    if manifest.provider is Provider.CUDA:
        rebuild_for_cuda(graph, checkpoint, manifest, scratch=scratch)
    elif manifest.provider is Provider.COREML:
        rebuild_for_coreml(graph, checkpoint, manifest)
    else:
        rebuild(graph, checkpoint, manifest, pooled=pooled)
    return graph


def rebuild(
    traced: ir.Model, checkpoint: Checkpoint, manifest: Manifest | None = None, *, pooled: bool = False
) -> None:
    """Turn a traced encoder into one that runs on rows of tokens of batches without padding.

    `pooled` says that a reranker's scores come from all tokens, which the layers then keep in three dimensions.

    It reads token ids (batch, tokens) and gives token vectors (tokens, batch, width). That of a reranker, which
    `manifest` describes, reads token types (batch, tokens) too where pairs have them, and gives logits (batch, labels).

    Raises UnsupportedModelError when a part of the graph is not what the passes know.
    """
    graph = traced.graph
    architecture = checkpoint.architecture
    reranker = manifest.reranker if manifest is not None else None
    inputs = [INPUT_IDS]
    fold_constants(traced)
    if reranker is not None and reranker.pair.document_type != 0:
        inputs.append(TOKEN_TYPE_IDS)
    else:
        drop_token_types(graph)
    set_head_apart(graph)
    if architecture.merged_attention and not pooled:
        whole = _merge_bert(traced, checkpoint)
        if whole and reranker is not None:
            narrow_last_layer(graph)
    else:
        assume_whole_texts(graph)
        fuse_rms_norms(graph)
        merge_products(graph)
        rows_at_products(graph)
        if reranker is None:
            give_tokens_first(graph)
        whole = True
    tidy(traced)
    drop_unused_inputs(graph)
    if not whole or [value.name for value in graph.inputs] != inputs:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` traces to a graph that is not that of a supported `{architecture.name}`",
            hint=UNTESTED,
        )


def _merge_bert(traced: ir.Model, checkpoint: Checkpoint) -> bool:
    """Merge the attention of every layer and let the layers run on rows; returns whether all of it could be done."""
    graph = traced.graph
    heads = required_int(checkpoint, checkpoint.architecture.heads)
    slopes = alibi_slopes(heads) if checkpoint.architecture is JINA_BERT else None
    merged = merge_attention(graph, heads, slopes=slopes)
    tidy(traced)
    shapes_from_ids(graph)
    drop_unused_inputs(graph)
    return run_on_rows(graph) and merged == required_int(checkpoint, checkpoint.architecture.layers)
