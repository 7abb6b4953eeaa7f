"""What a cross-encoder's files say, read as sentence-transformers reads them or refused, before weights are loaded."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ortkit import CheckpointError, Kind, OrtkitError, Scores, UnsupportedModelError
from ortkit.exporters.checkpoint.cross_encoder import CrossEncoderFiles, Form, labels_of, read_cross_encoder, scores_of
from ortkit.exporters.checkpoint.kind import kind_of
from ortkit.exporters.options import ExportOptions, plan_export
from ortkit.exporters.sources import find_checkpoint
from tests.encoder_checkpoints import edit_config

TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
DENSE = "sentence_transformers.base.modules.dense.Dense"
LOGIT_SCORE = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
IDENTITY = "torch.nn.modules.linear.Identity"
CLASSIFIER = {
    "transformer_task": "sequence-classification",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "scores",
}
ENCODER = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
SCORES = {"in_features": 48, "out_features": 1, "bias": True, "activation_function": IDENTITY} | {
    "module_input_name": "sentence_embedding",
    "module_output_name": "scores",
}


def put(folder: Path, name: str, content: object) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def modules(*types: str) -> list[dict[str, Any]]:
    names = ["", *(f"{place}_{kind.rpartition('.')[2]}" for place, kind in enumerate(types[1:], 1))]
    pairs = enumerate(zip(types, names, strict=True))
    return [{"idx": place, "name": str(place), "path": path, "type": kind} for place, (kind, path) in pairs]


@pytest.fixture
def saved(tiny_checkpoint: Path) -> Path:
    """The settings of a classifier that sentence-transformers 5.7 saved; nothing here reads its weights."""
    edit_config(tiny_checkpoint, architectures=["BertForSequenceClassification"], id2label={"0": "LABEL_0"})
    put(tiny_checkpoint, "modules.json", modules(TRANSFORMER))
    put(tiny_checkpoint, "sentence_bert_config.json", CLASSIFIER)
    settings = {"model_type": "CrossEncoder", "prompts": {}, "default_prompt_name": None}
    put(tiny_checkpoint, "config_sentence_transformers.json", settings | {"activation_fn": IDENTITY})
    return tiny_checkpoint


@pytest.fixture
def modular(saved: Path) -> Path:
    """One with pooling and a dense layer."""
    edit_config(saved, architectures=["BertModel"])
    put(saved, "modules.json", modules(TRANSFORMER, POOLING, DENSE))
    put(saved, "sentence_bert_config.json", ENCODER)
    put(saved, "1_Pooling/config.json", {"embedding_dimension": 48, "pooling_mode": "mean", "include_prompt": True})
    put(saved, "2_Dense/config.json", SCORES)
    return saved


def change(folder: Path, name: str, **changes: object) -> None:
    put(folder, name, json.loads((folder / name).read_text()) | changes)


def read(folder: Path) -> CrossEncoderFiles:
    return read_cross_encoder(find_checkpoint(str(folder)))


def scores(folder: Path, labels: int = 1) -> Scores:
    return scores_of(find_checkpoint(str(folder)), labels)


def choose(folder: Path) -> None:
    """What an export does before weights are downloaded."""
    thresholds: dict[Kind, float | None] = dict.fromkeys(Kind)
    plan_export(find_checkpoint(str(folder)), ExportOptions(None, None, None, thresholds))


def test_a_saved_classifier(saved: Path) -> None:
    change(saved, "sentence_bert_config.json", max_seq_length=32, do_lower_case=True, unpad_inputs=False)
    change(saved, "config_sentence_transformers.json", prompts={"a": "find: ", "b": None}, default_prompt_name="a")

    assert read(saved) == CrossEncoderFiles(
        Form.CLASSIFIER, saved=True, prompt="find: ", max_length=32, lower_case=True
    )
    assert kind_of(find_checkpoint(str(saved)), None) is Kind.RERANKER
    change(saved, "config_sentence_transformers.json", default_prompt_name="b")
    assert read(saved).prompt == ""


def test_pooling_and_dense_layers_make_a_reranker(modular: Path) -> None:
    assert kind_of(find_checkpoint(str(modular)), None) is Kind.RERANKER
    assert read(modular).modules == (("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    choose(modular)


def test_settings_count_only_where_the_library_reads_them(saved: Path) -> None:
    """Without modules.json, or with another type, sentence-transformers takes the model of transformers alone."""
    change(saved, "sentence_bert_config.json", max_seq_length=32)
    change(saved, "config_sentence_transformers.json", prompts={"a": "x"}, default_prompt_name="a")
    (saved / "modules.json").unlink()

    assert read(saved) == CrossEncoderFiles(Form.CLASSIFIER, saved=False)
    assert scores(saved) is Scores.SIGMOID


ACTIVATIONS = [
    ({"sentence_transformers": {"activation_fn": IDENTITY}}, 1, Scores.RAW),
    ({"sbert_ce_default_activation_function": IDENTITY}, 1, Scores.RAW),
    ({"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}}, 3, Scores.SIGMOID),
    ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Softmax"}}, 3, Scores.SOFTMAX),
    # The newer key counts where it is there, with null too.
    (
        {"sentence_transformers": {"activation_fn": None}, "sbert_ce_default_activation_function": IDENTITY},
        1,
        Scores.SIGMOID,
    ),
    ({"sentence_transformers": {"version": "4.0"}, "sbert_ce_default_activation_function": IDENTITY}, 1, Scores.RAW),
    ({}, 1, Scores.SIGMOID),
    ({}, 3, Scores.RAW),
]


@pytest.mark.parametrize(("changes", "labels", "expected"), ACTIVATIONS)
def test_the_activation_of_a_config(tiny_checkpoint: Path, changes: dict, labels: int, expected: Scores) -> None:
    edit_config(tiny_checkpoint, **changes)

    assert scores(tiny_checkpoint, labels) is expected


def test_the_activation_of_the_settings_comes_before_that_of_the_config(saved: Path) -> None:
    edit_config(saved, sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"})
    assert scores(saved) is Scores.RAW
    change(saved, "config_sentence_transformers.json", activation_fn="torch.nn.modules.activation.Sigmoid")
    assert scores(saved, 3) is Scores.SIGMOID
    change(saved, "config_sentence_transformers.json", activation_fn=None)
    with pytest.raises(UnsupportedModelError, match=r"applies `torch\.nn\.modules\.activation\.Tanh` to its logits"):
        scores(saved)


@pytest.mark.parametrize(
    "name",
    ["torch.nn.modules.activation.Tanh", "mine.Identity", "torch.nn.modules.activation.Softmax", "torch.nn.x.Sigmoid"],
)
def test_an_activation_that_is_not_supported(tiny_checkpoint: Path, name: str) -> None:
    edit_config(tiny_checkpoint, sentence_transformers={"activation_fn": name})

    with pytest.raises(UnsupportedModelError) as caught:
        scores(tiny_checkpoint)
    assert caught.value.message == f"`tiny-bert` applies `{name}` to its logits, which is not supported"
    assert caught.value.hint == (
        "supported: `torch.nn.Identity`, `torch.nn.Sigmoid`, and `torch.nn.Softmax` for several labels"
    )


def test_labels_have_the_names_of_the_config(tiny_checkpoint: Path) -> None:
    edit_config(tiny_checkpoint, architectures=["BertForSequenceClassification"])

    def labels(**changes: object) -> tuple[str, ...]:
        edit_config(tiny_checkpoint, **changes)
        return labels_of(find_checkpoint(str(tiny_checkpoint)))

    assert labels() == ("LABEL_0", "LABEL_1")
    assert labels(num_labels=1) == ("LABEL_0",)
    assert labels(id2label={"1": "b", "0": "a"}) == ("a", "b")
    assert labels(id2label={"0": 5, "1": "a"}) == ("5", "a")
    for wrong in ({"0": "a", "2": "b"}, {"0": "a", "1": "a"}, {}, "a", ["a"], {"0": ["a"]}, {"0": None}, {"0": {}}):
        with pytest.raises(CheckpointError, match=r"`id2label` in .* must give the labels 0, 1, \.\.\. names"):
            labels(id2label=wrong)
    for number in (0, -1, True, 1.5, "2", None, [1], 10**9, float("nan")):
        with pytest.raises(CheckpointError, match=r"`num_labels` in .* must be an integer from 1 to 65536, not "):
            labels(id2label=None, num_labels=number)
    # As the library has it: what is not published as a classifier gets one label.
    edit_config(tiny_checkpoint, architectures=["BertModel"])
    assert labels(id2label={"0": "a", "1": "b"}) == ("LABEL_0",)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("sentence_bert_config.json", {"processor_kwargs": {"use_fast": False}}, "`processor_kwargs` set to "),
        ("sentence_bert_config.json", {"config_args": {"num_labels": 3}}, "`config_args` set to "),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 5}}}, "`processing_kwargs` set to"),
        ("sentence_bert_config.json", {"head": "own"}, "`head` set to "),
        ("sentence_bert_config.json", {"module_output_name": "x"}, "`module_output_name` set to `x`"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "for the task `fill-mask`"),
        (
            "sentence_bert_config.json",
            {"modality_config": {"image": {"method": "forward", "method_output_name": "logits"}}},
            "reads `image` by ",
        ),
        ("modules.json", modules("custom_st.Transformer"), "class that is not supported: `custom_st.Transformer`; "),
        ("modules.json", modules(TRANSFORMER, "mine.Head"), "`mine.Head`; ortkit runs no code from a checkpoint"),
        ("modules.json", modules(TRANSFORMER, POOLING), "has the modules Transformer, Pooling for the task"),
        ("modules.json", modules(POOLING), "does not begin with the module `Transformer`"),
        (
            "modules.json",
            [{"idx": 0, "name": "0", "path": "", "type": TRANSFORMER, "kwargs": ["task"]}],
            "`kwargs` set to ",
        ),
    ],
)
def test_what_is_not_read_is_refused_by_its_name(saved: Path, file: str, changes: Any, message: str) -> None:
    if isinstance(changes, list):
        put(saved, file, changes)
    else:
        change(saved, file, **changes)

    with pytest.raises(UnsupportedModelError, match=re.escape(message)) as caught:
        choose(saved)
    assert caught.value.exit_code == 10


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("2_Dense", {"use_residual": True}, "`use_residual` set to `true`"),
        ("2_Dense", {"activation_function": "mine.Head"}, "the activation `mine.Head`, which is not supported"),
        ("2_Dense", {"module_output_name": "sentence_embedding"}, "gives `sentence_embedding`, not `scores`"),
        ("2_Dense", {"gate": 1}, "`gate` set to `1`"),
        ("1_Pooling", {"include_prompt": False}, "leaves its prompt out of pooling (`include_prompt: false`"),
    ],
)
def test_modules_that_would_be_another_model(modular: Path, file: str, changes: dict, message: str) -> None:
    change(modular, "config_sentence_transformers.json", prompts={"a": "find: "}, default_prompt_name="a")
    change(modular, f"{file}/config.json", **changes)

    with pytest.raises(UnsupportedModelError, match=re.escape(message)):
        choose(modular)


def wrong(file: str, **changes: object) -> Callable[[Path], None]:
    return lambda folder: change(folder, file, **changes)


def written(file: str, content: object) -> Callable[[Path], None]:
    return lambda folder: put(folder, file, content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (wrong("config_sentence_transformers.json", prompts=[1]), "`prompts` in "),
        (wrong("config_sentence_transformers.json", prompts=None), "`prompts` in "),
        (wrong("config_sentence_transformers.json", prompts={"a": 1}), "`prompts` in "),
        (wrong("config_sentence_transformers.json", default_prompt_name="a"), "`default_prompt_name` in "),
        (wrong("config_sentence_transformers.json", default_prompt_name=5), "`default_prompt_name` in "),
        (wrong("config_sentence_transformers.json", activation_fn=5), "`activation_fn` in "),
        (wrong("config.json", sentence_transformers=[1]), "`sentence_transformers` in "),
        (wrong("config.json", sbert_ce_default_activation_function=5), "`sbert_ce_default_activation_function` in "),
        (wrong("sentence_bert_config.json", max_seq_length=0), "`max_seq_length` in "),
        (wrong("sentence_bert_config.json", max_seq_length=-1), "`max_seq_length` in "),
        (wrong("sentence_bert_config.json", max_seq_length=True), "`max_seq_length` in "),
        (wrong("sentence_bert_config.json", max_seq_length="abc"), "`max_seq_length` in "),
        (wrong("sentence_bert_config.json", max_seq_length=float("nan")), "`max_seq_length` in "),
        (wrong("sentence_bert_config.json", do_lower_case="yes"), "`do_lower_case` in "),
        (wrong("sentence_bert_config.json", modality_config=[]), "`modality_config` in "),
        (written("modules.json", {}), " a list of modules"),
        (written("modules.json", [1]), " a list of modules"),
        (written("modules.json", [{"idx": 0, "name": "0", "path": 3, "type": TRANSFORMER}]), " "),
        (
            written("modules.json", [*modules(TRANSFORMER), {"idx": 1, "name": "1", "path": "../x", "type": DENSE}]),
            "../x",
        ),
        (written("sentence_bert_config.json", [1]), " must be a JSON object"),
        (written("config_sentence_transformers.json", [1]), " must be a JSON object"),
    ],
)
def test_values_that_no_library_reads_are_the_checkpoints_fault(
    saved: Path, damage: Callable[[Path], None], message: str
) -> None:
    edit_config(saved, sbert_ce_default_activation_function=None)
    change(saved, "config_sentence_transformers.json", activation_fn=None)
    damage(saved)

    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        choose(saved)
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("outputs", [0, True, "1", None, 10**9, [1]])
def test_a_dense_layer_of_no_size(modular: Path, outputs: object) -> None:
    change(modular, "2_Dense/config.json", out_features=outputs)

    with pytest.raises(CheckpointError, match=r"`out_features` in .* must be an integer from 1 to 65536, not "):
        choose(modular)


def test_a_decoder_with_modules_that_is_not_said_to_be_a_cross_encoder(saved: Path) -> None:
    edit_config(saved, architectures=["BertLMHeadModel"])
    put(saved, "modules.json", modules(TRANSFORMER, LOGIT_SCORE))
    put(saved, "config_sentence_transformers.json", {})

    with pytest.raises(OrtkitError, match="does not say that it is a `CrossEncoder`") as caught:
        choose(saved)
    assert caught.value.hint == "save it with sentence-transformers' `CrossEncoder.save_pretrained`"
    assert caught.value.exit_code == 10


def test_a_model_in_a_folder_of_its_own(saved: Path) -> None:
    """As versions 1 to 4 saved embedders; what lies beside `modules.json` is then another model."""
    (saved / "0_Transformer").mkdir()
    for path in [path for path in saved.iterdir() if path.is_file()]:
        if path.name not in ("modules.json", "config_sentence_transformers.json"):
            shutil.copyfile(path, saved / "0_Transformer" / path.name)
    edit_config(saved, id2label={"0": "a", "1": "b"})
    edit_config(saved / "0_Transformer", id2label={"0": "relevant"})
    put(saved, "modules.json", [modules(TRANSFORMER)[0] | {"path": "0_Transformer"}])
    change(saved, "config_sentence_transformers.json", prompts={"a": "find: "}, default_prompt_name="a")

    assert read(saved) == CrossEncoderFiles(Form.CLASSIFIER, saved=True, prompt="find: ")
    assert labels_of(find_checkpoint(str(saved))) == ("relevant",)
    change(saved, "config_sentence_transformers.json", model_type="SentenceTransformer")
    with pytest.raises(
        UnsupportedModelError, match="has its model in `0_Transformer`, where sentence-transformers does"
    ):
        choose(saved)
