"""Find the embedding Gathers of a graph and their tables."""

from __future__ import annotations

import onnx_ir as ir

from ...runtime.bundle.graph_io import INPUT_IDS
from .nodes import constant_of, required
from .streamed_tensor import StreamedTensor


def embedding_gathers(graph: ir.Graph) -> list[ir.Node]:
    """Return the Gathers that look up token ids in a constant embedding table (vocabulary, width)."""
    return [
        node
        for node in _constant_gathers(graph)
        if required(node.inputs[1]).name == INPUT_IDS and len(table_of(node).shape) == 2
    ]


def streamed_gathers(graph: ir.Graph) -> list[ir.Node]:
    """Return the Gathers from tables that are read from the checkpoint: token and position embeddings."""
    return [node for node in _constant_gathers(graph) if isinstance(table_of(node), StreamedTensor)]


def float_lookups(graph: ir.Graph) -> list[ir.Value]:
    """Return what is looked up in float32 tables: embeddings of tokens, types and positions, rotary angles, biases."""
    return [node.outputs[0] for node in _constant_gathers(graph) if table_of(node).dtype is ir.DataType.FLOAT]


def embedding_table(graph: ir.Graph) -> ir.Value | None:
    """Return the token embedding table (vocabulary, width), None where no Gather reads one."""
    return next((node.inputs[0] for node in embedding_gathers(graph)), None)


def table_of(gather: ir.Node) -> ir.TensorProtocol:
    """Return the constant table that a Gather reads."""
    return required(constant_of(gather.inputs[0]))


def _constant_gathers(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type == "Gather" and constant_of(node.inputs[0]) is not None]
