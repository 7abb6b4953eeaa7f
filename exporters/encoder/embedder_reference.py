"""An embedder as sentence-transformers runs it, from text to vector: the reference that certificates compare with.

Where the library would need code of the checkpoint for the transformer, ortkit's own implementation takes its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import sentence_transformers
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer

from ..checkpoint.checkpoint import Checkpoint
from ..models.library_errors import library_errors
from ..models.loading import quiet
from ..models.published_model import VERSIONS, open_published

LIBRARY = f"sentence-transformers {sentence_transformers.__version__}"


class PublishedEmbedder:
    """A checkpoint that sentence-transformers has opened, one text at a time."""

    def __init__(self, checkpoint: Checkpoint, model: Any, *, implemented_here: bool) -> None:
        """Open a checkpoint; raises CheckpointError when the library cannot.

        `model` is the transformer that was traced. Where ortkit implements it, it is used here too; else its weights
        are given up, so that they are not in memory twice when the library loads them.
        """
        self.checkpoint = checkpoint
        self.name = f"{LIBRARY}, {VERSIONS}"
        if implemented_here:
            own = checkpoint.architecture.name
            self.name = f"ortkit's own implementation of `{own}` in {self.name}"
        else:
            model.to("meta")
        model_class = _class_around(model) if implemented_here else SentenceTransformer
        # `eager`: a file may ask for an implementation that this machine does not have.
        self.model: SentenceTransformer = open_published(checkpoint, model_class, attn_implementation="eager")

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers, as sentence-transformers has set it up."""
        return self.model.tokenizer

    @property
    def max_length(self) -> int | None:
        """Tokens that the library reads of a text, special ones included."""
        found: int | None = self.model.max_seq_length
        return found

    def cut_at(self, max_length: int) -> None:
        """Read so many tokens of a text: the library lets some models read more than they have positions for."""
        self.model.max_seq_length = max_length

    def ids(self, text: str, prompt: str | None = None) -> list[int]:
        """The tokens of a text behind the prompt of this name, or the default one."""
        prefix = self.model.prompts[prompt] if prompt is not None else self.default_prefix
        with self.reported():
            found: list[int] = self.model.preprocess([text], prompt=prefix)["input_ids"][0].tolist()
        return found

    @property
    def default_prefix(self) -> str | None:
        default = self.model.default_prompt_name
        return None if default is None else self.model.prompts[default]

    def vectors(self, texts: Sequence[str], prompt: str | None = None) -> NDArray[np.float32]:
        """The vectors (texts, dimension) of texts behind the prompt of this name, or the default one."""
        with self.reported():
            found = self.model.encode(list(texts), prompt_name=prompt, batch_size=1, show_progress_bar=False)
        return np.asarray(found, np.float32)

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Raise CheckpointError for what the library makes of a checkpoint that it could open."""
        message = f"sentence-transformers opens `{self.checkpoint.top}` and cannot embed a text with it"
        with quiet(), library_errors(message):
            yield


def _class_around(model: Any) -> type[SentenceTransformer]:
    """The library's class, with `model` in place of the transformer for which it would need code of the checkpoint."""

    class ReadTransformer(Transformer):
        @classmethod
        def _load_init_kwargs(cls, *arguments: Any, **options: Any) -> dict[str, Any]:
            found: dict[str, Any] = super()._load_init_kwargs(*arguments, **options)
            found["processor_kwargs"]["config"] = model.config
            return found

        def _load_config(self, *_: Any) -> tuple[Any, bool]:
            return model.config, False

        def _load_model(self, *_: Any, **__: Any) -> Any:
            return TokensAlone(model)

    class Opened(SentenceTransformer):
        def _load_module_class_from_ref(self, *arguments: Any, **options: Any) -> Any:
            found = super()._load_module_class_from_ref(*arguments, **options)
            return ReadTransformer if found is Transformer else found

    found: type[SentenceTransformer] = Opened
    return found


class TokensAlone(torch.nn.Module):
    """A transformer that reads token ids and ignores what else the library gives it: texts come one at a time."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, input_ids: torch.Tensor, **_: object) -> Any:
        return self.model(input_ids=input_ids)
