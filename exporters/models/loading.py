"""Models and tokenizers as transformers loads them: float32, from local files, without running a checkpoint's code."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any

import torch
import transformers

from ...runtime.errors import CheckpointError
from ...runtime.text.safe_tokenizer import raise_unless_of_tokenizers
from ..checkpoint.checkpoint import Checkpoint, weight_files
from ..checkpoint.files import TOKENIZER_CONFIG
from ..checkpoint.safetensors_reader import READ_AS, StoredTensor, stored_tensors
from ..printable import printable
from .library_errors import library_errors
from .weight_errors import check_tensor, missing_weights, unexpected_weights

HEADS = frozenset(
    {
        *("classifier", "cls", "decoder", "discriminator_predictions", "generator_predictions", "head", "lm_head"),
        *("lm_predictions", "logits_proj", "mask_predictions", "pooler", "pre_classifier", "predictions", "qa_outputs"),
        *("score", "sequence_summary", "vocab_layer_norm", "vocab_projector", "vocab_transform"),
    }
)
"""What a model has on top for another use, such as the prediction of masked words that it was trained with."""
_COMPUTED = ("position_ids", "inv_freq", "masked_bias")
"""How tensors end that models compute for themselves and that old versions of transformers saved."""
_SIZES = ("_size", "_layers", "_heads", "_dim", "_embeddings", "_positions", "dim")
"""How keys end whose values count something."""
_COUNTS = ("_size", "_layers", "_heads", "_dim")
"""How those end that are never negative, as others are where they are switched off."""
NUMBERS = frozenset(
    {
        *("attn_logit_softcapping", "final_logit_softcapping", "head_dim", "num_key_value_heads"),
        *("original_max_position_embeddings", "partial_rotary_factor", "rope_theta", "rotary_pct", "sliding_window"),
    }
)
"""Keys that some classes have no number for by default."""
NEEDED = ("_eps", "_epsilon", "_theta", "_size", "_layers", "num_attention_heads", "_positions", "_embeddings")
"""How keys end that may not be null where they have a value by default."""
_TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"
"""transformers' name for what it warns of once."""
LARGEST = 2**31
_FEW_TOKENS = torch.tensor([[0, 1, 2]])


def load_config(checkpoint: Checkpoint, config_class: Any = None) -> Any:
    """The config as transformers has it, by default in the class that its `model_type` names."""
    with quiet(), library_errors(f"the config.json of `{checkpoint.name}` cannot be used"):
        config_class = config_class or transformers.CONFIG_MAPPING[checkpoint.config["model_type"]]
        _check_types(checkpoint, config_class())
        config = config_class.from_dict(checkpoint.config)
    # How results are handed over is not part of the model, and the tracer reads them one way.
    config.torchscript = config.output_attentions = config.output_hidden_states = False
    config.return_dict = True
    config.chunk_size_feed_forward = 0
    return config


def _check_types(checkpoint: Checkpoint, usual: Any) -> None:
    """Raise CheckpointError for a value of another type than transformers' own has, in the `usual` config."""
    for key, value in checkpoint.config.items():
        own = getattr(usual, str(key), None)
        wanted = _wrong_type(key, value, own)
        if wanted is not None:
            raise CheckpointError(
                f"`{key}` in the config.json of `{checkpoint.name}` must be {wanted}, not `{printable(repr(value))}`"
            )


def _wrong_type(key: str, value: Any, own: Any) -> str | None:
    """What a value should be, by the one that transformers has for it, where it is not."""
    if value is None:
        return "a number" if type(own) in (int, float) and key.endswith(NEEDED) else None
    number = type(value) in (int, float)
    ids = isinstance(value, list) and all(type(one) is int for one in value)
    if type(own) is int and key.endswith(_SIZES):
        lowest = 0 if key.endswith(_COUNTS) else 1 - LARGEST
        return (
            None if type(value) is int and lowest <= value < LARGEST else f"an integer from {lowest} to {LARGEST - 1}"
        )
    if type(own) in (int, float) or key in NUMBERS:
        fits = number and isfinite(value) and abs(value) < LARGEST
        return None if fits or (ids and key.endswith("_token_id")) else "a number"
    if type(own) is bool:
        return None if type(value) is bool or value in (0, 1) else "true or false"
    for kind, wanted in ((str, "a string"), (list, "a list"), (dict, "an object")):
        if isinstance(own, kind) and not isinstance(value, kind):
            return wanted
    # Of what is not there by default nothing is known, but that no key is for numbers in quotation marks.
    return "a number" if own is None and isinstance(value, str) and _is_number(value) else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
            found = tokenizer_class.from_pretrained(
                str(checkpoint.folder), local_files_only=True, trust_remote_code=False, **changes
            )
            # Some settings and some processors of tokenizer.json fail on the first text, and on all of them.
            found("a")
    # transformers raises whatever a damaged file makes of its code, and tokenizers nothing more exact than this; its
    # panics are BaseExceptions.
    except BaseException as error:
        raise_unless_of_tokenizers(error)
        raise CheckpointError(f"the tokenizer of `{checkpoint.name}` cannot be loaded: {error}") from error
    # Texts may be longer than what `model_max_length` says, which needs no warning where tokens are compared.
    found.deprecation_warnings[_TOO_LONG] = True
    return found


