"""Run a reranker with the library it was published for: the reference that certificates compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import sentence_transformers
import torch
import transformers
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.cross_encoder import CrossEncoderFiles
from ..models.library_errors import library_errors
from ..models.loading import load_tokenizer, load_weights, quiet
from ..models.published_model import VERSIONS, open_published
from .reranker_config import answer_ids, follows_model_card, last_position, prompt_facts, reference_ids

Pair = tuple[str, str]
"""A query and a document."""


class PublishedReranker(Protocol):
    """A reranker as its publisher's library runs it, one pair at a time."""

    name: str
    """The library with its version, as certificates name it."""

    def tokens(self, pair: Pair) -> dict[str, list[int]]:
        """The model's inputs for a pair, as it reads it."""

    def logits(self, pair: Pair) -> NDArray[np.float32]:
        """Logits (labels,) of a pair."""

    def scores(self, pair: Pair) -> NDArray[np.float32]:
        """What the publisher makes of the logits."""


class CrossEncoderReranker:
    """A reranker of sentence-transformers."""

    name = f"sentence-transformers {sentence_transformers.__version__} CrossEncoder, {VERSIONS}"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.encoder: CrossEncoder = open_published(checkpoint, CrossEncoder)
        last = last_position(checkpoint)
        # The library fails on texts that are longer than the model's table of positions; they are cut there instead.
        if last is not None and (self.encoder.max_seq_length or last) >= last:
            self.encoder.max_seq_length = last

    def tokens(self, pair: Pair) -> dict[str, list[int]]:
        name = self.encoder.default_prompt_name
        prompt = None if name is None else self.encoder.prompts[name]
        features = self.run(lambda: self.encoder.preprocess([list(pair)], prompt=prompt))
        known = ("input_ids", "token_type_ids")
        return {name: features[name][0].tolist() for name in known if name in features}

    def logits(self, pair: Pair) -> NDArray[np.float32]:
        return self.predicted(pair, activation_fn=torch.nn.Identity())

    def scores(self, pair: Pair) -> NDArray[np.float32]:
        return self.predicted(pair)

    def predicted(self, pair: Pair, **options: Any) -> NDArray[np.float32]:
        found = self.run(lambda: self.encoder.predict([pair], batch_size=1, show_progress_bar=False, **options))
        return np.asarray(found, np.float32).reshape(-1)

    def run(self, call: Callable[[], Any]) -> Any:
        message = f"sentence-transformers opens `{self.checkpoint.top}` and cannot score a pair with it"
        with quiet(), library_errors(message):
            return call()


class ModelCardReranker:
    """A decoder that answers yes or no, as the model card of Qwen3-Reranker computes it with transformers."""

    name = f"the model card of Qwen3-Reranker, {VERSIONS}"

    def __init__(self, checkpoint: Checkpoint, files: CrossEncoderFiles, max_length: int) -> None:
        self.tokenizer = load_tokenizer(checkpoint)
        self.facts = prompt_facts(self.tokenizer)
        self.max_length = max_length
        self.relevant, self.irrelevant = answer_ids(checkpoint, files, self.tokenizer)
        self.model = load_weights(checkpoint, transformers.AutoModelForCausalLM)

    def tokens(self, pair: Pair) -> dict[str, list[int]]:
        return reference_ids(self.tokenizer, self.facts, self.max_length, *pair)

    def logits(self, pair: Pair) -> NDArray[np.float32]:
        ids = torch.tensor([self.tokens(pair)["input_ids"]])
        with torch.inference_mode():
            found = self.model(input_ids=ids, logits_to_keep=1).logits[0, -1]
        logit = found[self.relevant] - (0 if self.irrelevant is None else found[self.irrelevant])
        return np.array([float(logit)], np.float32)

    def scores(self, pair: Pair) -> NDArray[np.float32]:
        return np.asarray(1 / (1 + np.exp(-self.logits(pair).astype(np.float64))), np.float32)


def published_reranker(checkpoint: Checkpoint, files: CrossEncoderFiles, max_length: int) -> PublishedReranker:
    """The reranker in the library that it was published for.

    Decoders without sentence-transformers' settings say nothing of pairs; what they are published with is a model card.
    """
    if follows_model_card(files):
        return ModelCardReranker(checkpoint, files, max_length)
    return CrossEncoderReranker(checkpoint)
