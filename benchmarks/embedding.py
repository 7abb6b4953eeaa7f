"""Speed of embedding from raw text to vectors, many texts at once and one query alone, ortkit beside its peers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from statistics import median

from benchmarks.contest import Contestant, Result, Worker, compete, with_best_budget, workers_of
from benchmarks.peers import (
    BUNDLE,
    MODEL,
    ONNX_GRAPH,
    PEERS,
    REPOSITORY,
    add_only,
    fastembed_folder,
    openvino_folder,
    ortkit_name,
    peers_python,
    sentence_transformers_int8_folder,
    sentence_transformers_onnx_folder,
    version_in,
)
from benchmarks.plot import Point, scatter
from benchmarks.processor import processor
from benchmarks.results import Better, Figure, add_save, plain_figure, rate_figure, save, time_figure
from benchmarks.rounds import take_turns
from benchmarks.table import print_table, ratio
from benchmarks.texts import QUERY_WORDS, held_out_sentences, held_out_texts, queries
from benchmarks.worker import System, Task
from ortkit.exporters.certification.probe import calibration_texts
from ortkit.exporters.sources import Origin, find_checkpoint
from ortkit.runtime.encoder.pooling import cosines

TEXTS, SENTENCES, QUERIES = "texts", "sentences", "queries"
"""Text sets that the workers read: for the speed, for the cosines, for the latency."""
PEERS_OF_ORTKIT = (
    System.OPENVINO.value,
    System.SENTENCE_TRANSFORMERS_ONNX.value,
    System.FASTEMBED.value,
)
"""Peers that can be left out: PyTorch cannot, because the cosines are to its vectors."""
PLOT = REPOSITORY / ".cache" / "benchmarks" / "embedding.svg"


def contestants_of(options: argparse.Namespace, texts: list[str]) -> list[Contestant]:
    """ortkit, the peers that were asked for, and always PyTorch, to which all are compared."""
    checkpoint = find_checkpoint(MODEL, origin=Origin.WHEEL, offline=True).folder
    bundles = [options.bundle] if options.fp32_bundle is None else [options.bundle, options.fp32_bundle]
    found = [Contestant(ortkit_name(bundle), System.ORTKIT, bundle.absolute()) for bundle in bundles]
    if System.OPENVINO in options.only:
        found.append(of_openvino(peers_python(options.peers), texts))
    name = f"sentence-transformers {version('sentence-transformers')}"
    found.append(Contestant(f"{name} torch fp32", System.SENTENCE_TRANSFORMERS, checkpoint))
    if System.SENTENCE_TRANSFORMERS_ONNX in options.only:
        found += of_onnx(checkpoint)
    if System.FASTEMBED in options.only:
        found += of_fastembed(peers_python(options.peers), options.fastembed_batch)
    return found


def of_openvino(python: Path, texts: list[str]) -> Contestant:
    name = f"openvino {version_in(python, 'openvino')} int8"
    folder = openvino_folder(python, fastembed_folder(), Path(ONNX_GRAPH.name), calibration_texts().texts)
    return with_best_budget(Task.EMBED, Contestant(name, System.OPENVINO, folder, python), texts)


def of_onnx(checkpoint: Path) -> list[Contestant]:
    from sentence_transformers import SentenceTransformer

    name = f"sentence-transformers {version('sentence-transformers')}"
    exact = sentence_transformers_onnx_folder(checkpoint)
    int8 = sentence_transformers_int8_folder(exact, SentenceTransformer)
    return [
        Contestant(f"{name} onnx fp32", System.SENTENCE_TRANSFORMERS_ONNX, exact),
        Contestant(f"{name} onnx int8", System.SENTENCE_TRANSFORMERS_ONNX, int8),
    ]


def of_fastembed(python: Path, batch: int | None) -> list[Contestant]:
    name = f"fastembed {version_in(python, 'fastembed')} fp32"
    found = [Contestant(name, System.FASTEMBED, fastembed_folder(), python)]
    if batch is not None:
        found.append(Contestant(f"{name}, batch of {batch}", System.FASTEMBED, fastembed_folder(), python, batch))
    return found


def speed_rows(results: list[Result], texts: int) -> tuple[list[str], list[list[str]]]:
    """The table of speeds: header and rows, with a column of ratios for each of ortkit's bundles."""
    ours = [result for result in results if result.contestant.system is System.ORTKIT]
    reference = next(result for result in results if result.contestant.system is System.SENTENCE_TRANSFORMERS)
    header = ["system", "sentences/s", *(f"{own.contestant.name} / system" for own in ours)]
    rows = []
    for result in results:
        agreement = cosines(result.outputs, reference.outputs)
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


