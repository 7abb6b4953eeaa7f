"""Time and memory of whole processes that embed one text, ortkit beside fastembed."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.cost import cost_of
from benchmarks.peers import (
    BUNDLE,
    FASTEMBED_MODEL,
    MODEL,
    PEERS,
    fastembed_folder,
    ortkit_name,
    peers_python,
    version_in,
)
from benchmarks.processor import processor
from benchmarks.results import Better, add_save, plain_figure, save, time_figure
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


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="an int8 bundle")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the virtual environment with fastembed")
    parser.add_argument("--repeats", type=int, default=9)
    add_save(parser, "startup")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    python = peers_python(options.peers)
    ortkit = Path(sys.executable).with_name("ortkit")
    ours = ortkit_name(options.bundle)
    commands = {
        ours: [str(ortkit), "embed", str(options.bundle), TEXT],
        f"fastembed {version_in(python, 'fastembed')}": [
            *(str(python), "-c", FASTEMBED_SCRIPT),
            *(FASTEMBED_MODEL, str(fastembed_folder()), TEXT),
        ],
    }
    costs = take_turns([partial(cost_of, command) for command in commands.values()], options.repeats)
    seconds = {name: [cost.seconds for cost in own] for name, own in zip(commands, costs, strict=True)}
    peaks = {name: [cost.peak_bytes for cost in own] for name, own in zip(commands, costs, strict=True)}
    print(f"\n{processor()}")
    print_table(
        f"a process that embeds one text, {MODEL}; medians of {options.repeats} rounds (range)",
        ["system", "seconds", "system / ortkit", "peak MiB", "system / ortkit"],
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
    figures = [time_figure("start", name, seconds[name], None if name == ours else seconds[ours]) for name in commands]
    figures += [
        plain_figure("start, peak memory", name, median(own) / MEBIBYTE, "MiB", Better.LOWER)
        for name, own in peaks.items()
    ]
    save(options, "startup", figures)


if __name__ == "__main__":
    main()
