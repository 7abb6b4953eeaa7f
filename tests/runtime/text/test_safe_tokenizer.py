"""Tokenizers that panic, fail or blow texts up, and texts on which they do: an OrtkitError each."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from ortkit import Bundle, BundleError, Embedder, InputError, OrtkitError, Reranker, TextError
from ortkit.runtime.bundle.manifest import TokenizerFacts
from ortkit.runtime.text.safe_tokenizer import LONGEST, SafeTokenizer, open_tokenizer
from ortkit.runtime.text.split_points import PATTERNS
from ortkit.runtime.text.tokenizer import Tokenizer
from tests.commands import Finished
from tests.decoders import write_decoder
from tests.tampered import changed_bundle
from tests.tiny_bundles import write_embedder, write_reranker

WORDS = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[UNK]": 2}, "unk_token": "[UNK]"}
PLAIN: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "WhitespaceSplit"},
    "post_processor": None,
    "decoder": None,
    "model": WORDS,
}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(PLAIN | changes))
    return path


def template(single: list[object], tokens: dict[str, object]) -> dict[str, object]:
    return {"type": "TemplateProcessing", "single": single, "pair": [TEXT], "special_tokens": tokens}


def replace(pattern: dict[str, str], content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


MANY = {"id": "[X]", "ids": [1] * 40, "tokens": ["[X]"] * 40}
SPECIAL = {"SpecialToken": {"id": "[X]", "type_id": 0}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"post_processor": template([SPECIAL, TEXT], {})}, "cannot be used: no entry found for key"),
        ({"post_processor": template([{"Sequence": {"id": "B", "type_id": 0}}], {})}, "cannot be used: index out of"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "cannot be used: chunk size must be non-zero"),
        ({"model": WORDS | {"vocab": {"c": 0}}}, "cannot be used: WordLevel error: Missing .UNK. token"),
        ({"post_processor": template([TEXT] * 1000, {})}, "is not supported: it must insert each text once"),
        ({"post_processor": template([SPECIAL], {"[X]": MANY})}, "is not supported: it must insert each text once"),
        ({"post_processor": template([TEXT] + [SPECIAL] * 50, {"[X]": MANY})}, "at most 1024 special tokens"),
        ({"normalizer": replace({"String": "a"}, "a" * 1000)}, "makes texts up to 1e.03 times longer"),
        ({"normalizer": replace({"Regex": "x*"}, "y" * 1000)}, "makes texts up to 1e.03 times longer"),
        ({"normalizer": replace({"String": ""}, "y" * 1000)}, "makes texts up to 1e.03 times longer"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [replace({"String": "a"}, "aa")] * 30}},
            "makes texts up to 1.07e.09 times longer; the limit is 256",
        ),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": False,
              "trim_offsets": True, "use_regex": False}] * 30}},
            "times longer",
        ),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 1000}}, "makes texts up to 1e.03 times longer"),
        ({"normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Nonsense"}}, "is not a tokenizer"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_cannot_be_used(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        open_tokenizer(written(tmp_path, **changes))
    assert caught.value.exit_code == 7


def with_pattern(pattern: str) -> SafeTokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE({"a": 0, "Ġ": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return SafeTokenizer(tokenizer)


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|aa)+$", r"(a+a+)+$"])
def test_a_text_on_which_a_pattern_never_ends(pattern: str) -> None:
    """A panic is a BaseException, and passes `except Exception`."""
    tokenizer = with_pattern(pattern)

    for texts in (["a" * 60 + "c"], ["a", "a" * 60 + "c", "a"]):
        faults: dict[int, str] = {}
        found = tokenizer.ids(texts, faults, first=7)

        place = texts.index("a" * 60 + "c")
        assert list(faults) == [7 + place]
        assert faults[7 + place].startswith("cannot be tokenized by `tokenizer.json`: Onig: Regex search error")
        assert [ids.total for index, ids in enumerate(found) if index != place] == [1] * (len(texts) - 1)
    assert tokenizer.encode("aa") == [0, 0]


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_millions_of_spaces_before_a_letter(pattern: str) -> None:
    """They made the patterns of Qwen 2, Llama 3 and Tekken panic from 11 million on."""
    faults: dict[int, str] = {}

    with_pattern(pattern).ids([" " * 11_000_000 + "a", "a"], faults)

    assert list(faults) == [0]
    assert faults[0].startswith(f"has more than {LONGEST} characters without a place")


BAD = "x" * 60 + "y"


def catastrophic(content: dict[str, Any]) -> None:
    """Put a pattern before the others that never ends on BAD."""
    pattern = {"type": "Split", "pattern": {"Regex": "(x+)+$"}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [pattern, content["pre_tokenizer"]]}


def test_a_text_that_fails_is_named_in_every_kind(tmp_path: Path) -> None:
    """The pattern is added to valid bundles; the process survives each failure."""
    written = write_embedder(tmp_path / "embedder"), write_reranker(tmp_path / "reranker")
    embedder = Embedder(changed_bundle(written[0], tmp_path / "bad-embedder", tokenizer=catastrophic))
    reranker = Reranker(changed_bundle(written[1], tmp_path / "bad-reranker", tokenizer=catastrophic))
    bad = BAD
    with pytest.raises(TextError, match=r"text 1 cannot be tokenized by .*: Onig") as caught:
        embedder.embed(["fine", bad, "water", bad])
    assert caught.value.texts == (1, 3)
    with pytest.raises(TextError, match="text 1 cannot be tokenized"):
        embedder.count_tokens(["fine", bad])
    with pytest.raises(TextError, match="the document of pair 1 cannot be tokenized"):
        reranker.score([("fine", "fine"), ("fine", bad)])
    with pytest.raises(TextError, match="the query of pair 1 cannot be tokenized") as caught:
        reranker.score([("fine", "fine"), (bad, "fine"), (bad, "water")])
    assert caught.value.texts == (1, 2)
    assert embedder.embed(["fine"]).shape == (1, 8)
    assert reranker.score([("fine", "fine")]).shape == (1,)


def test_a_failure_of_python_is_not_taken_for_one_of_the_text() -> None:
    tokenizer = with_pattern(r"\w+")

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenizer.called(interrupted)


def test_growth_of_usual_tokenizers_is_far_from_the_limit(checkpoint: Path) -> None:
    assert open_tokenizer(checkpoint / "tokenizer.json").growth == 1
    usual = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    usual.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    usual.pre_tokenizer = pre_tokenizers.Metaspace()
    assert SafeTokenizer(usual).growth < 128


def test_memory_does_not_grow_with_a_line(checkpoint: Path) -> None:
    """3 MB of one line took 430 MiB, and 100 MB took ten gigabytes; pages of a process of its own are counted."""
    code = """
