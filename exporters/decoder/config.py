"""Facts of a decoder from its checkpoint: cache shape, context, special tokens, chat template, generation defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...runtime.bundle.manifest import ChatFacts, DecoderFacts
from ...runtime.decoder.prompt import encode_exactly, encode_text
from ...runtime.errors import BundleError, CheckpointError, InputError, UnsupportedModelError
from ...runtime.text.chat_template import ChatTemplate
from ...runtime.text.messages import ASSISTANT, SYSTEM, USER, Message
from ...runtime.text.safe_tokenizer import SafeTokenizer
from ..certification.probe import probe_texts, tokenizer_probe
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.generation_config import generation_defaults, generation_settings
from ..models.loading import load_config
from ..models.tokenizer import known_tokens

_QUESTION, _ANSWER = "What is a pump?", "It moves water."
_SLIDING = "sliding_attention"
HEAD_SIZE_MULTIPLE = 16
"""GroupQueryAttention needs the head size, and its rotated part, to be a multiple of this."""
_MAX_PROBE_TOKENS = 64
"""Length in tokens of the longest texts of the tokenizer probe."""
_CONVERSATIONS = tuple(
    tuple(Message(role, content) for role, content in shape)
    for shape in (
        ((USER, _QUESTION),),
        ((USER, _QUESTION), (ASSISTANT, _ANSWER)),
        ((SYSTEM, "You are brief."), (USER, _QUESTION), (ASSISTANT, _ANSWER), (USER, "Which ones?\n\n - and why?")),
        ((SYSTEM, ""), (USER, "  spaces  around \n"), (ASSISTANT, "\n\nIt is.  "), (USER, "größer, 東京, 🙂 <b>&</b>")),
        ((USER, "one"), (ASSISTANT, "<think>\nhm\n</think>\n\ntwo"), (USER, "three"), (ASSISTANT, "four")),
        ((USER, "one"), (USER, "two")),
        ((ASSISTANT, _ANSWER), (USER, _QUESTION)),
    )
)
"""Conversations that templates render differently: with a system message, several turns, thinking, two turns of the
same role, an answer first."""


def decoder_facts(checkpoint: Checkpoint, tokenizer: Any) -> DecoderFacts:
    """Read lengths, sizes, special tokens, chat template and generation defaults; `tokenizer` is transformers' own.

    Raises CheckpointError for inconsistent files.
    """
    config = load_config(checkpoint)
    sizes = cache_sizes(config)
    generation = generation_settings(checkpoint)
    chat = _chat_facts(tokenizer)
    vocabulary = int(config.vocab_size)
    # Text-only Gemma 3 still has an image token, which the runtime refuses in a prompt.
    known_tokens(checkpoint, tokenizer)
    return DecoderFacts(
        context_length=context_length(config),
        sliding_window=sliding_window(config),
        layers=sizes.layers,
        kv_heads=sizes.kv_heads,
        head_size=sizes.head_size,
        vocabulary=vocabulary,
        bos_id=tokenizer.bos_token_id,
        add_bos=_adds_bos(tokenizer),
        eos_ids=_eos_ids(checkpoint, generation, tokenizer, chat),
        chat=chat,
        generation=generation_defaults(checkpoint),
        plain_attention=checkpoint.architecture.plain_attention or not _rotary_supported(config),
    )


@dataclass(frozen=True)
class CacheSizes:
    """Shape of a decoder's KV cache."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int


def cache_sizes(config: Any) -> CacheSizes:
    """Read the cache's shape from a transformers config."""
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return CacheSizes(config.num_hidden_layers, heads, kv_heads, head_size)


def _rotary_supported(config: Any) -> bool:
    """Whether GroupQueryAttention supports rotary embeddings for the head size of a model."""
    size = cache_sizes(config).head_size
    rotated = int(size * (getattr(config, "partial_rotary_factor", None) or 1))
    return size % HEAD_SIZE_MULTIPLE == 0 and rotated % HEAD_SIZE_MULTIPLE == 0


def context_length(config: Any) -> int:
    """Return the longest context that one rotary table serves.

    longrope switches to other angles, for all tokens, once a text exceeds the original training length. Keys that are
    cached already keep the old angles, which is not the model that was trained.
    """
    scaling = getattr(config, "rope_scaling", None) or {}
    length: int = config.max_position_embeddings
    if scaling.get("rope_type", scaling.get("type")) == "longrope":
        return min(length, getattr(config, "original_max_position_embeddings", None) or length)
    return length


def sliding_window(config: Any) -> int | None:
    """Return the sliding window in tokens where all layers have it, else None."""
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    return int(window) if layers is None or set(layers) == {_SLIDING} else None


