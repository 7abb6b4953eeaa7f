"""The rotary settings of a config.json as transformers 5 writes them, under the names that transformers 4 reads.

transformers 4 does not read `rope_parameters`: it would take its own defaults for them and say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtime.errors import CheckpointError, UnsupportedModelError

KEY = "rope_parameters"
_ALIKE = frozenset({"gemma2", "granite", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3"})
"""Whose layers rotate alike, by `rope_theta` and `rope_scaling`."""
_BY_LAYER = {
    "gemma3_text": {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"},
    "modernbert": {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"},
}
"""Whose layers rotate by the tokens that they reach: kind of layer -> where its base stands."""
_PARTLY = frozenset({"phi3"})
"""Of which a head may be rotated in part."""
_BASE, _SCALING, _PART, _FORM = "rope_theta", "rope_scaling", "partial_rotary_factor", "rope_type"
LENGTH = "original_max_position_embeddings"
_EVERY = "global_attn_every_n_layers"
"""ModernBERT's way to say which layers reach all tokens."""


def with_known_names(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without `rope_parameters`, what it says there said as transformers 4 reads it.

    Raises UnsupportedModelError where that cannot be said, CheckpointError where it is not a rotary setting at all.
    """
    said = config.get(KEY)
    if said is None:
        return {key: value for key, value in config.items() if key != KEY}
    rest = {key: value for key, value in config.items() if key not in (KEY, _SCALING)}
    model_type = config.get("model_type")
    if not isinstance(said, Mapping) or not said:
        raise CheckpointError(f"`{KEY}` in the config.json of `{name}` must be an object")
    if model_type in _ALIKE and _BASE in said:
        return rest | _alike(name, str(model_type), said, rest)
    bases = _BY_LAYER.get(str(model_type))
    if bases is not None and set(said) == set(bases) and _reaches_as_known(config):
        return rest | _by_layer(name, bases, said)
    raise unknown(name, said)


def _alike(name: str, model_type: str, said: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {_BASE: said[_BASE]}
    part = said.get(_PART, 1)
    if model_type in _PARTLY:
        found[_PART] = part
    elif part != 1:
        raise unknown(name, said)
    form = said.get(_FORM, "default")
    if form == "default":
        return found
    scaling = {key: value for key, value in said.items() if key not in (_BASE, _PART)}
    if form == "longrope" and model_type == "phi3":
        # There the length stands beside, and three settings are all that it takes.
        found[LENGTH] = scaling.pop(LENGTH, rest.get(LENGTH))
        scaling["type"] = scaling.pop(_FORM)
    found[_SCALING] = scaling
    return found


def _by_layer(name: str, bases: Mapping[str, str], said: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, key in bases.items():
        own = said[kind]
        if not isinstance(own, Mapping) or _BASE not in own:
            raise unknown(name, said)
        found[key] = own[_BASE]
        scaling = {key: value for key, value in own.items() if key != _BASE}
        if scaling.get(_FORM, "default") == "default":
            continue
        # Gemma 3 scales the layers that reach all tokens, and ModernBERT none.
        if key != _BASE:
            raise unknown(name, said)
        found[_SCALING] = scaling
    return found


def _reaches_as_known(config: Mapping[str, Any]) -> bool:
    """Whether transformers 4 makes the same layers reach all tokens: it reads Gemma's list, and ModernBERT's period."""
    listed = config.get("layer_types")
    if config.get("model_type") != "modernbert" or listed is None:
        return True
    period = config.get(_EVERY, 3)
    return all((kind == "full_attention") == (place % period == 0) for place, kind in enumerate(listed))


def unknown(name: str, said: Mapping[str, Any]) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"`{name}` has `{KEY}` set to `{dict(said)}`, which is not supported for such a model",
        hint="save it with transformers 4, or export a revision that was",
    )
