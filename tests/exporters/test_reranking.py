"""Exports of rerankers, from the checkpoint to the certificate."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from sentence_transformers import CrossEncoder

from ortkit import (
    Bundle,
    CheckpointError,
    InputError,
    Kind,
    OrtkitError,
    Precision,
    Reranker,
    Scores,
    TruncationWarning,
    UnsupportedModelError,
)
from ortkit.exporters import export
from ortkit.exporters.certification.probe import (
    CANDIDATES,
    PairSet,
    calibration_pairs,
    calibration_texts,
    probe_searches,
    probe_texts,
)
from ortkit.exporters.certification.rank_correlation import kendall_tau
from ortkit.exporters.checkpoint.architectures import ARCHITECTURES
from ortkit.exporters.checkpoint.cross_encoder import read_cross_encoder
from ortkit.exporters.checkpoint.kind import kind_of
from ortkit.exporters.encoder.reranker_certify import (
    DEFAULT_TAU,
    PairReference,
    agreement_of,
    certify_reranker,
    check_exact_pairs,
)
from ortkit.exporters.encoder.reranker_config import pair_facts, reference_ids, reranker_facts
from ortkit.exporters.encoder.tracing import load_model
from ortkit.exporters.models.loading import load_tokenizer, quiet
from ortkit.exporters.sources import find_checkpoint
from ortkit.toolkit.commands.export import threshold_of
from tests.commands import Finished
from tests.encoder_checkpoints import write_reranker, write_tiny_checkpoint
from tests.marks import slow_but

QUERIES = ["water", "how does one tie a rope that must not slip", "why"]
WORDS = " ".join(calibration_texts().texts).split()
PAIRS = [
    (query, " ".join(WORDS[start : start + length]))
    for query in QUERIES
    for start, length in [(0, 1), (40, 5), (300, 12), (500, 25), (700, 40), (900, 200)]
]
CLASSIFIERS = sorted(name for name, known in ARCHITECTURES.items() if Kind.RERANKER in known.kinds)


@pytest.mark.parametrize("architecture", slow_but(["bert", "deberta-v2", "qwen3"], CLASSIFIERS))
def test_every_architecture_gives_the_scores_of_sentence_transformers(
    checkpoint: Path, tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Most of an export's time goes to its certificate, which is not what is tested here.
    monkeypatch.setattr("ortkit.exporters.certification.probe.CANDIDATES", 2)
    folder = tmp_path / "tiny"
    write_reranker(folder, checkpoint, architecture)
    kwargs = {"attn_implementation": "eager"}
    model = CrossEncoder(str(folder), device="cpu", local_files_only=True, max_length=64, model_kwargs=kwargs)
    # What shorter pairs are padded with is not to matter.
    expected = np.array([model.predict([pair], show_progress_bar=False)[0] for pair in PAIRS])

    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 64}))
    for precision in (Precision.FP32, Precision.INT8):
        bundle = export(str(folder), precision=precision, out=tmp_path / precision.value).bundle
        found = Reranker(bundle).score_with_report(PAIRS)
        assert bundle.manifest.tokenizer.max_length == 64
        assert len(found.truncated) >= 3
        if precision is Precision.FP32:
            assert np.abs(found.logits[:, 0] - expected).max() < 1e-5
        else:
            assert kendall_tau(found.logits[:, 0].tolist(), expected.tolist()) > 0.85


def test_a_decoder_that_answers_yes_or_no(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen3-Reranker, as its model card computes it: the probability of `yes` against `no` as the next token."""
    monkeypatch.setattr("ortkit.exporters.certification.probe.CANDIDATES", 2)
    folder = tmp_path / "qwen"
    write_answering_decoder(folder, checkpoint)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    before, after = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (
            (
                "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
                'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
            ),
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        )
    )
    instruct = "Given a web search query, retrieve relevant passages that answer the query"
    expected = []
    for query, document in PAIRS:
        text = f"<Instruct>: {instruct}\n<Query>: {query}\n<Document>: {document}"
        room = 256 - len(before) - len(after)
        ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=room)["input_ids"]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*before, *ids, *after]])).logits[0, -1]
        words = logits[[tokenizer.convert_tokens_to_ids("no"), tokenizer.convert_tokens_to_ids("yes")]]
        expected.append(float(torch.softmax(words.double(), dim=0)[1]))

    bundle = export(str(folder), precision=Precision.FP32, kind=Kind.RERANKER, out=tmp_path / "bundle").bundle

    assert bundle.manifest.reranker is not None
    assert (bundle.manifest.reranker.labels, bundle.manifest.reranker.scores) == (("yes",), Scores.SIGMOID)
    assert bundle.manifest.certificate is not None
    assert bundle.manifest.certificate.reference.startswith("the model card of Qwen3-Reranker, transformers 4.")
    with pytest.warns(TruncationWarning):
        assert np.abs(Reranker(bundle).score(PAIRS) - expected).max() < 1e-6


