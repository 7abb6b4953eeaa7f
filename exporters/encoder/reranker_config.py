"""How a reranker wants to be used, from its files and its tokenizer: labels, activation, how pairs become tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...runtime.bundle.manifest import PairFacts, RerankerFacts, Scores, Truncation
from ...runtime.errors import CheckpointError, UnsupportedModelError
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.cross_encoder import (
    CrossEncoderFiles,
    Form,
    Messages,
    labels_of,
    labels_of_dense,
    scores_of,
)
from ..checkpoint.files import TOKENIZER_CONFIG
from ..checkpoint.kind import positions_of, required_int
from ..checkpoint.sentence_transformers import checked_length, read_object

_JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
BEFORE = f"<|im_start|>system\n{_JUDGE}<|im_end|>\n<|im_start|>user\n"
_QUERY_PREFIX = "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>: "
_QUERY_SUFFIX = "\n<Document>:"
_DOCUMENT_PREFIX = " "
AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
"""The prompt of Qwen3-Reranker (its model card, 2025), which answers with one of two words."""
_ANSWERS = ("yes", "no")
_QUERY_MARK, _DOCUMENT_MARK = "  Which way is north  ", "  Follow the needle  "
_BOUNDARIES = tuple(
    (query, document)
    for query in ("a", "\n b ")
    for document in ("a", " a", "\n\na ", "A", "1", "!", "\u0301", "漢", "😀", "  ", "", "</s>")
)
"""Pairs whose texts may grow together with what stands around them."""


def reranker_facts(checkpoint: Checkpoint, files: CrossEncoderFiles, tokenizer: Any) -> RerankerFacts:
    """Labels, activation and pairs; `tokenizer` is that of transformers. Nothing is guessed."""
    if follows_model_card(files):
        return RerankerFacts((_ANSWERS[0],), Scores.SIGMOID, prompt_facts(tokenizer))
    labels = _label_names(checkpoint, files, tokenizer)
    template = getattr(tokenizer, "chat_template", None) is not None
    # Without settings of its own, a chat template puts the pairs together where there is one.
    inferred: Messages | None = "auto" if template else None
    messages = files.messages if files.saved else inferred
    if messages is None:
        pair = pair_facts(checkpoint, tokenizer, files.prompt)
    else:
        pair = _template_facts(checkpoint, _renderer(checkpoint, tokenizer, files.prompt, messages), tokenizer)
    return RerankerFacts(labels, scores_of(checkpoint, len(labels)), pair)


def follows_model_card(files: CrossEncoderFiles) -> bool:
    """Whether it is a decoder as transformers saves it, which says nothing of pairs: Qwen3-Reranker's card does."""
    return files.form is Form.ANSWER and not files.saved


def _label_names(checkpoint: Checkpoint, files: CrossEncoderFiles, tokenizer: Any) -> tuple[str, ...]:
    if files.form is Form.CLASSIFIER:
        return labels_of(checkpoint)
    if files.form is Form.MODULES:
        return labels_of_dense(checkpoint, files.modules)
    relevant, _ = answer_ids(checkpoint, files, tokenizer)
    return (str(tokenizer.convert_ids_to_tokens(relevant)),)


def pair_length(checkpoint: Checkpoint, files: CrossEncoderFiles, tokenizer: Any, pair: PairFacts) -> int:
    """Tokens of a pair that the model reads, special ones included: sentence-transformers' `max_seq_length`.

    Within the rows of a table of positions, beyond which the library fails.
    """
    positions = required_int(checkpoint, checkpoint.architecture.positions)
    length = files.max_length
    if length is None:
        given = getattr(tokenizer, "model_max_length", positions)
        where = f"`model_max_length` in `{checkpoint.folder / TOKENIZER_CONFIG}`"
        length = min(checked_length(given, where), positions)
    last = last_position(checkpoint)
    length = length if last is None else min(length, last)
    around = len(pair.before) + len(pair.between) + len(pair.after)
    if length < around + 2:
        raise CheckpointError(
            f"`{checkpoint.name}` reads {length} tokens, which leaves no room for a query and a document"
        )
    return length


def last_position(checkpoint: Checkpoint) -> int | None:
    """How many tokens the table of positions is for; None for a model that has none."""
    architecture = checkpoint.architecture
    biased = architecture.name == "deberta-v2" and checkpoint.config.get("position_biased_input", True) is True
    return positions_of(checkpoint) if biased or architecture.merged_attention else None


def pair_facts(checkpoint: Checkpoint, tokenizer: Any, prompt: str = "") -> PairFacts:
    """What a tokenizer puts around the two texts of a pair, found by having it read one; `prompt` precedes both."""
    encoded = tokenizer("a", "b")
    sequences = encoded.sequence_ids()
    both = {0, 1} <= set(sequences)
    first, last = _place_of(sequences, 0) if both else (0, 0)
    start, end = _place_of(sequences, 1) if both else (0, 0)
    # Nothing but special tokens stands before the query, between the two, and after the document.
    if not both or first > start or set(sequences[first:last]) != {0} or set(sequences[start:end]) != {1}:
        raise UnsupportedModelError(f"the tokenizer of `{checkpoint.name}` does not put a query before a document")
    ids = encoded["input_ids"]
    types = encoded.get("token_type_ids") or [0] * len(ids)
    if set(types[:start]) != {0} or len(set(types[start:])) != 1:
        raise UnsupportedModelError(
            f"the tokenizer of `{checkpoint.name}` gives the tokens of a pair the types {types}, which is not "
            "supported",
            hint="supported: type 0 up to the document, and one type from there on",
        )
    return PairFacts(
        tuple(ids[:first]),
        tuple(ids[last:start]),
        tuple(ids[end:]),
        types[start],
        truncation=Truncation.LONGEST,
        query_prefix=prompt,
    )


