"""The parts of the benchmarks that results hang on, without the peers."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from benchmarks import (
    decoding,
    decoding_worker,
    embedding,
    export_scale,
    lookup,
    reranking,
    retrieval,
)
from benchmarks.accuracy import Retrieval
from benchmarks.contest import Contestant, Result, compete, workers_of
from benchmarks.cost import cost_of
from benchmarks.memory import MEBIBYTE, Sample, quarters, slope
from benchmarks.memory_limit import Run, rows_of
from benchmarks.plot import OTHERS, OURS, Curve, Point, curves, scatter
from benchmarks.processor import processor, processor_model
from benchmarks.results import Spread
from benchmarks.texts import queries, searches, texts_of_any_length
from benchmarks.worker import System, Task
from ortkit import Bundle, Decoder, Reranker, Sampling
from tests import seeded_checkpoints
from tests.decoders import TinyDecoder, write_decoder
from tests.exporters.decoder_checkpoints import write_checkpoint
from tests.quantized_decoder import write_quantized
from tests.seeded_checkpoints import SHAPES, Shape


def test_the_texts_for_the_memory_have_all_lengths_and_are_the_same_every_time() -> None:
    lengths = [len(text.split()) for text in texts_of_any_length(3000, 3, 500)]

    assert min(lengths) == 3
    assert 490 < max(lengths) <= 500
    assert 30 < sorted(lengths)[1500] < 48
    assert list(texts_of_any_length(5, 3, 500)) == list(texts_of_any_length(9, 3, 500))[:5]


def test_queries_have_eight_words() -> None:
    assert {len(query.split()) for query in queries(60)} == {8}


@pytest.mark.parametrize("least", [70, 135, 340])
def test_the_lowest_memory_limit_that_is_not_refused(
    tiny_decoder: tuple[Bundle, TinyDecoder], monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    """Also where more is asked for than is taken, as the estimate of a model does."""
    limits = []

    def limited(_arguments: object, _content: bytes, limit: int | None) -> Run:
        limits.append(limit)
        refused = limit is not None and limit < least
        return Run(9 if refused else 0, b"" if refused else b"text", min(limit or 160, 160) * MEBIBYTE)

    monkeypatch.setattr("benchmarks.memory_limit.run", limited)
    rows = rows_of(tiny_decoder[0], texts=3, prompt=5)

    assert rows[0][2:] == ["none", "160.0"]
    assert least <= int(rows[-1][2]) < least + 5
    assert len(limits) < 12
    assert (len(rows) == 3) == (least < 150)


def test_memory_that_grows_by_a_constant_has_that_slope() -> None:
    samples = [Sample(texts, 5_000 + 3 * texts) for texts in range(0, 8_000, 1_000)]

    assert slope(samples) == pytest.approx(3)
    assert [sample.texts for sample in quarters(samples)] == [1_000, 3_000, 5_000, 7_000]


def test_a_plot_names_every_point_and_is_the_same_every_time() -> None:
    names = [f"system & version {number}" for number in range(6)]
    points = [Point(name, 40 + 60 * number, 1 - 0.002 * (number % 2)) for number, name in enumerate(names)]

    picture = scatter("title", "speed", "cosine", points)

    assert texts_of(picture) >= {*names, "title", "speed", "cosine"}
    assert picture == scatter("title", "speed", "cosine", points)


def test_a_plot_of_curves_names_them() -> None:
    drawn = [Curve("ours", [(0, 4), (10, 2)], ours=True), Curve("theirs & others", [(0, 3), (10, 2)])]

    picture = curves("title", "context", "speed", drawn)

    assert texts_of(picture) >= {"ours", "theirs & others", "title", "context", "speed"}
    assert {OURS, OTHERS} <= set(re.findall("#[0-9a-f]{6}", picture))


def texts_of(picture: str) -> set[str]:
    return {item.text or "" for item in ET.fromstring(picture).iter() if item.tag.endswith("text")}


SEARCHES = [
    ("how to make water safe", ["Boil the water for a minute.", "A bowline does not slip.", "The sea is salty."]),
    ("knots that hold", ["Water the plants.", "Wet rope holds knots well.", "A bowline does not slip."]),
]


def test_a_worker_scores_documents_in_the_order_in_which_they_came(reranker_bundle: Bundle) -> None:
    ours = Contestant("ortkit int8", System.ORTKIT, reranker_bundle.path)
    reranker = Reranker(reranker_bundle)

    with workers_of(Task.RERANK, [ours], {"timed": SEARCHES[:1], "compared": SEARCHES}) as workers:
        [result] = compete(workers, 2, timed="timed", compared="compared")
        calls = workers[0].call("compared")

    expected = [reranker.score([(query, text) for text in texts], scores="raw") for query, texts in SEARCHES]
    assert np.array_equal(result.outputs, np.array(expected, np.float32))
    assert len(result.seconds) == len(calls) == 2
    assert all(seconds > 0 for seconds in [*result.seconds, *calls])


def test_a_worker_that_fails_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = Contestant("ortkit int8", System.ORTKIT, tmp_path / "nothing")

    with (
        workers_of(Task.RERANK, [broken], {"all": SEARCHES}) as [worker],
        pytest.raises(SystemExit, match=r"^ortkit int8 failed; its messages are above$"),
    ):
        worker.run("all")
    assert str(tmp_path / "nothing") in capfd.readouterr().err


def result_of(name: str, system: System, seconds: list[float], outputs: list[list[float]]) -> Result:
    return Result(Contestant(name, system, Path(name)), seconds, np.array(outputs, np.float32))


RESULTS = [
    result_of("ortkit int8", System.ORTKIT, [0.5, 0.4, 0.6], [[3, 2, 1], [1, 3, 2]]),
    result_of("torch", System.SENTENCE_TRANSFORMERS, [4.0, 4.0, 3.0], [[3, 2, 1], [1, 2, 3]]),
]


def test_the_table_of_reranking_gives_pairs_a_second_and_the_ratio_of_each_round() -> None:
    header, rows = reranking.speed_rows(RESULTS, 100)

    assert header == ["system", "ms a search", "pairs/s", "ortkit int8 / system"]
    assert rows == [
        ["ortkit int8", "500", "200", "1"],
        ["torch", "4,000", "25", "8.00 (5.00 to 10.00)"],
    ]


def test_the_table_of_orders_gives_kendalls_tau_to_pytorch() -> None:
    header, rows = reranking.order_rows(RESULTS)

    assert header == ["system", "tau mean", "tau min"]
    assert rows == [["ortkit int8", "0.6667", "0.3333"]]
    assert reranking.order_rows(RESULTS[:1]) == (header, [])


def test_the_figures_of_reranking_are_those_of_its_tables() -> None:
    ours, tau, theirs = reranking.figures_of(RESULTS)

    assert ours.key == ("rerank", "ortkit int8")
    assert (ours.value, ours.ratio) == (Spread(500, 400, 600, (500, 400, 600)), None)
    assert theirs.ratio == Spread(8, 5, 10, (8, 10, 5))
    assert (tau.key, tau.value) == (("rerank, tau mean", "ortkit int8"), Spread(0.66667))


def test_the_figures_of_embedding_are_those_of_its_tables() -> None:
    callers = [SimpleNamespace(contestant=result.contestant) for result in RESULTS]
    calls = [[[1e-3, 3e-3, 2e-3], [4e-3]], [[6e-3], [4e-3]]]

    found = {figure.key: figure for figure in embedding.figures_of(RESULTS, callers, calls, 100)}

    assert found["embed", "ortkit int8"].value == Spread(200, 166.67, 250, (200, 250, 166.67))
    assert found["embed", "torch"].ratio == Spread(8, 5, 10, (8, 10, 5))
    assert found["embed, cosine min", "torch"].value == Spread(1)
    assert found["query", "ortkit int8"].value == Spread(3000, 2000, 4000, (2000, 4000))
    assert found["query", "torch"].ratio == Spread(2, 1, 3, (3, 1))


def test_searches_are_the_same_every_time_and_about_as_long_as_said(checkpoint: Path) -> None:
    (query, documents), second = searches(2, 100, words=reranking.DOCUMENT_WORDS)

    assert len(query.split()) == 8
    assert len(set(documents)) == len(set(second[1])) == 100
    assert max(len(document.split()) for document in documents) == reranking.DOCUMENT_WORDS
    assert 110 < np.mean(reranking.pair_lengths(checkpoint, (query, documents))) < 125
    assert searches(2, 100, words=reranking.DOCUMENT_WORDS)[1] == second


@pytest.mark.parametrize("benchmark", [embedding, reranking, decoding])
def test_the_peers_are_chosen_by_one_option(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, *_ = benchmark.PEERS_OF_ORTKIT

    assert tuple(benchmark.parse_options([]).only) == benchmark.PEERS_OF_ORTKIT
    assert benchmark.parse_options(["--only", second, first]).only == [second, first]
    with pytest.raises(SystemExit):
        benchmark.parse_options(["--only", "ortkit"])
    assert "invalid choice: 'ortkit'" in capsys.readouterr().err


def test_reranking_moves_passages_and_keeps_their_scores_with_the_candidates(reranker_bundle: Bundle) -> None:
    passages = ["Boil the water.", "A bowline holds.", "The sea is salty.", "Wet rope."]
    collection = Retrieval(["safe water", "knots"], passages, np.array([0, 1]))
    candidates = np.array([[2, 0, 3], [3, 1, 0]])
    reranker = Reranker(reranker_bundle)

    found = retrieval.rerank(reranker, collection, candidates)

    for question, own, scores, order in zip(collection.questions, candidates, found.scores, found.order, strict=True):
        assert scores.tolist() == reranker.score([(question, passages[place]) for place in own], scores="raw").tolist()
        assert order.tolist() == own[np.argsort(-scores, kind="stable")].tolist()


def test_a_row_of_the_retrieval_counts_the_answers_and_means_the_taus() -> None:
    order = np.array([[4, *range(10, 20)], [*range(10, 20), 4], [*range(10, 19), 4, 3], [5, *range(10, 20)]])

    row = retrieval.row_of("int8", order, np.array([4, 4, 4, 4]), [1.0, 0.5])

    assert row == ["int8", "0.25000", "0.50000", "0.7500", "0.5000"]
    assert retrieval.row_of("as retrieved", order, np.array([4, 4, 4, 4]))[3:] == ["", ""]


@pytest.fixture(scope="module")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, TinyDecoder]:
    """The bundle of a small decoder, and the same model in numpy."""
    return write_decoder(tmp_path_factory.mktemp("decoders") / "tiny")


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small seeded Llama in Hugging Face layout."""
    return write_checkpoint(tmp_path_factory.mktemp("llama"))


