"""Write the table of README's section "How it compares" from the result files: a column for each CPU class.

A cell has the newest ratio of a quiet run; of two on the same day, that of the most rounds. `--check` writes nothing,
and exits with 1 where README differs from what would be written, or states a figure that no result file has.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import REPOSITORY
from benchmarks.results import RESULTS, BenchmarkResult, Quoted, all_numbers, quoted, read_all
from ortkit.runtime.session.cpu_class import CpuClass

README = REPOSITORY / "README.md"
SECTION = "## How it compares"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
NOT_MEASURED = "not measured"
Figures = Mapping[CpuClass, Mapping[tuple[str, str], Quoted]]


@dataclass(frozen=True)
class Row:
    """A line of the table: one ratio, or several of the same peer."""

    ortkit: str
    peer: str
    system: str
    measures: tuple[str, ...]
    systems: tuple[str, ...] = ()
    """Further systems, each with the first measure."""

    @property
    def keys(self) -> list[tuple[str, str]]:
        more = [(self.measures[0], system) for system in self.systems]
        return [*((measure, self.system) for measure in self.measures), *more]


_EMBED = "embed, all-MiniLM-L6-v2 int8"
_RERANK = "rerank 100 passages, 12 layers, int8"
_DECODE = "generate, SmolLM2-135M int4, after 22 / 900 tokens"
_PREFILL = "prefill of 900 tokens, the same model"
_AFTER, _PREFILLED = ("decode after 22", "decode after 900"), ("prefill 900",)
_GENAI, _OPENVINO_GENAI = "onnxruntime-genai int4", "openvino-genai int4"
_LLAMA = "llama.cpp, llama-cpp-python Q4_0"
_FASTEMBED = "fastembed fp32, batch of 256 (its default) / of 1"
ROWS = (
    Row(_EMBED, "OpenVINO int8", "openvino int8", ("embed",)),
    Row(_EMBED, "sentence-transformers, torch fp32", "sentence-transformers torch fp32", ("embed",)),
    Row(_EMBED, "sentence-transformers, onnx int8", "sentence-transformers onnx int8", ("embed",)),
    Row(_EMBED, _FASTEMBED, "fastembed fp32", ("embed",), ("fastembed fp32, batch of 1",)),
    Row("start a process that embeds one text", "fastembed", "fastembed", ("start",)),
    Row(_RERANK, "OpenVINO int8", "openvino int8", ("rerank",)),
    Row(_RERANK, "sentence-transformers, torch fp32", "sentence-transformers torch fp32", ("rerank",)),
    Row(_RERANK, "fastembed fp32", "fastembed fp32, its default batch of 64", ("rerank",)),
    Row(_RERANK, "FlashRank's engine, fp32", "flashrank fp32", ("rerank",)),
    Row(_DECODE, _GENAI, _GENAI, _AFTER),
    Row(_DECODE, "llama.cpp Q4_0", _LLAMA, _AFTER),
    Row(_DECODE, "OpenVINO GenAI int4", _OPENVINO_GENAI, _AFTER),
    Row(
        "serve, SmolLM2-135M int4, 1 / 4 / 8 streams",
        "llama.cpp's server Q4_0",
        "llama.cpp, llama-server",
        ("chat, 1 stream", "chat, 4 streams", "chat, 8 streams"),
    ),
    Row(_PREFILL, _GENAI, _GENAI, _PREFILLED),
    Row(_PREFILL, "llama.cpp Q4_0", _LLAMA, _PREFILLED),
    Row(_PREFILL, "OpenVINO GenAI int4", _OPENVINO_GENAI, _PREFILLED),
)


def table_of(results: Iterable[BenchmarkResult]) -> str:
    """The table in Markdown, with a line on each column."""
    figures = quoted(results)
    lines = [["ortkit", "peer", *(one.description for one in figures)], ["---"] * (2 + len(figures))]
    shown = ""
    for row in ROWS:
        cells = [cell_of(row, of_class) for of_class in figures.values()]
        lines.append(["" if row.ortkit == shown else row.ortkit, row.peer, *cells])
        shown = row.ortkit
    return "\n".join([*map(_line_of, lines), "", *notes_of(figures)])


def _line_of(cells: Sequence[str]) -> str:
    shown = (cell if cell == "---" else f" {cell} " if cell else " " for cell in cells)
    return f"|{'|'.join(shown)}|"


def cell_of(row: Row, figures: Mapping[tuple[str, str], Quoted]) -> str:
    """The ratios of a row, a dash for one that was not measured."""
    found = [_ratio_of(figures.get(key)) for key in row.keys]
    return " / ".join(one or "-" for one in found) if any(found) else NOT_MEASURED


def _ratio_of(quote: Quoted | None) -> str | None:
    return None if quote is None or quote.figure.ratio is None else f"{quote.figure.ratio.median:.2f}"


def notes_of(figures: Figures) -> Iterator[str]:
    """A sentence on each column: when it was measured, on what, and how much of it is transcribed."""
    for cpu_class, of_class in figures.items():
        found = [of_class[key] for row in ROWS for key in row.keys if _ratio_of(of_class.get(key)) is not None]
        if not found:
            continue
        days = sorted({one.result.date[:10] for one in found})
        models = sorted({one.result.cpu.model for one in found if one.result.cpu.model is not None})
        when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        where = f" ({', '.join(models)})" if models else ""
        copied = sum(one.result.transcribed for one in found)
        share = "all" if copied == len(found) else f"{copied} of {len(found)}"
        how = f"; {share} transcribed from the documentation of earlier runs" if copied else ""
        yield f"{cpu_class.description}: measured {when}{where}{how}."


def with_table(readme: str, table: str) -> str:
    """README with the table between its markers; raises ValueError without them."""
    begin, end = readme.index(BEGIN), readme.index(END)
    return f"{readme[:begin]}{BEGIN}\n{table}\n{readme[end:]}"


_FIGURE = re.compile(
    r"(?<![\w.,-])(?:\d[\d,]*\.\d+|\d[\d,]*(?=\s?(?:%|times\b|tokens/s\b|ms\b|us\b|µs\b|s\b|MB\b|MiB\b)))(?![.\d])"
)
"""A decimal number, or an integer with a unit; numbers of a workload, such as `100 passages`, do not count."""
_PERCENT = re.compile(r"\s?%")


def section_of(readme: str) -> str:
    """The section with the figures of the benchmarks."""
    found = re.search(rf"(?ms)^{re.escape(SECTION)}\n(.*?)(?=^## |\Z)", readme)
    if found is None:
        raise ValueError(f"README has no section `{SECTION}`")
    return found[1]


def unfounded(readme: str, results: Iterable[BenchmarkResult]) -> list[str]:
    """Figures of README's section that no result file has, at the digits that README states."""
    numbers = list(all_numbers(results))
    section, found = section_of(readme), []
    for match in _FIGURE.finditer(section):
        text = match[0].replace(",", "")
        digits = len(text.partition(".")[2])
        shares = _PERCENT.match(section, match.end()) is not None
        if not any(f"{100 * one if shares else one:.{digits}f}" == text for one in numbers):
            found.append(match[0])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme_table", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--readme", type=Path, default=README, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    results = read_all(options.results)
    before = options.readme.read_text(encoding="utf-8")
    after = with_table(before, table_of(results))
    if not options.check:
        options.readme.write_text(after, encoding="utf-8")
    elif after != before:
        print("README's table is not that of the results: run `python -m benchmarks.readme_table`", file=sys.stderr)
    without = unfounded(after, results)
    if without:
        print(f"README states figures that no result file has: {', '.join(without)}", file=sys.stderr)
    return int(bool(without) or (options.check and after != before))


if __name__ == "__main__":
    sys.exit(main())
