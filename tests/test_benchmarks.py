"""The parts of the benchmarks that results hang on, without the peers."""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder

from benchmarks import (
    decoding,
    decoding_worker,
    export_scale,
    genai_int4,
    lookup,
    reranking,
    retrieval,
    seeded,
    wide_decoder,
    wide_decoding,
)
from benchmarks.accuracy import Retrieval
from benchmarks.contest import Contestant, Result, compete, workers_of
from benchmarks.cost import cost_of
from benchmarks.decoding_peers import installed_version
from benchmarks.memory import Sample, measure_decoder, quarters, slope
from benchmarks.peers import peers_python
from benchmarks.plot import HEIGHT, LETTER, LINE, WIDTH, Curve, Point, axis_of, curves, scatter
from benchmarks.processor import processor
from benchmarks.texts import queries, searches, texts_of_any_length
from benchmarks.worker import System, Task, open_embedder
from runtime import Bundle, Decoder, Embedder, Precision, Reranker, Sampling
from tests import seeded_checkpoints
from tests.decoders import TinyDecoder, write_decoder
from tests.exporters.decoder_checkpoints import write_checkpoint
from tests.seeded_checkpoints import SHAPES, Shape


def test_the_texts_for_the_memory_have_all_lengths_and_are_the_same_every_time() -> None:
    lengths = [len(text.split()) for text in texts_of_any_length(3000, 3, 500)]

    assert min(lengths) == 3
    assert 490 < max(lengths) <= 500
    assert 30 < sorted(lengths)[1500] < 48
    assert list(texts_of_any_length(5, 3, 500)) == list(texts_of_any_length(9, 3, 500))[:5]


def test_queries_have_eight_words() -> None:
    assert {len(query.split()) for query in queries(60)} == {8}


def test_a_wide_decoder_runs_and_its_memory_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("WIDTH", 128), ("INNER", 256), ("HEADS", 8)):
        monkeypatch.setattr(wide_decoder, name, size)

    bundle = wide_decoder.write_wide_decoder(tmp_path / "wide", layers=2, block=32)
    measure_decoder(Bundle.open(bundle.path), prompts=[5, 20], threads=1, new=3)

    data = bundle.manifest.files["model.onnx.data"].size
    assert data > 32000 * 128
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("after a prompt of 20 tokens") for line in lines)
    assert any(line.startswith("as `edgekit inspect` says for 8,192 tokens") for line in lines)


def test_the_peers_wide_decoder_has_the_same_shape_and_weights_that_keep_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("WIDTH", 128), ("INNER", 256), ("HEADS", 8)):
        monkeypatch.setattr(wide_decoding, name, size)

    wide_decoding.write_wide_gguf(tmp_path / "wide.gguf", layers=2)

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "wide.gguf").tensors}
    assert len(tensors) == 2 * 9 + 3
    assert tuple(tensors["blk.1.attn_q.weight"].shape) == (128, 8 * 128)
    down = tensors["blk.1.ffn_down.weight"]
    assert tuple(down.shape) == (256, 128)
    assert np.std(gguf.dequantize(down.data, down.tensor_type)) == pytest.approx(256**-0.5, rel=0.05)


def test_memory_that_grows_by_a_constant_has_that_slope() -> None:
    samples = [Sample(texts, 5_000 + 3 * texts) for texts in range(0, 8_000, 1_000)]

    assert slope(samples) == pytest.approx(3)
    assert [sample.texts for sample in quarters(samples)] == [1_000, 3_000, 5_000, 7_000]


@pytest.mark.parametrize(("low", "high"), [(0.98872, 1.0), (0, 727.3), (0.99754, 0.99999), (5, 5)])
def test_an_axis_holds_its_values_between_round_numbers(low: float, high: float) -> None:
    axis = axis_of(low, high, 0, 100)

    assert axis.low <= low <= high <= axis.high
    assert 2 <= len(axis.marks()) <= 9
    assert axis.place(axis.low) == 0
    assert axis.place(axis.high) == pytest.approx(100)


