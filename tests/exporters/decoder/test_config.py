from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import tokenizers
from tokenizers import processors

from ortkit import CheckpointError, Kind, UnsupportedModelError
from ortkit.exporters.checkpoint.generation_config import generation_defaults
from ortkit.exporters.decoder.config import check_tokens, decoder_facts, sliding_window
from ortkit.exporters.decoder.reference import golden_prompt
from ortkit.exporters.models.loading import load_tokenizer
from ortkit.exporters.options import ExportOptions, plan_export
from ortkit.runtime.bundle.manifest import DecoderFacts, GenerationDefaults
from ortkit.runtime.text.safe_tokenizer import open_tokenizer
from tests.decoders import CHATML
from tests.exporters.decoder_checkpoints import change_json, opened, write_checkpoint, write_json
from tests.exporters.decoders import tiny_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny")


def facts_of(folder: Path) -> DecoderFacts:
    checkpoint = opened(folder)
    tokenizer = load_tokenizer(checkpoint)
    facts = decoder_facts(checkpoint, tokenizer)
    check_tokens(checkpoint.name, tokenizer, open_tokenizer(folder / "tokenizer.json"), facts)
    return facts


def test_facts_of_a_checkpoint(folder: Path) -> None:
    facts = facts_of(folder)

    assert (facts.context_length, facts.sliding_window) == (512, None)
    assert (facts.layers, facts.kv_heads, facts.head_size, facts.vocabulary) == (2, 2, 16, 320)
    assert (facts.bos_id, facts.add_bos, facts.eos_ids) == (0, False, (2,))
    assert facts.chat is not None
    assert facts.chat.template == CHATML
    assert facts.chat.tokens == {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    assert facts.generation == GenerationDefaults()


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [7, 5]}, 9, (7, 5, 0, 2)),
        ({"eos_token_id": 7}, 9, (7, 0, 2)),
        ({}, [9, 2], (9, 2, 0)),
        (None, 9, (9, 0, 2)),
        ({}, None, (0, 2)),
    ],
)
def test_eos_ids(folder: Path, generation: dict | None, config: object, expected: tuple[int, ...]) -> None:
    """What is stated first, then the tokenizer's end, 0 here, then what the template writes after an answer."""
    (folder / "generation_config.json").unlink()
    if generation is not None:
        write_json(folder / "generation_config.json", generation)
    change_json(folder / "config.json", eos_token_id=config)
    change_json(folder / "tokenizer_config.json", eos_token="<|endoftext|>")

    assert facts_of(folder).eos_ids == expected


def test_template_that_ends_answers_with_text_adds_no_eos_id(folder: Path) -> None:
    change_json(
        folder / "tokenizer_config.json", chat_template="{% for m in messages %}{{ m['content'] }} over{% endfor %}"
    )

    assert facts_of(folder).eos_ids == (2,)


def test_eos_id_must_be_a_token_id(folder: Path) -> None:
    write_json(folder / "generation_config.json", {"eos_token_id": ["</s>"]})

    with pytest.raises(CheckpointError, match=r"`eos_token_id` of `tiny` must be token ids, not `</s>`"):
        facts_of(folder)


def test_template_in_chat_template_jinja(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", chat_template=None)
    assert facts_of(folder).chat is None
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")

    chat = facts_of(folder).chat

    assert chat is not None
    assert chat.template == "{{ messages[0]['content'] }}"


def test_default_template_of_several(folder: Path) -> None:
    templates = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "{{ tools }}"}]
    change_json(folder / "tokenizer_config.json", chat_template=templates)

    chat = facts_of(folder).chat

    assert chat is not None
    assert chat.template == CHATML


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, GenerationDefaults()),
        ({"repetition_penalty": 1.1}, GenerationDefaults(repetition_penalty=1.1)),
        ({"do_sample": True}, GenerationDefaults(temperature=1.0, top_k=50)),
        ({"do_sample": True, "top_k": None, "num_beams": 1}, GenerationDefaults(temperature=1.0)),
        ({"typical_p": 0.5, "bad_words_ids": [], "max_length": 20, "chat_format": "chatml"}, GenerationDefaults()),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.05},
            GenerationDefaults(0.6, 20, 0.95, 0.0, 1.05),
        ),
    ],
)
def test_generation_defaults(folder: Path, stated: dict, expected: GenerationDefaults) -> None:
    write_json(folder / "generation_config.json", stated)

    assert facts_of(folder).generation == expected


