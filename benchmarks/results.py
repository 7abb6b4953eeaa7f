"""Result files: `results/CPU-CLASS/NAME.json`, written by the benchmarks with `--save`.

A figure belongs to a measure (`embed`) and a system (`openvino int8`, without its version). It has the system's own
value, and for peers the ratio of ortkit's speed to theirs in the same rounds: above 1, ortkit is faster. A value
belongs to the machine, a ratio to the CPU class.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from benchmarks.peers import REPOSITORY
from benchmarks.processor import processor_model
from benchmarks.rounds import QUIET, busy_cores
from ortkit.runtime.bundle.records import RecordError, read_record, write_record
from ortkit.runtime.host_facts import CPUINFO
from ortkit.runtime.session.cores import find_cores
from ortkit.runtime.session.cpu_class import CpuClass, cpu_features, this_cpu_class

RESULTS = Path(__file__).with_name("results")
FORMAT = 1
PACKAGES = (
    *("ortkit", "onnxruntime", "tokenizers", "numpy", "torch", "transformers", "sentence-transformers", "optimum"),
)
"""Packages whose versions are recorded; peers in an environment of their own have theirs in each figure."""
DIGITS = 5
"""Significant digits of a round in a file."""
MACHINE_UNITS = frozenset({"s", "ms", "us", "tokens/s", "sentences/s", "pairs/s", "embeddings/s"})
"""Units of figures that belong to the machine; accuracies and sizes can be compared between machines."""
_STATUS = ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!README.md")
"""What other runs have written does not change what is measured."""
_VERSION = re.compile(r" (\d+(?:\.\d+)+[\w.+-]*)")
_BATCH = re.compile(r", \d[\d,]* tokens a batch$")
"""The batch size that was best for OpenVINO on the machine."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


class Better(Enum):
    """Which of two values is the better one."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True)
class Spread:
    """A figure of all counted rounds."""

    median: float
    low: float | None = None
    """The lowest and highest round; None where it was measured once, or the rounds are not known."""
    high: float | None = None
    rounds: tuple[float, ...] = ()
    """In the order in which they were measured; empty where they are not known."""

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Spread:
        kept = tuple(map(rounded, rounds))
        return cls(rounded(median(kept)), min(kept), max(kept), kept)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.median:,.{DIGITS}g}"
        return f"{_written(self.median)} ({_written(self.low)} to {_written(self.high)})"


@dataclass(frozen=True)
class Figure:
    """What one system reached."""

    measure: str
    system: str
    unit: str
    better: Better
    version: str | None = None
    """Of the system; None where it is that of this repository, or not known."""
    value: Spread | None = None
    ratio: Spread | None = None
    """ortkit's speed to the system's; None for ortkit itself, and for what is not a speed."""

    @property
    def key(self) -> tuple[str, str]:
        return self.measure, self.system


@dataclass(frozen=True)
class Cpu:
    """The CPU of a run."""

    cpu_class: CpuClass
    model: str | None
    features: tuple[str, ...]
    cores: int | None
    """CPU cores that the run could use."""
    int8_overflows: bool | None
    """Whether int8 matmuls overflow in onnxruntime's faster mode, as its probe found."""


@dataclass(frozen=True)
class Source:
    """Where a transcribed result is from."""

    document: str
    commit: str
    """The commit that put the figures into the document."""
    date: str


@dataclass(frozen=True)
class BenchmarkResult:
    """One run of a benchmark on one machine."""

    format: int
    benchmark: str
    date: str
    """When it ended, UTC; a day where no more is known."""
    cpu: Cpu
    packages: dict[str, str]
    commit: str | None
    """The commit that was measured; None where it is not known."""
    changed: bool | None
    """Whether the checkout had uncommitted changes."""
    command: str | None
    repeats: int | None
    """Counted rounds."""
    busy_cores: float | None
    """CPU cores that other processes used in the pauses between rounds; None where that is not known."""
    transcribed: bool
    """Whether the figures are from a document, which states no rounds."""
    source: Source | None
    note: str | None
    figures: tuple[Figure, ...]

    @property
    def quiet(self) -> bool:
        """Whether the run can be quoted; transcribed ones state a busy machine in `busy_cores` too."""
        return self.busy_cores is None or self.busy_cores <= QUIET