def test_a_plot_names_every_point_inside_the_picture_and_beside_the_others() -> None:
    names = [f"system & version {number}" for number in range(6)]
    points = [Point(name, 40 + 60 * number, 1 - 0.002 * (number % 2)) for number, name in enumerate(names)]

    picture = ET.fromstring(scatter("title", "speed", "cosine", points))

    labels = [item for item in picture.iter() if item.tag.endswith("text") and item.text in names]
    assert sorted(item.text or "" for item in labels) == names
    boxes = []
    for item in labels:
        width = LETTER * len(item.text or "")
        start = float(item.get("x", 0)) - (width if item.get("text-anchor") == "end" else 0)
        boxes.append((start, start + width, float(item.get("y", 0))))
    assert all(start >= 0 and stop <= WIDTH and LINE <= y <= HEIGHT for start, stop, y in boxes)
    for one, other in combinations(boxes, 2):
        assert one[1] <= other[0] or other[1] <= one[0] or abs(one[2] - other[2]) >= LINE - 0.2


def test_a_plot_of_curves_goes_through_their_places_and_names_them_beside_their_ends() -> None:
    drawn = [Curve("ours", [(0, 4), (10, 2)], ours=True), Curve("theirs & others", [(0, 3), (10, 2)])]

    picture = ET.fromstring(curves("title", "context", "speed", drawn))

    lines = [item for item in picture.iter() if item.get("stroke-width") == "2"]
    places = [[float(number) for number in re.findall(r"[0-9.]+", item.get("d", ""))] for item in lines]
    assert [len(numbers) for numbers in places] == [4, 4]
    (x1, y1, x2, y2), (_, y3, _, y4) = places
    assert x1 < x2
    # Down is more in a picture: both fall to the same speed, ours from higher up.
    assert y1 < y3 < y2 == y4
    labels = {item.text: item for item in picture.iter() if item.tag.endswith("text")}
    for curve in drawn:
        start = float(labels[curve.name].get("x", 0))
        assert x2 < start
        assert start + LETTER * len(curve.name) <= WIDTH
    ours, theirs = (float(labels[curve.name].get("y", 0)) for curve in drawn)
    assert abs(ours - theirs) >= LINE - 0.2


SEARCHES = [
    ("how to make water safe", ["Boil the water for a minute.", "A bowline does not slip.", "The sea is salty."]),
    ("knots that hold", ["Water the plants.", "Wet rope holds knots well.", "A bowline does not slip."]),
]


def test_a_worker_scores_documents_in_the_order_in_which_they_came(reranker_bundle: Bundle) -> None:
    ours = Contestant("edgekit int8", System.EDGEKIT, reranker_bundle.path)
    reranker = Reranker(reranker_bundle)

    with workers_of(Task.RERANK, [ours], {"timed": SEARCHES[:1], "compared": SEARCHES}) as workers:
        [result] = compete(workers, 2, timed="timed", compared="compared")
        calls = workers[0].call("compared")

    expected = [reranker.score([(query, text) for text in texts], scores="raw") for query, texts in SEARCHES]
    assert np.array_equal(result.outputs, np.array(expected, np.float32))
    assert len(result.seconds) == len(calls) == 2
    assert all(seconds > 0 for seconds in [*result.seconds, *calls])


def test_a_worker_of_sentence_transformers_takes_one_search_after_another(reranker_checkpoint: Path) -> None:
    peer = Contestant("torch fp32", System.SENTENCE_TRANSFORMERS, reranker_checkpoint, batch=2)

    with workers_of(Task.RERANK, [peer], {"all": SEARCHES}) as [worker]:
        worker.run("all")
        found = worker.outputs_of("all")

    model = CrossEncoder(str(reranker_checkpoint), device="cpu", local_files_only=True)
    pairs = [(query, text) for query, texts in SEARCHES for text in texts]
    assert found.shape == (2, 3)
    assert found.ravel() == pytest.approx(model.predict(pairs), abs=1e-6)


