"""Small tokenizers of the kinds that checkpoints have, trained on the probe texts, with options drawn from a seed."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ortkit.exporters.certification.probe import calibration_texts, telling_texts

VOCABULARY = 700
BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
QWEN = {"pad": "<|endoftext|>", "eos": "<|im_end|>"}
ADDED = ("<custom>", "Case-Kept", "[unused-x]", "<extra 1>")
"""Tokens that a publisher may have added; one of them has a space, one capitals."""


def trained(kind: str) -> Tokenizer:
    """A tokenizer without options: `wordpiece`, `bytes` (BPE) or `unigram`."""
    return Tokenizer.from_str(trained_once(kind))


@functools.cache
def trained_once(kind: str) -> str:
    texts = [*calibration_texts().texts, *telling_texts()]
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=BERT["unk"]))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=list(BERT.values()))
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        special = list(ROBERTA.values())
        trainer = trainers.UnigramTrainer(vocab_size=VOCABULARY, special_tokens=special, unk_token=ROBERTA["unk"])
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        special = list(dict.fromkeys([*ROBERTA.values(), *QWEN.values()]))
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    found: str = tokenizer.to_str()
    return found


def write_tokenizer(folder: Path, family: str, draw: random.Random) -> int:
    """Write the files of a tokenizer for models of a family; returns how many ids it has."""
    kind = {"roberta": "bytes", "qwen3": "bytes", "xlm-roberta": "unigram"}.get(family, "wordpiece")
    tokenizer = trained(kind)
    names = {"roberta": ROBERTA, "xlm-roberta": ROBERTA, "qwen3": QWEN}.get(family, BERT)
    settings: dict[str, object] = {f"{name}_token": token for name, token in names.items()}
    settings["model_max_length"] = draw.choice([30, 512, int(1e30)])
    settings["truncation_side"] = draw.choice(["right", "right", "left"])
    first, last = (names.get("cls", names.get("bos")), names.get("sep", names.get("eos")))
    if family == "qwen3":
        ends = draw.choice([names["pad"], None])
        if ends is not None:
            ids = (ends, tokenizer.token_to_id(ends))
            tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {ends}", special_tokens=[ids])
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    else:
        special = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
        single, pair = f"{first} $A {last}", f"{first} $A {last} $B {last}"
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    if kind == "wordpiece":
        settings["tokenizer_class"] = draw.choice(["BertTokenizer", "PreTrainedTokenizerFast"])
        # transformers overrides tokenizer.json by these, where it has a class for them.
        for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
            if draw.random() < 0.5:
                settings[key] = draw.random() < 0.5
    elif family != "qwen3":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if family in {"distilbert", "modernbert", "qwen3", "roberta", "xlm-roberta", "mpnet"}:
        settings["model_input_names"] = ["input_ids", "attention_mask"]
    count = add_tokens(tokenizer, settings, draw)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return count


def add_tokens(tokenizer: Tokenizer, settings: dict[str, object], draw: random.Random) -> int:
    """Add tokens, to tokenizer.json or where only transformers reads them; returns how many ids there are."""
    count = tokenizer.get_vocab_size()
    tokens = draw.sample(ADDED, draw.choice([0, 0, 1, 3]))
    special = draw.random() < 0.5
    if tokens and draw.random() < 0.5:
        record = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": not special}
        added = {count + number: {"content": token, "special": special} | record for number, token in enumerate(tokens)}
        known = json.loads(tokenizer.to_str())["added_tokens"]
        own = {token.pop("id"): token for token in known}
        settings["added_tokens_decoder"] = {str(number): token for number, token in (own | added).items()}
    else:
        added_tokens = [AddedToken(token, normalized=not special, special=special) for token in tokens]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added_tokens)
    return count + len(tokens)


def added_tokens(folder: Path) -> list[str]:
    """The contents of all tokens that the files of a tokenizer add."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    own = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return [token["content"] for token in (*own, *settings.get("added_tokens_decoder", {}).values())]