class ResultError(Exception):
    """A result file cannot be read."""


def rate_figure(measure: str, name: str, rates: Sequence[float], ours: Sequence[float] | None, unit: str) -> Figure:
    """A rate in each round, and ortkit's in the same rounds; None where it is ortkit's own."""
    ratio = None if ours is None else Spread.of([own / rate for own, rate in zip(ours, rates, strict=True)])
    return _figure(measure, name, unit, Better.HIGHER, Spread.of(rates), ratio)


def time_figure(
    measure: str, name: str, seconds: Sequence[float], ours: Sequence[float] | None, *, unit: str = "s"
) -> Figure:
    """A time in each round, in `s`, `ms` or `us`, from seconds."""
    scale = {"s": 1, "ms": 1e3, "us": 1e6}[unit]
    ratio = None if ours is None else Spread.of([one / own for own, one in zip(ours, seconds, strict=True)])
    return _figure(measure, name, unit, Better.LOWER, Spread.of([scale * one for one in seconds]), ratio)


def plain_figure(measure: str, name: str, value: float, unit: str, better: Better) -> Figure:
    """A figure that is measured once, such as a cosine or a size."""
    return _figure(measure, name, unit, better, Spread(rounded(value)), None)


def rounded(number: float) -> float:
    """The number as files have it."""
    return float(f"{number:.{DIGITS}g}")


def _figure(measure: str, name: str, unit: str, better: Better, value: Spread, ratio: Spread | None) -> Figure:
    system, version_of_system = system_of(name)
    return Figure(measure, system, unit, better, version_of_system, value, ratio)


def system_of(name: str) -> tuple[str, str | None]:
    """A system's name in tables -> its name without version, the same in all runs, and the version."""
    found = _VERSION.search(name)
    return _BATCH.sub("", _VERSION.sub("", name, count=1)), None if found is None else found[1]


def add_save(parser: argparse.ArgumentParser, benchmark: str) -> None:
    """Add the options of result files."""
    parser.add_argument(
        "--save",
        nargs="?",
        const=RESULTS,
        type=Path,
        metavar="FOLDER",
        help=f"write the figures to FOLDER/CPU-CLASS/{benchmark}.json  [FOLDER: benchmarks/results]",
    )
    parser.add_argument(
        "--save-as",
        type=file_name,
        default=benchmark,
        metavar="NAME",
        help="another name for the file, such as one for a run beside some of the peers",
    )


def file_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"`{text}` must have lower case letters, digits, `-`, `_` and `.` alone")
    return text


def save(options: argparse.Namespace, benchmark: str, figures: Iterable[Figure]) -> None:
    """Write a result file where `--save` asked for one, and print its path."""
    if options.save is None:
        return
    result = this_run(benchmark, tuple(figures), repeats=options.repeats)
    path = options.save / result.cpu.cpu_class.value / f"{options.save_as}.json"
    lost = sorted(lost_figures(path, result))
    write(path, result)
    print(f"\n{path}")
    if not result.quiet:
        print("the machine was busy: the file says so, and its figures are not quoted or compared", file=sys.stderr)
    if lost:
        named = ", ".join(f"{measure}: {system}" for measure, system in lost)
        print(f"note: the file no longer has {named}; `--save-as` writes another file", file=sys.stderr)


def lost_figures(path: Path, result: BenchmarkResult) -> set[tuple[str, str]]:
    """Figures that the file had, and will not have."""
    before = read(path).figures if path.exists() else ()
    return {figure.key for figure in before} - {figure.key for figure in result.figures}