def test_a_worker_embeds_texts(int8_bundle: Bundle) -> None:
    texts = ["hello", "a longer text than the first"]
    ours = Contestant("edgekit int8", System.EDGEKIT, int8_bundle.path)

    with workers_of(Task.EMBED, [ours], {"texts": texts}) as [worker]:
        worker.run("texts")
        assert np.array_equal(worker.outputs_of("texts"), Embedder(int8_bundle).embed(texts))


def test_a_worker_that_fails_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = Contestant("edgekit int8", System.EDGEKIT, tmp_path / "nothing")

    with (
        workers_of(Task.RERANK, [broken], {"all": SEARCHES}) as [worker],
        pytest.raises(SystemExit, match=r"^edgekit int8 failed; its messages are above$"),
    ):
        worker.run("all")
    assert str(tmp_path / "nothing") in capfd.readouterr().err


def test_flashrank_embeds_nothing() -> None:
    with pytest.raises(SystemExit, match=r"^`flashrank` embeds nothing$"):
        open_embedder(System.FLASHRANK, "folder", {})


def result_of(name: str, system: System, seconds: list[float], outputs: list[list[float]]) -> Result:
    return Result(Contestant(name, system, Path(name)), seconds, np.array(outputs, np.float32))


RESULTS = [
    result_of("edgekit int8", System.EDGEKIT, [0.5, 0.4, 0.6], [[3, 2, 1], [1, 3, 2]]),
    result_of("torch", System.SENTENCE_TRANSFORMERS, [4.0, 4.0, 3.0], [[3, 2, 1], [1, 2, 3]]),
]


def test_the_table_of_reranking_gives_pairs_a_second_and_the_ratio_of_each_round() -> None:
    header, rows = reranking.speed_rows(RESULTS, 100)

    assert header == ["system", "ms a search", "pairs/s", "edgekit int8 / system"]
    assert rows == [
        ["edgekit int8", "500", "200", "1"],
        ["torch", "4,000", "25", "8.00 (5.00 to 10.00)"],
    ]


def test_the_table_of_orders_gives_kendalls_tau_to_pytorch() -> None:
    header, rows = reranking.order_rows(RESULTS)

    assert header == ["system", "tau mean", "tau min"]
    assert rows == [["edgekit int8", "0.6667", "0.3333"]]
    assert reranking.order_rows(RESULTS[:1]) == (header, [])


def test_reranking_takes_a_choice_of_peers(capsys: pytest.CaptureFixture[str]) -> None:
    assert reranking.parse_options(["--only", "openvino", "flashrank"]).only == ["openvino", "flashrank"]
    assert set(reranking.parse_options([]).only) == set(System) - {System.EDGEKIT}
    with pytest.raises(SystemExit):
        reranking.parse_options(["--only", "edgekit"])
    error = capsys.readouterr().err
    assert "argument --only: invalid choice: 'edgekit' (choose from " in error
    assert "openvino" in error


def test_a_missing_environment_of_the_peers_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as raised:
        peers_python(tmp_path)

    assert str(raised.value) == (
        f"there is no `{tmp_path}/bin/python`\n\n"
        "hint: run `make benchmark`, or install `benchmarks/peers.txt` into a virtual environment of its own"
    )


def test_searches_are_the_same_every_time_and_about_as_long_as_said(checkpoint: Path) -> None:
    (query, documents), second = searches(2, 100, words=reranking.DOCUMENT_WORDS)

    assert len(query.split()) == 8
    assert len(set(documents)) == len(set(second[1])) == 100
    assert max(len(document.split()) for document in documents) == reranking.DOCUMENT_WORDS
    assert 110 < np.mean(reranking.pair_lengths(checkpoint, (query, documents))) < 125
    assert searches(2, 100, words=reranking.DOCUMENT_WORDS)[1] == second


