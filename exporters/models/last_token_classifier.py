"""Classifiers that read the last token of a text, as decoders have them, for texts without padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class LastTokenClassifier(PreTrainedModel):  # type: ignore[misc] # transformers has no types
    """A decoder and a linear layer on the vector of each text's last token.

    transformers' own scores all tokens to use one. With the id of a token for `padding`, the last token is, as there,
    the last that is another one: a text may end with it.
    """

    def __init__(self, model: Any, score: nn.Linear, *, padding: int | None = None) -> None:
        super().__init__(model.config)
        self.model = model
        self.score = score
        self.padding = padding

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> SequenceClassifierOutput:
        """Logits, float32 (batch, labels), of token ids, int64 (batch, tokens), without padding."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.padding is None:
            return SequenceClassifierOutput(logits=self.score(hidden[:, -1]))
        numbers = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (numbers * (input_ids != self.padding)).amax(dim=1)
        rows = torch.arange(input_ids.shape[0], device=input_ids.device)
        return SequenceClassifierOutput(logits=self.score(hidden[rows, last]))


def classifier_of_answers(causal: Any, relevant: int, irrelevant: int | None) -> LastTokenClassifier:
    """One logit: that by which the token `relevant` is likelier to come next than `irrelevant`, or its own."""
    words = causal.get_output_embeddings().weight.detach()
    weight = words[relevant] - words[irrelevant] if irrelevant is not None else words[relevant]
    score = nn.Linear(weight.shape[0], 1, bias=False)
    score.weight = nn.Parameter(torch.clone(weight)[None])
    causal.model.config.num_labels = 1
    classifier = LastTokenClassifier(causal.model, score)
    classifier.eval()
    return classifier