def write_answering_decoder(folder: Path, checkpoint: Path) -> None:
    write_reranker(folder, checkpoint, "qwen3")
    config = transformers.AutoConfig.from_pretrained(str(folder))
    torch.manual_seed(3)
    with quiet():
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 256}))


def test_the_manifest_says_how_pairs_are_read(reranker_bundle: Bundle) -> None:
    facts = reranker_bundle.manifest.reranker
    assert facts is not None
    assert facts.labels == ("LABEL_0",)
    assert facts.scores is Scores.RAW
    pair = facts.pair
    assert (pair.before, pair.between, pair.after, pair.document_type) == ((101,), (102,), (102,), 1)
    assert pair.truncation.value == "longest"
    assert reranker_bundle.manifest.inputs == ("input_ids", "token_type_ids")
    assert reranker_bundle.manifest.kind is Kind.RERANKER
    assert reranker_bundle.manifest.embedder is None


class Encoded(dict):
    def __init__(self, sequences: list[int | None], types: list[int]) -> None:
        super().__init__(input_ids=list(range(len(sequences))), token_type_ids=types)
        self.sequences = sequences

    def sequence_ids(self) -> list[int | None]:
        return self.sequences


@pytest.mark.parametrize(
    ("sequences", "types", "message"),
    [
        ([None, 1, None, 0, None], [0, 0, 0, 1, 1], "does not put a query before a document"),
        ([None, 0, None, None], [0, 0, 0, 0], "does not put a query before a document"),
        ([None, 0, None, 1, None], [0, 0, 0, 1, 2], "gives the tokens of a pair the types"),
        ([None, 0, None, 1, None], [1, 0, 0, 1, 1], "gives the tokens of a pair the types"),
    ],
)
def test_a_tokenizer_that_puts_pairs_together_otherwise(
    tiny_checkpoint: Path, sequences: list[int | None], types: list[int], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        pair_facts(find_checkpoint(str(tiny_checkpoint)), lambda *_: Encoded(sequences, types))


def test_pairs_of_two_separators_without_types(tiny_checkpoint: Path) -> None:
    """As XLM-RoBERTa has them, and with it bge-reranker."""
    encoded = Encoded([None, 0, None, None, 1, None], [0] * 6)
    facts = pair_facts(find_checkpoint(str(tiny_checkpoint)), lambda *_: encoded)

    assert (facts.before, facts.between, facts.after, facts.document_type) == ((0,), (2, 3), (5,), 0)


def test_the_runtime_puts_pairs_together_as_transformers_does(
    reranker_checkpoint: Path, reranker_bundle: Bundle
) -> None:
    found = find_checkpoint(str(reranker_checkpoint))
    tokenizer = load_tokenizer(found)
    facts = reranker_facts(found, read_cross_encoder(found), tokenizer)
    own = Reranker(reranker_bundle).tokenizer
    for pair, ids in zip(PAIRS, own.tokenize(PAIRS), strict=True):
        expected = reference_ids(tokenizer, facts.pair, 128, *pair)
        feeds = own.feeds([ids])
        assert feeds["input_ids"][0].tolist() == expected["input_ids"]
        assert feeds["token_type_ids"][0].tolist() == expected["token_type_ids"]


def test_what_a_model_is_for(tiny_checkpoint: Path, reranker_checkpoint: Path) -> None:
    embedder, reranker = (find_checkpoint(str(folder)) for folder in (tiny_checkpoint, reranker_checkpoint))

    assert kind_of(embedder, None) is Kind.EMBEDDER
    assert kind_of(reranker, None) is Kind.RERANKER
    assert kind_of(embedder, Kind.RERANKER) is Kind.RERANKER


def test_a_classifier_without_its_head_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks 2 of the weights that its config.json promises"):
        export(str(tiny_checkpoint), kind=Kind.RERANKER, out=tmp_path / "bundle")


def test_an_architecture_that_is_not_known_to_rerank(checkpoint: Path, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "tiny", checkpoint, "jina-bert")

    with pytest.raises(UnsupportedModelError) as caught:
        export(str(tmp_path / "tiny"), kind=Kind.RERANKER, out=tmp_path / "bundle")
    assert caught.value.message == (
        "`tiny` is a reranker of the architecture `jina-bert`, of which ortkit exports embedders only"
    )


def test_bars_are_for_their_kind(tiny_checkpoint: Path, reranker_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`min_tau` is for rerankers, and this is an embedder"):
        export(str(tiny_checkpoint), min_tau=0.9, out=tmp_path / "bundle")
    with pytest.raises(InputError, match="`min_cosine` is for embedders, and this is a reranker"):
        export(str(reranker_checkpoint), min_cosine=0.9, out=tmp_path / "bundle")
    with pytest.raises(InputError, match="`min_tau` must lie between 0 and 1, not 1"):
        export(str(reranker_checkpoint), min_tau=1.0, out=tmp_path / "bundle")


@pytest.mark.usefixtures("whole_probe")
def test_an_export_holds_the_tau_that_it_was_asked_for(reranker_checkpoint: Path, tmp_path: Path) -> None:
    # More than the fastest recipe reaches: see the next test.
    bundle = export(str(reranker_checkpoint), min_tau=0.985, out=tmp_path / "bundle").bundle
    certificate, quantization = bundle.manifest.certificate, bundle.manifest.quantization
    assert certificate is not None
    assert quantization is not None

    assert certificate.figures["tau_mean"] >= 0.985
    assert certificate.figures["threshold"] == 0.985
    assert quantization.cls_16bit


@pytest.mark.usefixtures("whole_probe")
def test_the_fastest_recipe_is_taken_where_it_holds_the_default_threshold(reranker_bundle: Bundle) -> None:
    certificate, quantization = reranker_bundle.manifest.certificate, reranker_bundle.manifest.quantization
    assert certificate is not None
    assert quantization is not None

    assert DEFAULT_TAU <= certificate.figures["tau_mean"] < 0.985
    assert certificate.figures["threshold"] == DEFAULT_TAU
    assert not quantization.per_token
    assert not quantization.cls_16bit


@pytest.mark.slow
@pytest.mark.usefixtures("whole_probe")
def test_a_slower_recipe_is_taken_where_the_fastest_misses_the_default_threshold(
    ortkit: Callable[..., Finished], checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "wild"
    # Weights so large that attention and activations saturate: 8 bits with one scale give a tau of 0.91.
    write_reranker(folder, checkpoint, max_position_embeddings=128, initializer_range=0.3)

    finished = ortkit("export", folder, "--out", tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    certificate, quantization = bundle.manifest.certificate, bundle.manifest.quantization
    assert certificate is not None
    assert quantization is not None

    assert finished.code == 0
    assert quantization.cls_16bit
    assert f"required {DEFAULT_TAU:g} (--min-tau), met by the recipe below" in finished.err
    assert f"int8     {quantization}" in finished.err
    probe = probe_searches()
    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    expected = np.array([model.predict([pair], show_progress_bar=False) for pair in probe.pairs])
    found = Reranker(bundle).score_with_report(probe.pairs).logits
    tau = agreement_of(probe, found, expected).taus.mean()
    assert certificate.figures["tau_mean"] == pytest.approx(tau, abs=0.002)
    assert tau >= DEFAULT_TAU


@pytest.mark.parametrize(
    ("kind", "figures", "line"),
    [
        (
            Kind.RERANKER,
            {"tau_mean": 0.94},
            "required 0.95 (--min-tau), not met by any recipe; the most exact one is used",
        ),
        (Kind.EMBEDDER, {"cosine_min": 0.95}, "required 0.95 (--min-cosine), met by the recipe below"),
    ],
)
def test_the_summary_says_whether_the_threshold_is_held(
    reranker_bundle: Bundle, kind: Kind, figures: dict[str, float], line: str
) -> None:
    certificate = reranker_bundle.manifest.certificate
    assert certificate is not None

    assert threshold_of(dataclasses.replace(certificate, figures=figures | {"threshold": 0.95}), kind) == line


@pytest.mark.slow
@pytest.mark.usefixtures("whole_probe")
def test_a_tau_out_of_reach_writes_nothing(reranker_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(OrtkitError, match=r"no int8 recipe reaches Kendall's tau 0\.9999 to PyTorch"):
        export(str(reranker_checkpoint), min_tau=0.9999, out=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_certificate_says_how_rankings_agree(reranker_checkpoint: Path, tmp_path: Path) -> None:
    bundle = export(str(reranker_checkpoint), precision=Precision.FP32, out=tmp_path / "bundle").bundle
    certificate = bundle.manifest.certificate
    assert certificate is not None

    assert certificate.reference.startswith("sentence-transformers 5.")
    assert " CrossEncoder, transformers 4." in certificate.reference
    assert certificate.probe == "searches"
    assert certificate.probe_size == len(probe_searches().searches)
    assert certificate.figures["tau_mean"] > 0.9999
    assert certificate.figures["top10_overlap"] == 1
    assert certificate.figures["largest_difference"] < 1e-5
    assert certificate.figures["swapped_neighbours"] == 0
    assert len(certificate.golden) == 8
    assert certificate.golden[0].query == probe_searches().searches[0][0]


def test_agreement_counts_what_it_says() -> None:
    searches = PairSet("two", "", (("a", ("1", "2", "3")), ("b", ("4", "5"))))
    expected = np.array([[3.0], [2.0], [1.0], [0.5], [0.50001]], np.float32)
    found = np.array([[2.0], [2.5], [1.0], [0.6], [0.5]], np.float32)

    agreement = agreement_of(searches, found, expected)

    assert agreement.taus.tolist() == pytest.approx([1 / 3, -1])
    assert agreement.top == 1
    assert agreement.largest_difference == 1
    # The neighbours of the second query are closer than noise.
    assert agreement.swapped == 1


def reference_of(logits: np.ndarray) -> PairReference:
    """A reference that gives these logits for the probe set, and for its first two pairs as scores too."""
    pairs = tuple(probe_searches().pairs[:2])
    return PairReference("the library", logits, pairs, logits[:2], logits[:2])


@pytest.mark.usefixtures("whole_probe")
def test_a_reranker_that_is_wrong_gets_no_certificate(reranker_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = Reranker(reranker_bundle)
    found = reranker.score_with_report(probe_searches().pairs)
    with pytest.raises(
        OrtkitError, match=r"does not rank as PyTorch does: Kendall's tau -1\.0000 on average"
    ) as caught:
        certify_reranker(reranker, reference_of(-found.logits))
    assert caught.value.message.endswith("over 24 queries, and int8 must reach 0.7")
    assert caught.value.hint == "no bundle was written; try `--min-tau 0.7`, or `--precision fp32`"
    with pytest.raises(OrtkitError, match="Kendall's tau nan"):
        broken = dataclasses.replace(found, logits=np.full_like(found.logits, np.nan))
        monkeypatch.setattr(Reranker, "score_with_report", lambda *_: broken)
        certify_reranker(reranker, reference_of(found.logits))


def test_float32_must_score_as_pytorch_does(reranker_bundle: Bundle) -> None:
    manifest = dataclasses.replace(reranker_bundle.manifest, precision=Precision.FP32)
    reranker = Reranker(Bundle(reranker_bundle.path, manifest))
    logits = reranker.score_with_report(probe_searches().pairs).logits

    with pytest.raises(OrtkitError, match=r"a logit differs by 0\.5000, and fp32 must stay within 0\.001"):
        certify_reranker(reranker, reference_of(logits + np.float32(0.5)))


def test_what_differs_from_the_publisher_is_refused_before_quantization(reranker_bundle: Bundle) -> None:
    reranker = Reranker(reranker_bundle)
    logits = reranker.score_with_report(probe_searches().pairs).logits
    exact = reference_of(logits)
    apart = np.float32(2e-5 * max(1, np.abs(logits).max()))

    check_exact_pairs(reranker, reference_of(logits + apart / 4))
    check_exact_pairs(reranker, exact)
    with pytest.raises(UnsupportedModelError) as caught:
        check_exact_pairs(reranker, reference_of(logits + apart))
    assert caught.value.message.startswith(
        "the exported `tiny-reranker` does not give the logits of sentence-transformers' CrossEncoder: ["
    )
    assert caught.value.hint == "no bundle was written: a part of the checkpoint has a meaning that is not supported"
    assert caught.value.exit_code == 10
    with pytest.raises(UnsupportedModelError, match="does not give the scores of sentence-transformers' CrossEncoder"):
        check_exact_pairs(reranker, dataclasses.replace(exact, telling_scores=1 / (1 + np.exp(-logits[:2]))))
    with pytest.raises(UnsupportedModelError, match=r"gives 1 numbers for a pair where .* gives 2"):
        check_exact_pairs(reranker, reference_of(np.tile(logits, 2)))
    with pytest.raises(UnsupportedModelError, match="does not give the logits"):
        check_exact_pairs(reranker, reference_of(np.full_like(logits, np.nan)))


@pytest.mark.usefixtures("whole_probe")
def test_calibration_and_probe_have_nothing_in_common() -> None:
    probe = probe_searches()
    texts = {document for _, documents in probe.searches for document in documents}

    assert {len(documents) for _, documents in probe.searches} == {CANDIDATES}
    assert all(len(set(documents)) == CANDIDATES for _, documents in probe.searches)
    assert texts <= set(probe_texts().texts)
    assert not texts & {text for pair in calibration_pairs() for text in pair}
    assert len(calibration_pairs()) == len(calibration_texts().texts)


def test_the_reference_is_ready_to_run(reranker_checkpoint: Path) -> None:
    """What is loaded for the reference is the classifier with its head, in float32 and ready to run."""
    found = find_checkpoint(str(reranker_checkpoint))
    model = load_model(found, read_cross_encoder(found))

    assert not model.training
    assert model.classifier.weight.dtype == torch.float32


CHAT_TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements.<|im_end|>\n<|im_start|>user\n"
    '<Instruct>: {{ messages | selectattr("role", "eq", "system") | map(attribute="content") | first '
    '| default("Given a web search query, retrieve relevant passages", true) }}\n'
    '<Query>: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}\n'
    '<Document>: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}'
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
"""As Qwen3-Reranker has it since sentence-transformers 5.4."""


def write_templated_decoder(folder: Path, checkpoint: Path, template: str, prompt: str | None = None) -> None:
    """A decoder that answers yes or no, with a chat template for pairs, as sentence-transformers saves it."""
    write_answering_decoder(folder, checkpoint)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    with quiet():
        model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
        if prompt is not None:
            model.prompts, model.default_prompt_name = {"query": prompt}, "query"
        model.save_pretrained(str(folder))


@pytest.mark.parametrize("prompt", slow_but(["Find what is true"], [None, "Find what is true"]))
@pytest.mark.filterwarnings("ignore::ortkit.TruncationWarning")
def test_a_chat_template_puts_the_pair_together(
    checkpoint: Path, tmp_path: Path, prompt: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ortkit.exporters.certification.probe.CANDIDATES", 1)
    folder = tmp_path / "qwen"
    write_templated_decoder(folder, checkpoint, CHAT_TEMPLATE, prompt)
    pairs = [*PAIRS[:3], (" a\n", "\n b "), ("water " * 300, "a"), ("a", "water " * 300), ("a", "")]
    with quiet():
        model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
        expected = [model.predict([pair], show_progress_bar=False)[0] for pair in pairs]

    assert kind_of(find_checkpoint(str(folder)), None) is Kind.RERANKER
    bundle = export(str(folder), precision=Precision.FP32, out=tmp_path / "bundle").bundle

    facts, certificate = bundle.manifest.reranker, bundle.manifest.certificate
    assert facts is not None
    assert certificate is not None
    assert (facts.labels, facts.pair.truncation.value, facts.pair.before) == (("yes",), "end", ())
    assert (prompt or "Given a web search query") in facts.pair.query_prefix
    assert certificate.reference.startswith("sentence-transformers 5.")
    assert np.abs(Reranker(bundle).score(pairs) - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages %}{{ m.content | trim }} {% endfor %}",
            "the chat template of `qwen` does not put a query before a document, each as it is",
        ),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            "the chat template of `qwen` does not put a query before a document, each as it is",
        ),
        (
            "{{ raise_exception('one user message only') }}",
            "the chat template of `qwen` takes no messages of the roles `query` and `document`: one user message only",
        ),
        (
            "{{ messages[0].content }}{{ messages[1].content }}",
            "the tokens that `qwen` has for a document depend on the prompt before it, which is not supported",
        ),
    ],
)
def test_a_chat_template_that_is_not_followed(checkpoint: Path, tmp_path: Path, template: str, message: str) -> None:
    folder = tmp_path / "qwen"
    write_templated_decoder(folder, checkpoint, template)
    found = find_checkpoint(str(folder))

    with pytest.raises(UnsupportedModelError) as caught:
        reranker_facts(found, read_cross_encoder(found), load_tokenizer(found))
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"true_token_id": None}, "`true_token_id` and `false_token_id` in "),
        ({"true_token_id": True, "false_token_id": 1}, "`true_token_id` and `false_token_id` in "),
        ({"true_token_id": 1, "false_token_id": 10**9}, "`true_token_id` and `false_token_id` in "),
        ({"true_token_id": 1, "module_input_name": "x"}, "reads `x`, which is not supported"),
    ],
)
def test_answers_that_are_no_tokens(checkpoint: Path, tmp_path: Path, stated: dict, message: str) -> None:
    folder = tmp_path / "qwen"
    write_templated_decoder(folder, checkpoint, CHAT_TEMPLATE)
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps(stated))
    found = find_checkpoint(str(folder))

    with pytest.raises(OrtkitError, match=message) as caught:
        reranker_facts(found, read_cross_encoder(found), load_tokenizer(found))
    assert caught.value.exit_code in (7, 10)


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_a_head_that_the_file_lacks_is_never_random(checkpoint: Path, tmp_path: Path, architecture: str) -> None:
    """Of every tensor of a classifier that its encoder does not have."""
    folder = tmp_path / "tiny"
    write_reranker(folder, checkpoint, architecture)
    with quiet():
        encoder = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(str(folder)))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    known = set(encoder.state_dict())
    head = sorted(name for name in tensors if name not in known and name.partition(".")[2] not in known)
    if architecture == "deberta-v2":
        assert "pooler.dense.weight" in head
    assert head
    for name in [*head, *(["bert.pooler.dense.weight"] if architecture == "bert" else [])]:
        save_file({key: value for key, value in tensors.items() if key != name}, path, {"format": "pt"})
        found = find_checkpoint(str(folder))
        with pytest.raises(CheckpointError, match=re.escape(name)) as caught:
            load_model(found, read_cross_encoder(found))
        assert caught.value.exit_code == 7


