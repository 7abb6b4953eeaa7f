"""Speed of reranking, one query with its documents in each call, and how far int8 keeps the order of PyTorch fp32."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median

from tokenizers import Tokenizer

from benchmarks.contest import Contestant, Result, compete, with_best_budget, workers_of
from benchmarks.peers import (
    ONNX_GRAPH,
    PEERS,
    RERANKER,
    add_only,
    openvino_folder,
    ortkit_name,
    peers_python,
    sentence_transformers_int8_folder,
    version_in,
)
from benchmarks.processor import processor
from benchmarks.results import Better, Figure, add_save, plain_figure, save, time_figure
from benchmarks.seeded import Shape, bundle_of, flashrank_folder, onnx_folder, seeded_checkpoint
from benchmarks.table import print_table, ratio
from benchmarks.texts import searches
from benchmarks.worker import Search, System, Task
from ortkit import Bundle, Precision
from ortkit.exporters.certification.probe import calibration_pairs
from ortkit.exporters.certification.rank_correlation import kendall_tau

SEARCH, RANKED = "search", "ranked"
"""Sets that the workers read: the search that is timed, the searches whose order is compared."""
DOCUMENT_WORDS = 88
"""The most words of a document; with the query about 120 tokens a pair."""
PEERS_OF_ORTKIT = tuple(system.value for system in System if system is not System.ORTKIT)
NOTE = "the weights are seeded: what they rank first is not relevant, and only speed and order are compared"


def contestants_of(options: argparse.Namespace, timed: list[Search]) -> list[Contestant]:
    """ortkit first, then the peers that were asked for."""
    checkpoint = seeded_checkpoint(Shape.TWELVE_LAYERS)
    found = []
    for precision in [Precision.INT8, Precision.FP32] if options.fp32 else [Precision.INT8]:
        bundle = bundle_of(checkpoint, precision)
        found.append(Contestant(ortkit_name(bundle), System.ORTKIT, bundle))
    for name in PEERS_OF_ORTKIT:
        if name in options.only:
            found += peers_of(System(name), checkpoint, options.peers, timed)
    return found


def peers_of(system: System, checkpoint: Path, environment: Path, timed: list[Search]) -> list[Contestant]:
    """A peer, in each of the ways in which it is measured."""
    if system is System.SENTENCE_TRANSFORMERS:
        return [Contestant(f"{sentence_transformers_name()} torch fp32", system, checkpoint)]
    source = onnx_folder(checkpoint)
    if system is System.SENTENCE_TRANSFORMERS_ONNX:
        from sentence_transformers import CrossEncoder

        name = f"{sentence_transformers_name()} onnx"
        int8 = sentence_transformers_int8_folder(source, CrossEncoder)
        return [Contestant(f"{name} fp32", system, source), Contestant(f"{name} int8", system, int8)]
    python = peers_python(environment)
    name = f"{system.value} {version_in(python, system.value)}"
    if system is System.OPENVINO:
        folder = openvino_folder(python, source, ONNX_GRAPH, calibration_pairs())
        return [with_best_budget(Task.RERANK, Contestant(f"{name} int8", system, folder, python), timed)]
    if system is System.FASTEMBED:
        default = Contestant(f"{name} fp32, its default batch of 64", system, source, python)
        return [default, Contestant(f"{name} fp32, batch of 1", system, source, python, 1)]
    return [Contestant(f"{name} fp32", system, flashrank_folder(source), python)]


def sentence_transformers_name() -> str:
    return f"sentence-transformers {version('sentence-transformers')}"


def pair_lengths(checkpoint: Path, search: Search) -> list[int]:
    """The tokens of each pair of a search, special tokens included."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    query, documents = search
    return [len(encoding.ids) for encoding in tokenizer.encode_batch([(query, text) for text in documents])]


def speed_rows(results: Sequence[Result], pairs: int) -> tuple[list[str], list[list[str]]]:
    """The table of speeds: header and rows, with a column of ratios for each of ortkit's bundles."""
    ours = [result for result in results if result.contestant.system is System.ORTKIT]
    header = ["system", "ms a search", "pairs/s", *(f"{own.contestant.name} / system" for own in ours)]
    rows = [
        [
            result.contestant.name,
            f"{median(result.seconds) * 1e3:,.0f}",
            f"{pairs / median(result.seconds):.0f}",
            *(ratio(result.seconds, own.seconds) for own in ours),
        ]
        for result in results
    ]
    return header, rows


def order_rows(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """The table of orders: Kendall's tau to PyTorch, over the searches; empty where PyTorch was not measured."""
    header = ["system", "tau mean", "tau min"]
    rows = [[name, f"{mean(taus):.4f}", f"{min(taus):.4f}"] for name, taus in taus_of(results).items()]
    return header, rows


def taus_of(results: Sequence[Result]) -> dict[str, list[float]]:
    """Contestant -> Kendall's tau to PyTorch of each search; empty where PyTorch was not measured."""
    reference = next((one for one in results if one.contestant.system is System.SENTENCE_TRANSFORMERS), None)
    if reference is None:
        return {}
    return {
        result.contestant.name: [kendall_tau(*both) for both in zip(result.outputs, reference.outputs, strict=True)]
        for result in results
        if result is not reference
    }


def figures_of(results: Sequence[Result]) -> Iterator[Figure]:
    """The figures for a result file; the first bundle is the one that peers are compared with."""
    taus = taus_of(results)
    for result in results:
        name, ours = result.contestant.name, None if result is results[0] else results[0].seconds
        yield time_figure("rerank", name, result.seconds, ours, unit="ms")
        if name in taus:
            yield plain_figure("rerank, tau mean", name, mean(taus[name]), "tau", Better.HIGHER)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reranking", description=__doc__)
    parser.add_argument("--fp32", action="store_true", help="measure ortkit's fp32 bundle too")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the virtual environment of the peers")
    add_only(parser, PEERS_OF_ORTKIT)
    parser.add_argument("--documents", type=int, default=100, help="of a query")
    parser.add_argument("--queries", type=int, default=20, help="for Kendall's tau")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, after one that is not counted")
    add_save(parser, "reranking")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse_options()
    ranked = searches(options.queries, options.documents, words=DOCUMENT_WORDS)
    timed = ranked[:1]
    contestants = contestants_of(options, timed)
    with workers_of(Task.RERANK, contestants, {SEARCH: timed, RANKED: ranked}) as workers:
        results = compete(workers, options.repeats, timed=SEARCH, compared=RANKED)
    lengths = pair_lengths(seeded_checkpoint(Shape.TWELVE_LAYERS), timed[0])
    print(f"\n{processor()}")
    print_table(
        f"1 query x {options.documents} documents, {min(lengths)} to {max(lengths)} tokens a pair, {mean(lengths):.0f} "
        f"in the mean, the shape of {RERANKER}; medians of {options.repeats} rounds (range)",
        *speed_rows(results, options.documents),
    )
    header, rows = order_rows(results)
    if rows:
        title = f"Kendall's tau to PyTorch fp32, {options.queries} queries x {options.documents} documents"
        print_table(title, header, rows)
    quantization = Bundle.open(contestants[0].model).manifest.quantization
    print(f"\n{contestants[0].name}: {quantization}\n{NOTE}")
    save(options, "reranking", figures_of(results))


if __name__ == "__main__":
    main()
