"""A GGUF file's metadata -> tokenizer.json, as llama.cpp reads them.

transformers builds a tokenizer from a GGUF file too, but takes special tokens from its own defaults: of SmolLM2's file
it makes one that begins every text with the token that begins a turn, and takes that for the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from runtime.errors import CheckpointError, UnsupportedModelError

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Types of tokens that stand in text as they are, and are never made of pieces."""
WITHOUT_TEXT = (UNKNOWN, CONTROL)
WORD_START = "▁"
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SAMPLE = "Grüße aus 東京: 1234 it's\n\n  three\tspaces   🙂 <b>!"
"""What every tokenizer must give back as it was."""


@dataclass(frozen=True)
class Splitting:
    """How the text is cut before its pieces are merged: `tokenizer.ggml.pre`."""

    pattern: str | None
    """None for that of GPT-2."""
    single_digits: bool = False
    whole_words: bool = False
    """A piece that is a token is taken whole, whatever the merges say."""
    adds_bos: bool = False
    """What a file means that does not say whether a text begins with the token for it."""
    composed: bool = False
    """Text is brought to Unicode's composed form (NFC) first, as the models' own tokenizers do."""


GPT2 = Splitting(None)
DIGITS = Splitting(None, single_digits=True)
LLAMA3 = Splitting(
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}", whole_words=True, adds_bos=True
)
QWEN2 = Splitting(rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}", composed=True)
TEKKEN = Splitting(
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    whole_words=True,
    adds_bos=True,
)
SPLITTINGS = {
    "gpt-2": GPT2,
    "llama-bpe": LLAMA3,
    "llama-v3": LLAMA3,
    "llama3": LLAMA3,
    "qwen2": QWEN2,
    "refact": DIGITS,
    "smollm": DIGITS,
    "starcoder": DIGITS,
    "tekken": TEKKEN,
}
"""By the names and with the patterns of llama.cpp's src/llama-vocab.cpp."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says about its tokens."""

    name: str
    """The file's, for messages."""
    model: str
    splitting: str | None
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    bos_id: int | None
    add_bos: bool | None
    add_space_prefix: bool

    @property
    def adds_bos(self) -> bool:
        """Whether a text begins with the token for it; where the file does not say, what its model means by that."""
        if self.bos_id is None:
            return False
        if self.add_bos is not None:
            return self.add_bos
        return self.model == "llama" or splitting_of(self).adds_bos


