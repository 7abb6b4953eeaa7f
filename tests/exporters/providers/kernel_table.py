"""Which nodes of a graph have no kernel in onnxruntime's CUDA provider, by its table of kernels; needs no GPU.

`cuda_kernels.json` holds the table of the onnxruntime-gpu wheel that it names, for graphs of opset 17 or newer and the
types that graphs of ortkit have. `make cuda-plan` compares it with the wheel's, and writes it with `WRITE=1`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import onnx_ir as ir
import onnxruntime as ort

TABLE = Path(__file__).with_name("cuda_kernels.json")
TYPES = ("float", "float16", "int64", "int32", "uint8", "int8", "bool", "uint4", "int4")
"""Element types, as onnxruntime names them in `tensor(...)`."""
DOMAINS = ("", "com.microsoft")
OLDEST_OPSET = 17
OPEN = 2**31 - 1
"""The end of the version range of a kernel that has none."""
SMALL = 64
"""Initializers of so many elements stay: shapes, axes and the like, which the inference of types may read."""

_GRAPHS = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}

Kernel: TypeAlias = tuple[int, int | None, dict[str, list[str]]]
"""First and last version of the operator, and the types that it takes by type parameter or argument."""
Row: TypeAlias = tuple[str, str, str, tuple[int, int], Mapping[str, list[str]]]
"""Provider, domain, operator, versions, types: a kernel as onnxruntime's `get_all_opkernel_def` gives it."""


def missing_kernels(model: ir.Model) -> list[str]:
    """Each node that CUDA has no kernel for, with its operator, version and types; [] if all have one.

    A node with subgraphs is among them, because the nodes inside are not looked at.
    """
    table = {name: [_kernel(row) for row in rows] for name, rows in json.loads(TABLE.read_text())["kernels"].items()}
    types = value_types(model)
    missing = []
    for node in model.graph:
        if node.op_type == "Constant":  # which onnxruntime makes an initializer
            continue
        # Graphs need not import onnxruntime's own domain, which has one version.
        schema = _schema(_operator(node), model.graph.opset_imports.get(node.domain, 1))
        bound = _bound(node, schema, types)
        nested = any(attribute.type in _GRAPHS for attribute in node.attributes.values())
        kernels = table.get(_operator(node), ())
        if nested or not any(_takes(kernel, schema.since_version, bound) for kernel in kernels):
            missing.append(_described(node, schema.since_version, types) + (", has subgraphs" if nested else ""))
    return missing


def value_types(model: ir.Model) -> dict[str, str]:
    """The element type of every value of the main graph, as onnxruntime infers it.

    Weights are made inputs, so that none is read.
    """
    probe = model.clone()
    for name, value in list(probe.graph.initializers.items()):
        if value.const_value is not None and value.const_value.size > SMALL:
            del probe.graph.initializers[name]
            value.type, value.shape = ir.TensorType(value.const_value.dtype), value.const_value.shape
            value.const_value = None
            probe.graph.inputs.append(value)
    given = {output.name for output in probe.graph.outputs}
    inner = [output for node in probe.graph for output in node.outputs if output.name and output.name not in given]
    proto = ir.to_proto(probe)
    for value in inner:
        proto.graph.output.add(name=value.name or "")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = {value.name: _element(value.type) for value in (*session.get_inputs(), *session.get_outputs())}
    constants = {str(name): value.const_value for name, value in probe.graph.initializers.items()}
    return found | {name: _type_name(tensor.dtype) for name, tensor in constants.items() if tensor is not None}


def condensed(rows: Iterable[Row]) -> dict[str, list[Kernel]]:
    """The rows of CUDA for our domains, opsets and types, like ones made one.

    Rows that differ in the types of one parameter only take together what their union takes.
    """
    table: dict[str, list[Kernel]] = {}
    for provider, domain, operator, (first, last), constraints in rows:
        types = {name: [t for t in TYPES if f"tensor({t})" in taken] for name, taken in sorted(constraints.items())}
        ours = provider == "CUDAExecutionProvider" and domain in DOMAINS and last >= OLDEST_OPSET
        if ours and all(types.values()):
            kernels = table.setdefault(_qualified(domain, operator), [])
            kernels.append((first, None if last == OPEN else last, types))
    return {name: sorted(_united(kernels), key=json.dumps) for name, kernels in sorted(table.items())}


