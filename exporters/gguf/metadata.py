"""Read and check the metadata of a GGUF file before torch is loaded: architecture, sizes, tokens, chat template.

Metadata that changes what a model computes and is not supported is an error that names the key. Ignored, as llama.cpp
does: names, authors, and the keys of other programs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...runtime.errors import CheckpointError, UnsupportedModelError
from .header import GgufHeader, GgufTensor, Metadata, read_header, shown
from .tokenizer import CONTROL, Vocabulary, read_vocabulary

HUB = "export the Hub's checkpoint instead"
ROPE_FACTORS = "rope_freqs.weight"
_TOKEN_EMBEDDINGS = "token_embd.weight"  # noqa: S105 - the name of a tensor
_BLOCK_NAME = re.compile(r"blk\.(\d{1,9})\.")
_LARGEST = 2**20
"""Upper limit of sizes without a limit of their own."""
_INTEGERS: Mapping[str, tuple[int, int]] = {
    "block_count": (1, 1024),
    "context_length": (1, 2**22),
    "embedding_length": (1, _LARGEST),
    "feed_forward_length": (1, _LARGEST),
    "attention.head_count": (1, 2**14),
    "attention.head_count_kv": (1, 2**14),
    "attention.key_length": (1, 2**14),
    "attention.value_length": (1, 2**14),
    "rope.dimension_count": (1, 2**14),
    "vocab_size": (1, 2**24),
    "attention.sliding_window": (0, 2**31),
    "rope.scaling.original_context_length": (1, 2**22),
}
"""Integer metadata, without the architecture's prefix -> minimum and maximum."""
NUMBERS = (
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
"""Float metadata, without the architecture's prefix."""
_REQUIRED = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)
"""Metadata without which llama.cpp does not load a model."""
_SIZES = frozenset(
    {
        *_REQUIRED,
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
        "rope.freq_base",
        "vocab_size",
    }
)
"""Metadata that any decoder may have."""
_WINDOW = frozenset({"attention.sliding_window"})
_TRAINED_LENGTH = "rope.scaling.original_context_length"
"""llama.cpp writes it for every Phi-3, also where it is the whole context and nothing is scaled."""
_CAPS = frozenset({"attn_logit_softcapping", "final_logit_softcapping"})
ARCHITECTURES: Mapping[str, frozenset[str]] = {
    "gemma2": _SIZES | _WINDOW | _CAPS,
    "gemma3": _SIZES | _WINDOW,
    "llama": _SIZES,
    "phi3": _SIZES | _WINDOW | {_TRAINED_LENGTH},
    "qwen2": _SIZES,
    "qwen3": _SIZES,
}
"""Supported values of `general.architecture` -> the metadata supported for each, as tested against PyTorch."""
_WITHOUT_EFFECT = (
    ("attention.causal", True),
    ("expert_count", 0),
    ("expert_used_count", 0),
    ("rope.scaling.attn_factor", 1.0),
    ("rope.scaling.factor", 1.0),
    ("rope.scaling.finetuned", False),
    ("rope.scaling.type", "none"),
    ("tensor_data_layout", "Meta AI original pth"),
)
"""Other metadata with the value that leaves the model as it is."""
_OTHER_MODELS = ("adapter.", "clip.", "diffusion.", "imatrix.", "xielu.")
"""Prefixes of metadata that changes the model, whatever its architecture."""
_KINDS_OF_FILES = {
    "adapter": "merge it into its model first",
    "imatrix": "it holds an importance matrix; export the model's own file",
    "mmproj": "it holds a multimodal projector; export the model's own file",
    "vocab": "it holds only a tokenizer; export the model's own file",
}
"""Values of `general.type` that are not models -> what to do."""
_QUANTIZATION_VERSION = 2
"""The version of ggml's block formats; version 1 has another layout."""
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""Key after `general.sampling.` -> its name in generation_config.json."""
_SAMPLING_WITHOUT_EFFECT = frozenset({"sequence", "penalty_last_n", "xtc_threshold", "mirostat_tau", "mirostat_eta"})
"""Parameters of samplers that are off, and the order of samplers."""
_LONGEST_LICENSE = 200
_LONGEST_TEMPLATE = 2**18
"""Characters."""
_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
)
"""Special tokens that end generation even where the file does not list them, as in llama.cpp."""


@dataclass(frozen=True)
class GgufFile:
    """The metadata of a GGUF file, checked."""

    path: Path
    architecture: str
    about: Mapping[str, Any]
    """Metadata under the architecture's prefix, by the keys of ARCHITECTURES; None where the file has none."""
    vocabulary: Vocabulary
    eos_ids: tuple[int, ...]
    chat_template: str | None
    license: str | None
    sampling: Mapping[str, float]
    """The publisher's sampling parameters, as generation_config.json names them."""
    header: GgufHeader = field(repr=False)

    @property
    def context_length(self) -> int:
        return int(self.about["context_length"])

    @property
    def tensors(self) -> tuple[GgufTensor, ...]:
        return self.header.tensors

    @property
    def tokens(self) -> tuple[str, ...]:
        return self.vocabulary.tokens

    @property
    def bos_id(self) -> int | None:
        return self.vocabulary.bos_id

    @property
    def add_bos(self) -> bool:
        return self.vocabulary.adds_bos

    @property
    def block_types(self) -> frozenset[str]:
        """The quantized types of its matrices; empty for a file that is not quantized."""
        return frozenset(tensor.type for tensor in self.tensors if tensor.in_blocks and len(tensor.shape) == 2)


