from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ortkit import CheckpointError, Kind, Pooling, UnsupportedModelError
from ortkit.exporters.checkpoint.kind import lower_case, max_length
from ortkit.exporters.encoder.config import embedder_facts
from ortkit.exporters.options import ExportOptions, plan_export
from ortkit.exporters.sources import describe_source, find_checkpoint
from tests.encoder_checkpoints import edit_config, write_tiny_checkpoint

NO_THRESHOLDS = dict.fromkeys(Kind)


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def test_the_facts_of_the_real_model(checkpoint: Path) -> None:
    found = find_checkpoint(str(checkpoint))
    facts = embedder_facts(found)

    assert (facts.dimension, facts.pooling, facts.normalize) == (384, Pooling.MEAN, True)
    assert (facts.prompts, facts.default_prompt) == ({}, None)
    assert (max_length(found), lower_case(found)) == (256, False)


def test_normalization_and_prompts_are_what_the_files_say(tiny_checkpoint: Path) -> None:
    modules = json.loads((tiny_checkpoint / "modules.json").read_text())
    write(tiny_checkpoint, "modules.json", modules[:2])
    write(
        tiny_checkpoint,
        "config_sentence_transformers.json",
        {"prompts": {"query": "query: "}, "default_prompt_name": "query"},
    )
    facts = embedder_facts(find_checkpoint(str(tiny_checkpoint)))

    assert not facts.normalize
    assert (facts.prompts, facts.default_prompt) == ({"query": "query: "}, "query")


@pytest.mark.parametrize(
    ("settings", "tokenizer", "expected"),
    [
        ({"max_seq_length": 40}, {"model_max_length": 30}, 40),
        ({"max_seq_length": 4000}, {}, 64),
        ({"max_seq_length": None}, {"model_max_length": 30}, 30),
        (None, {"model_max_length": 1000000000000000019884624838656}, 64),
        (None, {"model_max_length": None}, 64),
        (None, {}, 64),
    ],
)
def test_the_length_is_that_of_the_files_within_the_positions(
    tiny_checkpoint: Path, settings: dict | None, tokenizer: dict, expected: int
) -> None:
    (tiny_checkpoint / "sentence_bert_config.json").unlink()
    if settings is not None:
        write(tiny_checkpoint, "sentence_bert_config.json", settings)
    write(tiny_checkpoint, "tokenizer_config.json", tokenizer)

    assert max_length(find_checkpoint(str(tiny_checkpoint))) == expected


def test_lower_case_comes_from_the_settings(tiny_checkpoint: Path) -> None:
    write(tiny_checkpoint, "sentence_bert_config.json", {"max_seq_length": 8, "do_lower_case": True})

    assert lower_case(find_checkpoint(str(tiny_checkpoint)))


def test_the_length_may_be_among_the_options_of_the_tokenizer(tiny_checkpoint: Path) -> None:
    settings = {"max_seq_length": 40, "tokenizer_args": {"model_max_length": 20}}
    write(tiny_checkpoint, "sentence_bert_config.json", settings)

    assert max_length(find_checkpoint(str(tiny_checkpoint))) == 20


@pytest.mark.parametrize("name", ["sentence_roberta_config.json", "sentence_distilbert_config.json"])
def test_settings_under_the_names_of_version_1(tiny_checkpoint: Path, name: str) -> None:
    (tiny_checkpoint / "sentence_bert_config.json").unlink()
    write(tiny_checkpoint, name, {"max_seq_length": 17, "do_lower_case": True})
    found = find_checkpoint(str(tiny_checkpoint))

    assert (max_length(found), lower_case(found)) == (17, True)
    assert name in found.source.files


NO_LENGTHS = [-1, 0, True, "abc", math.nan, math.inf, 12.5, [64]]


