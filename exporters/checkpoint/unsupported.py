"""What a checkpoint says that ortkit would not read: refused by name, before its weights are downloaded.

What transformers and sentence-transformers would apply, and an export would leave out without a word: adapters beside
the weights, weights that were packed, models of several parts, attention in one direction in an encoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...runtime.errors import UnsupportedModelError

_QUANTIZED = ("quantization_config", "compression_config")
"""Keys of a config.json whose weights are packed, and must be unpacked by the code that packed them."""
_PACKED_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json")
"""Files in which tools say the same."""
_PACKED_KEYS = frozenset({"bits", "w_bit", "quant_method", "quant_type", "quantization", "q_group_size", "quant_algo"})
"""Keys of such a file; transformers.js has one of the same name for the ONNX files beside the weights."""
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTERS = "adapter_model."
DESCRIPTIONS = (_ADAPTER_CONFIG, *_PACKED_FILES)
"""Files that say so, and that an export reads for nothing else."""
_WITHOUT_MEANING = frozenset({"generation_config", "transformers.js_config"})
"""Parts of a config.json that change nothing about a model."""
_MUST_BE_OFF = ("is_encoder_decoder", "is_decoder", "add_cross_attention", "tie_encoder_decoder")
"""Of encoders; decoders attend in one direction anyway."""
_OTHER_DIRECTION: Mapping[str, bool] = {"is_causal": False, "use_bidirectional_attention": True}
"""Keys with which transformers 5 lets a decoder read texts in both directions; transformers 4 does not read them."""
_OTHER_WEIGHTS = "transformers_weights"
"""The key of a config.json that names another file than the usual one."""
_TOKENIZER_PATHS: Mapping[str, object] = {"tokenizer_file": None, "fast_tokenizer_files": ["tokenizer.json"]}
"""Keys of a tokenizer_config.json by which transformers reads another file than tokenizer.json, anywhere on the disk ->
the value with which it does not."""
_BASE_MODEL = "export the model in 16 or 32 bits that it was made from; `--precision` quantizes it"


def check_no_adapter(name: str, files: Iterable[str]) -> None:
    """Raise UnsupportedModelError for a repository or folder, by its files' names, whose weights have an adapter."""
    adapter = next((file for file in sorted(files) if _is_adapter(file)), None)
    if adapter is not None:
        raise UnsupportedModelError(
            f"`{name}` is an adapter, or has one beside its weights (`{adapter}`), which ortkit does not apply",
            hint="merge it with `merge_and_unload()` of `peft`, save the model, and export that",
        )


def _is_adapter(file: str) -> bool:
    name = file.rpartition("/")[2]
    return name == _ADAPTER_CONFIG or name.startswith(_ADAPTERS)


def check_packed_files(name: str, folder: Path) -> None:
    """Raise UnsupportedModelError where a file beside the weights says that they are quantized."""
    for file in _PACKED_FILES:
        path = folder / file
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or _PACKED_KEYS & content.keys():
            raise UnsupportedModelError(
                f"`{name}` is published quantized (`{file}`), and ortkit reads weights in 16 or 32 bits only",
                hint=_BASE_MODEL,
            )


def check_tokenizer_code(name: str, settings: Any) -> None:
    """Raise UnsupportedModelError for a tokenizer_config.json whose tokenizer is code of the checkpoint."""
    auto_map = settings.get("auto_map") if isinstance(settings, Mapping) else None
    if isinstance(auto_map, Mapping) and auto_map.get("AutoTokenizer"):
        raise UnsupportedModelError(
            f"`{name}` brings the code of its own tokenizer (`auto_map` in tokenizer_config.json), and ortkit runs no "
            "code from a checkpoint",
            hint="load it with transformers where you trust the code, and save its `backend_tokenizer`",
        )


def check_tokenizer_paths(name: str, settings: Any) -> None:
    """Raise UnsupportedModelError for a tokenizer_config.json that names the files of its tokenizer.

    transformers reads that path in place of tokenizer.json, whether it lies in the checkpoint or not.
    """
    for key, harmless in _TOKENIZER_PATHS.items() if isinstance(settings, Mapping) else ():
        if settings.get(key) not in (None, harmless):
            raise UnsupportedModelError(
                f"`{name}` names the file of its tokenizer (`{key}` in tokenizer_config.json), and ortkit reads none "
                "but tokenizer.json",
                hint=f"export a copy without `{key}`, where tokenizer.json is the tokenizer that is meant",
            )


def check_unread(name: str, config: Mapping[str, Any], *, encoder: bool) -> None:
    """Raise UnsupportedModelError for parts of a config.json that would be left out."""
    for key in _QUANTIZED:
        settings = config.get(key)
        if settings is not None:
            method = settings.get("quant_method") if isinstance(settings, dict) else settings
            raise UnsupportedModelError(
                f"`{name}` is published quantized (`{key}` in config.json: `{method}`), and ortkit reads weights in "
                "16 or 32 bits only",
                hint=_BASE_MODEL,
            )
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, Mapping) and value and key not in _WITHOUT_MEANING:
            raise UnsupportedModelError(
                f"`{name}` consists of more than ortkit reads: `{key}` in its config.json",
                hint="a model of several parts, such as text and pictures, is not exported",
            )
    _check_later(name, config, encoder=encoder)
    for key in _MUST_BE_OFF if encoder else _MUST_BE_OFF[:1]:
        if config.get(key):
            raise UnsupportedModelError(
                f"`{name}` has `{key}` set to `{config[key]}`, and ortkit does not export such a model",
                hint="encoders are exported that read texts in both directions, and decoders without an encoder",
            )
    if config.get("pruned_heads"):
        raise UnsupportedModelError(f"`{name}` has heads removed (`pruned_heads`), which ortkit does not export")


def _check_later(name: str, config: Mapping[str, Any], *, encoder: bool) -> None:
    """Raise UnsupportedModelError for keys of a config.json that this transformers or ortkit's own readers ignore."""
    if config.get(_OTHER_WEIGHTS) is not None:
        raise UnsupportedModelError(
            f"`{name}` has its weights in another file than the usual one (`{_OTHER_WEIGHTS}` in config.json: "
            f"`{config[_OTHER_WEIGHTS]}`), which ortkit does not read",
            hint="load it with transformers and save it with `save_pretrained`",
        )
    for key, value in () if encoder else _OTHER_DIRECTION.items():
        if config.get(key) is not None and bool(config[key]) is value:
            raise UnsupportedModelError(
                f"`{name}` reads texts in both directions (`{key}` in config.json: `{str(value).lower()}`), which this "
                f"version of ortkit does not do with a `{config.get('model_type')}`",
                hint="its vectors or answers would be those of another model",
            )
