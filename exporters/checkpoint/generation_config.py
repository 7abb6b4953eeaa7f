"""How a decoder's publisher chooses tokens: what generation_config.json says, read or refused before the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtime.bundle.manifest import GenerationDefaults
from ...runtime.decoder.sampler import Sampling
from ...runtime.errors import CheckpointError, InputError, UnsupportedModelError
from .checkpoint import Checkpoint
from .sentence_transformers import quoted

_GENERATION = "generation_config.json"
_TOP_K = 50
"""What transformers takes where a file that samples says nothing."""
_NOT_APPLIED: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids"), ([],)),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), ()),
    **dict.fromkeys(("constraints", "sequence_bias", "watermarking_config", "stop_strings"), ([], {})),
    **dict.fromkeys(("no_repeat_ngram_size", "min_length", "min_new_tokens", "penalty_alpha"), (0,)),
    **dict.fromkeys(("num_beams", "num_beam_groups", "guidance_scale", "encoder_repetition_penalty"), (1,)),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "token_healing": (False,),
}
"""Settings that make other text, which ortkit does not apply -> the values with which they do nothing, beside null."""
_NOT_APPLIED_TO_SAMPLES: Mapping[str, tuple[object, ...]] = {
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
}
"""The same of those that count only where tokens are drawn."""


def generation_settings(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What generation_config.json says, nothing where there is none."""
    found = checkpoint.read_json(_GENERATION)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise CheckpointError(f"`{checkpoint.folder / _GENERATION}` must be an object")
    return found


def generation_defaults(checkpoint: Checkpoint) -> GenerationDefaults:
    """What a publisher says about choosing tokens; it samples only where `do_sample` is set, as in transformers.

    Raises UnsupportedModelError for settings that ortkit does not apply, CheckpointError for values that are none.
    """
    settings = generation_settings(checkpoint)
    samples = settings.get("do_sample") is True
    _check_applied(checkpoint, settings, _NOT_APPLIED)
    penalty = number(checkpoint, settings, "repetition_penalty")
    found = GenerationDefaults(repetition_penalty=penalty)
    if samples:
        _check_applied(checkpoint, settings, _NOT_APPLIED_TO_SAMPLES)
        temperature, top_k = (number(checkpoint, settings, key) for key in ("temperature", "top_k"))
        if top_k is not None and not top_k.is_integer():
            raise CheckpointError(f"`top_k` in `{checkpoint.folder / _GENERATION}` must be an integer, not {top_k}")
        found = GenerationDefaults(
            temperature=1.0 if temperature is None else temperature,
            top_k=int(top_k) if top_k is not None else None if "top_k" in settings else _TOP_K,
            top_p=number(checkpoint, settings, "top_p"),
            min_p=number(checkpoint, settings, "min_p"),
            repetition_penalty=penalty,
        )
    try:
        Sampling(**{name: value for name, value in vars(found).items() if value is not None})
    except InputError as error:
        raise CheckpointError(f"`{checkpoint.folder / _GENERATION}` cannot be used: {error.message}") from error
    return found


def _check_applied(
    checkpoint: Checkpoint, settings: Mapping[str, Any], not_applied: Mapping[str, tuple[object, ...]]
) -> None:
    for key, neutral in not_applied.items():
        value = settings.get(key)
        if value is not None and value not in neutral:
            raise UnsupportedModelError(
                f"`{checkpoint.name}` has `{key}` set to {quoted(value)} in `{_GENERATION}`, which ortkit does not "
                "apply: its answers would be others than with transformers",
                hint="export a copy without that key, if the model is to answer without it",
            )


def number(checkpoint: Checkpoint, settings: Mapping[str, Any], key: str) -> float | None:
    """A finite number, None where there is none."""
    value = settings.get(key)
    if value is None:
        return None
    # Compared so that NaN fails too, and that no integer is too large to compare.
    if type(value) not in (int, float) or not -(2**31) < value < 2**31:
        raise CheckpointError(f"`{key}` in `{checkpoint.folder / _GENERATION}` must be a number, not {quoted(value)}")
    return float(value)