import resource, sys
from pathlib import Path
from ortkit.runtime.bundle.manifest import TokenizerFacts
from ortkit.runtime.text.tokenizer import Tokenizer
tokenizer = Tokenizer(Path(sys.argv[1]), TokenizerFacts(256, lower_case=False, special_tokens={}))
tokenizer.tokenize(["\\u6771\\u4eac\\u306f"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(found,) = tokenizer.tokenize(["\\u6771\\u4eac\\u306f" * 333_333])
print(found.tokens, found.dropped, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    finished = subprocess.run(
        [sys.executable, "-c", code, str(checkpoint / "tokenizer.json")], capture_output=True, text=True, check=True
    )

    tokens, dropped, mebibytes = map(int, finished.stdout.split())
    assert (tokens, dropped) == (256, 999_999 - 254)
    assert mebibytes < 64


def test_a_tokenizer_without_a_token(tmp_path: Path) -> None:
    with pytest.raises(OrtkitError, match="produces no tokens for any text"):
        open_tokenizer(written(tmp_path, model={"type": "BPE", "vocab": {}, "merges": []}))


def test_texts_after_one_that_fails_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, model=WORDS | {"unk_token": "nothing"})
    tokenizer = Tokenizer(path, TokenizerFacts(8, lower_case=False, special_tokens={}))

    with pytest.raises(TextError, match=r"text 1 cannot be tokenized by .*: WordLevel error: Missing") as caught:
        tokenizer.tokenize(["a b", "a c", "b"])
    assert caught.value.texts == (1,)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"added_tokens": [{}] * 40_000}, "has too many tokens: 40001 times `{`; the limit is 32768"),
        ({"model": {"vocab": [[]] * 5_000_000}}, "times `,`; the limit is 4194304"),
    ],
)
def test_a_tokenizer_that_would_be_read_for_minutes(tmp_path: Path, part: dict, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(part))
    begun = time.monotonic()

    with pytest.raises(BundleError) as caught:
        open_tokenizer(path)

    assert message in caught.value.message
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("content", ["[" * 10_000_000, '{"added_tokens":' * 2_000, '{"a":' * 200 + "1" + "}" * 200])
def test_a_tokenizer_that_nests_deep(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)

    with pytest.raises(BundleError, match="is not a tokenizer: "):
        open_tokenizer(path)


