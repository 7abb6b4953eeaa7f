"""An embedder as sentence-transformers runs it, from text to vector: the reference that certificates compare with.

Nothing is downloaded and no code of a checkpoint runs: `local_files_only`, no `trust_remote_code`, float32, CPU. Where
the library would need such code for the transformer, edgekit's own implementation takes its place in it. Files of later
versions are put in its terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import sentence_transformers
import torch
import transformers
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Transformer

from exporters.checkpoint import Checkpoint
from exporters.checkpoint_files import TOKENIZER_CONFIG
from exporters.pytorch_model import load_config, load_tokenizer, quiet
from runtime.errors import CheckpointError

LIBRARY = f"sentence-transformers {sentence_transformers.__version__}"
VERSIONS = f"transformers {transformers.__version__}, torch {torch.__version__}, float32"


class PublishedEmbedder:
    """A checkpoint that sentence-transformers has opened, one text at a time."""

    def __init__(self, checkpoint: Checkpoint, model: Any, *, implemented_here: bool) -> None:
        """Open a checkpoint; raises CheckpointError when the library cannot.

        `model` is the transformer that was traced. Where edgekit implements it, it is used here too; else its weights
        are given up, so that they are not in memory twice when the library loads them.
        """
        self.checkpoint = checkpoint
        self.name = f"{LIBRARY}, {VERSIONS}"
        if implemented_here:
            own = checkpoint.architecture.name
            self.name = f"edgekit's own implementation of `{own}` in {self.name}"
        else:
            model.to("meta")
        self.model = opened(checkpoint, model, implemented_here=implemented_here)

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
        with quiet():
            try:
                yield
            # The library and torch raise whatever a checkpoint makes of their code.
            except Exception as error:
                raise CheckpointError(
                    f"sentence-transformers opens `{self.checkpoint.top}` and cannot embed a text with it: {error}"
                ) from error


def opened(checkpoint: Checkpoint, model: Any, *, implemented_here: bool) -> SentenceTransformer:
    """The model as the library builds it, around the transformer `model` where edgekit implements that."""
    with quiet(), TemporaryDirectory() as folder:
        try:
            reader = Reader(checkpoint, model if implemented_here else None, Path(folder))
            found: SentenceTransformer = model_class(reader)(
                str(checkpoint.top),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                # `eager`: a file may ask for an implementation that this machine does not have.
                model_kwargs={"dtype": torch.float32, "use_safetensors": True, "attn_implementation": "eager"},
            )
            return found.eval()
        # The library raises whatever a damaged file makes of its code.
        except Exception as error:
            raise CheckpointError(f"sentence-transformers cannot open `{checkpoint.top}`: {error}") from error


class Reader:
    """How the library reads what it cannot read itself: code that edgekit implements, files of later versions."""

    def __init__(self, checkpoint: Checkpoint, own: Any | None, folder: Path) -> None:
        """`own` is the transformer in place of code; `folder` takes a tokenizer that is written anew."""
        self.own = own
        self.config = own.config if own is not None else load_config(checkpoint)
        self.renamed = own is not None or checkpoint.config != checkpoint.read_json("config.json")
        """Whether transformers would not find all of the config under the names in the file."""
        settings = checkpoint.read_json(TOKENIZER_CONFIG) or {}
        later = settings.get("tokenizer_class") == "TokenizersBackend"
        self.tokenizer: str | None = None
        if later or isinstance(settings.get("extra_special_tokens"), list):
            # Transformers 4 does not read what transformers 5 writes, but for what `load_tokenizer` knows of it.
            load_tokenizer(checkpoint).save_pretrained(folder)
            self.tokenizer = str(folder)


def model_class(reader: Reader) -> type[SentenceTransformer]:
    """The library's class, whose modules read with the help of `reader`."""

    class ReadTransformer(Transformer):
        @classmethod
        def _load_init_kwargs(cls, *arguments: Any, **options: Any) -> dict[str, Any]:
            found: dict[str, Any] = super()._load_init_kwargs(*arguments, **options)
            if reader.tokenizer is not None:
                found["tokenizer_name_or_path"] = reader.tokenizer
                found["processor_kwargs"]["subfolder"] = ""
            if reader.tokenizer is not None or reader.renamed:
                found["processor_kwargs"]["config"] = reader.config
            return found

        def _load_config(self, *arguments: Any) -> tuple[Any, bool]:
            return (reader.config, False) if reader.renamed else super()._load_config(*arguments)

        def _load_model(self, *arguments: Any, **options: Any) -> Any:
            return TokensAlone(reader.own) if reader.own is not None else super()._load_model(*arguments, **options)

    class Opened(SentenceTransformer):
        def _load_module_class_from_ref(self, *arguments: Any, **options: Any) -> Any:
            found = super()._load_module_class_from_ref(*arguments, **options)
            return {Dense: PlainDense, Transformer: ReadTransformer}.get(found, found)

    found: type[SentenceTransformer] = Opened
    return found


class PlainDense(Dense):
    """The library's layer for files of later versions, which may say that there is no residual."""

    @classmethod
    def load_config(cls, *arguments: Any, **options: Any) -> dict[str, Any]:
        settings: dict[str, Any] = super().load_config(*arguments, **options)
        if settings.get("use_residual") is False:
            del settings["use_residual"]
        return settings


class TokensAlone(torch.nn.Module):
    """A transformer that reads token ids and ignores what else the library gives it: texts come one at a time."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, input_ids: torch.Tensor, **_: object) -> Any:
        return self.model(input_ids=input_ids)