def read_vocabulary(name: str, fields: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary in a file's metadata; raises CheckpointError when a part is missing or does not fit the rest."""

    def found(key: str) -> Any:
        return fields.get(f"tokenizer.ggml.{key}")

    tokens = tuple(found("tokens") or ())
    types = tuple(found("token_type") or [1] * len(tokens))
    if not tokens or found("model") is None:
        raise CheckpointError(f"`{name}` holds no tokenizer")
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise CheckpointError(f"`{name}` has {len(tokens)} tokens, but not a type for each or some of them twice")
    bos_id = found("bos_token_id")
    if bos_id is not None and bos_id >= len(tokens):
        raise CheckpointError(f"`{name}` has {len(tokens)} tokens, and begins texts with number {bos_id}")
    prefix = found("add_space_prefix")
    return Vocabulary(
        name,
        str(found("model")),
        found("pre"),
        tokens,
        types,
        tuple(found("merges") or ()),
        tuple(found("scores") or ()),
        bos_id,
        found("add_bos_token"),
        prefix is None or bool(prefix),
    )


def make_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer of a vocabulary, checked: special tokens have their ids, and text comes back as it was.

    Raises UnsupportedModelError for a kind of tokenizer that edgekit does not know, CheckpointError for one that does
    not work.
    """
    makers = {"gpt2": byte_level, "llama": sentence_pieces}
    if vocabulary.model not in makers:
        raise UnsupportedModelError(
            f"`{vocabulary.name}` has a tokenizer of the kind `{vocabulary.model}`, which edgekit does not know",
            hint=f"known are {', '.join(f'`{known}`' for known in makers)}; export the Hub's checkpoint instead",
        )
    tokenizer = makers[vocabulary.model](vocabulary)
    for kind in WITHOUT_TEXT:
        special = [AddedToken(token, normalized=False, special=True) for token in of_type(vocabulary, kind)]
        tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in of_type(vocabulary, USER_DEFINED)])
    if vocabulary.adds_bos and vocabulary.bos_id is not None:
        bos = vocabulary.tokens[vocabulary.bos_id]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary.bos_id)]
        )
    check(tokenizer, vocabulary)
    return tokenizer


def of_type(vocabulary: Vocabulary, wanted: int) -> list[str]:
    return [token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == wanted]


def splitting_of(vocabulary: Vocabulary) -> Splitting:
    if vocabulary.splitting not in SPLITTINGS:
        named = "nothing" if vocabulary.splitting is None else f"`{vocabulary.splitting}`"
        raise UnsupportedModelError(
            f"`{vocabulary.name}` says {named} about how its tokenizer cuts text (`tokenizer.ggml.pre`)",
            hint=f"known are {', '.join(f'`{known}`' for known in SPLITTINGS)}; export the Hub's checkpoint instead",
        )
    return SPLITTINGS[vocabulary.splitting]


def byte_level(vocabulary: Vocabulary) -> Tokenizer:
    """Byte-pair encoding on bytes, each written as a character, as GPT-2 has it."""
    splitting = splitting_of(vocabulary)
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    merges = [cut_merge(vocabulary, merge) for merge in vocabulary.merges]
    try:
        tokenizer = Tokenizer(BPE(ids, merges, ignore_merges=splitting.whole_words))
    except Exception as error:  # tokenizers raises nothing more exact
        raise CheckpointError(f"the merges of `{vocabulary.name}` do not fit its tokens: {error}") from error
    steps: list[Any] = []
    if splitting.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if splitting.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(splitting.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if splitting.composed:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def cut_merge(vocabulary: Vocabulary, merge: str) -> tuple[str, str]:
    # Tokens of bytes hold no space, so the one there is stands between the two.
    left, _, right = merge.partition(" ")
    if not left or not right:
        raise CheckpointError(f"`{vocabulary.name}` has a merge that is none: `{merge}`")
    return left, right


def sentence_pieces(vocabulary: Vocabulary) -> Tokenizer:
    """Byte-pair encoding on characters, with a token for each byte that no other has, as SentencePiece has it."""
    if len(vocabulary.scores) != len(vocabulary.tokens):
        raise CheckpointError(f"`{vocabulary.name}` has {len(vocabulary.tokens)} tokens, but not a score for each")
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    unknown = next(iter(of_type(vocabulary, UNKNOWN)), None)
    merges = merges_by_score(vocabulary, ids)
    tokenizer = Tokenizer(BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    as_space = normalizers.Replace(" ", WORD_START)
    steps: list[Any] = [decoders.Replace(WORD_START, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.add_space_prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(WORD_START), as_space])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = as_space
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def merges_by_score(vocabulary: Vocabulary, ids: Mapping[str, int]) -> Sequence[tuple[str, str]]:
    """Every way to make a token of two others, those of the highest score first: that is how SentencePiece merges."""
    apart = {token for kind in (*WITHOUT_TEXT, USER_DEFINED) for token in of_type(vocabulary, kind)}
    found = []
    for token, score in zip(vocabulary.tokens, vocabulary.scores, strict=True):
        if token in apart:
            continue
        ways = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(ids[left], ids[right], left, right) for left, right in ways if left in ids and right in ids]
        found += [(-score, left, right) for _, _, left, right in sorted(known)]
    return [(left, right) for _, left, right in sorted(found, key=lambda merge: merge[0])]


def check(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Raise CheckpointError when a special token is not itself, or a text does not come back from its ids."""
    for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind in (*WITHOUT_TEXT, USER_DEFINED):
            ids = tokenizer.encode(token, add_special_tokens=False).ids
            if ids != [number]:
                raise CheckpointError(f"`{vocabulary.name}`: its token `{token}` is number {number} and becomes {ids}")
    back = tokenizer.decode(tokenizer.encode(SAMPLE, add_special_tokens=False).ids, skip_special_tokens=False)
    if back != SAMPLE:
        raise CheckpointError(f"the tokenizer of `{vocabulary.name}` makes `{back}` of `{SAMPLE}`")