def test_files_of_later_versions_are_read_as_they_are_meant(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What transformers 5 writes of a tokenizer and of rotary positions, which transformers 4 would misread."""
    monkeypatch.setattr("ortkit.exporters.certification.probe.CANDIDATES", 1)
    older, later = tmp_path / "older", tmp_path / "later"
    write_reranker(older, checkpoint, "qwen3", rope_theta=500.0)
    shutil.copytree(older, later)
    with quiet():
        model = CrossEncoder(str(older), device="cpu", local_files_only=True)
        expected = [model.predict([pair], show_progress_bar=False)[0] for pair in PAIRS[:6]]
    config = json.loads((later / "config.json").read_text())
    del config["rope_theta"], config["rope_scaling"]
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0}
    (later / "config.json").write_text(json.dumps(config))
    path = later / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": []}))

    bundle = export(str(later), precision=Precision.FP32, out=tmp_path / "bundle").bundle

    found = Reranker(bundle).score_with_report(PAIRS[:6]).logits[:, 0]
    assert np.abs(found - expected).max() < 1e-5


def test_a_token_that_the_model_does_not_know_is_no_obstacle(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ortkit.exporters.certification.probe.CANDIDATES", 1)
    folder = tmp_path / "tiny"
    write_reranker(folder, checkpoint)
    path = folder / "tokenizer_config.json"
    token = {"content": "<new>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    added = {"added_tokens_decoder": {"30522": token | {"special": False}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | added))

    reranker = Reranker(export(str(folder), precision=Precision.FP32, out=tmp_path / "bundle").bundle)

    assert reranker.score([("a", "b")]).shape == (1,)
    with pytest.raises(
        InputError, match="the document of pair 0 has the token `<new>`, which is not in the model's vocabulary"
    ):
        reranker.score([("a", "b <new>")])


def test_bundles_of_earlier_versions_give_the_same_scores(reranker_bundle: Bundle, tmp_path: Path) -> None:
    """Their manifests say nothing of a side, and that documents alone are cut; the graph is the same."""
    folder = tmp_path / "older"
    shutil.copytree(reranker_bundle.path, folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["reranker"]["pair"]["truncation"] = "document"
    for key in ("truncation_side", "known_tokens"):
        manifest["tokenizer"].pop(key, None)
    path.write_text(json.dumps(manifest))
    pairs = [pair for pair in PAIRS if len(pair[1].split()) <= 25]

    older, newer = (Reranker(bundle).score_with_report(pairs).logits for bundle in (folder, reranker_bundle))

    assert np.array_equal(older, newer)