def load_weights(checkpoint: Checkpoint, model_class: Any) -> Any:
    """A model in float32; raises CheckpointError for weights that are damaged, or other ones than it computes with."""
    tensors = stored_tensors(weight_files(checkpoint.folder))
    for tensor in tensors.values():
        if tensor.dtype in READ_AS:
            tensor.check_finite()
    config = load_config(checkpoint, getattr(model_class, "config_class", None))
    with quiet(), library_errors(f"`{checkpoint.folder}` cannot be loaded"):
        with torch.device("meta"):
            _check_shapes(checkpoint, getattr(model_class, "from_config", model_class)(config), tensors)
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
    model.eval()
    _check_superfluous(checkpoint, model, info["unexpected_keys"])
    _check_missing(checkpoint, model, info["missing_keys"])
    return model


def _check_superfluous(checkpoint: Checkpoint, model: Any, unexpected: Iterable[str]) -> None:
    """Raise CheckpointError for tensors that the model leaves out, unless they are the head of another use."""
    own = {name.partition(".")[0] for name in model.state_dict()}
    prefix = f"{model.base_model_prefix}."
    left = []
    for name in unexpected:
        first = name.removeprefix(prefix).partition(".")[0]
        if not name.endswith(_COMPUTED) and (first not in HEADS or first in own):
            left.append(name)
    if left:
        raise unexpected_weights(checkpoint.folder, left)


def _check_shapes(checkpoint: Checkpoint, shapes: Any, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise CheckpointError for tensors that do not fit a model, which is on torch's `meta` device and has no content.

    Told before anything of that size is made: transformers gives random numbers to what is missing.
    """
    largest = max((tensor.size for tensor in tensors.values()), default=0)
    prefix = f"{shapes.base_model_prefix}."
    for name, parameter in shapes.named_parameters():
        promised = tuple(parameter.shape)
        names = (name, prefix + name, name.removeprefix(prefix))
        tensor = next((tensors[one] for one in names if one in tensors), None)
        if tensor is None and parameter.numel() > largest:
            raise CheckpointError(
                f"the config.json of `{checkpoint.name}` promises `{name}` in the shape {promised}, and none of its "
                "tensors is as large"
            )
        if tensor is not None:
            check_tensor(checkpoint.folder, tensor, promised, READ_AS)


def _check_missing(checkpoint: Checkpoint, model: Any, missing: Sequence[str]) -> None:
    """Raise CheckpointError for weights that the checkpoint lacks and the model computes with.

    transformers gives them random numbers. NaN instead comes out of the model where it reads one of them; those that it
    does not read, such as the pooler of an embedder that pools otherwise, become 0.
    """
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    lacking = {name: own[name] for name in sorted(missing) if name in own and own[name].is_floating_point()}

    @torch.inference_mode()
    def reads(names: Iterable[str]) -> bool:
        for name in names:
            lacking[name].fill_(torch.nan)
        found = not bool(model(input_ids=_FEW_TOKENS.clone())[0].isfinite().all())
        for name in names:
            lacking[name].zero_()
        return found

    if lacking and reads(lacking):
        name = next((name for name in lacking if reads([name])), min(lacking))
        raise missing_weights(checkpoint.folder, len(missing), name)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' remarks to themselves; what matters in them is checked and reported by ortkit."""
    bars = transformers.logging.is_progress_bar_enabled()
    libraries = [transformers.logging.get_logger("transformers"), logging.getLogger("sentence_transformers")]
    levels = [library.level for library in libraries]
    _set_levels(libraries, [logging.ERROR] * len(libraries))
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _set_levels(libraries, levels)
        if bars:
            transformers.logging.enable_progress_bar()


def _set_levels(loggers: Sequence[logging.Logger], levels: Sequence[int]) -> None:
    """Set what differs: each `setLevel` empties the caches of all loggers, which are thousands once torch is loaded."""
    for logger, level in zip(loggers, levels, strict=True):
        if logger.level != level:
            logger.setLevel(level)
