"""Rerankers with drawn settings: exported with the scores of sentence-transformers' `CrossEncoder`, or refused."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from ortkit import Kind, OrtkitError, Precision, Reranker
from ortkit.exporters import export
from ortkit.exporters.checkpoint.architectures import ARCHITECTURES
from ortkit.exporters.models.loading import quiet
from tests.encoder_checkpoints import RERANKER_CONFIGS, TINY_CONFIGS, edit_config

CLASSIFIERS = sorted(name for name, known in ARCHITECTURES.items() if Kind.RERANKER in known.kinds)
SEEDS = 20
IN_EVERY_RUN = 2
"""Of the seeds of two architectures; the others are slow together."""
WORDS = "water boil north a rope unforgettable needle Straße 12 slip CAFÉ don't 東京 😀 É [unused4] ".split()  # noqa: SIM905
LINEAR = "torch.nn.modules.linear."
ACTIVATION = "torch.nn.modules.activation."


@dataclass
class Drawn:
    """The settings of a checkpoint, and why it is to be refused, None for what is to be exported."""

    architecture: str
    config: dict[str, Any]
    labels: int
    form: str
    """`plain` as transformers saves it, `saved` by sentence-transformers, `modules` with pooling and dense layers."""
    activation: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    """For `config_sentence_transformers.json`."""
    transformer: dict[str, Any] = field(default_factory=dict)
    """For `sentence_bert_config.json`."""
    tokenizer: dict[str, Any] = field(default_factory=dict)
    """For `tokenizer_config.json`."""
    dropped: tuple[str, ...] = ()
    """Keys that `tokenizer_config.json` lacks."""
    modules: tuple[Any, ...] = ()
    refused: str | None = None


def draw(architecture: str, seed: int) -> Drawn:
    of = random.Random(f"{architecture} {seed}")
    labels = of.choice((1, 1, 1, 3))
    activations = [None, f"{LINEAR}Identity", f"{ACTIVATION}Sigmoid", "torch.nn.Sigmoid", f"{ACTIVATION}Tanh"]
    drawn = Drawn(
        architecture=architecture,
        config=head_settings(architecture, of),
        labels=labels,
        form=of.choice(("plain", "plain", "saved", "saved", "modules")),
        activation=of.choice([*activations, *([f"{ACTIVATION}Softmax"] if labels > 1 else [])]),
    )
    drawn.refused = refusal_of(drawn)
    if drawn.form != "plain":
        if of.random() < 0.5:
            drawn.settings = {"prompts": {"query": "find: ", "other": "x"}, "default_prompt_name": "query"}
        if of.random() < 0.5:
            drawn.transformer["max_seq_length"] = of.choice((17, 32, 48))
        if of.random() < 0.2:
            drawn.transformer["do_lower_case"] = True
    if of.random() < 0.3:
        drawn.tokenizer["truncation_side"] = "left"
    if of.random() < 0.7:
        drawn.tokenizer["model_max_length"] = of.choice((19, 40, 64, 512))
    else:
        drawn.dropped = ("model_max_length",)
    if drawn.form == "modules":
        drawn.modules = tuple(drawn_modules(of, labels))
    drawn.tokenizer |= tokenizer_settings(of)
    return drawn


def tokenizer_settings(of: random.Random) -> dict[str, Any]:
    """Settings that make another tokenizer of the same `tokenizer.json`."""
    choices = {
        "do_lower_case": (None, True, False),
        "strip_accents": (None, None, True, False),
        "tokenize_chinese_chars": (None, True, False),
    }
    drawn: dict[str, Any] = {key: of.choice(values) for key, values in choices.items()}
    if of.random() < 0.4:
        drawn["added_tokens_decoder"] = {
            "5": dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word", "special"), False)
            | {"content": "[unused4]", "lstrip": of.random() < 0.5}
        }
    return {key: value for key, value in drawn.items() if value is not None}


def refusal_of(drawn: Drawn) -> str | None:
    if drawn.activation == f"{ACTIVATION}Tanh":
        return "applies `torch.nn.modules.activation.Tanh` to its logits"
    # transformers computes places in a table of 32, whatever the config says.
    small_table = drawn.config.get("relative_attention_num_buckets") == 16
    return "PyTorch cannot run `mpnet` with the settings of its config.json" if small_table else None


def head_settings(architecture: str, of: random.Random) -> dict[str, Any]:
    """Settings that decide how an architecture's classifier computes, and some of its encoder."""
    known: dict[str, dict[str, tuple[Any, ...]]] = {
        "bert": {"hidden_act": ("gelu", "gelu", "relu", "relu", "gelu_new"), "type_vocab_size": (2, 3)},
        "deberta-v2": {
            "pooler_hidden_act": ("gelu", "relu", "tanh"),
            "pos_att_type": (["p2c", "c2p"], ["c2p"], ["p2c"]),
            "position_biased_input": (False, True),
            "position_buckets": (16, -1),
            "share_att_key": (True, False),
            "norm_rel_ebd": ("layer_norm", "none"),
        },
        "distilbert": {"sinusoidal_pos_embds": (False, True), "activation": ("gelu", "relu")},
        "modernbert": {
            "classifier_pooling": ("cls", "mean"),
            "classifier_activation": ("gelu", "relu"),
            "classifier_bias": (False, True),
            "norm_bias": (False, True),
            "global_attn_every_n_layers": (3, 2),
        },
        "mpnet": {"hidden_act": ("gelu", "relu"), "relative_attention_num_buckets": (32, 32, 64, 16)},
        "qwen3": {
            "pad_token_id": (0, None, 102),
            "attention_bias": (False, True),
            "head_dim": (12, 16),
            "rope_theta": (10000.0, 1e6),
        },
        "roberta": {"pad_token_id": (1, 0), "type_vocab_size": (1, 2), "hidden_act": ("gelu", "relu")},
        "xlm-roberta": {"pad_token_id": (1, 0), "type_vocab_size": (1, 2), "layer_norm_eps": (1e-5, 1e-12)},
    }
    return {key: of.choice(values) for key, values in known[architecture].items()}