def decoder_of(bundle: Bundle) -> decoding.Contestant:
    return decoding.Contestant("ortkit int4", decoding.System.ORTKIT, bundle.path)


@pytest.mark.parametrize("prefill", [True, False])
def test_a_bundle_is_measured_with_its_graph_for_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, prefill: bool
) -> None:
    """Also on a class of CPU that does not use it by default."""
    monkeypatch.setattr("ortkit.runtime.decoder.prefill_choice.int8_prefill_pays", lambda _: False)
    bundle = write_quantized(tmp_path / "bundle", prefill=prefill)

    measured = decoding_worker.Ortkit(str(bundle.path), 1)

    assert (measured.decoder.prefill_session is not None) is prefill


PROMPT = [5, 60, 7, 80, 9]


def test_a_worker_continues_a_prompt_by_the_most_probable_tokens(tiny_decoder: tuple[Bundle, TinyDecoder]) -> None:
    bundle, reference = tiny_decoder

    with decoding.workers_of([decoder_of(bundle)], threads=1, context=32) as [worker]:
        answer = worker.ask(ids=PROMPT, new=6)
        speed = worker.speed(PROMPT, 6)
        logits = worker.logits(PROMPT)
        peak = worker.peak_bytes()

    assert isinstance(answer, dict)
    assert answer["tokens"] == reference.greedy(PROMPT, 6)
    assert answer["seconds"] == sorted(answer["seconds"])
    assert speed.prompt_seconds > 0
    assert speed.token_seconds > 0
    assert logits == pytest.approx(reference.logits(PROMPT), abs=1e-4)
    assert 2**24 < peak < 2**30


