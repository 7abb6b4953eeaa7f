"""Models and tokenizers as transformers loads them: float32, from local files, without running a checkpoint's code."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from exporters.checkpoint import Checkpoint
from exporters.checkpoint_files import TOKENIZER_CONFIG
from runtime.errors import CheckpointError

OPSET = 20
"""The first with GELU as one operator."""
NOT_NEEDED = ("pooler.", "embeddings.position_ids")
"""Weights that the token vectors do not depend on, so a checkpoint may lack them."""


def load_config(checkpoint: Checkpoint, config_class: Any = None) -> Any:
    """The config as transformers has it, by default in the class that its `model_type` names."""
    with quiet():
        try:
            return (config_class or transformers.CONFIG_MAPPING[checkpoint.config["model_type"]]).from_dict(
                checkpoint.config
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"the config.json of `{checkpoint.name}` cannot be used: {error}") from error


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer as transformers has it."""
    settings = checkpoint.read_json(TOKENIZER_CONFIG) or {}
    changes: dict[str, Any] = {}
    tokenizer_class = transformers.AutoTokenizer
    try:
        # As transformers 5 writes them: a list that transformers 4 has under another name, and a class that it does not
        # have, whose tokenizer is what tokenizer.json says and nothing more.
        if isinstance(settings.get("extra_special_tokens"), list):
            changes["additional_special_tokens"] = settings["extra_special_tokens"]
            changes["extra_special_tokens"] = {}
        if settings.get("tokenizer_class") == "TokenizersBackend":
            tokenizer_class = transformers.PreTrainedTokenizerFast
        with quiet():
            return tokenizer_class.from_pretrained(
                str(checkpoint.folder), local_files_only=True, trust_remote_code=False, **changes
            )
    # transformers raises whatever a damaged file makes of its code, and tokenizers nothing more exact than this.
    except Exception as error:
        raise CheckpointError(f"the tokenizer of `{checkpoint.name}` cannot be loaded: {error}") from error


def load_weights(checkpoint: Checkpoint, model_class: Any) -> Any:
    config = load_config(checkpoint, getattr(model_class, "config_class", None))
    with quiet():
        try:
            model, info = model_class.from_pretrained(
                str(checkpoint.folder),
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                # The plain attention traces to the operators that `merge_attention` looks for.
                attn_implementation="eager",
                output_loading_info=True,
            )
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"`{checkpoint.folder}` cannot be loaded: {error}") from error
    missing = [key for key in info["missing_keys"] if not key.startswith(NOT_NEEDED)]
    if missing:
        raise CheckpointError(
            f"`{checkpoint.folder}` lacks {len(missing)} of the weights that its config.json promises, "
            f"such as `{min(missing)}`"
        )
    return model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' remarks to themselves; what matters in them is checked and reported by edgekit."""
    before = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(before)
        if bars:
            transformers.logging.enable_progress_bar()