def drawn_modules(of: random.Random, labels: int) -> list[Any]:
    torch.manual_seed(of.randrange(100))
    modes = of.choice(("mean", "cls", "max", "lasttoken", "weightedmean", ("mean", "cls")))
    width = 48 * (1 if isinstance(modes, str) else len(modes))
    modules: list[Any] = [Pooling(48, modes)]
    if of.random() < 0.5:
        modules.append(Dense(width, 24, activation_function=of.choice((torch.nn.Tanh(), torch.nn.GELU()))))
        width = 24
    if of.random() < 0.3:
        modules.append(Normalize())
    last = Dense(width, labels, activation_function=torch.nn.Identity(), module_output_name="scores")
    return [*modules, last]


def write(drawn: Drawn, folder: Path, checkpoint: Path) -> None:
    sizes = RERANKER_CONFIGS.get(drawn.architecture, TINY_CONFIGS.get(drawn.architecture, {}))
    config = transformers.AutoConfig.for_model(
        drawn.architecture, **{**sizes, **drawn.config, "num_labels": drawn.labels}
    )
    torch.manual_seed(3)
    with quiet():
        auto = transformers.AutoModel if drawn.form == "modules" else transformers.AutoModelForSequenceClassification
        auto.from_config(config).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            shutil.copyfile(checkpoint / name, folder / name)
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        if drawn.architecture != "bert":
            settings["model_input_names"] = ["input_ids", "attention_mask"]
        path.write_text(json.dumps(settings))
        if drawn.form == "saved":
            CrossEncoder(str(folder), device="cpu", local_files_only=True).save_pretrained(str(folder))
        elif drawn.form == "modules":
            CrossEncoder(modules=[Transformer(str(folder)), *drawn.modules], device="cpu").save_pretrained(str(folder))
    settings = {key: value for key, value in json.loads(path.read_text()).items() if key not in drawn.dropped}
    path.write_text(json.dumps(settings | drawn.tokenizer))
    if drawn.form == "plain":
        if drawn.activation is not None:
            edit_config(folder, sentence_transformers={"activation_fn": drawn.activation})
        return
    for name, changes in (
        ("config_sentence_transformers.json", {**drawn.settings, "activation_fn": drawn.activation}),
        ("sentence_bert_config.json", drawn.transformer),
    ):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pairs() -> list[tuple[str, str]]:
    of = random.Random(5)
    lengths = [(1, 1), (3, 5), (2, 0), (4, 12), (9, 9), (30, 4), (3, 90), (40, 45), (80, 80)]
    return [(" ".join(of.choices(WORDS, k=query)), " ".join(of.choices(WORDS, k=text))) for query, text in lengths]


def published_scores(folder: Path, limit: int) -> np.ndarray:
    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    # Beyond the table of positions the library fails.
    model.max_seq_length = min(model.max_seq_length, limit)
    with quiet():
        return np.stack([np.atleast_1d(model.predict([pair], show_progress_bar=False)[0]) for pair in pairs()])


def cases() -> list[Any]:
    found = []
    for architecture in CLASSIFIERS:
        for seed in range(SEEDS):
            slow = seed >= IN_EVERY_RUN or architecture != "bert"
            found.append(pytest.param(architecture, seed, marks=[pytest.mark.slow] if slow else []))
    return found


@pytest.mark.parametrize(("architecture", "seed"), cases())
@pytest.mark.filterwarnings("ignore:.*longer than:ortkit.TruncationWarning")
def test_scores_are_those_of_the_publisher(
    checkpoint: Path, tmp_path: Path, architecture: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The rankings of a certificate are not what is tested here.
    monkeypatch.setattr("ortkit.exporters.certification.probe.CANDIDATES", 1)
    folder = tmp_path / "drawn"
    drawn = draw(architecture, seed)
    write(drawn, folder, checkpoint)
    if drawn.refused is not None:
        with pytest.raises(OrtkitError) as caught:
            export(str(folder), precision=Precision.FP32, out=tmp_path / "bundle")
        assert drawn.refused in caught.value.message
        assert caught.value.exit_code in (7, 10)
        return
    bundle = export(str(folder), precision=Precision.FP32, out=tmp_path / "bundle").bundle
    found = Reranker(bundle).score(pairs())
    expected = published_scores(folder, bundle.manifest.tokenizer.max_length)

    assert np.abs(found.reshape(len(expected), -1) - expected).max() < 1e-5
