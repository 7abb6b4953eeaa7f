"""What each int8 recipe of the ladder costs in accuracy, on trained and seeded rerankers, beside OpenVINO's int8.

Orders are compared with float32's: Kendall's tau of all documents, and nDCG@10 whose gains fall from float32's first
document to its last in equal steps. On the trained reranker, nDCG@10 and MRR@10 of questions with one known answer say
what that means to a user.

`--rounds N` measures the speed too, beside float32 and OpenVINO; leave it at 0 on a busy machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from benchmarks.accuracy import question_set
from benchmarks.contest import Contestant, Worker, with_best_budget, workers_of
from benchmarks.peers import BUNDLE, ONNX_GRAPH, PEERS, openvino_folder, peers_python, version_in
from benchmarks.processor import processor
from benchmarks.ranking_metrics import Scores, answer_ranks, mean_tau, ndcg_of_answers, ndcg_to, reciprocal_rank
from benchmarks.retrieval import CANDIDATES, first_questions, retrieve
from benchmarks.rounds import take_turns
from benchmarks.seeded import Shape, bundle_of, digest_of, onnx_folder, seeded_checkpoint
from benchmarks.table import print_table, ratio
from benchmarks.texts import searches
from benchmarks.trained_reranker import trained_checkpoint
from benchmarks.worker import Search, System, Task
from ortkit import Bundle, Embedder, Kind, Precision
from ortkit.exporters.certification.probe import calibration_pairs, probe_searches
from ortkit.exporters.encoder.calibration import Calibration
from ortkit.exporters.encoder.int8 import Recipe, quantize_encoder
from ortkit.exporters.encoder.quantize import ladder_step
from ortkit.exporters.encoder.recipe_search import LADDER, Step
from ortkit.exporters.encoder.reranker_task import RerankerTask
from ortkit.exporters.graph.external_data import save_graph
from ortkit.exporters.graph.passes import tidy
from ortkit.exporters.options import ExportOptions, plan_export
from ortkit.exporters.sources import find_checkpoint
from ortkit.exporters.task import task_of
from ortkit.runtime.bundle.bundle import GRAPH
from ortkit.runtime.bundle.folder import MANIFEST, DraftBundle
from ortkit.runtime.bundle.manifest import Quantization
from ortkit.runtime.bundle.writer import BundleWriter

TRAINED = "trained"
CHECKPOINTS = {
    TRAINED: trained_checkpoint,
    "twelve-layers": lambda: seeded_checkpoint(Shape.TWELVE_LAYERS),
    "seeded-head": lambda: seeded_checkpoint(Shape.HEAD),
}
PROBE, SEARCHES, QUESTIONS, TIMED = "probe", "searches", "questions", "timed"
"""Sets of searches: of certificates, of news texts, of questions with a known answer; and the one that is timed."""
DOCUMENT_WORDS = 88


def bundles_of_recipes(checkpoint: Path, exact: Path) -> dict[str, Path]:
    """A bundle for each recipe of the ladder, by name, made of the float32 bundle `exact` as an export makes them."""
    targets = {recipe: exact.with_name(f"{exact.name}-{_digest(recipe)}") for recipe in LADDER}
    missing = [recipe for recipe, target in targets.items() if not target.exists()]
    if missing:
        bundle = Bundle.open(exact)
        found = find_checkpoint(str(checkpoint), offline=True)
        plan = plan_export(found, ExportOptions(Kind.RERANKER, Precision.INT8, None, dict.fromkeys(Kind)))
        task = task_of(found, plan)
        if not isinstance(task, RerankerTask):
            raise SystemExit(f"`{checkpoint}` is not a reranker")
        graph = ir.load(exact / GRAPH)
        calibration = Calibration(graph, task.calibration_feeds(DraftBundle(exact, bundle.manifest)))
        for recipe in missing:
            quantized = graph.clone()
            quantize_encoder(quantized, calibration, recipe)
            tidy(quantized)
            how = Quantization(0, 0, recipe.smoothing, recipe.per_token, recipe.cls_16bit)
            manifest = dataclasses.replace(
                bundle.manifest, precision=Precision.INT8, quantization=how, certificate=None
            )
            with BundleWriter(targets[recipe]) as writer:
                shutil.copytree(
                    exact, writer.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(GRAPH, MANIFEST)
                )
                save_graph(quantized, writer.folder / GRAPH)
                writer.commit(manifest)
    return {str(ladder_step(Step(recipe))): target for recipe, target in targets.items()}


def _digest(recipe: Recipe) -> str:
    return digest_of(str(dataclasses.replace(recipe, float32=frozenset())).encode())


def contestants_of(checkpoint: Path, peers: Path | None, timed: Sequence[Search] = ()) -> list[Contestant]:
    """float32 first, then the recipes, then OpenVINO where its environment is given.

    OpenVINO gets the batch size that is fastest on the searches `timed`, if any.
    """
    exact = bundle_of(checkpoint, Precision.FP32)
    found = [Contestant("float32", System.ORTKIT, exact)]
    found += [Contestant(name, System.ORTKIT, bundle) for name, bundle in bundles_of_recipes(checkpoint, exact).items()]
    if peers is not None:
        python = peers_python(peers)
        folder = openvino_folder(python, onnx_folder(checkpoint), ONNX_GRAPH, calibration_pairs())
        openvino = Contestant(f"openvino {version_in(python, 'openvino')} int8", System.OPENVINO, folder, python)
        found.append(with_best_budget(Task.RERANK, openvino, timed) if timed else openvino)
    return found


def sets_of(options: argparse.Namespace) -> tuple[dict[str, list[Search]], NDArray[np.int64]]:
    """The sets of searches, and the place of the answer among the candidates of each question, -1 without one."""
    retrieval = first_questions(question_set(), options.questions)
    candidates = retrieve(Embedder(options.bundle), retrieval, options.candidates)
    asked = [
        (question, [retrieval.passages[place] for place in own])
        for question, own in zip(retrieval.questions, candidates, strict=True)
    ]
    hits = candidates == retrieval.answers[:, np.newaxis]
    places = np.where(hits.any(axis=1), hits.argmax(axis=1), -1)
    ranked = searches(options.queries, options.documents, words=DOCUMENT_WORDS)
    probe = [(query, list(documents)) for query, documents in probe_searches().searches]
    return {PROBE: probe, SEARCHES: ranked, QUESTIONS: asked, TIMED: ranked[:1]}, places


def outputs_of(worker: Worker, name: str) -> Scores:
    worker.run(name)
    return worker.outputs_of(name)


def rows_of(
    workers: Sequence[Worker], places: NDArray[np.int64], rounds: int, *, answers: bool
) -> tuple[list[str], list[list[str]]]:
    """The table of one reranker: header and rows."""
    header = ["recipe", "tau, probe set", "tau, searches", "nDCG@10 to float32"]
    header += ["tau, questions", "nDCG@10, answers", "MRR@10, answers"] if answers else []
    names = (PROBE, SEARCHES, QUESTIONS) if answers else (PROBE, SEARCHES)
    found = [{name: outputs_of(worker, name) for name in names} for worker in workers]
    exact = found[0]
    rows = []
    for worker, own in zip(workers, found, strict=True):
        figures = [mean_tau(own[PROBE], exact[PROBE]), mean_tau(own[SEARCHES], exact[SEARCHES])]
        figures.append(ndcg_to(own[SEARCHES], exact[SEARCHES]))
        if answers:
            ranks = answer_ranks(own[QUESTIONS], places)
            figures.append(mean_tau(own[QUESTIONS], exact[QUESTIONS]))
            figures += [ndcg_of_answers(ranks), reciprocal_rank(ranks)]
        rows.append([worker.contestant.name, *(f"{figure:.4f}" for figure in figures)])
    if rounds:
        seconds = take_turns([lambda worker=worker: worker.run(TIMED) for worker in workers], rounds)  # type: ignore[misc]
        header += ["ms a search", "speed / last row"]
        for row, own in zip(rows, seconds, strict=True):
            row += [f"{np.median(own) * 1e3:,.0f}", ratio(seconds[-1], own)]
    return header, rows


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8_recipes", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=CHECKPOINTS, default=list(CHECKPOINTS), metavar="MODEL")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the virtual environment of the peers")
    parser.add_argument("--no-openvino", action="store_true", help="measure ortkit alone")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="of the embedder that finds the candidates")
    parser.add_argument("--queries", type=int, default=20, help="searches of news texts")
    parser.add_argument("--documents", type=int, default=100, help="of each")
    parser.add_argument("--questions", type=int, default=240, help="with a known answer")
    parser.add_argument("--candidates", type=int, default=CANDIDATES, help="passages of a question to rerank")
    parser.add_argument("--rounds", type=int, default=0, help="measure the speed in so many rounds")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse_options()
    sets, places = sets_of(options)
    print(f"\n{processor()}")
    for model in options.models:
        peers = None if options.no_openvino else options.peers
        contestants = contestants_of(CHECKPOINTS[model](), peers, sets[TIMED] if options.rounds else ())
        with workers_of(Task.RERANK, contestants, sets) as workers:
            header, rows = rows_of(workers, places, options.rounds, answers=model == TRAINED)
        if model == TRAINED:
            ranks = np.where(places < 0, np.inf, places + 1.0)
            order = [
                "before reranking",
                "",
                "",
                "",
                "",
                *(f"{f(ranks):.4f}" for f in (ndcg_of_answers, reciprocal_rank)),
            ]
            rows.insert(0, order + [""] * (len(header) - len(order)))
        title = (
            f"{model}: {options.queries} searches of {options.documents} news texts, {options.questions} questions "
            f"with {options.candidates} candidates"
        )
        print_table(title, header, rows)


if __name__ == "__main__":
    main()
