"""Which provider runs which node of an open graph: proof that nothing is left to another one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ProviderError

COPIES = ("MemcpyFromHost", "MemcpyToHost")
"""onnxruntime's operators that copy between the memories of two providers."""
_SHOWN = 3
"""Operators that a message names."""


class Node(NamedTuple):
    """A node of the optimized graph, and the provider that runs it."""

    provider: str
    operator: str


def assigned_nodes(session: Any) -> list[list[Node]] | None:
    """The subgraphs of an open session; None where onnxruntime did not record them.

    A provider that compiles takes a subgraph as one node, others take each node as a subgraph.
    """
    try:
        subgraphs = session.get_provider_graph_assignment_info()
    # onnxruntime's exceptions share no base class but Exception; it raises one where nothing was recorded.
    except Exception:  # noqa: BLE001
        return None
    return [[Node(part.ep_name, _operator(node)) for node in part.get_nodes()] for part in subgraphs]


def _operator(node: Any) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


def check_placement(session: Any, name: str, path: Path, *, one_program: bool, recorded: bool = True) -> None:
    """Raise ProviderError where an open session does not run all of its graph on the provider `name`.

    With `one_program`, the provider must have compiled the whole graph as one subgraph. `recorded` says whether
    onnxruntime was asked to record which provider runs which node.
    """
    obtained = session.get_providers()[0]
    if obtained != name:
        raise ProviderError(
            f"`{name}` was requested for `{path}`, and onnxruntime used `{obtained}` instead",
            hint="`ortkit providers` shows what this machine has",
        )
    if not recorded:
        return
    subgraphs = assigned_nodes(session)
    if not subgraphs:
        raise ProviderError(
            f"onnxruntime does not say which provider runs the nodes of `{path}`, so that `{name}` cannot be proved",
            hint=_OTHER_GRAPH,
        )
    nodes = [node for subgraph in subgraphs for node in subgraph]
    elsewhere = [node for node in nodes if node.provider != name or node.operator in COPIES]
    if elsewhere:
        others = ", ".join(f"`{other}`" for other in sorted({node.provider for node in elsewhere} - {name}))
        where = f"on {others}" if others else "between two providers"
        raise ProviderError(
            f"{len(elsewhere)} of the {len(nodes)} nodes of `{path}` would run {where} instead of `{name}`: "
            f"{_counted(node.operator for node in elsewhere)}",
            hint=_OTHER_GRAPH,
        )
    if one_program and len(subgraphs) != 1:
        raise ProviderError(
            f"`{name}` would run `{path}` as {len(subgraphs)} programs with copies between them, not as one",
            hint=_OTHER_GRAPH,
        )


_OTHER_GRAPH = "the graph was not made for this provider, or for another version of it: export the model again"


def _counted(operators: Iterable[str]) -> str:
    """The most frequent operators: `24 MatMulIntegerToFloat, 1 Gather, 1 Cast and 2 other operators`."""
    counts = Counter(operators).most_common()
    shown = ", ".join(f"{count} {operator}" for operator, count in counts[:_SHOWN])
    others = len(counts) - _SHOWN
    return f"{shown} and {others} other operator{'s' if others > 1 else ''}" if others > 0 else shown