def _place_of(sequences: list[int | None], number: int) -> tuple[int, int]:
    """Where the tokens of a text begin and end."""
    return sequences.index(number), len(sequences) - sequences[::-1].index(number)


Renderer = Callable[[str, str], str]
"""A query and a document to the text that the model reads."""


def _renderer(checkpoint: Checkpoint, tokenizer: Any, prompt: str, messages: Messages) -> Renderer:
    """sentence-transformers' way to put a pair into the chat template: messages of the roles `query` and `document`."""
    # Loads torch and transformers.
    from sentence_transformers.base.modality import InputFormatter  # noqa: PLC0415

    formatter = InputFormatter(checkpoint.config["model_type"], message_format=messages, processor=tokenizer)

    def rendered(query: str, document: str) -> str:
        conversation = formatter.pair_to_messages((query, document))
        if prompt:
            [conversation] = formatter.prepend_prompt_to_messages([conversation], prompt)
        try:
            return str(tokenizer.apply_chat_template(conversation, tokenize=False))
        # A template raises whatever it wants to.
        except Exception as error:
            raise UnsupportedModelError(
                f"the chat template of `{checkpoint.name}` takes no messages of the roles `query` and "
                f"`document`: {error}",
                hint="sentence-transformers puts pairs together with it where a tokenizer has one",
            ) from error

    return rendered


def _template_facts(checkpoint: Checkpoint, rendered: Renderer, tokenizer: Any) -> PairFacts:
    """What a chat template puts around the two texts of a pair, found by rendering some."""
    query, document = _QUERY_MARK, _DOCUMENT_MARK
    text = rendered(query, document)
    head, _, rest = text.partition(query)
    middle, _, tail = rest.partition(document)
    unlike = next(
        (
            pair
            for pair in [(query, document), *_BOUNDARIES]
            if rendered(*pair) != head + pair[0] + middle + pair[1] + tail
        ),
        None,
    )
    if unlike is not None:
        raise UnsupportedModelError(
            f"the chat template of `{checkpoint.name}` does not put a query before a document, each as it is",
            hint=f"the query {unlike[0]!r} and the document {unlike[1]!r} become {rendered(*unlike)[-200:]!r}",
        )
    if getattr(tokenizer, "truncation_side", "right") != "right":
        raise UnsupportedModelError(
            f"the tokenizer of `{checkpoint.name}` cuts its prompts at the left, which is not supported"
        )

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    after = ids(tail)
    stripped = middle.rstrip()
    for end, start in ((stripped, middle[len(stripped) :]), (middle, "")):
        if all(
            ids(rendered(*pair)) == ids(head + pair[0] + end) + ids(start + pair[1]) + after for pair in _BOUNDARIES
        ):
            return PairFacts(
                (),
                (),
                tuple(after),
                document_type=0,
                truncation=Truncation.END,
                query_prefix=head,
                query_suffix=end,
                document_prefix=start,
            )
    raise UnsupportedModelError(
        f"the tokens that `{checkpoint.name}` has for a document depend on the prompt before it, which is not supported"
    )


def prompt_facts(tokenizer: Any) -> PairFacts:
    """The prompt of Qwen3-Reranker's model card."""
    before, after = (tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (BEFORE, AFTER))
    return PairFacts(
        before,
        (),
        after,
        document_type=0,
        truncation=Truncation.END,
        query_prefix=_QUERY_PREFIX,
        query_suffix=_QUERY_SUFFIX,
        document_prefix=_DOCUMENT_PREFIX,
    )


def answer_ids(checkpoint: Checkpoint, files: CrossEncoderFiles, tokenizer: Any) -> tuple[int, int | None]:
    """The ids of the words for relevant and for not; None where the score is the logit of the first alone."""
    if files.saved:
        name = f"{files.modules[0][1]}/config.json"
        stated = read_object(checkpoint, name)
        relevant, irrelevant = stated.get("true_token_id"), stated.get("false_token_id")
        vocabulary = required_int(checkpoint, "vocab_size")
        given = [relevant] if irrelevant is None else [relevant, irrelevant]
        if not all(type(one) is int and 0 <= one < vocabulary for one in given):
            raise CheckpointError(
                f"`true_token_id` and `false_token_id` in `{checkpoint.folder / name}` must be ids below {vocabulary}, "
                f"not `{relevant}` and `{irrelevant}`"
            )
        if stated.get("module_input_name", "causal_logits") != "causal_logits":
            raise UnsupportedModelError(
                f"the module `LogitScore` of `{checkpoint.name}` reads `{stated['module_input_name']}`, which is not "
                "supported",
                hint="supported: `causal_logits`",
            )
        return int(relevant), irrelevant  # type: ignore[arg-type] # an integer here
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in _ANSWERS)
    if yes is None or no is None or yes == no:
        raise CheckpointError(f"the tokenizer of `{checkpoint.name}` has no tokens `yes` and `no`")
    return yes, no


def reference_ids(tokenizer: Any, facts: PairFacts, max_length: int, query: str, document: str) -> dict[str, list[int]]:
    """What transformers' own tokenizer makes of a pair, cut as sentence-transformers has it: the model's inputs."""
    if facts.truncation is Truncation.END:
        text = facts.query_prefix + query + facts.query_suffix + facts.document_prefix + document
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        room = max_length - len(facts.before) - len(facts.after)
        return {"input_ids": [*facts.before, *ids[:room], *facts.after]}
    # A batch, as the library has it: of one pair, transformers drops an empty document.
    batch = [[facts.query_prefix + query, document]]
    encoded = tokenizer(batch, truncation="longest_first", max_length=max_length)
    return {name: encoded[name][0] for name in ("input_ids", "token_type_ids") if name in encoded}
