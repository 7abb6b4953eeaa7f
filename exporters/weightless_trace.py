"""Products and tables of word vectors that trace without their matrices.

While a model is traced, each matrix is one number, its place in a list. The products and tables that read it are
operators of torch's that compute nothing, so a trace costs what a small model's does in memory and in time. In the
traced graph they stand as operators of edgekit's own, which `resolve` turns into those of ONNX, with matrices that are
read from the checkpoint when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.onnx.symbolic_helper import parse_args
from transformers.pytorch_utils import Conv1D

from exporters.nodes import array_of, constant, insert, replace, required
from exporters.stored_tensors import StreamedTensor
from exporters.weightless import Held, WeightlessDecoder

DOMAIN = "edgekit"
PRODUCT, TABLE = "StoredProduct", "StoredTable"
LIBRARY: Any = torch.library.Library(DOMAIN, "FRAGMENT")  # type: ignore[no-untyped-call]
"""Holds the operators for as long as the process runs."""
LIBRARY.define("stored_product(Tensor rows, Tensor number, Tensor? bias, int outputs) -> Tensor")
LIBRARY.define("stored_table(Tensor ids, Tensor number, int width) -> Tensor")
LIBRARY.impl("stored_product", lambda rows, _number, _bias, outputs: rows.new_zeros(*rows.shape[:-1], outputs), "CPU")
LIBRARY.impl("stored_table", lambda ids, _number, width: torch.zeros(*ids.shape, width), "CPU")


@parse_args("v", "v", "v", "i")
def product_symbolic(g: Any, rows: Any, number: Any, bias: Any, outputs: int) -> Any:
    product = g.op(f"{DOMAIN}::{PRODUCT}", rows, number)
    product.setType(rows.type().with_sizes([*[None] * (rows.type().dim() - 1), outputs]))
    return product if bias.node().mustBeNone() else g.op("Add", product, bias)


@parse_args("v", "v", "i")
def table_symbolic(g: Any, ids: Any, number: Any, width: int) -> Any:
    vectors = g.op(f"{DOMAIN}::{TABLE}", number, ids)
    vectors.setType(number.type().with_sizes([*[None] * ids.type().dim(), width]))
    return vectors


torch.onnx.register_custom_op_symbolic(f"{DOMAIN}::stored_product", product_symbolic, 1)  # type: ignore[attr-defined]
torch.onnx.register_custom_op_symbolic(f"{DOMAIN}::stored_table", table_symbolic, 1)  # type: ignore[attr-defined]


@contextmanager
def traceable(decoder: WeightlessDecoder) -> Iterator[list[Held]]:
    """Let a model be traced without its matrices; gives what the numbers in the trace stand for."""
    linear, embedding, convolve = nn.functional.linear, nn.functional.embedding, Conv1D.forward
    found: list[Held] = []
    shapes: dict[nn.Parameter, tuple[int, ...]] = {}
    numbers: dict[Held, nn.Parameter] = {}

    def linear_or_stored(rows: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
        if weight not in shapes:
            return linear(rows, weight, bias)
        product: Tensor = torch.ops.edgekit.stored_product(rows, weight, bias, shapes[weight][0])
        return product

    def embedding_or_stored(ids: Tensor, weight: Any, *options: Any, **named: Any) -> Tensor:
        if weight not in shapes:
            return embedding(ids, weight, *options, **named)
        vectors: Tensor = torch.ops.edgekit.stored_table(ids, weight, shapes[weight][1])
        return vectors

    def conv_or_stored(module: Conv1D, rows: Tensor) -> Tensor:
        if module.weight not in shapes:
            plain: Tensor = convolve(module, rows)
            return plain
        product: Tensor = torch.ops.edgekit.stored_product(rows, module.weight, module.bias, module.nf)
        return product

    with ExitStack() as stack:
        stack.callback(setattr, Conv1D, "forward", convolve)
        Conv1D.forward = conv_or_stored
        for module, name, held in list(decoder.held_in(decoder.model)):
            if held not in numbers:
                # All different: the exporter makes one of tensors that are the same.
                numbers[held] = nn.Parameter(torch.tensor([float(len(found))]), requires_grad=False)
                found.append(held)
                shapes[numbers[held]] = held.tensor.shape
            stack.callback(module.register_parameter, name, getattr(module, name))
            module.register_parameter(name, numbers[held])
        for name, function in (("linear", linear_or_stored), ("embedding", embedding_or_stored)):
            stack.callback(setattr, nn.functional, name, getattr(nn.functional, name))
            setattr(nn.functional, name, function)
        yield found


def resolve(graph: ir.Graph, found: list[Held]) -> None:
    """Let the graph of a `traceable` model read its matrices from the checkpoint."""
    stored = [(node, required(node.inputs[1 if node.op_type == PRODUCT else 0])) for node in graph if is_stored(node)]
    numbered = [(node, found[int(required(array_of(number)).item())]) for node, number in stored]
    for number in {number for _, number in stored}:
        # The matrix takes its name.
        graph.initializers.pop(required(number.name))
    for node, held in numbered:
        if node.op_type == PRODUCT:
            transposed = not held.inputs_first
            name = f"{held.name}_transposed" if transposed else held.name
            matrix = streamed(graph, name, held, transposed=transposed)
            result = insert(node, "MatMul", [node.inputs[0], matrix])
        else:
            result = insert(node, "Gather", [streamed(graph, held.name, held, transposed=False), node.inputs[1]])
        old = node.outputs[0]
        result.shape, result.type = old.shape, old.type
        replace(old, result)
        graph.remove(node, safe=True)


def is_stored(node: ir.Node) -> bool:
    return node.domain == DOMAIN


def streamed(graph: ir.Graph, name: str, held: Held, *, transposed: bool) -> ir.Value:
    """The initializer of a matrix, once for all that read it."""
    if name not in graph.initializers:
        constant(graph, name, StreamedTensor([held.tensor], transposed=transposed))
    return graph.initializers[name]
