"""Time and memory of whole processes that embed one text, edgekit beside fastembed."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.peers import (
    BUNDLE,
    FASTEMBED_MODEL,
    MODEL,
    PEERS,
    edgekit_name,
    fastembed_folder,
    peers_python,
    version_in,
)
from benchmarks.rounds import take_turns
from benchmarks.table import print_table, ratio

TEXT = "hello"
FASTEMBED_SCRIPT = """
import sys
from fastembed import TextEmbedding
model = TextEmbedding(sys.argv[1], specific_model_path=sys.argv[2])
print(next(iter(model.embed(sys.argv[3]))).tolist())
"""
MEBIBYTE = 2**20
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in one unit of `ru_maxrss`."""


@dataclass(frozen=True)
class Cost:
    """What one process took."""

    seconds: float
    peak_bytes: float


def cost_of(command: list[str]) -> Cost:
    """Run a process to its end, its output thrown away."""
    output = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    start = time.perf_counter()
    process = os.posix_spawn(command[0], command, os.environ, file_actions=[output])
    _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - start
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise SystemExit(f"`{command[0]}` ended with {code}; its messages are above")
    return Cost(seconds, usage.ru_maxrss * MAXRSS_UNIT)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="an int8 bundle")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the virtual environment with fastembed")
    parser.add_argument("--repeats", type=int, default=9)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    python = peers_python(options.peers)
    edgekit = Path(sys.executable).with_name("edgekit")
    ours = edgekit_name(options.bundle)
    commands = {
        ours: [str(edgekit), "embed", str(options.bundle), TEXT],
        f"fastembed {version_in(python, 'fastembed')}": [
            *(str(python), "-c", FASTEMBED_SCRIPT),
            *(FASTEMBED_MODEL, str(fastembed_folder()), TEXT),
        ],
    }
    costs = take_turns([partial(cost_of, command) for command in commands.values()], options.repeats)
    seconds = {name: [cost.seconds for cost in own] for name, own in zip(commands, costs, strict=True)}
    peaks = {name: [cost.peak_bytes for cost in own] for name, own in zip(commands, costs, strict=True)}
    print_table(
        f"a process that embeds one text, {MODEL}; medians of {options.repeats} rounds (range)",
        ["system", "seconds", "system / edgekit", "peak MiB", "system / edgekit"],
        [
            [
                name,
                f"{median(seconds[name]):.3f}",
                ratio(seconds[name], seconds[ours]),
                f"{median(peaks[name]) / MEBIBYTE:.0f}",
                ratio(peaks[name], peaks[ours]),
            ]
            for name in commands
        ],
    )


if __name__ == "__main__":
    main()
