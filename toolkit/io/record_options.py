"""Options in a record beside its prompt or query: apply those of ortkit, refuse those of other programs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ...runtime.errors import InputError
from .answer_options import AnswerOptions
from .json_values import quoted

KINDS: Mapping[str, type] = {
    "max_tokens": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
    "stop": str,
    "lookup": bool,
}
"""Name of an option of AnswerOptions -> type of its value; `stop` may be a list too."""
RESPONSE_FORMAT = "response_format"
"""An option of records alone, as in OpenAI's API: the JSON schema of the answer."""
_OTHER_NAMES = {
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "max_length": "max_tokens",
    "num_predict": "max_tokens",
    "n_predict": "max_tokens",
    "temp": "temperature",
    "repeat_penalty": "repetition_penalty",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "random_seed": "seed",
}
"""Name in other programs -> name in ortkit."""
_FOREIGN_NAMES = """
    min_tokens min_length min_new_tokens do_sample num_beams best_of num_return_sequences typical_p tfs_z eta_cutoff
    epsilon_cutoff mirostat mirostat_tau mirostat_eta repeat_last_n length_penalty no_repeat_ngram_size logit_bias
    bad_words stop_token_ids eos_token_id ignore_eos json_schema guided_json guided_regex guided_choice
    grammar tool_choice functions function_call parallel_tool_calls stream stream_options logprobs top_logprobs
    generation_config sampling_params reasoning_effort chat_template chat_template_kwargs add_generation_prompt
    continue_final_message keep_alive num_ctx n_ctx n_probs
"""
_FOREIGN: Mapping[str, type] = dict.fromkeys(_FOREIGN_NAMES.split(), object) | {
    # Also common names of data fields: options only with a value of this type.
    "system": str,
    "tools": list,
    "options": dict,
    "parameters": dict,
    "context": int,
    "threads": int,
    "n": int,
    "format": dict,
}
"""Options that ortkit does not have, or not for a single record -> type of their values."""
_SEARCH_NAMES = """
    top_n top_k scores label return_documents return_text raw_scores truncate truncation_direction rank_fields
    max_chunks_per_doc max_tokens_per_doc truncate_prompt_tokens instruction no_truncate
"""
_SEARCH_OPTIONS: Mapping[str, type] = dict.fromkeys(_SEARCH_NAMES.split(), object)
"""Options of rerankers, in ortkit and other programs."""


def _normalized(name: str) -> str:
    """The same name for `maxTokens`, `max-tokens` and `Max_Tokens`."""
    return "".join(character for character in name.lower() if character.isalnum())


def with_fields(options: AnswerOptions, fields: Mapping[str, Any], taken: Iterable[str]) -> AnswerOptions:
    """The options of the command line, overridden by those in a record; `taken` are its data fields.

    Raises InputError for an invalid value, and for the name of an option of another program.
    """
    given = {name: value for name, value in fields.items() if name not in set(taken) and value is not None}
    _refuse_foreign(given, _FOREIGN, names=(*KINDS, RESPONSE_FORMAT))
    found = {name: option_value(name, given[name]) for name in KINDS if name in given and given[name] != ""}
    return dataclasses.replace(options, **found)


def refuse_search_options(fields: Mapping[str, Any], taken: Iterable[str]) -> None:
    """Raises InputError for an option in a search: only the command line has options, for all searches."""
    given = {name: value for name, value in fields.items() if name not in set(taken) and value is not None}
    _refuse_foreign(given, _SEARCH_OPTIONS, names=())


def _refuse_foreign(given: Mapping[str, Any], foreign: Mapping[str, type], *, names: Collection[str]) -> None:
    meant = {_normalized(name): name for name in names} | {
        _normalized(other): name for other, name in _OTHER_NAMES.items() if name in names
    }
    kinds = {_normalized(name): kind for name, kind in foreign.items()}
    for name, value in given.items():
        if name in names:
            continue
        plain = _normalized(name)
        if plain in meant:
            raise InputError(f"{quoted([name])} is not an option of ortkit", hint=f"write it `{meant[plain]}`")
        kind = kinds.get(plain)
        if kind is not None and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            raise InputError(f"{quoted([name])} is an option that records cannot have", hint=_hint_for(plain, names))


def _hint_for(plain: str, names: Collection[str]) -> str:
    if plain == "system":
        return 'put it in `messages`: [{"role": "system", "content": "..."}, ...], or give `--system` for all'
    if names:
        return f"remove or rename the field; a record may have {', '.join(f'`{name}`' for name in names)}"
    option = {"topn": "--top-n", "topk": "--top-n", "scores": "--scores", "label": "--label"}.get(plain)
    if option is None:
        return "remove or rename the field"
    return f"give `{option}` on the command line, for all searches"


def option_value(name: str, value: object) -> Any:
    """The value of an option from a number, a string or a boolean; raises InputError for an invalid one."""
    kind = KINDS[name]
    if name == "stop":
        stops = [value] if isinstance(value, str) else value
        if isinstance(stops, list) and all(isinstance(stop, str) and stop for stop in stops):
            return tuple(stops)
        raise InputError(f"`stop` must be a string or a list of strings, not {value!r}")
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise InputError(f"`{name}` must be true or false, not {value!r}")
    found = _number_of(value)
    if found is None or (kind is int and not found.is_integer()):
        noun = "an integer" if kind is int else "a number"
        raise InputError(f"`{name}` must be {noun}, not {value!r}")
    if name == "max_tokens" and found < 1:
        raise InputError(f"`max_tokens` must be at least 1, not {value}")
    return int(found) if kind is int else found


def _number_of(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