def figures_of(
    results: list[Result], workers: list[Worker], calls: list[list[list[float]]], texts: int
) -> Iterator[Figure]:
    """The figures for a result file; the first bundle is the one that peers are compared with."""
    reference = next(result for result in results if result.contestant.system is System.SENTENCE_TRANSFORMERS)
    ours = [texts / seconds for seconds in results[0].seconds]
    for result in results:
        name, agreement = result.contestant.name, cosines(result.outputs, reference.outputs)
        rates = [texts / seconds for seconds in result.seconds]
        yield rate_figure("embed", name, rates, None if result is results[0] else ours, "sentences/s")
        yield plain_figure("embed, cosine mean", name, float(agreement.mean()), "cosine", Better.HIGHER)
        yield plain_figure("embed, cosine min", name, float(agreement.min()), "cosine", Better.HIGHER)
    medians = [[median(round_) for round_ in own] for own in calls]
    for worker, own in zip(workers, medians, strict=True):
        yield time_figure("query", worker.contestant.name, own, None if own is medians[0] else medians[0], unit="us")


def write_plot(path: Path, results: list[Result], texts: int) -> None:
    """Speed across, closeness to PyTorch upwards: the best stands in the upper right corner."""
    reference = next(result for result in results if result.contestant.system is System.SENTENCE_TRANSFORMERS)
    points = [
        Point(
            result.contestant.name,
            texts / median(result.seconds),
            float(cosines(result.outputs, reference.outputs).min()),
            ours=result.contestant.system is System.ORTKIT,
        )
        for result in results
    ]
    title = f"{MODEL}, {texts} texts to vectors"
    y_label = f"lowest cosine to PyTorch fp32, {len(reference.outputs):,} sentences"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(scatter(title, "sentences per second", y_label, points), encoding="utf-8")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedding", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="an int8 bundle")
    parser.add_argument("--fp32-bundle", type=Path, help="an fp32 bundle, measured beside it")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the virtual environment of the peers")
    add_only(parser, PEERS_OF_ORTKIT)
    parser.add_argument("--fastembed-batch", type=int, metavar="N", help="measure fastembed at this batch size too")
    parser.add_argument("--texts", type=int, default=256, help="for the speed")
    parser.add_argument("--sentences", type=int, default=2000, help="for the cosines")
    parser.add_argument("--queries", type=int, default=60, help="for the latency: calls in a round")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, after one that is not counted")
    parser.add_argument("--plot", type=Path, default=PLOT, metavar="SVG")
    add_save(parser, "embedding")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse_options()
    texts = held_out_texts(options.texts)
    contestants = contestants_of(options, texts)
    text_sets = {TEXTS: texts, SENTENCES: held_out_sentences(options.sentences), QUERIES: queries(options.queries)}
    with workers_of(Task.EMBED, contestants, text_sets) as workers:
        results = compete(workers, options.repeats, timed=TEXTS, compared=SENTENCES)
        # A call with one text is the same at any batch size.
        callers = [
            worker
            for worker in workers
            if worker.contestant.system is not System.FASTEMBED or worker.contestant.batch is None
        ]
        calls = take_turns([partial(worker.call, QUERIES) for worker in callers], options.repeats)
    words = sum(len(text.split()) for text in texts)
    print(f"\n{processor()}")
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
    save(options, "embedding", figures_of(results, callers, calls, len(texts)))


if __name__ == "__main__":
    main()
