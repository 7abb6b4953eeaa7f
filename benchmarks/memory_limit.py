"""Peak memory of processes that embed, rerank and generate, beside their limit (`--max-memory`). Linux only.

Each bundle runs without a limit, with the lowest limit that is not refused (exit code 9), which is found by trying, and
with one in between. The output must be the same to the byte.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from benchmarks.memory import MEBIBYTE, mebibytes
from benchmarks.peers import BUNDLE
from benchmarks.processor import processor
from benchmarks.table import print_table
from benchmarks.texts import texts_of_any_length
from ortkit import Bundle, Kind

STEP = 4
"""MiB, to which the lowest limit is found."""
FEWEST_WORDS, MOST_WORDS = 3, 500
REFUSED = 9
CHILD = """
import sys
from pathlib import Path
from ortkit.__main__ import main
code = 0
try:
    main()
except SystemExit as error:
    code = error.code
line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
print("peak", int(line.split()[1]) * 1024, file=sys.stderr)
sys.exit(code)
"""


@dataclass(frozen=True)
class Run:
    """A process that ended."""

    code: int
    output: bytes
    peak: int
    """Peak resident memory, in bytes."""


def run(arguments: Sequence[str], content: bytes, limit: int | None) -> Run:
    """Run a command line in a process of its own, whose limit is `limit` MiB."""
    environment = os.environ | ({} if limit is None else {"ORTKIT_MAX_MEMORY": f"{limit}M"})
    command = [sys.executable, "-c", CHILD, *arguments]
    finished = subprocess.run(command, input=content, capture_output=True, check=False, env=environment)
    report, _, peak = finished.stderr.decode().rstrip().rpartition("peak ")
    if finished.returncode not in (0, REFUSED):
        raise SystemExit(f"{' '.join(arguments)} ended with {finished.returncode}: {report}")
    return Run(finished.returncode, finished.stdout, int(peak))


def task_of(bundle: Bundle, texts: int, prompt: int) -> tuple[list[str], bytes]:
    """The command line for a bundle, and its stdin."""
    found = list(islice(texts_of_any_length(texts, FEWEST_WORDS, MOST_WORDS), texts))
    path = str(bundle.path)
    if bundle.manifest.kind is Kind.EMBEDDER:
        return ["embed", path], "".join(json.dumps({"text": text}) + "\n" for text in found).encode()
    if bundle.manifest.kind is Kind.RERANKER:
        searches = [{"query": found[0][:60], "documents": found}]
        return ["rerank", path], "".join(json.dumps(search) + "\n" for search in searches).encode()
    words = " ".join(" ".join(found).split()[:prompt])
    return ["generate", path, words, "--raw", "--max-tokens", "16", "--temperature", "0"], b""


def rows_of(bundle: Bundle, texts: int, prompt: int) -> list[list[str]]:
    """A row without a limit, one for the lowest limit that is not refused, and one between it and the peak."""
    arguments, content = task_of(bundle, texts, prompt)
    free = run(arguments, content, None)
    if free.code:
        raise SystemExit(f"`{bundle.path}` needs more memory than there is")
    refused, accepted, tight = 0, 2 * free.peak // MEBIBYTE, free
    while accepted - refused > STEP:
        limit = (accepted + refused) // 2
        found = run(arguments, content, limit)
        if found.code:
            refused = limit
        else:
            check_output(bundle, found, free)
            accepted, tight = limit, found
    rows = [
        [bundle.manifest.name, bundle.manifest.precision.value, "none", mebibytes(free.peak)],
        ["", "", str(accepted), mebibytes(tight.peak)],
    ]
    between = (accepted + free.peak // MEBIBYTE) // 2
    if between > accepted + STEP:
        found = run(arguments, content, between)
        check_output(bundle, found, free)
        rows.insert(1, ["", "", str(between), mebibytes(found.peak)])
    return rows


def check_output(bundle: Bundle, found: Run, free: Run) -> None:
    if found.output != free.output:
        raise SystemExit(f"`{bundle.path}` gives another output within a limit")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_limit", description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="*", default=[BUNDLE])
    parser.add_argument("--texts", type=int, default=200, help="to embed, or documents of one query")
    parser.add_argument("--prompt", type=int, default=300, help="words of an LLM's prompt")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    rows = []
    for path in options.bundles:
        rows += rows_of(Bundle.open(path), options.texts, options.prompt)
    print_table(processor(), ["bundle", "precision", "limit, MiB", "peak, MiB"], rows)


if __name__ == "__main__":
    main()
