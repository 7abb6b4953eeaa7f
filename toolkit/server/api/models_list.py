"""What is served: `/v1/models` of OpenAI's API, and `/info` of text-embeddings-inference (TEI)."""

from __future__ import annotations

from typing import Any

from ....runtime.bundle.manifest import Kind
from ....runtime.version import __version__
from ..errors import UnknownModelError, listed
from ..served.models import ServedModel, ServedModels
from ..settings import ServerSettings


def model_entry(served: ServedModel) -> dict[str, Any]:
    """A model as OpenAI's API lists it; `kind`, `max_model_len` (vLLM's name) and `dimensions` are additions."""
    manifest = served.model.bundle.manifest
    entry: dict[str, Any] = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "ortkit",
        "kind": served.kind.value,
        "max_model_len": manifest.tokenizer.max_length,
    }
    if served.kind is Kind.DECODER:
        entry["max_model_len"] = served.context
    if served.kind is Kind.EMBEDDER:
        entry["dimensions"] = served.embedder.dimension
    return entry


def models_list(models: ServedModels) -> dict[str, Any]:
    return {"object": "list", "data": [model_entry(served) for served in models.all()]}


def tei_info(models: ServedModels, settings: ServerSettings, name: str | None) -> dict[str, Any]:
    """TEI's description of its model: the one that is named, or the first embedder or reranker."""
    if name is None:
        encoders = [*models.of_kind(Kind.EMBEDDER), *models.of_kind(Kind.RERANKER)]
        if not encoders:
            raise UnknownModelError(
                "no embedder and no reranker is served", param="model", hint=f"served: {listed(models.names)}"
            )
        served = encoders[0]
    else:
        served = models.find(name)
    manifest = served.model.bundle.manifest
    info: dict[str, Any] = {
        "model_id": served.name,
        "model_sha": served.fingerprint.removeprefix("fp_"),
        "model_dtype": manifest.precision.value,
        "model_type": {"embedding": {"pooling": manifest.embedder.pooling.value}}
        if manifest.embedder is not None
        else {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_concurrent_requests": settings.requests_per_model,
        "max_input_length": manifest.tokenizer.max_length,
        "max_batch_tokens": 0,
        "max_client_batch_size": settings.max_inputs,
        "auto_truncate": False,
        "tokenization_workers": 1,
        "version": __version__,
    }
    if served.kind is not Kind.DECODER:
        info["max_batch_tokens"] = served.embedder.batch_tokens
    return info
