"""How onnxruntime's CUDA provider plans the graphs of bundles, on a machine without a GPU: `make cuda-plan`.

The provider is the real one; the CUDA libraries are the stubs of `stubs.py`, so that no kernel computes. Shown is that
every node is on CUDA, that nothing is copied to the host and back between nodes, and that ortkit's runtime opens the
bundle, has its arrays bound and gets an output. Graphs for the CPU are planned too and must fail.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

import ortkit
from ortkit import Provider, ProviderError
from ortkit.runtime.bundle.bundle import GRAPH
from ortkit.runtime.session.providers import PROVIDERS

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
    """What ortkit's own runtime gets from a bundle: it opens the graph on CUDA, binds arrays and gets an output.

    Without the golden text of the first use, which kernels that compute nothing do not give: see `is_found_wrong`.
    """
    PROVIDERS[Provider.CUDA] = replace(PROVIDERS[Provider.CUDA], identity=None)
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


def is_found_wrong(bundle: Path) -> bool:
    """Whether `ortkit verify` finds that a GPU whose kernels compute nothing does not give what was certified."""
    return ends_with("computes `", "with stubs", ["verify", str(bundle)], dict(os.environ))


def is_refused_without_libraries(bundle: Path) -> bool:
    """Whether the bundle is refused where onnxruntime-gpu is installed and CUDA is not."""
    without = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    return ends_with("is not available: ", "without CUDA", ["verify", str(bundle)], without)


def ends_with(message: str, where: str, arguments: list[str], environment: dict[str, str]) -> bool:
    """Whether a command ends with the provider's exit code, and says this of `cuda`."""
    command = [sys.executable, "-m", "ortkit", *arguments]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    told = next((line for line in finished.stderr.splitlines() if line.startswith("error: ")), finished.stderr)
    same = finished.returncode == ProviderError.exit_code and told.startswith(f"error: `cuda` {message}")
    print(f"{'ok' if same else 'FAIL'}: {' '.join(arguments)} {where}: exit code {finished.returncode}, {told}")
    return same


def is_left_on_the_cpu(bundle: Path) -> bool:
    found = plan(bundle / GRAPH)
    print(f"{'FAIL' if found.whole else 'ok'}: {bundle.name}, which is for the CPU: {found}")
    return not found.whole


CHECKS = (is_planned, is_found_wrong, is_refused_without_libraries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path, help="bundles for CUDA")
    parser.add_argument("--for-cpu", action="append", default=[], type=Path, help="bundles whose plan must fail")
    options = parser.parse_args()
    passed = [
        *(check(bundle) for bundle in options.bundles for check in CHECKS),
        *(is_left_on_the_cpu(bundle) for bundle in options.for_cpu),
    ]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
