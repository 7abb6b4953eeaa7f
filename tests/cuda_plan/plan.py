"""How onnxruntime's CUDA provider plans the graphs of bundles, on a machine without a GPU: `make cuda-plan`.

The provider is the real one; the CUDA libraries are the stubs of `stubs.py`, so that no kernel computes. Shown is that
every node is on CUDA, that nothing is copied to the host and back between nodes, and that ortkit's runtime opens the
bundle, has its arrays bound and gets an output. Graphs for the CPU are planned too and must fail.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

import ortkit
from ortkit.runtime.bundle.bundle import GRAPH

CUDA = "CUDAExecutionProvider"
COPIES = {"MemcpyToHost", "MemcpyFromHost"}
TEXT, TOKENS = "The pump does not start. ", 4


@dataclass(frozen=True)
class Plan:
    """Where onnxruntime puts the nodes of a graph."""

    on_cuda: int
    elsewhere: Counter[str]
    """By operator."""
    copies: int

    @property
    def whole(self) -> bool:
        return self.on_cuda > 0 and not self.elsewhere and not self.copies

    def __str__(self) -> str:
        left = ", ".join(f"{count} {name}" for name, count in self.elsewhere.most_common()) or "none"
        return f"{self.on_cuda} nodes on CUDA, elsewhere {left}, {self.copies} copies to or from the host"


def plan(graph: Path) -> Plan:
    """Open a graph on CUDA, leaving to onnxruntime what it puts on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    with tempfile.TemporaryDirectory() as folder:
        planned = Path(folder) / "planned.onnx"
        options.optimized_model_filepath = str(planned)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "planned.data")
        session = ort.InferenceSession(graph, options, providers=[CUDA], enable_fallback=0)
        if session.get_providers()[0] != CUDA:
            raise SystemExit(f"error: onnxruntime used {session.get_providers()} for `{graph}`: are the stubs found?")
        copies = sum(node.op_type in COPIES for node in ir.load(planned).graph)
    assigned = Counter(
        (part.ep_name == CUDA, node.op_type)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    )
    elsewhere = Counter({name: count for (on_cuda, name), count in assigned.items() if not on_cuda})
    return Plan(assigned.total() - elsewhere.total(), elsewhere, copies)


def use(bundle: Path) -> str:
    """What ortkit's own runtime gets from a bundle: it opens the graph on CUDA, binds arrays and gets an output."""
    with ortkit.load(bundle) as model:
        if isinstance(model, ortkit.Embedder):
            return f"embeddings of the shape {model.embed([TEXT, TEXT * 9]).shape}"
        if isinstance(model, ortkit.Reranker):
            return f"{len(model.rank(TEXT, [TEXT, TEXT * 9]))} scores"
        return f"{len(model.generate(TEXT * 9, max_tokens=TOKENS, temperature=1, seed=1).tokens)} tokens"


def is_planned(bundle: Path) -> bool:
    found = plan(bundle / GRAPH)
    try:
        used = use(bundle) if found.whole else None
    except ortkit.OrtkitError as error:
        used = None
        print(f"error: {error}")
    passed = used is not None
    print(f"{'ok' if passed else 'FAIL'}: {bundle.name}: {found}{f'; ran: {used}' if passed else ''}")
    return passed


def is_left_on_the_cpu(bundle: Path) -> bool:
    found = plan(bundle / GRAPH)
    print(f"{'FAIL' if found.whole else 'ok'}: {bundle.name}, which is for the CPU: {found}")
    return not found.whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path, help="bundles for CUDA")
    parser.add_argument("--for-cpu", action="append", default=[], type=Path, help="bundles whose plan must fail")
    options = parser.parse_args()
    passed = [
        *(is_planned(bundle) for bundle in options.bundles),
        *(is_left_on_the_cpu(bundle) for bundle in options.for_cpu),
    ]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
