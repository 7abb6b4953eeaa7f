"""Build tokenizer.json from the metadata of a GGUF file, as llama.cpp interprets it.

transformers builds a tokenizer from a GGUF file too, but takes special tokens from its own defaults: of SmolLM2's file
it makes one that begins every text with the token that begins a turn, and takes that for the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from ...runtime.errors import CheckpointError, OrtkitError, UnsupportedModelError
from .header import LONGEST_NAME, Metadata, shown

_NORMAL, _UNKNOWN, CONTROL, _USER_DEFINED = 1, 2, 3, 4
"""Token types; all but the first are matched as a whole in text and never merged from pieces."""
_KINDS = range(1, 7)
"""All token types, unused and byte tokens included."""
_PREFIX, _TOKEN_ID = "tokenizer.ggml.", "_token_id"
_HUGGING_FACE = "tokenizer.huggingface.json"
_WITHOUT_TEXT = (_UNKNOWN, CONTROL)
_WORD_START = "▁"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SAMPLE = "Grüße aus 東京: 1234 it's\n\n  three\tspaces   🙂 <b>!"
"""A text that every tokenizer must decode to itself."""
COMPARED = (
    "The pump does not start, so what's to be done? They'd have said: I'LL see.",
    "  two spaces before and after  ",
    "\tx = {'a': [1, 22, 333, 4444]}\r\n\r\n",
    "naïve Straße привет e\u0301 नमस्ते \u4f60\u597d\uff0c\u4e16\u754c \uff76\uff9e ١٢٣ ½",
    "\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea … — “quoted” \u200b\u00a0 HelloWorld /usr/lib/x.so\n\n\n",
)
"""A text that tells different tokenizers apart."""


@dataclass(frozen=True)
class _Splitting:
    """A pre-tokenizer: `tokenizer.ggml.pre`."""

    pattern: str | None
    """None for that of GPT-2."""
    single_digits: bool = False
    whole_words: bool = False
    """Whether a piece that is a token is not split by merges (`ignore_merges`)."""
    adds_bos: bool = False
    """Whether a text begins with BOS where the file has no `add_bos_token`."""
    composed: bool = False
    """Whether text is normalized to NFC first, as the models' own tokenizers do."""


_GPT2 = _Splitting(None)
_DIGITS = _Splitting(None, single_digits=True)
_LLAMA3 = _Splitting(
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}", whole_words=True, adds_bos=True
)
_QWEN2 = _Splitting(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}", composed=True)
_TEKKEN = _Splitting(
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    whole_words=True,
    adds_bos=True,
)
SPLITTINGS = {
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "refact": _DIGITS,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "tekken": _TEKKEN,
}
"""Pre-tokenizers with the names and patterns of llama.cpp's src/llama-vocab.cpp."""


_ID_KEYS = frozenset(
    {"bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask", "cls", "prefix", "suffix", "middle"}
    | {f"fim_{part}" for part in ("pre", "suf", "mid", "pad", "rep", "sep")}
)
"""Names before `_token_id`, as llama.cpp spells them."""
_NO_TOKEN = (2**32 - 1, -1)
"""llama.cpp's id for a token that does not exist."""
_MOST_TOKENS = 2**21
_READ = frozenset({"model", "pre", "tokens", "token_type", "merges", "scores", "add_bos_token", "add_space_prefix"})
"""Other supported keys after `tokenizer.ggml.`."""
_WITHOUT_EFFECT: tuple[tuple[str, Any], ...] = (
    ("add_eos_token", False),
    ("add_sep_token", False),
    ("remove_extra_whitespaces", False),
    ("precompiled_charsmap", []),
    ("token_type_count", 1),
)
"""Other keys with the value that leaves the tokenizer as it is."""
_OTHERS_READ = ("tokenizer.chat_template", "tokenizer.chat_templates", _HUGGING_FACE)
_OF_SENTENCE_PIECES = (None, "default")
"""Values of `tokenizer.ggml.pre` for no pre-tokenizer."""


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of a GGUF file."""

    name: str
    """The file's, for messages."""
    model: str
    splitting: str | None
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    ids: Mapping[str, int]
    """The special token ids of the metadata, such as `eos_token_id`."""
    add_bos: bool | None
    add_space_prefix: bool | None
    published: str | None = field(default=None, repr=False)
    """The tokenizer.json of the original checkpoint, where the file has it: what is made is compared with it."""

    @property
    def bos_id(self) -> int | None:
        return self.ids.get("bos_token_id")

    @property
    def adds_bos(self) -> bool:
        """Whether a text begins with BOS; where the file has no such flag, the default of its tokenizer."""
        if self.bos_id is None:
            return False
        if self.add_bos is not None:
            return self.add_bos
        return self.model == "llama" or _splitting_of(self).adds_bos


