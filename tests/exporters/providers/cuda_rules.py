"""Rules for CUDA graphs beyond having kernels: what onnxruntime needs to run all of a graph, and fast, on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from tests.exporters.providers.kernel_table import missing_kernels

ON_THE_HOST = {"Shape", "Size", "If", "Loop", "Scan"}
"""Their results or conditions are in the host's memory, and onnxruntime leaves what computes with them on the CPU.

Other computations with integers, as with the token ids of RoBERTa's positions, stay on CUDA.
"""
BLOCK_SIZE = 32
"""Of fpA_intB, the matmul of fp16 with int4 or int8 weights, as the official wheels have it."""
ALIGNMENT = {4: 64, 8: 32}
"""fpA_intB's: of the columns of a weight, by its bits."""


def check_cuda(model: ir.Model) -> None:
    """Assert that onnxruntime's CUDA provider has kernels for all of a graph, and what it needs to use them."""
    assert missing_kernels(model) == []
    assert broken_rules(model) == []


def broken_rules(model: ir.Model) -> list[str]:
    """What is against the rules, each with the node; [] if nothing is."""
    return [f"{node.op_type} `{node.name}`: {text}" for node in model.graph for text in _broken(node)]


def _broken(node: ir.Node) -> Iterator[str]:
    if node.op_type in ON_THE_HOST:
        yield "works in the host's memory"
    rule = _RULES.get(node.op_type)
    if rule is not None:
        yield from rule(node)


def _linear(node: ir.Node) -> Iterator[str]:
    inputs, outputs, bits, block = (_integer(node, name) for name in ("K", "N", "bits", "block_size"))
    if block != BLOCK_SIZE:
        yield f"block_size {block} is not {BLOCK_SIZE}"
    if inputs % BLOCK_SIZE:
        yield f"K {inputs} is not a multiple of {BLOCK_SIZE}"
    if bits not in ALIGNMENT:
        yield f"{bits} bits"
    elif outputs % ALIGNMENT[bits]:
        yield f"N {outputs} is not a multiple of {ALIGNMENT[bits]}"
    for index, name in ((3, "zero points"), (4, "g_idx"), (5, "a bias")):
        if _input(node, index) is not None:
            yield f"has {name}"


def _embedding(node: ir.Node) -> Iterator[str]:
    data = _input(node, 0)
    rank = None if data is None or data.shape is None else len(data.shape)
    axis = _integer(node, "quantize_axis", default=1)
    if rank is None or axis not in {-1, rank - 1}:
        yield f"quantize_axis {axis} is not the last of {rank}"


def _attention(node: ir.Node) -> Iterator[str]:
    key = _input(node, 3)
    size = None if key is None or key.shape is None else key.shape[3]
    if not isinstance(size, int) or size % 8:
        yield f"head size {size} is not a multiple of 8"


_RULES: dict[str, Callable[[ir.Node], Iterator[str]]] = {
    "MatMulNBits": _linear,
    "GatherBlockQuantized": _embedding,
    "GroupQueryAttention": _attention,
}


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _integer(node: ir.Node, name: str, default: int = 0) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()
