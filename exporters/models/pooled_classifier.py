"""Cross-encoders made of modules: an encoder, then sentence-transformers' own pooling and dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import LayerNorm, Normalize, Pooling
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from ...runtime.errors import CheckpointError
from ..checkpoint.checkpoint import Checkpoint, check_safetensors
from ..checkpoint.files import WEIGHTS
from .library_errors import library_errors
from .published_model import readable_folder

_CLASSES = {"Dense": Dense, "LayerNorm": LayerNorm, "Normalize": Normalize, "Pooling": Pooling}
_WITH_WEIGHTS = ("Dense", "LayerNorm")


class PooledClassifier(PreTrainedModel):  # type: ignore[misc] # transformers has no types
    """An encoder of token embeddings and the modules that make scores of them, for texts without padding."""

    def __init__(self, model: Any, modules: Sequence[Any]) -> None:
        super().__init__(model.config)
        self.model = model
        self.following = nn.ModuleList(modules)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Logits, float32 (batch, labels), of token ids, int64 (batch, tokens)."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        tokens = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        features = {"token_embeddings": tokens, "attention_mask": torch.ones_like(input_ids)}
        for module in self.following:
            features = module(features)
        return SequenceClassifierOutput(logits=features["scores"])


def classifier_of_modules(checkpoint: Checkpoint, model: Any, modules: Sequence[tuple[str, str]]) -> PooledClassifier:
    """Load the modules, given by class and folder, and put them after `model`."""
    with readable_folder(checkpoint) as folder:
        loaded = [_loaded_module(folder, kind, path) for kind, path in modules]
    classifier = PooledClassifier(model, loaded)
    classifier.float()
    classifier.eval()
    return classifier


def _loaded_module(folder: Path, kind: str, path: str) -> Any:
    if kind in _WITH_WEIGHTS:
        # The library would read a pickle otherwise.
        if not (folder / path / WEIGHTS).exists():
            raise CheckpointError(f"the module in `{path}` holds no `{WEIGHTS}`")
        check_safetensors(folder / path / WEIGHTS)
    with library_errors(f"the module in `{path}` cannot be loaded"):
        return _CLASSES[kind].load(str(folder), subfolder=path, local_files_only=True)