def open_gguf(path: Path) -> GgufFile:
    """Read the metadata of a GGUF file, without its weights.

    Raises NotFoundError, CheckpointError for a file that is not GGUF, truncated or damaged, and UnsupportedModelError
    for a model that would not be exported exactly.
    """
    header = read_header(path)
    metadata = Metadata(path.name, header.fields)
    architecture = _checked_architecture(metadata)
    _check_file(metadata, header)
    about = _architecture_metadata(metadata, architecture)
    _check_sizes(path.name, architecture, about)
    _check_tensors(path.name, architecture, about, header.tensors)
    vocabulary = read_vocabulary(path.name, header.fields)
    return GgufFile(
        path,
        architecture,
        about,
        vocabulary,
        _eos_ids(vocabulary),
        metadata.text("tokenizer.chat_template", _LONGEST_TEMPLATE),
        metadata.text("general.license", _LONGEST_LICENSE),
        _sampling_of(metadata),
        header,
    )


def _checked_architecture(metadata: Metadata) -> str:
    kind = metadata.text("general.type")
    if kind not in (None, "model"):
        raise UnsupportedModelError(
            f"`{metadata.name}` has `general.type` set to `{shown(kind)}`, so it is not a model",
            hint=_KINDS_OF_FILES.get(str(kind), "export the model's own file"),
        )
    architecture = metadata.text("general.architecture")
    if architecture is None:
        raise CheckpointError(f"`{metadata.name}` has no `general.architecture` in its metadata")
    if architecture not in ARCHITECTURES:
        supported = ", ".join(f"`{known}`" for known in ARCHITECTURES)
        raise UnsupportedModelError(
            f"`{metadata.name}` has the architecture `{shown(architecture)}`, which is not supported in GGUF files",
            hint=f"supported: {supported}; {HUB}",
        )
    return architecture


def _check_file(metadata: Metadata, header: GgufHeader) -> None:
    """Raise UnsupportedModelError for a shard, for a file that is not a model, and for another quantization version."""
    parts = metadata.integer("split.count", 0, 2**16)
    if parts is not None and parts > 1:
        raise UnsupportedModelError(
            f"`{metadata.name}` is one of {parts} shards of a model",
            hint="merge them with `llama-gguf-split --merge`",
        )
    other = next((key for key in metadata.fields if key.startswith(_OTHER_MODELS)), None)
    if other is not None:
        raise _unsupported(metadata, other)
    version = metadata.integer("general.quantization_version", 0, 2**16)
    quantized = any(tensor.in_blocks for tensor in header.tensors)
    if quantized and version not in (None, _QUANTIZATION_VERSION):
        raise _unsupported(metadata, "general.quantization_version")
    if not header.tensors:
        raise UnsupportedModelError(f"`{metadata.name}` holds no weights", hint=_KINDS_OF_FILES["vocab"])


def _architecture_metadata(metadata: Metadata, architecture: str) -> dict[str, Any]:
    """Read the metadata under the architecture's prefix; raises UnsupportedModelError for unsupported keys."""
    prefix = f"{architecture}."
    for key in (name.removeprefix(prefix) for name in metadata.fields if name.startswith(prefix)):
        value = metadata.fields[prefix + key]
        if key not in ARCHITECTURES[architecture] and (key, value) not in _WITHOUT_EFFECT:
            raise _unsupported(metadata, prefix + key)
        if isinstance(value, list):
            raise UnsupportedModelError(
                f"`{metadata.name}` has `{prefix}{key}` set per layer; supported: the same value for all layers",
                hint=HUB,
            )
    found: dict[str, Any] = {
        key: metadata.integer(prefix + key, *_INTEGERS[key]) if key in _INTEGERS else metadata.number(prefix + key)
        for key in ARCHITECTURES[architecture]
    }
    required = (*_REQUIRED, *(_WINDOW if architecture == "gemma3" else ()))
    missing = next((key for key in required if found[key] is None), None)
    if missing is not None:
        raise CheckpointError(f"`{metadata.name}` has no `{prefix}{missing}` in its metadata")
    # llama.cpp's defaults.
    defaults = {"attention.head_count_kv": found["attention.head_count"], "rope.freq_base": 10000.0}
    return found | {key: value for key, value in defaults.items() if found[key] is None}


