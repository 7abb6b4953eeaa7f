"""Open a checkpoint with the library it was published for: the reference that certificates compare with.

Nothing is downloaded and no code of a checkpoint runs: `local_files_only`, no `trust_remote_code`, float32, CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import sentence_transformers
import torch
import transformers
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder

from exporters.checkpoint import Checkpoint
from exporters.checkpoint_files import TOKENIZER_CONFIG
from exporters.cross_encoder import read_cross_encoder
from exporters.pair_facts import answer_ids, follows_model_card, last_position, prompt_facts, reference_ids
from exporters.pytorch_model import load_tokenizer, load_weights, quiet
from runtime.errors import CheckpointError

VERSIONS = f"transformers {transformers.__version__}, torch {torch.__version__}, float32"
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


def open_cross_encoder(checkpoint: Checkpoint) -> CrossEncoder:
    """The reranker as sentence-transformers builds it; raises CheckpointError when it cannot."""
    model: CrossEncoder = opened(checkpoint, CrossEncoder)
    return model


@contextmanager
def readable_folder(checkpoint: Checkpoint) -> Iterator[Path]:
    """The checkpoint's folder, or a copy of links where a later version of a library wrote some of its files.

    What those say is put in the terms of the installed versions, which would misread them or fail.
    """
    changed = changed_files(checkpoint)
    settings = checkpoint.read_json(TOKENIZER_CONFIG) or {}
    later = settings.get("tokenizer_class") == "TokenizersBackend" or isinstance(
        settings.get("extra_special_tokens"), list
    )
    if not changed and not later:
        yield checkpoint.top
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        for path in checkpoint.top.rglob("*"):
            if path.is_file():
                target = folder / path.relative_to(checkpoint.top)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path.absolute())
        for file, content in changed.items():
            (folder / file).unlink()
            (folder / file).write_text(json.dumps(content), encoding="utf-8")
        if later:
            written = folder / "written"
            load_tokenizer(checkpoint).save_pretrained(written)
            for path in written.iterdir():
                path.replace(folder / checkpoint.subfolder / path.name)
        yield folder


def changed_files(checkpoint: Checkpoint) -> dict[str, Any]:
    """Files that the installed versions do not read as they are meant, and what they would have to say."""
    changed: dict[str, Any] = {}
    if checkpoint.config != checkpoint.read_json("config.json"):
        changed[str(PurePosixPath(checkpoint.subfolder) / "config.json")] = checkpoint.config
    for kind, path in read_cross_encoder(checkpoint).modules:
        file = f"{path}/config.json"
        config = checkpoint.read_module_json(file)
        if kind == "Dense" and "use_residual" in config:
            changed[file] = {key: value for key, value in config.items() if key != "use_residual"}
    return changed


def opened(checkpoint: Checkpoint, model_class: Callable[..., Any]) -> Any:
    with quiet(), readable_folder(checkpoint) as folder:
        try:
            return model_class(
                str(folder),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": torch.float32, "use_safetensors": True},
            ).eval()
        # The library raises whatever a damaged file makes of its code.
        except Exception as error:
            raise CheckpointError(f"sentence-transformers cannot open `{checkpoint.top}`: {error}") from error


class CrossEncoderReranker:
    """A reranker of sentence-transformers."""

    name = f"sentence-transformers {sentence_transformers.__version__} CrossEncoder, {VERSIONS}"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.encoder = open_cross_encoder(checkpoint)
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
        with quiet():
            try:
                return call()
            # The library raises whatever a checkpoint makes of its code.
            except Exception as error:
                raise CheckpointError(
                    f"sentence-transformers opens `{self.checkpoint.top}` and cannot score a pair with it: {error}"
                ) from error


class ModelCardReranker:
    """A decoder that answers yes or no, as the model card of Qwen3-Reranker computes it with transformers."""

    name = f"the model card of Qwen3-Reranker, {VERSIONS}"

    def __init__(self, checkpoint: Checkpoint, max_length: int) -> None:
        self.tokenizer = load_tokenizer(checkpoint)
        self.facts = prompt_facts(self.tokenizer)
        self.max_length = max_length
        self.relevant, self.irrelevant = answer_ids(checkpoint, self.tokenizer)
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


def published_reranker(checkpoint: Checkpoint, max_length: int) -> PublishedReranker:
    """The reranker in the library that it was published for.

    Decoders without sentence-transformers' settings say nothing of pairs; what they are published with is a model card.
    """
    if follows_model_card(read_cross_encoder(checkpoint)):
        return ModelCardReranker(checkpoint, max_length)
    return CrossEncoderReranker(checkpoint)