def write_table(version: str, kernels: dict[str, list[Kernel]], path: Path = TABLE) -> None:
    """One operator a line."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(rows)}" for name, rows in kernels.items())
    path.write_text(f'{{"onnxruntime-gpu": {json.dumps(version)}, "kernels": {{\n{lines}\n}}}}\n')


def _united(kernels: list[Kernel]) -> list[Kernel]:
    left = list(kernels)
    for index, first in enumerate(left):
        for other, second in enumerate(left[index + 1 :], index + 1):
            united = _union(first, second)
            if united is not None:
                return _united([*left[:index], united, *left[index + 1 : other], *left[other + 1 :]])
    return left


def _union(first: Kernel, second: Kernel) -> Kernel | None:
    if first[:2] != second[:2] or first[2].keys() != second[2].keys():
        return None
    differing = [name for name in first[2] if first[2][name] != second[2][name]]
    if len(differing) > 1:
        return None
    both = {name: [t for t in TYPES if t in first[2][name] or t in second[2][name]] for name in differing}
    return first[0], first[1], first[2] | both


def _takes(kernel: Kernel, since: int, bound: Mapping[str, set[str]]) -> bool:
    """Whether it is for this version of the operator and these types, by the rule of onnxruntime's KernelDef."""
    first, last, constraints = kernel
    # An open range is for the version of the operator that it begins with only.
    if not (first == since or (last is not None and first <= since <= last)):
        return False
    return all(bound.get(name, set()) <= set(taken) for name, taken in constraints.items())


def _bound(node: ir.Node, schema: Any, types: Mapping[str, str]) -> dict[str, set[str]]:
    """The types that the type parameters and the arguments of a node's operator have."""
    bound: dict[str, set[str]] = {}
    sides: tuple[tuple[Sequence[ir.Value | None], Sequence[Any]], ...]
    sides = ((node.inputs, schema.inputs), (node.outputs, schema.outputs))
    for values, formals in sides:
        for index, value in enumerate(values):
            if value is not None and value.name:
                formal = formals[min(index, len(formals) - 1)]  # a variadic one is the last
                for name in (formal.typeStr, formal.name):
                    bound.setdefault(name, set()).add(types[value.name])
    return bound


def _schema(operator: str, opset: int) -> Any:
    versions = [schema for schema in _schemas().get(operator, ()) if schema.since_version <= opset]
    if not versions:
        raise ValueError(f"onnxruntime has no operator `{operator}` of opset {opset}")
    return max(versions, key=lambda schema: schema.since_version)


@functools.cache
def _schemas() -> dict[str, list[Any]]:
    """By operator, those of onnxruntime's own domain too, which the onnx package lacks."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    found: dict[str, list[Any]] = {}
    for schema in get_all_operator_schema():
        found.setdefault(_qualified(schema.domain, schema.name), []).append(schema)
    return found


def _kernel(row: list[Any]) -> Kernel:
    first, last, types = row
    return first, last, types


def _operator(node: ir.Node) -> str:
    return _qualified(node.domain, node.op_type)


def _qualified(domain: str, operator: str) -> str:
    return f"{domain}.{operator}" if domain not in {"", "ai.onnx"} else operator


def _element(tensor: str) -> str:
    return tensor.removeprefix("tensor(").removesuffix(")")


def _type_name(kind: ir.DataType) -> str:
    return {ir.DataType.FLOAT: "float", ir.DataType.BFLOAT16: "bfloat16"}.get(kind, kind.name.lower())


def _described(node: ir.Node, since: int, types: Mapping[str, str]) -> str:
    taken, given = (
        ", ".join(types[value.name] if value is not None and value.name else "-" for value in values)
        for values in (node.inputs, node.outputs)
    )
    return f"{_operator(node)}({since}) `{node.name}`: {taken} -> {given}"
