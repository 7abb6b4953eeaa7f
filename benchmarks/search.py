"""Search in large indexes: milliseconds per query and stage, and the memory of the process.

CPU time, of all threads together, says what the rest of a busy machine does not change.

The texts are fragments of real news with real questions among them; the vectors are seeded, in clusters as those of
real texts are, because embedding a million texts would take half an hour. The query is embedded by the bundle.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import QUESTIONS
from benchmarks.peers import BUNDLE
from benchmarks.processor import processor
from benchmarks.table import print_table
from benchmarks.texts import CORPUS, read_lines
from ortkit import Embedder, Index, SearchMode
from ortkit.toolkit.search.bundle_of_index import bundle_record
from ortkit.toolkit.search.chunks import Chunk, ChunkSettings
from ortkit.toolkit.search.documents.document import Place
from ortkit.toolkit.search.folder import FolderRules
from ortkit.toolkit.search.storage.index_file import Origin, uri_of
from ortkit.toolkit.search.storage.snapshot import Snapshot
from ortkit.toolkit.search.storage.store import Stamp, text_hash
from ortkit.toolkit.search.storage.vectors import unit_rows
from ortkit.toolkit.search.storage.workspace import PendingChunk, PendingFile, Workspace

SEED = 23
BATCH = 5_000
CHUNKS_OF_A_FILE = 50
WORDS = 110
CLUSTERS = 500
CANDIDATES = 100
FILES = "7*.md"
"""A glob for a ninth of the files."""


def fragments() -> Iterator[str]:
    """Texts of about WORDS words, of sentences of the corpus, each with words that few others have."""
    chance = Random(SEED)
    words = [word for line in read_lines(CORPUS) for word in line.split()]
    vocabulary = sorted(set(words))
    while True:
        text: list[str] = []
        while len(text) < WORDS:
            start = chance.randrange(len(words) - 30)
            text += words[start : start + chance.randrange(8, 30)]
        yield " ".join([*text, f"{chance.choice(vocabulary)}{chance.randrange(10**5)}", f"E-{chance.randrange(1000)}"])


def build(path: Path, rows: int, embedder: Embedder) -> float:
    """Write an index of so many chunks; returns the seconds."""
    began = time.monotonic()
    random = np.random.default_rng(SEED)
    centers = random.normal(0, 1, (CLUSTERS, embedder.dimension)).astype(np.float32)
    origin = Origin(bundle_record(embedder), ChunkSettings(256, 32), uri_of(Path("/synthetic")))
    path.mkdir()
    workspace = Workspace(path, origin, FolderRules(), None, restart=False)
    texts = fragments()
    for start in range(0, rows, BATCH):
        chunks, files = [], []
        for number in range(start, min(start + BATCH, rows)):
            if number % CHUNKS_OF_A_FILE == 0:
                files.append(PendingFile(f"{number // CHUNKS_OF_A_FILE}.md", Stamp(0, 0, 0, "")))
            place = Place((number, number + 5), None, ("News", "Of the day"))
            chunk = Chunk(next(texts), f"File {number // CHUNKS_OF_A_FILE}", place, "News")
            chunks.append(PendingChunk(files[-1], number % CHUNKS_OF_A_FILE, chunk, text_hash(chunk.text)))
        noise = random.normal(0, 1, (len(chunks), embedder.dimension)).astype(np.float32)
        workspace.commit(chunks, unit_rows(centers[random.integers(0, CLUSTERS, len(chunks))] + noise), files)
    workspace.publish()
    workspace.close()
    return time.monotonic() - began


def queries() -> list[str]:
    """240 real questions, then 60 of a few words."""
    asked = [json.loads(line)["question"] for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    chance = Random(SEED)
    words = [word for line in read_lines(CORPUS) for word in line.split()]
    return [*asked, *(" ".join(chance.choices(words, k=chance.randrange(1, 5))) for _ in range(60))]


def timed(run: Callable[[str], object], texts: list[str]) -> NDArray[np.float64]:
    """Milliseconds of each, and of CPU time of all threads: (2, texts)."""
    found = []
    for text in texts:
        began, used = time.perf_counter(), time.process_time()
        run(text)
        found.append((time.perf_counter() - began, time.process_time() - used))
    return np.array(found).T * 1000


def row(name: str, figures: NDArray[np.float64]) -> list[str]:
    return [name, *(f"{figure:.1f}" for times in figures for figure in np.percentile(times, (50, 95, 100)))]


def measure(path: Path, bundle: Path) -> list[list[str]]:
    """The rows of the table: stages, then whole searches."""
    texts = queries()
    with Embedder(bundle) as embedder, Index.open(path, embedder=embedder) as index:
        snapshot = Snapshot.newest(path)
        embedded: dict[str, NDArray[np.float32]] = {}

        def embed(text: str) -> None:
            embedded[text] = embedder.embed_query(text)

        # The files are read once before they are measured.
        timed(index.search, texts[:20])
        rows = [
            row("embed the query", timed(embed, texts)),
            row("vectors", timed(lambda text: snapshot.vectors.nearest(embedded[text], CANDIDATES), texts)),
            row("BM25", timed(lambda text: snapshot.full_text(text, CANDIDATES, None, alone=False), texts)),
            row("search, hybrid", timed(index.search, texts)),
            row("search, vectors alone", timed(lambda text: index.search(text, mode=SearchMode.VECTOR), texts)),
            row("search, BM25 alone", timed(lambda text: index.search(text, mode=SearchMode.BM25), texts)),
            row(f"search, hybrid in {FILES}", timed(lambda text: index.search(text, paths=[FILES]), texts)),
        ]
        snapshot.retire()
        return rows


def memory() -> dict[str, int]:
    """MB of this process: the peak with mapped files, and what is not a file's."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return {name: int(lines[name].split()[0]) // 1024 for name in ("VmHWM", "RssAnon", "RssFile")}


def child(path: Path, bundle: Path) -> None:
    """Measure in a process that does nothing else, and print the figures as JSON."""
    began = time.perf_counter()
    with Index.open(path, embedder=bundle) as index:
        opened = (time.perf_counter() - began) * 1000
        chunks, size = index.facts.chunks, index.facts.size
    rows = measure(path, bundle)
    print(json.dumps({"opened": opened, "chunks": chunks, "size": size, "rows": rows, "memory": memory()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000], help="chunks of each index")
    parser.add_argument("--bundle", type=Path, default=Path(BUNDLE))
    parser.add_argument("--keep", type=Path, help="folder in which the indexes stay, and are found the next time")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child, arguments.bundle)
        return
    print(processor())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if arguments.keep is None else arguments.keep
        for count in arguments.rows:
            path = folder / f"{count}.index"
            if not path.exists():
                with Embedder(arguments.bundle) as embedder:
                    seconds = build(path, count, embedder)
                print(f"wrote {count} chunks in {seconds:.0f} s, {count / seconds:.0f} a second, without embedding")
            command = [sys.executable, "-m", "benchmarks.search", "--child", path, "--bundle", arguments.bundle]
            finished = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ.copy())
            found = json.loads(finished.stdout)
            times = ("p50 ms", "p95 ms", "max ms", "CPU p50", "CPU p95", "CPU max")
            header = [f"{found['chunks']} chunks, {found['size'] >> 20} MB", *times]
            print_table(f"opening: {found['opened']:.0f} ms", header, found["rows"])
            used = found["memory"]
            print(
                f"\npeak memory with mapped files {used['VmHWM']} MB; at the end {used['RssAnon']} MB without them, "
                f"{used['RssFile']} MB of files"
            )


if __name__ == "__main__":
    main()