def test_the_seeded_twelve_layers_have_the_shape_of_ms_marcos(checkpoint: Path, tmp_path: Path) -> None:
    seeded.write_twelve_layers(tmp_path, checkpoint)

    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert [config[name] for name in ("num_hidden_layers", "hidden_size", "num_attention_heads")] == [12, 384, 12]
    assert config["intermediate_size"] == 1536
    assert config["sbert_ce_default_activation_function"] == "torch.nn.modules.linear.Identity"
    assert config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.linear.Identity"}
    model = CrossEncoder(str(tmp_path), device="cpu", local_files_only=True)
    assert model.num_labels == 1
    assert isinstance(model.activation_fn, torch.nn.Identity)
    assert sum(weight.numel() for weight in model.model.parameters()) == 33_360_385
    matrix = model.model.bert.encoder.layer[11].output.dense.weight
    assert float(matrix.std().detach()) == pytest.approx(0.04, rel=0.01)


def test_the_seeded_head_stands_on_the_trained_encoder(checkpoint: Path, tmp_path: Path) -> None:
    seeded.write_head(tmp_path, checkpoint)

    trained, written = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path))
    name = "encoder.layer.5.output.dense.weight"
    assert torch.equal(written[f"bert.{name}"], trained[name])
    assert written["classifier.weight"].shape == (1, 384)


def test_a_digest_changes_with_any_of_the_contents() -> None:
    assert re.fullmatch("[0-9a-f]{8}", seeded.digest_of(b"1", b"2"))
    assert len({seeded.digest_of(*contents) for contents in ([b"1", b"2"], [b"1", b"3"], [b"4", b"2"])}) == 3