@pytest.mark.parametrize("value", NO_LENGTHS)
@pytest.mark.parametrize("file", ["sentence_bert_config.json", "tokenizer_config.json"])
def test_a_length_that_is_none(tiny_checkpoint: Path, file: str, value: object) -> None:
    (tiny_checkpoint / "sentence_bert_config.json").unlink()
    key = "max_seq_length" if file.startswith("sentence") else "model_max_length"
    write(tiny_checkpoint, file, {key: value})

    with pytest.raises(CheckpointError) as caught:
        plan_export(describe_source(str(tiny_checkpoint)).checkpoint, ExportOptions(None, None, None, NO_THRESHOLDS))
    shown = "true" if value is True else repr(value)
    assert caught.value.message == f"`{key}` in `{tiny_checkpoint / file}` must be a positive integer, not `{shown}`"
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("value", [None, -1, 30522, 30600, "0", True])
def test_a_padding_token_that_is_none(checkpoint: Path, tmp_path: Path, value: object) -> None:
    """Models of RoBERTa's family number positions from its id on."""
    write_tiny_checkpoint(tmp_path / "tiny", checkpoint, "roberta")
    edit_config(tmp_path / "tiny", pad_token_id=value)

    with pytest.raises(CheckpointError, match=r"`pad_token_id` in .* must be the id of a token, not ") as caught:
        plan_export(describe_source(str(tmp_path / "tiny")).checkpoint, ExportOptions(None, None, None, NO_THRESHOLDS))
    assert caught.value.exit_code == 7


def test_a_padding_token_behind_which_no_position_is_left(checkpoint: Path, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "tiny", checkpoint, "xlm-roberta")
    edit_config(tmp_path / "tiny", pad_token_id=65)

    with pytest.raises(CheckpointError, match=r"`max_position_embeddings` in .* leaves no position behind that of"):
        max_length(find_checkpoint(str(tmp_path / "tiny")))


def test_a_padding_token_that_does_not_matter(tiny_checkpoint: Path, checkpoint: Path, tmp_path: Path) -> None:
    """BERT numbers positions from 0 on, and MPNet from 2 on, whatever is said."""
    edit_config(tiny_checkpoint, pad_token_id=None)
    write_tiny_checkpoint(tmp_path / "mpnet", checkpoint, "mpnet")
    edit_config(tmp_path / "mpnet", pad_token_id=0)
    (tmp_path / "mpnet" / "sentence_bert_config.json").unlink()

    assert max_length(find_checkpoint(str(tiny_checkpoint))) == 48
    assert max_length(find_checkpoint(str(tmp_path / "mpnet"))) == 64


def test_without_modules_nothing_is_guessed(tiny_checkpoint: Path) -> None:
    (tiny_checkpoint / "modules.json").unlink()

    with pytest.raises(CheckpointError, match="does not say how its tokens become one vector"):
        embedder_facts(find_checkpoint(str(tiny_checkpoint)))


def test_dimensions_that_the_publisher_names(tiny_checkpoint: Path) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    write(tiny_checkpoint, "config.json", config | {"matryoshka_dimensions": [16, 48, 32, 16]})

    assert embedder_facts(find_checkpoint(str(tiny_checkpoint))).matryoshka_dimensions == (48, 32, 16)


@pytest.mark.parametrize("listed", [[0], ["16"], 16, [1.5], [True]])
def test_dimensions_that_are_none(tiny_checkpoint: Path, listed: object) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    write(tiny_checkpoint, "config.json", config | {"matryoshka_dimensions": listed})

    with pytest.raises(CheckpointError, match=r"`matryoshka_dimensions` in .* must be a list of positive integers"):
        embedder_facts(find_checkpoint(str(tiny_checkpoint)))


@pytest.mark.parametrize("value", [None, 0, "48", 1.5])
def test_a_size_that_is_no_size(tiny_checkpoint: Path, value: object) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    write(tiny_checkpoint, "config.json", config | {"hidden_size": value})

    with pytest.raises(CheckpointError, match=r"`hidden_size` in .* must be a positive integer, not"):
        embedder_facts(find_checkpoint(str(tiny_checkpoint)))


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize("kind", [Kind.EMBEDDER, Kind.RERANKER])
def test_a_rotation_that_depends_on_the_length_of_a_text(
    kind: Kind, key: str, checkpoint: Path, tmp_path: Path
) -> None:
    """A trace holds the angles of short texts, and no certificate has a text that is long enough to show it."""
    folder = tmp_path / "tiny-qwen3"
    write_tiny_checkpoint(folder, checkpoint, "qwen3")
    edit_config(folder, rope_scaling={key: "longrope", "short_factor": [1.0] * 6, "long_factor": [4.0] * 6})

    with pytest.raises(UnsupportedModelError, match=r"rotates long texts by other angles .*`longrope`"):
        plan_export(find_checkpoint(str(folder)), ExportOptions(kind, None, None, NO_THRESHOLDS))
