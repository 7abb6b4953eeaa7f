"""Build rate of an index relative to `ortkit embed` of its chunks, on package descriptions and Python's sources."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median

from benchmarks.known_items import Item, apt_files, apt_text, described, library_modules
from benchmarks.peers import BUNDLE, ortkit_name
from benchmarks.processor import processor
from benchmarks.results import Figure, add_save, rate_figure, save
from benchmarks.rounds import other_load, warn_if_busy
from benchmarks.table import print_table, ratio
from ortkit import Embedder, Index
from ortkit.toolkit.search.chunks import Chunker
from ortkit.toolkit.search.documents.reading import read_document
from ortkit.toolkit.search.folder import FoundFile

CHUNKS = 100_000
SLOT = 10.0
"""Seconds that each process runs before the other one does."""
MEBIBYTE = 1 << 20
PER_FOLDER = 1000


@dataclass
class Run:
    """One of two processes that take turns."""

    command: Sequence[str]
    seconds: float = 0.0
    """That it ran, without those in which it was stopped."""
    peak: int = 0
    """Memory, in bytes."""


def texts(lists: Path | None) -> Iterator[Item]:
    """Debian's descriptions, if this machine has them, then the modules of Python's standard library."""
    packages = (item for path in apt_files(lists) for item in described(apt_text(path)))
    return chain(packages, library_modules())


def write_files(folder: Path, chunks: Path, embedder: Embedder, count: int, lists: Path | None) -> tuple[int, int]:
    """Write files of at least `count` chunks to a folder, and the chunks as JSONL; the numbers of both."""
    chunker = Chunker(embedder)
    names: set[str] = set()
    written = 0
    with chunks.open("w", encoding="utf-8") as lines:
        for item in texts(lists):
            if written >= count:
                break
            if item.name in names:  # an update of a package
                continue
            path = folder / f"{len(names) // PER_FOLDER:03}" / item.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(item.text, encoding="utf-8")
            names.add(item.name)
            found = FoundFile(item.name, path, path.stat().st_size, path.stat().st_mtime_ns)
            for chunk in chunker.chunks(read_document(found)):
                lines.write(json.dumps({"text": chunk.embedded_text}) + "\n")
                written += 1
    return len(names), written


def run_in_turns(runs: Sequence[Run], slot: float) -> list[float]:
    """Run the commands to their end, one process at a time, each stopped while another one runs.

    So a slow spell of the machine hits all. Returns the load of other processes in the pauses between.
    """
    started = [(run, subprocess.Popen(run.command, stdout=subprocess.DEVNULL)) for run in runs]
    for _, process in started:
        process.send_signal(signal.SIGSTOP)
    busy = []
    try:
        while started:
            for run, process in tuple(started):
                busy.append(other_load())
                if run_for(run, process, slot):
                    started.remove((run, process))
    finally:
        for _, process in started:
            process.kill()
            process.wait()
    return busy


def run_for(run: Run, process: subprocess.Popen[bytes], slot: float) -> bool:
    """Let a stopped process run for some seconds; whether it ended."""
    process.send_signal(signal.SIGCONT)
    begin = time.monotonic()
    ended = 0
    while not ended and time.monotonic() - begin < slot:
        time.sleep(0.005)
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    if not ended:
        process.send_signal(signal.SIGSTOP)
    run.seconds += time.monotonic() - begin
    if ended:
        process.returncode = os.waitstatus_to_exitcode(status)
        run.peak = usage.ru_maxrss * 1024
        if process.returncode:
            raise SystemExit(f"`{' '.join(run.command)}` ended with {process.returncode}; its messages are above")
    return bool(ended)


def measure(work: Path, files: Path, chunks: Path, bundle: Path, number: int, slot: float) -> tuple[Run, Run]:
    """Index the files and embed the chunks; the first of the two alternates."""
    ortkit = [sys.executable, "-m", "ortkit"]
    target = work / f"{number}.index"
    index = Run([*ortkit, "index", str(files), "--bundle", str(bundle), "--output", str(target)])
    embed = Run([*ortkit, "embed", str(bundle), "--input", str(chunks), "--output", str(work / f"{number}.npy")])
    warn_if_busy(run_in_turns([index, embed] if number % 2 == 0 else [embed, index], slot))
    with Index.open(target, embedder=bundle) as built:
        check_count(built.facts.chunks, chunks)
    return index, embed


def check_count(indexed: int, chunks: Path) -> None:
    with chunks.open("rb") as lines:
        wanted = sum(1 for _ in lines)
    if indexed != wanted:
        raise SystemExit(f"the index has {indexed} chunks, and {wanted} were embedded: they did not do the same work")


def rows_of(measured: Sequence[tuple[Run, Run]], count: int) -> list[list[str]]:
    rows = []
    for place, name in enumerate(("ortkit index", "ortkit embed")):
        seconds = [runs[place].seconds for runs in measured]
        rates = [count / one for one in seconds]
        embed = [count / runs[1].seconds for runs in measured]
        peak = max(runs[place].peak for runs in measured) / MEBIBYTE
        rows.append(
            [
                name,
                f"{median(seconds):,.1f}",
                f"{median(rates):,.0f}",
                ratio(rates, embed) if place == 0 else "1",
                f"{peak:,.0f}",
            ]
        )
    return rows


def figures_of(measured: Sequence[tuple[Run, Run]], count: int) -> list[Figure]:
    """The rates for a result file; the ratio is that of the table."""
    index, embed = ([count / runs[place].seconds for runs in measured] for place in (0, 1))
    return [
        rate_figure("index build", "ortkit index", index, None, "embeddings/s"),
        rate_figure("index build", "ortkit embed", embed, index, "embeddings/s"),
    ]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index_build", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--chunks", type=int, default=CHUNKS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slot", type=float, default=SLOT, help="seconds that each process runs before the other does")
    parser.add_argument("--apt-lists", type=Path, metavar="FOLDER", help="with the Translation files of APT")
    add_save(parser, "index_build")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    bundle = options.bundle.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        files, chunks = work / "files", work / "chunks.jsonl"
        found, count = write_files(files, chunks, Embedder(bundle), options.chunks, options.apt_lists)
        measured = [measure(work, files, chunks, bundle, number, options.slot) for number in range(options.repeats)]
        print_table(
            f"{processor()}\n{ortkit_name(bundle)}: {count:,} chunks of {found:,} files, {len(measured)} runs",
            ["command", "seconds", "chunks/s", "index / embed", "peak, MiB"],
            rows_of(measured, count),
        )
        save(options, "index_build", figures_of(measured, count))


if __name__ == "__main__":
    main()