def test_contestants_of_decoding_are_measured_at_each_context(tiny_decoder: tuple[Bundle, TinyDecoder]) -> None:
    prompts = [PROMPT[:2], PROMPT]

    with decoding.workers_of([decoder_of(tiny_decoder[0])], threads=1, context=32) as workers:
        [result] = decoding.compete(workers, prompts, new=3, repeats=2, threads=1, context=32)

    assert {context: len(speeds) for context, speeds in result.speeds.items()} == {2: 2, 5: 2}
    assert len(result.start_seconds) == 2
    assert len(result.bandwidths) == 2
    # A process that starts takes longer than one that has the model loaded.
    assert min(result.start_seconds) > max(result.prompt_seconds(2))


def test_transformers_decodes_as_its_own_generate_does(tiny_llama: Path) -> None:
    threads = torch.get_num_threads()

    generator = decoding_worker.open_generator(decoding.System.TORCH, str(tiny_llama), threads=threads, context=32)

    model = transformers.LlamaForCausalLM.from_pretrained(tiny_llama)
    expected = model.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT)),
        do_sample=False,
        min_new_tokens=6,
        max_new_tokens=6,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert list(generator.answer(PROMPT, 6)) == expected[0, len(PROMPT) :].tolist()
    assert generator.logits(PROMPT) == pytest.approx(model(torch.tensor([PROMPT])).logits[0].detach().numpy(), abs=1e-5)