def _adds_bos(tokenizer: Any) -> bool:
    """Whether transformers begins a text with the BOS token."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer(_QUESTION)["input_ids"][:1] == [bos]


def _eos_ids(
    checkpoint: Checkpoint, generation: Mapping[str, Any], tokenizer: Any, chat: ChatFacts | None
) -> tuple[int, ...]:
    """Return the EOS ids: of the configs, of the tokenizer, and the token with which the chat template ends an answer.

    generation_config.json takes precedence over config.json, as in transformers. A chat model ends its answers with the
    template's token, which not every publisher lists.
    """
    stated = generation.get("eos_token_id")
    if stated is None:
        stated = checkpoint.config.get("eos_token_id")
    listed = stated if isinstance(stated, list) else [stated]
    found = [*listed, tokenizer.eos_token_id, _end_of_answer(tokenizer, chat)]
    wrong = next((one for one in found if one is not None and type(one) is not int), None)
    if wrong is not None:
        raise CheckpointError(f"`eos_token_id` of `{checkpoint.name}` must be token ids, not `{wrong}`")
    return tuple(dict.fromkeys(one for one in found if one is not None))


def _end_of_answer(tokenizer: Any, chat: ChatFacts | None) -> int | None:
    """Return the special token that a template puts after an answer, None where there is none."""
    rendered = _rendered_conversation(chat)
    if rendered is None or _ANSWER not in rendered:
        return None
    text = rendered.rpartition(_ANSWER)[2].lstrip()
    rest = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return rest[0] if rest and rest[0] in _special_ids(tokenizer) else None


def _rendered_conversation(chat: ChatFacts | None) -> str | None:
    """Render a question and its answer, None where the template refuses them."""
    if chat is None:
        return None
    try:
        return ChatTemplate(chat).render([Message(USER, _QUESTION), Message(ASSISTANT, _ANSWER)], for_answer=False)
    except InputError:
        return None
    except BundleError as error:
        raise CheckpointError(error.message) from error


def _special_ids(tokenizer: Any) -> set[int]:
    return {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def _chat_facts(tokenizer: Any) -> ChatFacts | None:
    """Read the template of tokenizer_config.json or chat_template.jinja; of several, the one named `default`."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        return None
    named = {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
    facts = ChatFacts(str(template), named)
    try:
        ChatTemplate(facts)
    except BundleError as error:
        raise CheckpointError(error.message) from error
    return facts


def check_tokens(name: str, tokenizer: Any, own: SafeTokenizer, facts: DecoderFacts) -> None:
    """Raise UnsupportedModelError where the runtime and transformers give a text or a conversation other tokens."""
    for text in (*probe_texts().texts, *tokenizer_probe(tokenizer, min(facts.context_length, _MAX_PROBE_TOKENS))):
        expected = tokenizer(text, verbose=False)["input_ids"]
        # The runtime adds BOS only where the text does not begin with it.
        doubled = facts.add_bos and expected[:2] == [facts.bos_id] * 2
        _compare_ids(name, f"the text `{text[:40]}`", encode_text(own, facts, text), expected[doubled:])
    if facts.chat is not None:
        for conversation in _CONVERSATIONS:
            for for_answer in (False, True):
                _check_conversation(name, tokenizer, own, facts.chat, conversation, for_answer=for_answer)


def _check_conversation(
    name: str, tokenizer: Any, own: SafeTokenizer, chat: ChatFacts, conversation: Sequence[Message], *, for_answer: bool
) -> None:
    """Raise UnsupportedModelError where transformers renders or tokenizes a conversation differently."""
    records = [{"role": message.role, "content": message.content} for message in conversation]
    options = {"chat_template": chat.template, "add_generation_prompt": for_answer}
    expected = rendered = refusal = None
    # ortkit renders first, with a time limit: transformers would run an endless loop.
    try:
        rendered = ChatTemplate(chat).render(conversation, for_answer=for_answer)
    except InputError as error:
        refusal = error
    except BundleError as error:
        raise CheckpointError(error.message) from error
    try:
        expected = tokenizer.apply_chat_template(records, tokenize=False, **options)
    # A template is a program and may raise any exception.
    except Exception as error:
        if rendered is not None:
            raise UnsupportedModelError(f"transformers cannot render the chat template of `{name}`: {error}") from error
        return
    if rendered is None:
        raise UnsupportedModelError(f"ortkit cannot render the chat template of `{name}`: {refusal}") from refusal
    if rendered != expected:
        raise UnsupportedModelError(
            f"ortkit renders the chat template of `{name}` differently from transformers: "
            f"{rendered[-80:]!r} instead of {expected[-80:]!r}"
        )
    _compare_ids(
        name, "a conversation", encode_exactly(own, rendered), tokenizer.apply_chat_template(records, **options)
    )


def _compare_ids(name: str, what: str, found: list[int], expected: list[int]) -> None:
    if found != expected:
        pairs = zip(found, expected, strict=False)
        place = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(found), len(expected)))
        raise UnsupportedModelError(
            f"the tokenizer of `{name}` tokenizes {what} in a way that is not supported: "
            f"from token {place} on {found[place : place + 8]} instead of {expected[place : place + 8]}"
        )
