"""Encoders -> ONNX: loaded with transformers, traced through Optimum's exporter, then rebuilt for speed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
import transformers
from optimum.exporters.onnx import export as optimum_export
from optimum.exporters.tasks import TasksManager

from exporters.attention import merge_attention
from exporters.checkpoint import Checkpoint
from exporters.facts import required_int
from exporters.graph import (
    INPUT_IDS,
    drop_token_types,
    drop_unused_inputs,
    fold_constants,
    run_on_rows,
    shapes_from_ids,
    tidy,
)
from runtime.errors import CheckpointError, UnsupportedModelError

ARCHITECTURES = frozenset({"bert", "mpnet", "roberta", "xlm-roberta"})
"""What is tested against PyTorch; anything else is refused."""
LARGEST = 2**31 - 2**26
"""Bytes of weights that fit, with the graph, into one protobuf, which ends at 2 GiB."""
OPSET = 20
"""The first with GELU as one operator."""
NOT_NEEDED = ("pooler.", "embeddings.position_ids")
"""Weights that the token vectors do not depend on, so a checkpoint may lack them."""


def check_architecture(name: str, config: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError for a config that would not be exported exactly; `name` is the model's."""
    model_type = config["model_type"]
    if model_type not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"`{name}` has the architecture `{model_type}`, which edgekit does not know",
            hint=f"known are {', '.join(f'`{known}`' for known in sorted(ARCHITECTURES))}",
        )
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise UnsupportedModelError(
            f"`{name}` has the position embedding `{positions}`, which edgekit does not know",
            hint="known is `absolute`",
        )


def load_model(checkpoint: Checkpoint) -> Any:
    """The PyTorch model in float32, ready to run; raises CheckpointError when its weights do not fit its config."""
    with quiet():
        try:
            model, info = transformers.AutoModel.from_pretrained(
                str(checkpoint.folder),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                # The plain attention traces to the operators that `merge_attention` looks for.
                attn_implementation="eager",
                output_loading_info=True,
            )
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"`{checkpoint.folder}` cannot be loaded: {error}") from error
    missing = [key for key in info["missing_keys"] if not key.startswith(NOT_NEEDED)]
    if missing:
        raise CheckpointError(
            f"`{checkpoint.folder}` lacks {len(missing)} of the weights that its config.json promises, "
            f"such as `{min(missing)}`"
        )
    return model.eval()


def trace(model: Any, scratch: Path) -> ir.Model:
    """Trace a model to fp32 ONNX through Optimum, by way of a file in `scratch`.

    Raises UnsupportedModelError for a model that does not fit into one file.
    """
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    if size > LARGEST:
        raise UnsupportedModelError(
            f"the model has {size / 1e9:.1f} GB of float32 weights, and edgekit exports encoders up to "
            f"{LARGEST / 1e9:.1f} GB"
        )
    config_class = TasksManager.get_exporter_config_constructor(
        "onnx", model, task="feature-extraction", library_name="transformers"
    )
    path = scratch / "traced.onnx"
    with quiet():
        optimum_export(model, config_class(model.config), path, opset=OPSET)
    traced = ir.load(path)
    ir.external_data.load_to_model(traced)
    return traced


def rebuild(traced: ir.Model, checkpoint: Checkpoint) -> None:
    """Turn a traced encoder into one that runs on rows of tokens of batches without padding.

    Raises UnsupportedModelError when a part of the graph is not what the passes know.
    """
    graph = traced.graph
    fold_constants(traced)
    drop_token_types(graph)
    merged = merge_attention(graph, required_int(checkpoint, "num_attention_heads"))
    tidy(traced)
    shapes_from_ids(graph)
    drop_unused_inputs(graph)
    on_rows = run_on_rows(graph)
    tidy(traced)
    inputs = [value.name for value in graph.inputs]
    if merged != required_int(checkpoint, "num_hidden_layers") or not on_rows or inputs != [INPUT_IDS]:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` traces to a graph that is not the `{checkpoint.config['model_type']}` edgekit knows",
            hint="its config.json asks for something that edgekit has not been tested with",
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' remarks to themselves; what matters in them is checked and reported by edgekit."""
    before = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(before)
        if bars:
            transformers.logging.enable_progress_bar()
