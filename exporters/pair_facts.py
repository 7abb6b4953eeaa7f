"""How a reranker wants to be used, from its config and its tokenizer: labels, activation, how pairs become tokens."""

from __future__ import annotations

from typing import Any

from exporters.architectures import answers_in_words
from exporters.checkpoint import Checkpoint
from runtime.errors import CheckpointError, UnsupportedModelError
from runtime.manifest import PairFacts, RerankerFacts, Scores

ACTIVATIONS = {"Identity": Scores.RAW, "Sigmoid": Scores.SIGMOID}
"""Classes of `torch.nn` that sentence-transformers names in a config, without the modules in which they lie."""
JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
BEFORE = f"<|im_start|>system\n{JUDGE}<|im_end|>\n<|im_start|>user\n"
QUERY_PREFIX = "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>: "
QUERY_SUFFIX = "\n<Document>:"
DOCUMENT_PREFIX = " "
AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
"""The prompt of Qwen3-Reranker (its model card, 2025), which answers with one of two words."""
ANSWERS = ("yes", "no")


def reranker_facts(checkpoint: Checkpoint, tokenizer: Any) -> RerankerFacts:
    """Labels, activation and pairs; `tokenizer` is that of transformers. Nothing is guessed."""
    if answers_in_words(checkpoint.config):
        return RerankerFacts((ANSWERS[0],), Scores.SIGMOID, prompt_facts(checkpoint, tokenizer))
    labels = labels_of(checkpoint)
    return RerankerFacts(labels, scores_of(checkpoint, len(labels)), pair_facts(checkpoint, tokenizer))


def labels_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The names of the logits; those of transformers' default where the config names none."""
    named = checkpoint.config.get("id2label")
    if named is None:
        count = checkpoint.config.get("num_labels", 2)
        if type(count) is not int or count < 1:
            raise CheckpointError(f"`num_labels` in `{checkpoint.folder / 'config.json'}` must be a positive integer")
        return tuple(f"LABEL_{number}" for number in range(count))
    numbers = [str(number) for number in range(len(named))] if isinstance(named, dict) else []
    if not numbers or set(named) != set(numbers) or len(set(named.values())) != len(numbers):
        raise CheckpointError(
            f"`id2label` in `{checkpoint.folder / 'config.json'}` must give the labels 0, 1, ... names of their own"
        )
    return tuple(str(named[number]) for number in numbers)


def scores_of(checkpoint: Checkpoint, labels: int) -> Scores:
    """What the publisher makes of the logits, under the key of sentence-transformers 4 and newer or the older one.

    Without either, as sentence-transformers has it: a sigmoid for one label, the logits for more.
    """
    settings = checkpoint.config.get("sentence_transformers")
    named = settings.get("activation_fn") if isinstance(settings, dict) else None
    named = named or checkpoint.config.get("sbert_ce_default_activation_function")
    if named is None:
        return Scores.SIGMOID if labels == 1 else Scores.RAW
    module, _, name = str(named).rpartition(".")
    if not module.startswith("torch.nn") or name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` applies `{named}` to its logits, which edgekit does not know",
            hint=f"known are {', '.join(f'`torch.nn.{known}`' for known in ACTIVATIONS)}",
        )
    return ACTIVATIONS[name]


def pair_facts(checkpoint: Checkpoint, tokenizer: Any) -> PairFacts:
    """What a tokenizer puts around the two texts of a pair, found by having it read one."""
    encoded = tokenizer("a", "b")
    sequences = encoded.sequence_ids()
    both = {0, 1} <= set(sequences)
    first, last = place_of(sequences, 0) if both else (0, 0)
    start, end = place_of(sequences, 1) if both else (0, 0)
    # Nothing but special tokens stands before the query, between the two, and after the document.
    if not both or first > start or set(sequences[first:last]) != {0} or set(sequences[start:end]) != {1}:
        raise UnsupportedModelError(f"the tokenizer of `{checkpoint.name}` does not put a query before a document")
    ids = encoded["input_ids"]
    types = encoded.get("token_type_ids") or [0] * len(ids)
    if set(types[:start]) != {0} or len(set(types[start:])) != 1:
        raise UnsupportedModelError(
            f"the tokenizer of `{checkpoint.name}` gives tokens of a pair types that edgekit does not know: {types}"
        )
    return PairFacts(tuple(ids[:first]), tuple(ids[last:start]), tuple(ids[end:]), types[start])


def place_of(sequences: list[int | None], number: int) -> tuple[int, int]:
    """Where the tokens of a text begin and end."""
    return sequences.index(number), len(sequences) - sequences[::-1].index(number)


def prompt_facts(checkpoint: Checkpoint, tokenizer: Any) -> PairFacts:
    """The prompt of Qwen3-Reranker; raises UnsupportedModelError for a decoder that says it has another one."""
    template = getattr(tokenizer, "chat_template", None)
    if checkpoint.read_json("modules.json") is not None and JUDGE not in str(template):
        raise UnsupportedModelError(
            f"`{checkpoint.name}` asks for relevance in words that edgekit does not know",
            hint="known is the prompt of Qwen3-Reranker",
        )
    before, after = (tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (BEFORE, AFTER))
    return PairFacts(
        before,
        (),
        after,
        document_type=0,
        query_prefix=QUERY_PREFIX,
        query_suffix=QUERY_SUFFIX,
        document_prefix=DOCUMENT_PREFIX,
    )


def answer_ids(checkpoint: Checkpoint, tokenizer: Any) -> tuple[int, int | None]:
    """The ids of the words for relevant and for not; None where the score is the logit of the first alone."""
    stated = checkpoint.read_json("1_LogitScore/config.json")
    if stated is not None:
        return int(stated["true_token_id"]), stated.get("false_token_id")
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ANSWERS)
    if yes is None or no is None or yes == no:
        raise CheckpointError(f"the tokenizer of `{checkpoint.name}` has no tokens `yes` and `no`")
    return yes, no


def reference_ids(tokenizer: Any, facts: PairFacts, max_length: int, query: str, document: str) -> dict[str, list[int]]:
    """What transformers' own tokenizer makes of a pair, the document cut where both are too long: the model's inputs.

    Prompts are put together as Qwen3-Reranker's model card does: one text, between the tokens before and after it.
    """
    if facts.query_prefix:
        room = max_length - len(facts.before) - len(facts.after)
        text = facts.query_prefix + query + facts.query_suffix + facts.document_prefix + document
        ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=room)["input_ids"]
        return {"input_ids": [*facts.before, *ids, *facts.after]}
    encoded = tokenizer(query, document, truncation="only_second", max_length=max_length)
    return {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