def test_a_bundle_is_exported_anew_when_the_code_has_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    exports = []

    def export(_: str, *, precision: Precision, out: Path) -> None:
        assert precision.value in out.name
        exports.append(out)
        out.mkdir(parents=True)

    code = tmp_path / "exporters" / "graph.py"
    code.parent.mkdir()
    code.write_text("1")
    monkeypatch.setattr(seeded, "REPOSITORY", tmp_path)
    monkeypatch.setattr(seeded, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(seeded, "export", export)

    first = [seeded.bundle_of(Path("checkpoint"), Precision.INT8) for _ in range(2)]
    code.write_text("2")
    second = seeded.bundle_of(Path("checkpoint"), Precision.INT8)
    exact = seeded.bundle_of(Path("checkpoint"), Precision.FP32)

    assert first[0] == first[1] != second
    assert first[0].name.startswith("checkpoint-edgekit-int8-")
    assert exact.name.startswith("checkpoint-edgekit-fp32-")
    assert exports == [first[0], second, exact]


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


def test_the_nearest_passages_are_retrieved(int8_bundle: Bundle) -> None:
    collection = Retrieval(["how do I make water safe?"], ["Wet rope.", "Boil water to make it safe."], np.array([1]))

    assert retrieval.retrieve(Embedder(int8_bundle), collection, 2).tolist() == [[1, 0]]


def test_the_notes_say_that_seeded_weights_know_nothing_of_relevance() -> None:
    assert reranking.NOTE == (
        "the weights are seeded: what they rank first is not relevant, and only speed and order are compared"
    )
    assert "seeded heads know nothing of relevance" in retrieval.NOTE


@pytest.fixture(scope="module")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, TinyDecoder]:
    """The bundle of a small decoder, and the same model in numpy."""
    return write_decoder(tmp_path_factory.mktemp("decoders") / "tiny")


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small seeded Llama in Hugging Face layout."""
    return write_checkpoint(tmp_path_factory.mktemp("llama"))


def decoder_of(bundle: Bundle) -> decoding.Contestant:
    return decoding.Contestant("edgekit int4", decoding.System.EDGEKIT, bundle.path)


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


def test_a_worker_of_decoding_that_fails_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = decoding.Contestant("edgekit int4", decoding.System.EDGEKIT, tmp_path / "nothing")

    with (
        decoding.workers_of([broken], threads=1, context=32) as [worker],
        pytest.raises(SystemExit, match=r"^edgekit int4 failed; its messages are above$"),
    ):
        worker.speed(PROMPT, 2)
    assert str(tmp_path / "nothing") in capfd.readouterr().err


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


class FakeLlama:
    """Does what llama-cpp-python does, with the small decoder; it reads in the cache what was not reset."""

    def __init__(self, reference: TinyDecoder) -> None:
        self.reference = reference
        self.read: list[int] = []
        self.ctx = self

    def reset(self) -> None:
        self.read = []

    def eval(self, ids: list[int]) -> None:
        self.read += ids

    def n_vocab(self) -> int:
        return self.reference.vocabulary


def test_llama_cpp_reads_the_prompt_at_once_and_then_each_token(
    tiny_decoder: tuple[Bundle, TinyDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = tiny_decoder[1]
    opened = []

    def open_llama(model: str, **options: object) -> FakeLlama:
        opened.append((model, options["n_ctx"], options["n_threads"], options["n_threads_batch"]))
        return FakeLlama(reference)

    def logits_of(llama: FakeLlama, place: int) -> object:
        row = reference.logits(llama.read)[place].astype(np.float32)
        return row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=open_llama, llama_get_logits_ith=logits_of))

    generator = decoding_worker.open_generator(decoding.System.LLAMA_CPP, "model.gguf", threads=2, context=32)

    assert opened == [("model.gguf", 32, 2, 2)]
    for _ in range(2):
        assert list(generator.answer(PROMPT, 6)) == reference.greedy(PROMPT, 6)
    assert generator.logits(PROMPT) == pytest.approx(reference.logits(PROMPT), abs=1e-4)


class FakeOpenvinoGenai:
    """Does what OpenVINO GenAI's pipeline for several requests does, with the small decoder and one request."""

    def __init__(self, reference: TinyDecoder, opened: list[object]) -> None:
        self.reference = reference
        self.opened = opened
        self.left: list[int] = []
        self.unread: list[int] = []

    def pipeline(self, model: str, scheduler: SimpleNamespace, device: str, options: object) -> FakeOpenvinoGenai:
        self.opened.append((model, scheduler.max_num_batched_tokens > 2**20, device, options))
        return self

    def add_request(self, _number: int, ids: list[list[int]], config: dict[str, object]) -> FakeOpenvinoGenai:
        assert (config["ignore_eos"], config["do_sample"]) == (True, False)
        assert config["min_new_tokens"] == config["max_new_tokens"]
        self.left = self.reference.greedy(list(ids[0]), int(str(config["max_new_tokens"])))
        return self

    def has_non_finished_requests(self) -> bool:
        return bool(self.left)

    def step(self) -> None:
        self.unread.append(self.left.pop(0))

    def can_read(self) -> bool:
        # It gives the first two together, as a pipeline may.
        return len(self.unread) > 1 or len(self.left) < 4

    def read(self) -> dict[int, SimpleNamespace]:
        given, self.unread = self.unread, []
        return {0: SimpleNamespace(generated_ids=given)}