def test_a_token_that_the_model_does_not_know(checkpoint: Path) -> None:
    """Also in a text that is read in pieces, and not where it is cut off before."""
    path = checkpoint / "tokenizer.json"
    whole = open_tokenizer(path).tokenizer
    number, last = max((id_, token) for token, id_ in whole.get_vocab().items() if token.isascii() and token.isalpha())
    tokenizer = open_tokenizer(path, vocabulary=number)
    fault = f"has the token `{last}`, which is not in the model's vocabulary"
    faults: dict[int, str] = {}
    texts = ["a pump", f"a {last} pump", "pump " * 10_000 + last, f"pump {last}"]

    found = tokenizer.ids(texts, faults, first=5)

    assert faults == {6: fault, 7: fault, 8: fault}
    assert [len(one.ids) for one in found] == [2, 0, 0, 0]
    faults.clear()
    assert [len(one.ids) for one in tokenizer.ids(texts, faults, keep=1)] == [1, 1, 1, 1]
    assert not faults
    with pytest.raises(InputError, match=re.escape(f"the text {fault}")):
        tokenizer.spans(texts[3])


def test_commands_name_the_line_that_cannot_be_tokenized(ortkit: Callable[..., Finished], tmp_path: Path) -> None:
    def path(write: Callable[[Path], Bundle], name: str) -> Path:
        return changed_bundle(write(tmp_path / name), tmp_path / f"{name}-bad", tokenizer=catastrophic).path

    embedder, reranker = path(write_embedder, "embedder"), path(write_reranker, "reranker")
    decoder = path(lambda target: write_decoder(target)[0], "decoder")
    lines = f"fine\n{BAD}\nfox\n".encode()
    runs = {
        "line 2 cannot be": ortkit("embed", embedder, stdin=lines),
        "line 2 with its query cannot be": ortkit("rerank", reranker, "--query", "fox", stdin=lines),
        "the text cannot be": ortkit("generate", decoder, BAD, "--raw"),
    }

    for begin, finished in runs.items():
        assert finished.code == 2, finished.err
        assert f"error: {begin} tokenized by `" in finished.err
        assert "bug" not in finished.err
        assert "Traceback" not in finished.err
    to_file = ortkit("embed", embedder, "--output", tmp_path / "out", stdin=lines)
    assert to_file.code == 1
    (failed,) = [json.loads(line) for line in (tmp_path / "out.failed.jsonl").read_text().splitlines()]
    assert failed["line"] == 2
    assert failed["error"].startswith("line 2 cannot be tokenized by `")