def test_the_divergence_is_that_of_the_probabilities() -> None:
    expected = np.log(np.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], np.float32))
    found = np.log(np.array([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]], np.float32))

    closeness = decoding.closeness_to(expected, found + np.float32(3))

    # 0.5 log 2 - 0.25 log 2 for the first token, nothing for the second: a constant changes no probability.
    assert closeness.kl == pytest.approx(0.125 * np.log(2), abs=1e-6)
    assert closeness.top == 0.5


BANDWIDTHS = [40e6, 25e6, 100e6]
"""Of three rounds, bytes in a second."""


def result_of_decoding(name: str, system: decoding.System, model: Path, seconds: list[float]) -> decoding.Result:
    speeds = [decoding.Speed(2 * one, one / 10) for one in seconds]
    return decoding.Result(decoding.Contestant(name, system, model), {100: speeds}, seconds, 3 * 2**20, BANDWIDTHS)


@pytest.fixture
def decoding_results(tmp_path: Path) -> list[decoding.Result]:
    """Of ortkit's bundle, a folder, and of a GGUF file."""
    bundle, file = tmp_path / "bundle", tmp_path / "model.gguf"
    bundle.mkdir()
    (bundle / "model.onnx").write_bytes(bytes(1_000_000))
    (bundle / "tokenizer.json").write_bytes(bytes(500_000))
    file.write_bytes(bytes(2_000_000))
    return [
        result_of_decoding("ortkit int4", decoding.System.ORTKIT, bundle, [0.5, 0.4, 0.6]),
        result_of_decoding("llama.cpp", decoding.System.LLAMA_CPP, file, [1.0, 1.0, 0.9]),
    ]


def test_the_table_of_decoding_gives_both_speeds_and_the_ratio_of_each_round(
    decoding_results: list[decoding.Result],
) -> None:
    header, rows = decoding.speed_rows(decoding_results, 100)

    ratio = "ortkit int4 / system"
    assert header == ["system", "new tokens/s", ratio, "prompt tokens/s", ratio]
    assert rows == [
        ["ortkit int4", "20.0", "1", "100", "1"],
        ["llama.cpp", "10.0", "2.00 (1.50 to 2.50)", "50", "2.00 (1.50 to 2.50)"],
    ]


def test_the_table_of_costs_gives_size_closeness_share_of_the_bandwidth_and_start(
    decoding_results: list[decoding.Result],
) -> None:
    closeness = {"ortkit int4": decoding.Closeness(0.25, 0.75)}

    header, rows = decoding.cost_rows(decoding_results, closeness, context=100)

    assert header[1:6] == ["MB", "KL", "top-1", "of bandwidth", "s to first token"]
    # 20, 25 and 16.7 tokens of the 1 MB of weights in a second, of 40, 25 and 100 MB; without the tokenizer.
    assert rows == [
        ["ortkit int4", "1.5", "0.2500", "0.750", "50%", "0.50", "1", "3"],
        ["llama.cpp", "2.0", "", "", "50%", "1.00", "2.00 (1.50 to 2.50)", "3"],
    ]


def test_the_figures_of_decoding_are_those_of_its_tables(decoding_results: list[decoding.Result]) -> None:
    closeness = {"ortkit int4": decoding.Closeness(0.25, 0.75)}

    found = {figure.key: figure for figure in decoding.figures_of(decoding_results, closeness)}

    ratio = Spread(2, 1.5, 2.5, (2, 2.5, 1.5))
    assert found["decode after 100", "ortkit int4"].value == Spread(20, 16.667, 25, (20, 25, 16.667))
    assert found["decode after 100", "llama.cpp"].ratio == ratio
    assert found["prefill 100", "llama.cpp"].ratio == ratio
    assert found["prefill 100", "llama.cpp"].value == Spread(50, 50, 55.556, (50, 50, 55.556))
    assert found["first token after 100", "llama.cpp"].ratio == ratio
    assert found["size", "ortkit int4"].value == Spread(1.5)
    assert found["KL", "ortkit int4"].value == Spread(0.25)
    assert ("KL", "llama.cpp") not in found


def test_the_bandwidths_of_all_rounds_are_told(decoding_results: list[decoding.Result]) -> None:
    one, other = decoding_results
    measured = [replace(one, bandwidths=[22.2e9, 20e9]), replace(other, bandwidths=[25.25e9])]

    assert decoding.bandwidths_note(measured) == "22.2 GB/s (20.0 to 25.2)"