def test_openvino_genai_gives_its_tokens_as_they_come_and_the_models_logits(
    tiny_decoder: tuple[Bundle, TinyDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, opened = tiny_decoder[1], list[object]()
    fake = FakeOpenvinoGenai(reference, opened)

    def compile_model(path: Path, device: str, options: object) -> object:
        opened.append((path, device, options))
        return lambda inputs: [reference.logits(inputs["input_ids"][0].tolist())[np.newaxis].astype(np.float32)]

    monkeypatch.setitem(
        sys.modules,
        "openvino_genai",
        SimpleNamespace(
            SchedulerConfig=SimpleNamespace, ContinuousBatchingPipeline=fake.pipeline, GenerationConfig=dict
        ),
    )
    core = SimpleNamespace(compile_model=compile_model)
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Core=lambda: core, Tensor=np.ndarray.tolist))

    generator = decoding_worker.open_generator(decoding.System.OPENVINO, "folder", threads=2, context=32)

    for _ in range(2):
        assert list(generator.answer(PROMPT, 6)) == reference.greedy(PROMPT, 6)
    assert generator.logits(PROMPT) == pytest.approx(reference.logits(PROMPT), abs=1e-4)
    options = {"INFERENCE_NUM_THREADS": 2}
    assert opened == [("folder", True, "CPU", options), (Path("folder") / "openvino_model.xml", "CPU", options)]


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
    """Of edgekit's bundle, a folder, and of a GGUF file."""
    bundle, file = tmp_path / "bundle", tmp_path / "model.gguf"
    bundle.mkdir()
    (bundle / "model.onnx").write_bytes(bytes(1_000_000))
    (bundle / "tokenizer.json").write_bytes(bytes(500_000))
    file.write_bytes(bytes(2_000_000))
    return [
        result_of_decoding("edgekit int4", decoding.System.EDGEKIT, bundle, [0.5, 0.4, 0.6]),
        result_of_decoding("llama.cpp", decoding.System.LLAMA_CPP, file, [1.0, 1.0, 0.9]),
    ]


def test_the_table_of_decoding_gives_both_speeds_and_the_ratio_of_each_round(
    decoding_results: list[decoding.Result],
) -> None:
    header, rows = decoding.speed_rows(decoding_results, 100)

    ratio = "edgekit int4 / system"
    assert header == ["system", "new tokens/s", ratio, "prompt tokens/s", ratio]
    assert rows == [
        ["edgekit int4", "20.0", "1", "100", "1"],
        ["llama.cpp", "10.0", "2.00 (1.50 to 2.50)", "50", "2.00 (1.50 to 2.50)"],
    ]


def test_the_table_of_costs_gives_size_closeness_share_of_the_bandwidth_and_start(
    decoding_results: list[decoding.Result],
) -> None:
    closeness = {"edgekit int4": decoding.Closeness(0.25, 0.75)}

    header, rows = decoding.cost_rows(decoding_results, closeness, context=100)

    assert header[1:6] == ["MB", "KL", "top-1", "of bandwidth", "s to first token"]
    # 20, 25 and 16.7 tokens of the 1 MB of weights in a second, of 40, 25 and 100 MB; the tokenizer is no part of them.
    assert rows == [
        ["edgekit int4", "1.5", "0.2500", "0.750", "50%", "0.50", "1", "3"],
        ["llama.cpp", "2.0", "", "", "50%", "1.00", "2.00 (1.50 to 2.50)", "3"],
    ]


def test_the_bandwidths_of_all_rounds_are_told(decoding_results: list[decoding.Result]) -> None:
    one, other = decoding_results
    measured = [replace(one, bandwidths=[22.2e9, 20e9]), replace(other, bandwidths=[25.25e9])]

    assert decoding.bandwidths_note(measured) == "22.2 GB/s (20.0 to 25.2)"


def test_the_weights_of_openvino_are_told_from_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.bin").write_bytes(bytes(1000))
    (tmp_path / "openvino_tokenizer.bin").write_bytes(bytes(100))

    assert decoding.weights_bytes(tmp_path) == 1000
    assert decoding.total_bytes(tmp_path) == 1100