def this_run(benchmark: str, figures: tuple[Figure, ...], *, repeats: int | None) -> BenchmarkResult:
    """The result of this process: machine, versions, commit and command."""
    import onnxruntime

    from ortkit.runtime.session.int8_overflow import matmuls_overflow

    cpu = Cpu(
        this_cpu_class(CPUINFO),
        processor_model(),
        cpu_features(CPUINFO),
        find_cores().usable,
        matmuls_overflow(onnxruntime),
    )
    busy = busy_cores()
    return BenchmarkResult(
        format=FORMAT,
        benchmark=benchmark,
        date=dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        cpu=cpu,
        packages={"python": platform.python_version(), **versions_of(PACKAGES)},
        commit=git("rev-parse", "--short=12", "HEAD"),
        changed=None if (status := git(*_STATUS)) is None else bool(status),
        command=shlex.join(["python", "-m", f"benchmarks.{benchmark}", *stated(sys.argv[1:])]),
        repeats=repeats,
        busy_cores=None if busy is None else round(busy, 3),
        transcribed=False,
        source=None,
        note=None,
        figures=figures,
    )


def stated(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command without folders of the machine: of an absolute path, only the last part."""
    return [re.sub(r"(?:^|(?<==))/(?:.*/)?", "", one) for one in arguments]


def versions_of(names: Iterable[str]) -> Mapping[str, str]:
    """Name -> version, of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git(*arguments: str) -> str | None:
    """What git says of this checkout; None outside of one."""
    command = ["git", "-C", str(REPOSITORY), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write(path: Path, result: BenchmarkResult) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text_of(result), encoding="utf-8")


def text_of(result: BenchmarkResult) -> str:
    """The file: a line for each short list and object, so that a diff shows figures."""
    fields = write_record(result)
    figures = ",\n".join(f"    {json.dumps(figure, ensure_ascii=False)}" for figure in fields.pop("figures"))
    head = json.dumps(fields, indent=2, ensure_ascii=False).removesuffix("\n}")
    return f'{head},\n  "figures": [\n{figures}\n  ]\n}}\n'


def read(path: Path) -> BenchmarkResult:
    """Read a result file; raises ResultError."""
    try:
        result = read_record(BenchmarkResult, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecordError) as error:
        raise ResultError(f"`{path}` is not a result file: {error}") from error
    if result.format != FORMAT:
        raise ResultError(f"`{path}` has the format {result.format}; supported: {FORMAT}")
    return result


def read_all(path: Path) -> list[BenchmarkResult]:
    """The result of a file, or of all files in a folder and below; raises ResultError where there are none."""
    paths = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not paths:
        raise ResultError(f"`{path}` has no result files")
    return [read(one) for one in paths]


@dataclass(frozen=True)
class Quoted:
    """A figure with the run that it is from."""

    figure: Figure
    result: BenchmarkResult


def quoted(results: Iterable[BenchmarkResult]) -> Mapping[CpuClass, Mapping[tuple[str, str], Quoted]]:
    """CPU class -> measure and system -> the newest figure of a quiet run; on the same day, that of the most rounds."""
    found: dict[CpuClass, dict[tuple[str, str], Quoted]] = {one: {} for one in CpuClass}
    for result in sorted(results, key=lambda one: (one.date, one.repeats or 0)):
        if result.quiet:
            for figure in result.figures:
                found[result.cpu.cpu_class][figure.key] = _filled(
                    Quoted(figure, result), found[result.cpu.cpu_class].get(figure.key)
                )
    return {cpu_class: figures for cpu_class, figures in found.items() if figures}


def _filled(newer: Quoted, older: Quoted | None) -> Quoted:
    """The newer figure; the older one where only it has the ratio."""
    return older if older is not None and older.figure.ratio is not None and newer.figure.ratio is None else newer


def all_numbers(results: Iterable[BenchmarkResult]) -> Iterator[float]:
    """Every number of every figure: medians and ranges, of values and ratios."""
    for result in results:
        for figure in result.figures:
            for spread in (figure.value, figure.ratio):
                if spread is not None:
                    yield from (one for one in (spread.median, spread.low, spread.high) if one is not None)


def _written(number: float) -> str:
    return f"{number:.2f}" if abs(number) < 10 else f"{number:,.1f}" if abs(number) < 100 else f"{number:,.0f}"