def test_invalid_generation_config(folder: Path) -> None:
    write_json(folder / "generation_config.json", [1])

    with pytest.raises(CheckpointError, match=r"`.*generation_config.json` must be an object"):
        facts_of(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("suppress_tokens", [5]),
        ("bad_words_ids", [[4, 5]]),
        ("no_repeat_ngram_size", 3),
        ("num_beams", 4),
        ("min_new_tokens", 9),
        ("typical_p", 0.5),
    ],
)
def test_unsupported_sampling_parameters_are_refused(folder: Path, key: str, value: object) -> None:
    write_json(folder / "generation_config.json", {"do_sample": True, key: value})
    asked = ExportOptions(None, None, None, dict.fromkeys(Kind))

    with pytest.raises(UnsupportedModelError) as caught:
        plan_export(opened(folder), asked)
    assert caught.value.message.startswith(f"`tiny` has `{key}` set to `{value}` in `generation_config.json`, which ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("temperature", -1), ("temperature", "0.6"), ("temperature", math.nan), ("top_p", 7), ("top_k", math.inf)),
        *(("top_k", 1.5), ("top_k", 10**400), ("repetition_penalty", 0), ("min_p", True)),
    ],
)
def test_invalid_sampling_parameters_are_refused(folder: Path, key: str, value: object) -> None:
    write_json(folder / "generation_config.json", {"do_sample": True, key: value})

    with pytest.raises(CheckpointError, match=rf"^`.*{key}") as caught:
        generation_defaults(opened(folder))
    assert "generation_config.json" in caught.value.message


def test_a_template_without_an_end_for_some_conversations(folder: Path) -> None:
    """The libraries' own rendering has no bounds, and is not asked before ortkit's."""
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    change_json(
        folder / "tokenizer_config.json",
        chat_template="{% if messages[0]['role'] == 'system' %}" + endless + "{% endif %}{{ messages[0]['content'] }}",
    )

    with pytest.raises(CheckpointError, match=r"^the chat template "):
        facts_of(folder)


def test_tokenizer_that_adds_bos(folder: Path) -> None:
    """As Llama's and Mistral's do; `facts_of` compares the ids of 64 texts with those of transformers."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))

    facts = facts_of(folder)

    assert (facts.bos_id, facts.add_bos) == (0, True)


def test_tokenizer_that_adds_eos_is_refused(folder: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <|im_end|>", special_tokens=[("<|im_end|>", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))

    with pytest.raises(UnsupportedModelError) as caught:
        facts_of(folder)
    assert caught.value.exit_code == 10
    assert re.fullmatch(
        r"the tokenizer of `tiny` tokenizes the text `.{40}` in a way that is not supported: "
        r"from token \d+ on \[\] instead of \[2\]",
        caught.value.message,
    )


def test_conversation_with_different_tokens_is_refused(folder: Path) -> None:
    checkpoint = opened(folder)
    tokenizer = load_tokenizer(checkpoint)
    facts = decoder_facts(checkpoint, tokenizer)
    assert facts.chat is not None
    other = dataclasses.replace(facts.chat, tokens={"bos_token": "<|im_start|>"})
    template = "{{ bos_token }}{{ messages[0]['content'] }}"
    facts = dataclasses.replace(facts, chat=dataclasses.replace(other, template=template))

    message = r"ortkit renders the chat template of `tiny` differently from transformers: '<\|im_start\|>What is"
    with pytest.raises(UnsupportedModelError, match=message):
        check_tokens("tiny", tokenizer, open_tokenizer(folder / "tokenizer.json"), facts)


def test_special_token_outside_the_vocabulary(tmp_path: Path) -> None:
    """As Gemma 3's texts-only models have one for pictures."""
    folder = write_checkpoint(tmp_path / "tiny")
    size = opened(folder).config["vocab_size"]
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"].append({"id": size, "content": "<image_soft_token>", **flags})
    path.write_text(json.dumps(content))

    assert facts_of(folder).vocabulary == size


