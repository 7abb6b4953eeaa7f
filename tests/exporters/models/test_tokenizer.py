from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer

from ortkit.exporters import export
from ortkit.exporters.certification.probe import tokenizer_probe
from ortkit.exporters.sources import find_checkpoint
from ortkit.exporters.models.tokenizer import BundleTokenizer, bundle_tokenizer, whole, with_merges_as_strings
from ortkit import CheckpointError, Embedder, Precision, TextError, UnsupportedModelError
from ortkit.runtime.bundle.manifest import Side
from tests.exporters.decoder_checkpoints import change_json, opened, write_checkpoint, write_json

FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
TEXTS = ("Größe, CAFÉ and Æther", "東京タワー", "a [E1] b[E1]c", "see [NEW] and <|new|> here", "<|new|>[NEW]")


def transformers_own(folder: Path) -> transformers.PreTrainedTokenizerFast:
    return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def same_ids(folder: Path) -> Tokenizer:
    """The tokenizer that a bundle of this checkpoint gets, once it has given the ids that transformers gives."""
    found = Tokenizer.from_str(bundle_tokenizer(find_checkpoint(str(folder))).text)
    expected = transformers_own(folder)
    for text in (*TEXTS, *tokenizer_probe(expected, 32)):
        assert found.encode(text).ids == expected(text)["input_ids"], text
    return found


def special_tokens_of(tokenizer: Tokenizer) -> dict[str, int]:
    return BundleTokenizer(tokenizer.to_str(), Side.RIGHT, None).special_tokens


def test_a_file_that_says_it_all_stays_as_it_is(tiny_checkpoint: Path) -> None:
    path = tiny_checkpoint / "tokenizer.json"

    found = bundle_tokenizer(find_checkpoint(str(tiny_checkpoint)))

    assert found.text == with_merges_as_strings(path.read_text(encoding="utf-8"))
    assert found.truncation_side is Side.RIGHT


def test_so_does_a_decoders(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny")

    found = bundle_tokenizer(opened(folder))

    assert found.text == with_merges_as_strings((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert found.special_tokens == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}


@pytest.mark.parametrize(
    ("key", "value"),
    [("do_lower_case", False), ("strip_accents", False), ("strip_accents", True), ("tokenize_chinese_chars", False)],
)
def test_overrides_of_the_normalizer(tiny_checkpoint: Path, key: str, value: object) -> None:
    before = Tokenizer.from_str(whole(Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))))
    change_json(tiny_checkpoint / "tokenizer_config.json", **{key: value})

    found = same_ids(tiny_checkpoint)

    differs = any(found.encode(text).ids != before.encode(text).ids for text in TEXTS)
    # The tokenizer strips accents already.
    assert differs is (value is False)


def test_a_token_of_added_tokens_decoder(tiny_checkpoint: Path) -> None:
    path = tiny_checkpoint / "tokenizer_config.json"
    known = json.loads(path.read_text()).get("added_tokens_decoder", {})
    change_json(path, added_tokens_decoder=known | {"30522": {"content": "[NEW]", "special": True, **FLAGS}})

    found = same_ids(tiny_checkpoint)

    assert found.encode("see [NEW]", add_special_tokens=False).ids[-1] == 30522
    assert special_tokens_of(found)["[NEW]"] == 30522


def test_an_unused_token_that_gets_another_name(tiny_checkpoint: Path) -> None:
    """An ordinary token, not a special one, within the vocabulary."""
    path = tiny_checkpoint / "tokenizer_config.json"
    known = json.loads(path.read_text()).get("added_tokens_decoder", {})
    change_json(path, added_tokens_decoder=known | {"7": {"content": "[unused6]", "special": False, **FLAGS}})

    assert same_ids(tiny_checkpoint).encode("see [unused6]", add_special_tokens=False).ids[-1] == 7


