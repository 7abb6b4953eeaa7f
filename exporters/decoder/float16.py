"""Convert a decoder's graph to float16, for CUDA, whose attention has no float32 kernel.

onnxruntime's CPU provider, which certifies the graph, has float16 kernels for few operators and computes the others in
float32 with casts around them: correct, and slow.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ...runtime.bundle.graph_io import decoder_inputs
from ..graph.embedding import streamed_gathers
from ..graph.float16 import convert_values

_BLOCK_GATHER = "GatherBlockQuantized"


def convert_to_float16(graph: ir.Graph) -> None:
    """Convert everything computed from embeddings, and the KV cache, to float16; logits are cast back to float32.

    Weights may be quantized block-wise, with float16 scales (`BlockFormat.cuda`). Rotary tables are rounded after they
    were computed in float32: float16 counts to 2,048 only.
    """
    embeddings = [*streamed_gathers(graph), *(node for node in graph if node.op_type == _BLOCK_GATHER)]
    convert_values(graph, [*cache_inputs(graph), *(node.outputs[0] for node in embeddings)])


def cache_inputs(graph: ir.Graph) -> Sequence[ir.Value]:
    """Return the inputs of the KV cache, which come last."""
    return graph.inputs[len(decoder_inputs(0)) :]
