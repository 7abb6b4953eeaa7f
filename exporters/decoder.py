"""Decoders -> ONNX: traced through Optimum's exporter without their weights, then rebuilt for speed.

The graph reads new tokens beside the keys and values of those before, and gives the logits of the positions asked for:

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
from onnx_ir.passes import common as passes
from optimum.exporters.onnx import export as optimum_export

from exporters.decoder_graph import (
    attentions,
    drop_head_shapes,
    fuse_skip_norms,
    pack_attention,
    pick_early,
    split_where_sliced,
    state_outputs,
)
from exporters.graph import fold_small_constants, fuse_rms_norms, merge_products, tidy
from exporters.grouped_attention import (
    DecoderOnnxConfig,
    check_rotation,
    context_length,
)
from exporters.plain_attention import PlainOnnxConfig
from exporters.pytorch_model import OPSET, quiet
from exporters.weightless import WeightlessDecoder
from exporters.weightless_trace import resolve, traceable
from runtime.errors import UnsupportedModelError
from runtime.graph_io import decoder_inputs

NOT_LEFT = frozenset({"Shape", "Transpose", "Cast"})
"""Operators that stand in a traced decoder and in no rebuilt one."""
UNTESTED = "its config.json asks for something that edgekit has not been tested with"


def trace(decoder: WeightlessDecoder, scratch: Path, *, length: int | None = None, plain: bool = False) -> ir.Model:
    """Trace a model to fp32 ONNX through Optimum, by way of a file in `scratch`; its matrices stay in the checkpoint.

    The tables of angles in the graph are for texts of `length` tokens, by default the longest that the model can read.
    Raises UnsupportedModelError for heads that onnxruntime's attention cannot rotate, or not as the model does, unless
    the attention is to be `plain`.
    """
    model = decoder.model
    if not plain:
        check_rotation(model)
    longest = context_length(model.config)
    config_class = PlainOnnxConfig if plain else DecoderOnnxConfig
    config = config_class(model.config, context_length=min(length or longest, longest))
    path = scratch / "traced.onnx"
    hint = "edgekit has no form of its own for this architecture, and its code does not trace as it is"
    with quiet(), refusing_what_fails(model, hint if plain else UNTESTED), traceable(decoder) as held:
        # Mending sizes would open a session on a graph that nobody can run; `rebuild` states those of the outputs.
        optimum_export(model, config, path, opset=OPSET, disable_dynamic_axes_fix=True)
    traced = ir.load(path)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True)(traced)
    ir.external_data.load_to_model(traced)
    resolve(traced.graph, held)
    return traced


@contextmanager
def refusing_what_fails(model: Any, hint: str = UNTESTED) -> Iterator[None]:
    """Code that nobody has traced before may fail in any way, and so may settings that nobody has.

    The tracer prints its graph then, which helps no user.
    """
    try:
        with redirect_stdout(StringIO()):
            yield
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedModelError(f"`{type(model).__name__}` cannot be traced: {reason}", hint=hint) from error


def rebuild(traced: ir.Model) -> None:
    """Turn a traced decoder into one with merged products, whose attention is one operator without shapes around it.

    Products stay MatMuls with constant matrices, with an Add where they have a bias. Raises UnsupportedModelError when
    a part of the graph is not what the passes know.
    """
    graph = traced.graph
    fold_small_constants(traced)
    fuse_rms_norms(graph)
    split_where_sliced(graph)
    drop_head_shapes(graph)
    tidy(traced)
    merge_products(graph)
    pack_attention(graph)
    tidy(traced)
    pick_early(graph)
    fuse_skip_norms(graph)
    state_outputs(graph)
    tidy(traced)
    check_decoder(graph)


def check_decoder(graph: ir.Graph) -> None:
    """Raise UnsupportedModelError for a graph with inputs that are not a decoder's, or with sizes left to compute."""
    grouped = len(attentions(graph))
    names = tuple(value.name for value in graph.inputs)
    layers = grouped or (len(names) - len(decoder_inputs(0))) // 2
    if names != decoder_inputs(layers) or (grouped and any(node.op_type in NOT_LEFT for node in graph)):
        raise UnsupportedModelError(
            f"a decoder of {layers} layers traces to a graph that is not what edgekit knows",
            hint=UNTESTED,
        )