def test_tokenizer_larger_than_the_vocabulary(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", vocab_size=200)

    with pytest.raises(CheckpointError) as caught:
        facts_of(folder)
    assert re.fullmatch(
        r"the tokenizer of `tiny` has \d+ tokens, its model knows 200, and ordinary texts have others, such as `.+`",
        caught.value.message,
    )


@pytest.mark.parametrize(
    ("family", "expected"),
    [("llama", None), ("mistral", 32), ("qwen2", None), ("gemma2", None), ("phi3", 100), ("smollm3", None)],
)
def test_sliding_window(family: str, expected: int | None) -> None:
    assert sliding_window(tiny_config(family)) == expected


def test_sliding_window_in_all_layers_or_disabled() -> None:
    layers = {"layer_types": ["sliding_attention"] * 2}
    assert sliding_window(tiny_config("gemma2", **layers)) == 40
    assert sliding_window(tiny_config("qwen2", use_sliding_window=False, **layers)) is None


def test_a_config_that_transformers_refuses(folder: Path) -> None:
    tokenizer = load_tokenizer(opened(folder))
    change_json(folder / "config.json", rope_scaling="fast")

    with pytest.raises(CheckpointError, match=r"the config.json of `tiny` cannot be used: "):
        decoder_facts(opened(folder), tokenizer)


def test_a_template_that_only_ortkit_can_render(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = opened(folder)
    tokenizer = load_tokenizer(checkpoint)
    facts = decoder_facts(checkpoint, tokenizer)

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no such filter")

    monkeypatch.setattr(tokenizer, "apply_chat_template", refuse)
    with pytest.raises(UnsupportedModelError) as caught:
        check_tokens("tiny", tokenizer, open_tokenizer(folder / "tokenizer.json"), facts)
    assert caught.value.message == "transformers cannot render the chat template of `tiny`: no such filter"


def test_a_context_without_room(folder: Path) -> None:
    checkpoint = opened(folder)
    tokenizer = load_tokenizer(checkpoint)
    facts = dataclasses.replace(decoder_facts(checkpoint, tokenizer), context_length=2)

    with pytest.raises(UnsupportedModelError) as caught:
        golden_prompt(tokenizer, facts)
    assert caught.value.message == "a context of 2 tokens is too short for a word and its continuation"


def test_a_template_that_ortkit_cannot_render(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = opened(folder)
    tokenizer = load_tokenizer(checkpoint)
    facts = decoder_facts(checkpoint, tokenizer)
    assert facts.chat is not None
    refuses = dataclasses.replace(facts.chat, template="{{ raise_exception('no') }}")
    facts = dataclasses.replace(facts, chat=refuses)

    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *_, **__: "text")
    with pytest.raises(UnsupportedModelError) as caught:
        check_tokens("tiny", tokenizer, open_tokenizer(folder / "tokenizer.json"), facts)
    assert caught.value.message.startswith("ortkit cannot render the chat template of `tiny`: the model's chat ")


def test_what_only_some_conversations_may_be(folder: Path) -> None:
    """As Gemma's, which has no system messages, and wants roles in turn: transformers refuses the same ones."""
    change_json(
        folder / "tokenizer_config.json",
        chat_template="{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['content'] | trim }}{% endfor %}"
        "{% if add_generation_prompt %}answer:{% endif %}",
    )

    assert facts_of(folder).chat is not None


@pytest.mark.parametrize("template", ["{% if %}", "{{ 'a' * ", "{% for m in messages %}"])
def test_invalid_template(folder: Path, template: str) -> None:
    change_json(folder / "tokenizer_config.json", chat_template=template)

    with pytest.raises(CheckpointError, match=r"^the chat template is not valid: ") as caught:
        facts_of(folder)
    assert caught.value.exit_code == 7
