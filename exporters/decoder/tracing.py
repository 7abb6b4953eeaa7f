"""Trace decoders to ONNX through Optimum's exporter without loading weights, and rebuild the graph for speed.

The graph takes new tokens and the KV cache, and returns the logits of the positions asked for:

    input_ids (batch, tokens), last_positions (batch), total_length, logit_positions (n), past.LAYER.key and .value
    -> logits (batch, n, vocabulary), present.LAYER.key and .value, which at run time are the buffers of the past
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...runtime.bundle.graph_io import decoder_inputs
from ...runtime.errors import UnsupportedModelError
from ..graph.passes import fold_small_constants, fuse_rms_norms, merge_products, tidy
from ..models.loading import quiet
from ..models.optimum_trace import UNTESTED, trace_with_optimum
from .config import context_length
from .group_query_attention import DecoderOnnxConfig, check_rotation
from .lazy_model import LazyDecoder
from .lazy_tracing import resolve, traceable
from .passes import (
    attentions,
    drop_head_reshapes,
    fuse_skip_norms,
    gather_positions_early,
    pack_qkv,
    set_cache_shapes,
    slices_to_split,
)
from .plain_attention import PlainOnnxConfig

_REMOVED_OPERATORS = frozenset({"Shape", "Transpose", "Cast"})
"""Operators of traced decoders that must not be left in a rebuilt one."""


def trace(decoder: LazyDecoder, scratch: Path, *, length: int | None = None, plain: bool = False) -> ir.Model:
    """Trace a model to float32 ONNX through a file in `scratch`; its weights stay in the checkpoint.

    The rotary tables in the graph are for `length` tokens, by default the model's longest context. Unless the attention
    is to be `plain`, raises UnsupportedModelError for a rotation that GroupQueryAttention does not support.
    """
    model = decoder.model
    if not plain:
        check_rotation(model)
    longest = context_length(model.config)
    config_class = PlainOnnxConfig if plain else DecoderOnnxConfig
    config = config_class(model.config, context_length=min(length or longest, longest))
    hint = "ortkit has no support of its own for this architecture, and its code cannot be traced as it is"
    with quiet(), _refusing_failures(model, hint if plain else UNTESTED), traceable(decoder) as weights:
        # Fixing dynamic axes would run the graph, which has placeholders; `rebuild` sets the shapes of the outputs.
        traced = trace_with_optimum(model, config, scratch, smallest_constant=16, fix_dynamic_axes=False)
    resolve(traced.graph, weights)
    return traced


@contextmanager
def _refusing_failures(model: Any, hint: str = UNTESTED) -> Iterator[None]:
    """Turn failures of the tracer into UnsupportedModelError: untested code and settings may fail in any way.

    The graph that the tracer prints then is dropped.
    """
    try:
        with redirect_stdout(StringIO()):
            yield
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedModelError(f"`{type(model).__name__}` cannot be traced: {reason}", hint=hint) from error


def rebuild(traced: ir.Model) -> None:
    """Fuse a traced decoder: merged linear layers, one attention operator per layer without reshapes around it.

    Linear layers stay MatMuls with constant matrices, with an Add where they have a bias. Raises UnsupportedModelError
    for a graph that the passes do not recognize.
    """
    graph = traced.graph
    fold_small_constants(traced)
    fuse_rms_norms(graph)
    slices_to_split(graph)
    drop_head_reshapes(graph)
    tidy(traced)
    merge_products(graph)
    pack_qkv(graph)
    tidy(traced)
    gather_positions_early(graph)
    fuse_skip_norms(graph)
    set_cache_shapes(graph)
    tidy(traced)
    _check_graph(graph)


def _check_graph(graph: ir.Graph) -> None:
    """Raise UnsupportedModelError for a graph with other inputs than a decoder's, or with shape computations left."""
    grouped = len(attentions(graph))
    names = tuple(value.name for value in graph.inputs)
    layers = grouped or (len(names) - len(decoder_inputs(0))) // 2
    if names != decoder_inputs(layers) or (grouped and any(node.op_type in _REMOVED_OPERATORS for node in graph)):
        raise UnsupportedModelError(
            f"a decoder of {layers} layers traces to a graph that is not supported",
            hint=UNTESTED,
        )