def test_what_is_not_installed_for_decoding_is_named(tiny_decoder: tuple[Bundle, TinyDecoder], tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    options = argparse.Namespace(
        bundle=tiny_decoder[0].path,
        source_bundle=None,
        only=["onnxruntime-genai", "llama.cpp", "openvino-genai"],
        peers=tmp_path,
    )

    contestants, missing = decoding.contestants_of(options)

    assert [contestant.system for contestant in contestants] == [decoding.System.EDGEKIT]
    assert missing == [
        f"onnxruntime-genai was not measured: `onnxruntime-genai` is not installed in `{tmp_path}`",
        f"llama.cpp was not measured: `llama_cpp_python` is not installed in `{tmp_path}`",
        f"openvino-genai was not measured: `openvino-genai` is not installed in `{tmp_path}`",
    ]
    assert installed_version(Path(sys.executable), "numpy") == np.__version__


def test_decoding_takes_a_choice_of_peers_and_contexts(capsys: pytest.CaptureFixture[str]) -> None:
    options = decoding.parse_options(["--only", "llama.cpp", "--contexts", "900", "22", "900"])
    assert (options.only, options.contexts) == (["llama.cpp"], [22, 900])
    assert {22, 900} <= set(decoding.parse_options([]).contexts)
    with pytest.raises(SystemExit):
        decoding.parse_options(["--new", "1"])
    assert "--new must be at least 2: speed is taken from the first token to the last" in capsys.readouterr().err


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


def test_what_is_asked_with_drafts_quotes_a_text_and_code() -> None:
    asked = lookup.prompts()

    assert len(asked) == 5
    assert "def print_table" in asked["edits code"]
    assert len(asked["quotes a text"]) > 800
    assert 0 < lookup.lookup_seconds(list(range(500))) < 1e-3


def test_genais_builder_runs_with_transformers_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"from transformers import {', '.join(genai_int4.NEWER_CLASSES)}\n"
    program += "import sys, pathlib\nfrom beside import WORD\n"
    program += "pathlib.Path(sys.argv[4]).write_text(WORD + ' '.join(sys.argv[1:]))\n"
    (tmp_path / "builder.py").write_text(program)
    (tmp_path / "beside.py").write_text("WORD = 'built with '\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", [])
    # sentence-transformers may have put another in the place of the one that was imported above.
    imported = sys.modules["transformers"]
    absent = [name for name in genai_int4.NEWER_CLASSES if not hasattr(imported, name)]

    genai_int4.build(tmp_path, tmp_path / "checkpoint", tmp_path / "target")

    for name in absent:
        delattr(imported, name)
    written = (tmp_path / "target").read_text()
    assert written.startswith(f"built with -i {tmp_path}/checkpoint -o {tmp_path}/target -p int4 -e cpu ")
    assert "accuracy_level=4" in written


def test_the_peak_of_a_process_is_its_own() -> None:
    held = b"1" * (300 << 20)

    cost = cost_of([sys.executable, "-c", "held = b'1' * (60 << 20)"])

    assert len(held) > cost.peak_bytes > 60 << 20
    assert 0 < cost.seconds < 60
    with pytest.raises(SystemExit, match="ended with 3; its messages are above"):
        cost_of([sys.executable, "-c", "raise SystemExit(3)"])


def test_exports_are_measured_in_a_process_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(seeded_checkpoints.SHAPES, "tiny", Shape(2, 64, 96, 4, 2, vocabulary=320, positions=512))

    measured = export_scale.measure("tiny", tmp_path, "int4")

    assert {path.name for path in tmp_path.iterdir()} == {"tiny-int4"}
    assert 2**27 < measured.uncertified_peak <= measured.cost.peak_bytes < 2**31
    assert measured.cost.seconds > 1
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
    ("cpuinfo", "told"),
    [
        ("model name\t: EPYC 9\nflags\t\t: avx2 avx512f avx512_vnni\n", "EPYC 9, AVX-512 with VNNI, 3 CPU cores"),
        ("model name\t: EPYC 7\nflags\t\t: avx2\n", "EPYC 7, AVX2 without VNNI, 3 CPU cores"),
        ("flags\t\t: sse4_2\nmodel name\t: Old\n", "Old, int8 kernels not known, 3 CPU cores"),
        ("processor\t: 0\nmodel name\t: N1\nFeatures\t: fp asimddp\n", "N1, ARM with dot product, 3 CPU cores"),
    ],
)
def test_figures_say_the_class_of_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpuinfo: str, told: str
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr("benchmarks.processor.CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("os.cpu_count", lambda: 3)

    assert processor() == told