def read_vocabulary(name: str, fields: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary in a file's metadata.

    Raises CheckpointError when a part is missing or does not fit the rest, UnsupportedModelError for what is not read.
    """
    metadata = Metadata(name, fields)
    _check_keys(metadata)
    tokens = metadata.texts(f"{_PREFIX}tokens")
    model = metadata.text(f"{_PREFIX}model", LONGEST_NAME)
    if not tokens or model is None:
        raise CheckpointError(f"`{name}` holds no tokenizer")
    types = metadata.integers(f"{_PREFIX}token_type") or [_NORMAL] * len(tokens)
    if len(tokens) > _MOST_TOKENS or len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise CheckpointError(f"`{name}` has {len(tokens)} tokens, but not a type for each or some of them twice")
    odd = next((kind for kind in types if kind not in _KINDS), None)
    if odd is not None:
        raise CheckpointError(f"`{name}` has a token of the type {odd} (`{_PREFIX}token_type`); supported: 1 to 6")
    return Vocabulary(
        name,
        model,
        metadata.text(f"{_PREFIX}pre", LONGEST_NAME),
        tuple(tokens),
        tuple(types),
        tuple(metadata.texts(f"{_PREFIX}merges")),
        tuple(metadata.numbers(f"{_PREFIX}scores")),
        _token_ids(metadata, len(tokens)),
        metadata.flag(f"{_PREFIX}add_bos_token"),
        metadata.flag(f"{_PREFIX}add_space_prefix"),
        metadata.text(_HUGGING_FACE),
    )


def _check_keys(metadata: Metadata) -> None:
    """Raise UnsupportedModelError for tokenizer metadata that is not supported."""
    for key, value in metadata.fields.items():
        if not key.startswith("tokenizer.") or key.startswith(_OTHERS_READ):
            continue
        own = key.removeprefix(_PREFIX)
        known = own in _READ or own.removesuffix(_TOKEN_ID) in _ID_KEYS or (own, value) in _WITHOUT_EFFECT
        if own == key or not known:
            raise UnsupportedModelError(
                f"`{metadata.name}` has `{shown(key)}` set to `{shown(value)}`, which is not supported",
                hint="ignoring it would change the tokens; export the Hub's checkpoint instead",
            )


def _token_ids(metadata: Metadata, count: int) -> dict[str, int]:
    """Read the special token ids; raises CheckpointError for an id beyond the vocabulary."""
    found = {}
    for name in sorted(_ID_KEYS):
        key = f"{_PREFIX}{name}{_TOKEN_ID}"
        if metadata.fields.get(key) in _NO_TOKEN:
            continue
        number = metadata.integer(key, -(2**63), 2**63)
        if number is not None and not 0 <= number < count:
            raise CheckpointError(f"`{metadata.name}` has {count} tokens, and `{key}` is {number}")
        if number is not None:
            found[f"{name}{_TOKEN_ID}"] = number
    return found


def make_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """Build the tokenizer of a vocabulary and check it: special tokens keep their ids, and text decodes to itself.

    Raises UnsupportedModelError for a kind of tokenizer that is not supported, CheckpointError for one that does
    not work.
    """
    makers = {"gpt2": _byte_level, "llama": _sentence_pieces}
    if vocabulary.model not in makers:
        raise UnsupportedModelError(
            f"`{vocabulary.name}` has a tokenizer of the kind `{shown(vocabulary.model)}`, which is not supported",
            hint=f"supported: {', '.join(f'`{known}`' for known in makers)}; export the Hub's checkpoint instead",
        )
    with _panics_in_words(vocabulary):
        tokenizer = makers[vocabulary.model](vocabulary)
        for kind in _WITHOUT_TEXT:
            special = [AddedToken(token, normalized=False, special=True) for token in _of_type(vocabulary, kind)]
            tokenizer.add_special_tokens(special)
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in _of_type(vocabulary, _USER_DEFINED)])
        if vocabulary.adds_bos and vocabulary.bos_id is not None:
            bos = vocabulary.tokens[vocabulary.bos_id]
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary.bos_id)]
            )
        check(tokenizer, vocabulary)
        if vocabulary.published is not None:
            _compare(tokenizer, Tokenizer.from_str(vocabulary.published), vocabulary)
        return tokenizer


@contextmanager
def _panics_in_words(vocabulary: Vocabulary) -> Iterator[None]:
    """Raise CheckpointError for errors of the tokenizers library; its panics are not `Exception`s."""
    try:
        yield
    except (OrtkitError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise CheckpointError(f"the tokenizer of `{vocabulary.name}` cannot be used: {shown(error)}") from error


def _of_type(vocabulary: Vocabulary, wanted: int) -> list[str]:
    return [token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == wanted]


def _splitting_of(vocabulary: Vocabulary) -> _Splitting:
    if vocabulary.splitting not in SPLITTINGS:
        named = "nothing" if vocabulary.splitting is None else f"`{shown(vocabulary.splitting)}`"
        raise UnsupportedModelError(
            f"`{vocabulary.name}` says {named} about how its tokenizer cuts text (`tokenizer.ggml.pre`)",
            hint=f"supported: {', '.join(f'`{known}`' for known in SPLITTINGS)}; export the Hub's checkpoint instead",
        )
    return SPLITTINGS[vocabulary.splitting]


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    """Build a byte-level BPE tokenizer, as of GPT-2."""
    splitting = _splitting_of(vocabulary)
    if vocabulary.add_space_prefix:
        raise UnsupportedModelError(
            f"`{vocabulary.name}` has `{_PREFIX}add_space_prefix` set in a tokenizer of the kind `gpt2`",
            hint="llama.cpp and transformers read that in different ways; export the Hub's checkpoint instead",
        )
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    merges = [_cut_merge(vocabulary, merge) for merge in vocabulary.merges]
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


def _cut_merge(vocabulary: Vocabulary, merge: str) -> tuple[str, str]:
    # Tokens of bytes hold no space, so the one there is stands between the two.
    left, _, right = merge.partition(" ")
    if not left or not right:
        raise CheckpointError(f"`{vocabulary.name}` has a merge that is none: `{shown(merge)}`")
    return left, right


def _sentence_pieces(vocabulary: Vocabulary) -> Tokenizer:
    """Build a SentencePiece BPE tokenizer with byte fallback."""
    if len(vocabulary.scores) != len(vocabulary.tokens):
        raise CheckpointError(f"`{vocabulary.name}` has {len(vocabulary.tokens)} tokens, but not a score for each")
    if vocabulary.splitting not in _OF_SENTENCE_PIECES:
        raise UnsupportedModelError(
            f"`{vocabulary.name}` has `{_PREFIX}pre` set to `{shown(vocabulary.splitting)}` in a tokenizer of the kind "
            "`llama`, which cuts no text before its pieces are merged",
            hint="export the Hub's checkpoint instead",
        )
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    unknown = next(iter(_of_type(vocabulary, _UNKNOWN)), None)
    merges = _merges_by_score(vocabulary, ids)
    tokenizer = Tokenizer(BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    as_space = normalizers.Replace(" ", _WORD_START)
    steps: list[Any] = [decoders.Replace(_WORD_START, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.add_space_prefix is not False:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_WORD_START), as_space])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = as_space
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges_by_score(vocabulary: Vocabulary, ids: Mapping[str, int]) -> Sequence[tuple[str, str]]:
    """Return all merges of two tokens to one, by descending score, as SentencePiece merges."""
    apart = {token for kind in (*_WITHOUT_TEXT, _USER_DEFINED) for token in _of_type(vocabulary, kind)}
    found = []
    for token, score in zip(vocabulary.tokens, vocabulary.scores, strict=True):
        if token in apart:
            continue
        ways = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(ids[left], ids[right], left, right) for left, right in ways if left in ids and right in ids]
        found += [(-score, left, right) for _, _, left, right in sorted(known)]
    return [(left, right) for _, left, right in sorted(found, key=lambda merge: merge[0])]


def check(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Raise CheckpointError when a special token has another id, or a text does not decode to itself."""
    for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind in (*_WITHOUT_TEXT, _USER_DEFINED):
            ids = tokenizer.encode(token, add_special_tokens=False).ids
            if ids != [number]:
                raise CheckpointError(
                    f"`{vocabulary.name}`: its token `{shown(token)}` is number {number} and becomes {ids[:8]}"
                )
    back = tokenizer.decode(tokenizer.encode(SAMPLE, add_special_tokens=False).ids, skip_special_tokens=False)
    if back != SAMPLE:
        raise CheckpointError(f"the tokenizer of `{vocabulary.name}` makes `{shown(back)}` of `{shown(SAMPLE)}`")


def _compare(tokenizer: Tokenizer, published: Tokenizer, vocabulary: Vocabulary) -> None:
    """Raise UnsupportedModelError where the original checkpoint's tokenizer gives other tokens for a text."""
    for text in (SAMPLE, *COMPARED):
        found, expected = (one.encode(text, add_special_tokens=False).ids for one in (tokenizer, published))
        if found != expected:
            raise UnsupportedModelError(
                f"`{vocabulary.name}` has two tokenizers: its metadata makes {found[:8]}... of a text, and its "
                f"`{_HUGGING_FACE}` {expected[:8]}...",
                hint="export the Hub's checkpoint instead",
            )
