"""How a decoder wants to be used, from the files of its checkpoint, compared with what transformers makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError

from exporters.checkpoint import Checkpoint
from exporters.grouped_attention import cache_sizes, context_length, takes_heads
from exporters.probe import probe_texts
from exporters.pytorch_model import load_config
from runtime.chat_template import ChatTemplate
from runtime.decoder import encode_exactly, encode_text
from runtime.errors import CheckpointError, InputError, UnsupportedModelError
from runtime.manifest import ChatFacts, DecoderFacts, GenerationDefaults
from runtime.messages import ASSISTANT, USER, Message
from runtime.safe_tokenizer import SafeTokenizer

GENERATION = "generation_config.json"
QUESTION, ANSWER = "What is a pump?", "It moves water."
SLIDING = "sliding_attention"


def decoder_facts(checkpoint: Checkpoint, tokenizer: Any) -> DecoderFacts:
    """Lengths, sizes, special tokens, chat template and defaults; `tokenizer` is transformers' own.

    Raises CheckpointError for what contradicts itself.
    """
    config = load_config(checkpoint)
    sizes = cache_sizes(config)
    generation = checkpoint.read_json(GENERATION) or {}
    if not isinstance(generation, dict):
        raise CheckpointError(f"`{checkpoint.folder / GENERATION}` must be an object")
    chat = chat_facts(tokenizer)
    vocabulary = int(config.vocab_size)
    # Gemma 3's, which reads no pictures, has the token for one all the same.
    unknown = set(tokenizer.get_vocab().values()) - special_ids(tokenizer) - set(range(vocabulary))
    if unknown:
        raise CheckpointError(
            f"the tokenizer of `{checkpoint.name}` has {len(tokenizer)} tokens, and its model knows {vocabulary}"
        )
    return DecoderFacts(
        context_length=context_length(config),
        sliding_window=sliding_window(config),
        layers=sizes.layers,
        kv_heads=sizes.kv_heads,
        head_size=sizes.head_size,
        vocabulary=vocabulary,
        bos_id=tokenizer.bos_token_id,
        add_bos=begins_with_bos(tokenizer),
        eos_ids=eos_ids(checkpoint, generation, tokenizer, chat),
        chat=chat,
        generation=generation_defaults(generation),
        plain_attention=checkpoint.architecture.plain_attention or not takes_heads(config),
    )


def sliding_window(config: Any) -> int | None:
    """How many tokens back the attention of every layer reaches; None where that of a layer reaches all."""
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    return int(window) if layers is None or set(layers) == {SLIDING} else None


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether transformers puts the token for it before a text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer(QUESTION)["input_ids"][:1] == [bos]


def eos_ids(
    checkpoint: Checkpoint, generation: Mapping[str, Any], tokenizer: Any, chat: ChatFacts | None
) -> tuple[int, ...]:
    """The ids that end an answer: those stated, that of the tokenizer, and what a chat template ends answers with.

    generation_config.json comes before config.json, as in transformers. A model that was trained to answer ends with
    what its template puts after an answer, and not every publisher states that.
    """
    stated = generation.get("eos_token_id")
    if stated is None:
        stated = checkpoint.config.get("eos_token_id")
    listed = stated if isinstance(stated, list) else [stated]
    found = [*listed, tokenizer.eos_token_id, end_of_answer(tokenizer, chat)]
    wrong = next((one for one in found if one is not None and type(one) is not int), None)
    if wrong is not None:
        raise CheckpointError(f"`eos_token_id` of `{checkpoint.name}` must be ids of tokens, not `{wrong}`")
    return tuple(dict.fromkeys(one for one in found if one is not None))


def end_of_answer(tokenizer: Any, chat: ChatFacts | None) -> int | None:
    """The special token that a template puts after an answer, None where there is none."""
    rendered = rendered_conversation(chat)
    if rendered is None or ANSWER not in rendered:
        return None
    text = rendered.rpartition(ANSWER)[2].lstrip()
    rest = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return rest[0] if rest and rest[0] in special_ids(tokenizer) else None


def rendered_conversation(chat: ChatFacts | None) -> str | None:
    """A question and its answer as the template writes them, None where it wants other messages."""
    if chat is None:
        return None
    try:
        return ChatTemplate(chat).render([Message(USER, QUESTION), Message(ASSISTANT, ANSWER)], for_answer=False)
    except InputError:
        return None


def special_ids(tokenizer: Any) -> set[int]:
    return {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def chat_facts(tokenizer: Any) -> ChatFacts | None:
    """The template of tokenizer_config.json or chat_template.jinja, the one named `default` where there are several."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        return None
    named = {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
    return ChatFacts(str(template), named)


def generation_defaults(generation: Mapping[str, Any]) -> GenerationDefaults:
    """What generation_config.json says about choosing tokens; it samples only where `do_sample` is set."""

    def number(key: str) -> float | None:
        value = generation.get(key)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    penalty = number("repetition_penalty")
    if generation.get("do_sample") is not True:
        return GenerationDefaults(repetition_penalty=penalty)
    temperature, top_k = number("temperature"), number("top_k")
    return GenerationDefaults(
        temperature=1.0 if temperature is None else temperature,
        top_k=None if top_k is None else int(top_k),
        top_p=number("top_p"),
        min_p=number("min_p"),
        repetition_penalty=penalty,
    )


def check_tokens(name: str, tokenizer: Any, own: SafeTokenizer, facts: DecoderFacts) -> None:
    """Raise UnsupportedModelError where the runtime makes other tokens of a text or a chat than transformers does."""
    for text in probe_texts().texts:
        compare_ids(name, "a text", encode_text(own, facts, text), tokenizer(text)["input_ids"])
    rendered = rendered_conversation(facts.chat)
    if facts.chat is None or rendered is None:
        return
    conversation = [{"role": USER, "content": QUESTION}, {"role": ASSISTANT, "content": ANSWER}]
    try:
        expected = tokenizer.apply_chat_template(conversation, chat_template=facts.chat.template)
    except (TemplateError, ValueError, TypeError, LookupError) as error:
        raise UnsupportedModelError(f"transformers cannot render the chat template of `{name}`: {error}") from error
    compare_ids(name, "a conversation", encode_exactly(own, rendered), expected)


def compare_ids(name: str, what: str, found: list[int], expected: list[int]) -> None:
    if found != expected:
        raise UnsupportedModelError(
            f"the tokenizer of `{name}` makes tokens of {what} in a way that edgekit does not know: "
            f"{found[:8]}... instead of {expected[:8]}..."
        )
