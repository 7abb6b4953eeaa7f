from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporters.facts import embedder_facts, lower_case, max_length
from exporters.sources import find_checkpoint
from runtime import CheckpointError, Pooling, UnsupportedModelError


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


def test_without_modules_nothing_is_guessed(tiny_checkpoint: Path) -> None:
    (tiny_checkpoint / "modules.json").unlink()

    with pytest.raises(CheckpointError, match="does not say how its tokens become one vector"):
        embedder_facts(find_checkpoint(str(tiny_checkpoint)))


@pytest.mark.parametrize("modules", [[{"path": ""}], [3], 3])
def test_modules_that_are_none(tiny_checkpoint: Path, modules: object) -> None:
    write(tiny_checkpoint, "modules.json", modules)

    with pytest.raises(CheckpointError, match="is not a list of modules"):
        embedder_facts(find_checkpoint(str(tiny_checkpoint)))


def test_an_unknown_module(tiny_checkpoint: Path) -> None:
    modules = json.loads((tiny_checkpoint / "modules.json").read_text())
    lstm = {"idx": 3, "name": "3", "path": "3_LSTM", "type": "sentence_transformers.models.LSTM"}
    write(tiny_checkpoint, "modules.json", [*modules, lstm])

    with pytest.raises(UnsupportedModelError, match="has a module that edgekit does not know: `LSTM`") as caught:
        embedder_facts(find_checkpoint(str(tiny_checkpoint)))
    assert caught.value.hint == (
        "known are `Transformer`, `Pooling`, any number of `Dense`, and `Normalize`, in this order"
    )


@pytest.mark.parametrize("order", [(0, 2, 1), (1, 0, 2), (0, 1, 2, 2), (1,)])
def test_modules_in_another_order(tiny_checkpoint: Path, order: tuple[int, ...]) -> None:
    modules = json.loads((tiny_checkpoint / "modules.json").read_text())
    write(tiny_checkpoint, "modules.json", [modules[index] for index in order])

    with pytest.raises(UnsupportedModelError, match="has its modules in an order that edgekit does not know: "):
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


def test_no_pooling(tiny_checkpoint: Path) -> None:
    modules = json.loads((tiny_checkpoint / "modules.json").read_text())
    write(tiny_checkpoint, "modules.json", modules[:1])

    with pytest.raises(UnsupportedModelError, match="in an order that edgekit does not know: Transformer"):
        embedder_facts(find_checkpoint(str(tiny_checkpoint)))


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "pooling_mode_mean_sqrt_len_tokens"),
        (
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "pooling_mode_cls_token, pooling_mode_mean",
        ),
        ({}, "none"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": False}, "pooling_mode_mean_tokens"),
    ],
)
def test_a_pooling_that_is_not_known(tiny_checkpoint: Path, config: dict, shown: str) -> None:
    write(tiny_checkpoint, "1_Pooling/config.json", config)

    with pytest.raises(UnsupportedModelError, match=f"pools its tokens in a way that edgekit does not know: {shown}"):
        embedder_facts(find_checkpoint(str(tiny_checkpoint)))


def test_a_pooling_without_its_file(tiny_checkpoint: Path) -> None:
    (tiny_checkpoint / "1_Pooling" / "config.json").unlink()

    with pytest.raises(CheckpointError, match="has a module `Pooling` without its config"):
        embedder_facts(find_checkpoint(str(tiny_checkpoint)))


@pytest.mark.parametrize("value", [None, 0, "48", 1.5])
def test_a_size_that_is_no_size(tiny_checkpoint: Path, value: object) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    write(tiny_checkpoint, "config.json", config | {"hidden_size": value})

    with pytest.raises(CheckpointError, match=r"`hidden_size` in .* must be a positive integer, not"):
        embedder_facts(find_checkpoint(str(tiny_checkpoint)))