def test_a_token_of_added_tokens_json(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    write_json(folder / "added_tokens.json", {"<|new|>": 320})

    assert 320 in same_ids(folder).encode("see <|new|>").ids


def test_a_token_of_special_tokens_map(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    write_json(folder / "special_tokens_map.json", {"additional_special_tokens": ["<|new|>"]})

    found = same_ids(folder)

    assert found.token_to_id("<|new|>") in found.encode("see <|new|>").ids
    assert "<|new|>" in special_tokens_of(found)


def test_a_token_that_is_named_as_a_special_one(tiny_checkpoint: Path) -> None:
    change_json(tiny_checkpoint / "tokenizer_config.json", additional_special_tokens=["[NEW]", "[E1]"])

    found = same_ids(tiny_checkpoint)

    assert {"[NEW]", "[E1]"} <= special_tokens_of(found).keys()


def test_tokens_that_the_model_does_not_know(tiny_checkpoint: Path) -> None:
    """As some publishers have them, and as no ordinary text has one."""
    checkpoint = find_checkpoint(str(tiny_checkpoint))
    assert bundle_tokenizer(checkpoint).known_tokens is None
    change_json(tiny_checkpoint / "tokenizer_config.json", additional_special_tokens=["[NEW]"])
    assert bundle_tokenizer(checkpoint).known_tokens == 30522


def test_the_tokenizer_of_another_model(tiny_checkpoint: Path) -> None:
    checkpoint = find_checkpoint(str(tiny_checkpoint))
    checkpoint.config["vocab_size"] = 2000

    with pytest.raises(CheckpointError) as caught:
        bundle_tokenizer(checkpoint)
    assert caught.value.message.startswith(
        "the tokenizer of `tiny-bert` has 30522 tokens, its model knows 2000, and ordinary texts have others, such as `"
    )
    assert caught.value.exit_code == 7


def test_the_limits_of_the_file_go(tiny_checkpoint: Path) -> None:
    """What was last cut and padded with it, and a token that another file adds."""
    path = tiny_checkpoint / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["truncation"] is not None
    assert content["padding"] is not None
    write_json(tiny_checkpoint / "added_tokens.json", {"[NEW]": 30522})
    change_json(tiny_checkpoint / "tokenizer_config.json", added_tokens_decoder=None)

    found = json.loads(bundle_tokenizer(find_checkpoint(str(tiny_checkpoint))).text)

    assert (found["truncation"], found["padding"]) == (None, None)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "tokenizer.json"])
def test_the_side_on_which_texts_are_cut(tiny_checkpoint: Path, file: str) -> None:
    if file == "tokenizer.json":
        limits = {"max_length": 128, "strategy": "LongestFirst", "stride": 0, "direction": "Left"}
        change_json(tiny_checkpoint / file, truncation=limits)
    else:
        change_json(tiny_checkpoint / file, truncation_side="left")

    side = bundle_tokenizer(find_checkpoint(str(tiny_checkpoint))).truncation_side

    assert side.value == transformers_own(tiny_checkpoint).truncation_side.lower() == "left"


def test_no_tokenizer(tiny_checkpoint: Path) -> None:
    (tiny_checkpoint / "tokenizer.json").unlink()

    with pytest.raises(CheckpointError) as caught:
        bundle_tokenizer(find_checkpoint(str(tiny_checkpoint)))
    assert caught.value.message == f"`{tiny_checkpoint}` holds no `tokenizer.json`"
    assert (
        caught.value.hint == "load its tokenizer with transformers' `AutoTokenizer` and save it with `save_pretrained`"
    )


def test_a_tokenizer_in_python(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = transformers.BertTokenizer(str(tiny_checkpoint / "vocab.txt"))
    monkeypatch.setattr("ortkit.exporters.models.tokenizer.load_tokenizer", lambda _: slow)

    with pytest.raises(UnsupportedModelError) as caught:
        bundle_tokenizer(find_checkpoint(str(tiny_checkpoint)))
    assert caught.value.message == "`tiny-bert` has the tokenizer `BertTokenizer`, which exists in Python only"
    assert caught.value.exit_code == 10


def test_a_bundle_whose_tokenizer_has_more_tokens_than_its_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """It embeds what sentence-transformers embeds; what makes that fail is refused with the token's name."""
    change_json(tiny_checkpoint / "tokenizer_config.json", additional_special_tokens=["[NEW]"])

    bundle = export(str(tiny_checkpoint), precision=Precision.FP32, out=tmp_path / "b").bundle

    embedder = Embedder(bundle)
    assert embedder.embed(["a pump"]).shape == (1, 48)
    with pytest.raises(TextError) as caught:
        embedder.embed(["a pump", "a [NEW] pump"])
    assert caught.value.message == "text 1 has the token `[NEW]`, which is not in the model's vocabulary"
    assert caught.value.exit_code == 2
