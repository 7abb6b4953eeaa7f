"""Trace linear and embedding layers as placeholder operators, so that no weight is materialized.

While a model is traced, each matrix is a single number, its index in a list. The layers that read it are custom torch
operators that compute nothing, so that a trace costs as little memory and time as a small model's. In the traced graph
they are operators of ortkit's own domain, which `resolve` replaces by ONNX's, with weights that are read from the
checkpoint when they are accessed.
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

from ..graph.nodes import array_of, constant, insert, replace, required
from ..graph.streamed_tensor import StreamedTensor
from .lazy_model import LazyDecoder, LazyWeight

_DOMAIN = "ortkit"
_LINEAR, _EMBEDDING = "StoredProduct", "StoredTable"
"""Operator names; bundles keep them in the names of dynamic dimensions, so renaming them changes `model.onnx`."""
_LIBRARY: Any = torch.library.Library(_DOMAIN, "FRAGMENT")  # type: ignore[no-untyped-call]
"""Keeps the operators registered for the life of the process."""
_LIBRARY.define("placeholder_linear(Tensor rows, Tensor number, Tensor? bias, int outputs) -> Tensor")
_LIBRARY.define("placeholder_embedding(Tensor ids, Tensor number, int width) -> Tensor")
_LIBRARY.impl(
    "placeholder_linear", lambda rows, _number, _bias, outputs: rows.new_zeros(*rows.shape[:-1], outputs), "CPU"
)
_LIBRARY.impl("placeholder_embedding", lambda ids, _number, width: torch.zeros(*ids.shape, width), "CPU")


@parse_args("v", "v", "v", "i")
def _linear_symbolic(g: Any, rows: Any, number: Any, bias: Any, outputs: int) -> Any:
    product = g.op(f"{_DOMAIN}::{_LINEAR}", rows, number)
    product.setType(rows.type().with_sizes([*[None] * (rows.type().dim() - 1), outputs]))
    return product if bias.node().mustBeNone() else g.op("Add", product, bias)


@parse_args("v", "v", "i")
def _embedding_symbolic(g: Any, ids: Any, number: Any, width: int) -> Any:
    embedded = g.op(f"{_DOMAIN}::{_EMBEDDING}", number, ids)
    embedded.setType(number.type().with_sizes([*[None] * ids.type().dim(), width]))
    return embedded


torch.onnx.register_custom_op_symbolic(f"{_DOMAIN}::placeholder_linear", _linear_symbolic, 1)  # type: ignore[attr-defined]
torch.onnx.register_custom_op_symbolic(f"{_DOMAIN}::placeholder_embedding", _embedding_symbolic, 1)  # type: ignore[attr-defined]


@contextmanager
def traceable(decoder: LazyDecoder) -> Iterator[list[LazyWeight]]:
    """Make a lazy decoder traceable; yields the weights that the numbers in the trace stand for."""
    linear, embedding, convolve = nn.functional.linear, nn.functional.embedding, Conv1D.forward
    found: list[LazyWeight] = []
    shapes: dict[nn.Parameter, tuple[int, ...]] = {}
    numbers: dict[LazyWeight, nn.Parameter] = {}

    def linear_or_placeholder(rows: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
        if weight not in shapes:
            return linear(rows, weight, bias)
        product: Tensor = torch.ops.ortkit.placeholder_linear(rows, weight, bias, shapes[weight][0])
        return product

    def embedding_or_placeholder(ids: Tensor, weight: Any, *options: Any, **named: Any) -> Tensor:
        if weight not in shapes:
            return embedding(ids, weight, *options, **named)
        embedded: Tensor = torch.ops.ortkit.placeholder_embedding(ids, weight, shapes[weight][1])
        return embedded

    def conv_or_placeholder(module: Conv1D, rows: Tensor) -> Tensor:
        if module.weight not in shapes:
            plain: Tensor = convolve(module, rows)
            return plain
        product: Tensor = torch.ops.ortkit.placeholder_linear(rows, module.weight, module.bias, module.nf)
        return product

    with ExitStack() as stack:
        stack.callback(setattr, Conv1D, "forward", convolve)
        Conv1D.forward = conv_or_placeholder
        for module, name, lazy in list(decoder.lazy_weights_in(decoder.model)):
            if lazy not in numbers:
                # All different: the exporter merges equal tensors.
                numbers[lazy] = nn.Parameter(torch.tensor([float(len(found))]), requires_grad=False)
                found.append(lazy)
                shapes[numbers[lazy]] = lazy.tensor.shape
            stack.callback(module.register_parameter, name, getattr(module, name))
            module.register_parameter(name, numbers[lazy])
        for name, function in (("linear", linear_or_placeholder), ("embedding", embedding_or_placeholder)):
            stack.callback(setattr, nn.functional, name, getattr(nn.functional, name))
            setattr(nn.functional, name, function)
        yield found


def resolve(graph: ir.Graph, found: list[LazyWeight]) -> None:
    """Replace the placeholders of a traced graph by MatMul and Gather on weights streamed from the checkpoint."""
    stored = [
        (node, required(node.inputs[1 if node.op_type == _LINEAR else 0])) for node in graph if _is_placeholder(node)
    ]
    numbered = [(node, found[int(required(array_of(number)).item())]) for node, number in stored]
    for number in {number for _, number in stored}:
        # The weight takes its name.
        graph.initializers.pop(required(number.name))
    for node, lazy in numbered:
        if node.op_type == _LINEAR:
            transposed = not lazy.inputs_first
            name = f"{lazy.name}_transposed" if transposed else lazy.name
            matrix = _initializer_of(graph, name, lazy, transposed=transposed)
            result = insert(node, "MatMul", [node.inputs[0], matrix])
        else:
            result = insert(node, "Gather", [_initializer_of(graph, lazy.name, lazy, transposed=False), node.inputs[1]])
        old = node.outputs[0]
        result.shape, result.type = old.shape, old.type
        replace(old, result)
        graph.remove(node, safe=True)


def _is_placeholder(node: ir.Node) -> bool:
    return node.domain == _DOMAIN


def _initializer_of(graph: ir.Graph, name: str, lazy: LazyWeight, *, transposed: bool) -> ir.Value:
    """Return the initializer of a weight, one for all its readers."""
    if name not in graph.initializers:
        constant(graph, name, StreamedTensor([lazy.tensor], transposed=transposed))
    return graph.initializers[name]
