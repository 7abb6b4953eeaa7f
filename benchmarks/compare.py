"""Compare two result files, or two folders of them, and say which differences are outside the spread of the rounds.

A figure with a ratio to a peer is compared by that ratio, in which most of the machine cancels out. One without is
compared by its value: a time or a rate on the same CPU model alone. A difference counts where each run's median is
outside the other's range: with five rounds each, about one of twenty equal figures differs so by chance, so measure
again what is reported.

Exit code: 0 nothing is worse, 1 something is worse, 2 there is nothing to compare.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from benchmarks.results import (
    MACHINE_UNITS,
    BenchmarkResult,
    Better,
    Quoted,
    ResultError,
    Spread,
    quoted,
    read_all,
)
from benchmarks.table import print_table
from ortkit.runtime.session.cpu_class import CpuClass

NOTHING_WORSE, WORSE, NOTHING_TO_COMPARE = 0, 1, 2


class Verdict(Enum):
    """What a comparison of one figure says."""

    BETTER = "better"
    WORSE = "WORSE"
    WITHIN = "within the spread"
    EQUAL = "equal"
    NO_SPREAD = "differs, measured once"
    OTHER_MACHINE = "another CPU model"


@dataclass(frozen=True)
class Compared:
    """One figure of both runs."""

    cpu_class: CpuClass
    measure: str
    system: str
    what: str
    """What is compared: the ratio, or the unit of the value."""
    first: Spread
    second: Spread
    verdict: Verdict

    def row(self) -> list[str]:
        change = f"{self.second.median / self.first.median:.3f}" if self.first.median else ""
        name = f"{self.measure}: {self.system}"
        return [name, self.cpu_class.value, self.what, str(self.first), str(self.second), change, self.verdict.value]


def compare(first: Sequence[BenchmarkResult], second: Sequence[BenchmarkResult]) -> list[Compared]:
    """The figures that quiet runs of both have for the same CPU class."""
    before, after = quoted(first), quoted(second)
    return [
        one
        for cpu_class, figures in before.items()
        for key, old in figures.items()
        if (new := after.get(cpu_class, {}).get(key)) is not None
        if (one := _compared(cpu_class, old, new)) is not None
    ]


def _compared(cpu_class: CpuClass, old: Quoted, new: Quoted) -> Compared | None:
    figure, other = old.figure, new.figure
    if figure.ratio is not None and other.ratio is not None:
        verdict = judged(figure.ratio, other.ratio, Better.HIGHER)
        return Compared(cpu_class, *figure.key, "ratio", figure.ratio, other.ratio, verdict)
    if figure.value is None or other.value is None or figure.unit != other.unit:
        return None
    same = old.result.cpu.model is not None and old.result.cpu.model == new.result.cpu.model
    comparable = same or figure.unit not in MACHINE_UNITS
    verdict = judged(figure.value, other.value, figure.better) if comparable else Verdict.OTHER_MACHINE
    return Compared(cpu_class, *figure.key, figure.unit, figure.value, other.value, verdict)


def judged(first: Spread, second: Spread, better: Better) -> Verdict:
    """Whether the second is better or worse than the first, beyond the spread of both."""
    if first.median == second.median:
        return Verdict.EQUAL
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Verdict.NO_SPREAD
    if first.low <= second.median <= first.high or second.low <= first.median <= second.high:
        return Verdict.WITHIN
    return Verdict.BETTER if (second.median > first.median) is (better is Better.HIGHER) else Verdict.WORSE


def only_in(first: Sequence[BenchmarkResult], second: Sequence[BenchmarkResult]) -> list[str]:
    """Figures that the first has and the second lacks, for classes of which both have figures: a line per measure."""
    before, after = quoted(first), quoted(second)
    lacking: dict[str, list[str]] = {}
    for cpu_class in before.keys() & after.keys():
        for measure, system in before[cpu_class].keys() - after[cpu_class].keys():
            lacking.setdefault(f"{measure} ({cpu_class.value})", []).append(system)
    return [f"{measure}: {', '.join(sorted(systems))}" for measure, systems in sorted(lacking.items())]


def busy_runs(results: Sequence[BenchmarkResult]) -> list[str]:
    return [f"{one.benchmark} of {one.date}" for one in results if not one.quiet]


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path, metavar="A", help="a result file, or a folder of them")
    parser.add_argument("second", type=Path, metavar="B", help="the same, measured later")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    try:
        first, second = read_all(options.first), read_all(options.second)
    except ResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return NOTHING_TO_COMPARE
    for one in [*busy_runs(first), *busy_runs(second)]:
        print(f"not compared, the machine was busy: {one}", file=sys.stderr)
    compared = compare(first, second)
    if not compared:
        print("error: the two have no figure of the same CPU class in common", file=sys.stderr)
        return NOTHING_TO_COMPARE
    title = f"A: {options.first}\nB: {options.second}\nmedians (range); ratio: ortkit's speed to the system's"
    header = ["figure", "CPU class", "compared", "A", "B", "B / A", ""]
    print_table(title, header, [one.row() for one in compared])
    for name, lacking in (("A", only_in(first, second)), ("B", only_in(second, first))):
        for one in lacking:
            print(f"only in {name}: {one}")
    print()
    counts = {verdict: sum(one.verdict is verdict for one in compared) for verdict in Verdict}
    print(", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count))
    return WORSE if counts[Verdict.WORSE] else NOTHING_WORSE


if __name__ == "__main__":
    sys.exit(main())