def test_the_weights_of_openvino_are_told_from_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.bin").write_bytes(bytes(1000))
    (tmp_path / "openvino_tokenizer.bin").write_bytes(bytes(100))

    assert decoding.weights_bytes(tmp_path) == 1000
    assert decoding.total_bytes(tmp_path) == 1100


def test_answers_with_drafts_and_without_are_measured(tiny_decoder: tuple[Bundle, TinyDecoder]) -> None:
    decoder = Decoder(tiny_decoder[0], threads=1)
    ids = decoder.encode("The dog: " + "the quick brown fox jumps over the lazy dog " * 4)
    sampling = Sampling(logit_bias=dict.fromkeys(ids, 8.0))

    without, with_drafts = (
        lookup.measure(decoder, ids, sampling=sampling, new=60, lookup=drafts) for drafts in (False, True)
    )

    assert without.ids == with_drafts.ids
    assert (without.drafted, without.right) == (0, 0)
    assert 0 < with_drafts.right <= min(with_drafts.drafted, 59)
    assert with_drafts.rate > 0


def test_the_table_of_drafts_gives_the_ratio_of_each_round_and_how_many_were_right() -> None:
    ids = tuple(range(11))
    without = [lookup.Measured(ids, 1.0, 0, 0), lookup.Measured(ids, 2.0, 0, 0)]
    with_drafts = [lookup.Measured(ids, 0.5, 8, 4), lookup.Measured(ids[:-1], 0.9, 8, 4)]

    row = ["quotes", "7.5", "15.0", "2.00 (2.00 to 2.00)", "50%", "40%"]
    assert lookup.row_of("quotes", without, with_drafts) == [*row, "no"]
    assert lookup.row_of("none", without, without)[3:] == ["1.00 (1.00 to 1.00)", "-", "0%", "yes"]


def test_the_peak_of_a_process_is_its_own() -> None:
    held = b"1" * (300 << 20)

    cost = cost_of([sys.executable, "-c", "held = b'1' * (60 << 20)"])

    assert len(held) > cost.peak_bytes > 60 << 20
    assert 0 < cost.seconds < 60
    with pytest.raises(SystemExit, match="ended with 3; its messages are above"):
        cost_of([sys.executable, "-c", "raise SystemExit(3)"])


@pytest.mark.slow
def test_exports_are_measured_in_a_process_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(seeded_checkpoints.SHAPES, "tiny", Shape(2, 64, 96, 4, 2, vocabulary=320, positions=512))

    measured = export_scale.measure("tiny", tmp_path, "int4")

    assert {path.name for path in tmp_path.iterdir()} == {"tiny-int4"}
    assert 2**27 < measured.uncertified_peak <= measured.cost.peak_bytes < 2**31
    assert measured.cost.seconds > sum(measured.stages.values()) > measured.stages[export_scale.CERTIFICATE] > 0
    name, weights, *_, divergence = export_scale.row(measured)
    assert (name, weights) == ("tiny", "0.00")
    assert 0 < float(divergence) < 1


def test_the_largest_seeded_checkpoint_has_the_shape_of_mistral_7b() -> None:
    shape = SHAPES["7B"]
    config = transformers.MistralConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)

    assert sum(parameter.numel() for parameter in model.parameters()) == 7_241_732_096
    assert shape.window == 4096


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "told"),
    [
        (
            "x86_64",
            "model name\t: EPYC 9\nflags\t\t: avx2 avx512f avx512_vnni\n",
            "EPYC 9, x86 with VNNI (avx2, avx512f, avx512_vnni), 3 CPU cores",
        ),
        (
            "x86_64",
            "model name\t: EPYC 7\nflags\t\t: avx2\n",
            "EPYC 7, x86 with AVX2, without VNNI (avx2), 3 CPU cores",
        ),
        ("x86_64", "flags\t\t: sse4_2\nmodel name\t: Old\n", "Old, x86 without AVX2, 3 CPU cores"),
        (
            "aarch64",
            "processor\t: 0\nmodel name\t: N1\nFeatures\t: fp asimddp\n",
            "N1, aarch64 with dot product (asimddp), 3 CPU cores",
        ),
    ],
)
def test_figures_say_the_class_of_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, cpuinfo: str, told: str
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr("benchmarks.processor.CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("os.cpu_count", lambda: 3)

    assert processor() == told


def test_the_model_of_a_processor_has_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual machines have one name for several generations."""
    monkeypatch.setattr("benchmarks.processor.CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nmodel\t: 1\n")

    assert processor_model() == "AMD EPYC (cpu family 25, model 17)"
    (tmp_path / "cpuinfo").unlink()
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert processor_model() == "arm"