def _unsupported(metadata: Metadata, key: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"`{metadata.name}` has `{shown(key)}` set to `{shown(metadata.fields[key])}`, which is not supported",
        hint=f"ignoring it would change the model; {HUB}",
    )


def _check_sizes(name: str, architecture: str, about: Mapping[str, Any]) -> None:
    """Raise CheckpointError for inconsistent sizes, UnsupportedModelError for unsupported head sizes."""
    width, heads, kv_heads = (
        about[key] for key in ("embedding_length", "attention.head_count", "attention.head_count_kv")
    )
    if about["attention.key_length"] is None and width % heads:
        raise CheckpointError(
            f"`{name}` has an embedding length of {width}, which is not a multiple of its {heads} heads"
        )
    if heads % kv_heads:
        raise CheckpointError(f"`{name}` has {heads} heads, which is not a multiple of its {kv_heads} key-value heads")
    context = about["context_length"]
    trained = about.get(_TRAINED_LENGTH) or context
    if trained != context:
        raise UnsupportedModelError(
            f"`{name}` has a context of {context} tokens and was trained with {trained}, "
            f"which is not supported for `{architecture}`",
            hint=HUB,
        )
    head = head_size(about)
    rotated, values = (about[key] or head for key in ("rope.dimension_count", "attention.value_length"))
    if rotated != head or values != head or head % 2:
        raise UnsupportedModelError(
            f"`{name}` has a head size of {head}, {rotated} rotary dimensions and a value size of {values}",
            hint=f"supported: an even head size, rotary over the whole head, and values of the same size; {HUB}",
        )


def head_size(about: Mapping[str, Any]) -> int:
    """Return the head size."""
    return int(about["attention.key_length"] or about["embedding_length"] // about["attention.head_count"])


def _check_tensors(name: str, architecture: str, about: Mapping[str, Any], tensors: tuple[GgufTensor, ...]) -> None:
    """Compare the tensors with the metadata, so that no huge model is built from wrong sizes."""
    names = {tensor.name: tensor for tensor in tensors}
    if ROPE_FACTORS in names and architecture != "llama":
        raise UnsupportedModelError(f"`{name}` has `{ROPE_FACTORS}`, which is supported for `llama` only", hint=HUB)
    numbers = {int(found[1]) for found in map(_BLOCK_NAME.match, names) if found is not None}
    stated = about["block_count"]
    if numbers != set(range(stated)):
        raise CheckpointError(
            f"`{name}` has {stated} layers by `{architecture}.block_count`, and tensors of {len(numbers)} layers"
        )
    embeddings = names.get(_TOKEN_EMBEDDINGS)
    if embeddings is None:
        raise CheckpointError(f"`{name}` has no tensor `{_TOKEN_EMBEDDINGS}`")
    width, rows = about["embedding_length"], about.get("vocab_size")
    shape = embeddings.shape
    if len(shape) != 2 or shape[1] != width or (rows is not None and shape[0] != rows):
        raise CheckpointError(
            f"`{name}` has `{_TOKEN_EMBEDDINGS}` of the shape {list(shape)} instead of {[rows or 'tokens', width]}"
        )


def _eos_ids(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Return the EOS ids, those of the metadata first."""
    stated = [vocabulary.ids.get(f"{name}_token_id") for name in ("eos", "eot", "eom")]
    places = {token: number for number, token in enumerate(vocabulary.tokens)}
    known = [places[end] for end in _ENDS if end in places and vocabulary.types[places[end]] == CONTROL]
    return tuple(dict.fromkeys([*(number for number in stated if number is not None), *known]))


def _sampling_of(metadata: Metadata) -> dict[str, float]:
    """Read the publisher's sampling parameters; raises UnsupportedModelError for samplers that are not supported."""
    prefix = "general.sampling."
    found = {}
    for key in (name.removeprefix(prefix) for name in metadata.fields if name.startswith(prefix)):
        if key in _SAMPLING:
            found[_SAMPLING[key]] = metadata.of_type(prefix + key, (int, float), "a number")
            if not math.isfinite(found[_SAMPLING[key]]):
                raise metadata.wrong(prefix + key, "a finite number")
        elif key not in _SAMPLING_WITHOUT_EFFECT and metadata.fields[prefix + key] != 0:
            raise _unsupported(metadata, prefix + key)
    return found
