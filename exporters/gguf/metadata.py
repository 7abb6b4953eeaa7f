"""What a GGUF file says about its model, checked before torch is loaded: architecture, sizes, tokens, template.

"Unread" means "refused": metadata that changes what a model computes and that nothing here reads is an error with its
name. What is left out is what llama.cpp leaves out too: names, authors, and the entries of other programs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .header import GgufHeader, GgufTensor, Metadata, read_header, shown
from .tokenizer import CONTROL, Vocabulary, read_vocabulary
from ...runtime.errors import CheckpointError, UnsupportedModelError

HUB = "export the Hub's checkpoint instead"
ROPE_FACTORS = "rope_freqs.weight"
_TOKEN_EMBEDDINGS = "token_embd.weight"  # noqa: S105 - the name of a tensor
_BLOCK_NAME = re.compile(r"blk\.(\d{1,9})\.")
_LARGEST = 2**20
"""Of sizes that have no bound of their own."""
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
"""The whole numbers that are read about a model, after the architecture's name: the least and the largest."""
NUMBERS = (
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
"""The other numbers."""
_REQUIRED = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)
"""What llama.cpp does not load a model without."""
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
"""What a file says about its model: what every decoder may have."""
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
"""As a file names them, with what may be said about each: what is tested against PyTorch."""
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
"""Of other things that are said, what says that the model has no such thing."""
_OTHER_MODELS = ("adapter.", "clip.", "diffusion.", "imatrix.", "xielu.")
"""How metadata begins that changes what a model is, whatever its architecture."""
_KINDS_OF_FILES = {
    "adapter": "merge it into its model first",
    "imatrix": "it is made for quantizing; export the model's own file",
    "mmproj": "it reads pictures or sound for a model; export the model's own file",
    "vocab": "it holds a tokenizer alone; export the model's own file",
}
"""Values of `general.type` that are not models -> what to do."""
_QUANTIZATION_VERSION = 2
"""Of ggml's blocks; those of version 1 were laid out in another way."""
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""After `general.sampling.`: what generation_config.json calls it."""
_SAMPLING_WITHOUT_EFFECT = frozenset({"sequence", "penalty_last_n", "xtc_threshold", "mirostat_tau", "mirostat_eta"})
"""What only sets up the other ways to choose tokens, or their order."""
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
"""Special tokens after which nothing comes, whether the file says so or not; llama.cpp takes them so too."""


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says about its model."""

    path: Path
    architecture: str
    about: Mapping[str, Any]
    """What it says under the architecture's name: keys of ARCHITECTURES, and None where nothing."""
    vocabulary: Vocabulary
    eos_ids: tuple[int, ...]
    chat_template: str | None
    license: str | None
    sampling: Mapping[str, float]
    """How the publisher chooses tokens, as generation_config.json names it."""
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
        """The types of its matrices that are in blocks; none where the file is not quantized."""
        return frozenset(tensor.type for tensor in self.tensors if tensor.in_blocks and len(tensor.shape) == 2)


def open_gguf(path: Path) -> GgufFile:
    """Read what a GGUF file says, without its weights.

    Raises NotFoundError, CheckpointError for a file that is none, cut short or damaged, and UnsupportedModelError for a
    model that would not be exported exactly.
    """
    header = read_header(path)
    metadata = Metadata(path.name, header.fields)
    architecture = _checked_architecture(metadata)
    _check_file(metadata, header)
    about = _described(metadata, architecture)
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
        raise CheckpointError(f"`{metadata.name}` does not say `general.architecture`")
    if architecture not in ARCHITECTURES:
        supported = ", ".join(f"`{known}`" for known in ARCHITECTURES)
        raise UnsupportedModelError(
            f"`{metadata.name}` has the architecture `{shown(architecture)}`, which is not supported in GGUF files",
            hint=f"supported: {supported}; {HUB}",
        )
    return architecture


def _check_file(metadata: Metadata, header: GgufHeader) -> None:
    """Raise UnsupportedModelError for a part of a model, for something beside one, and for blocks of another layout."""
    parts = metadata.integer("split.count", 0, 2**16)
    if parts is not None and parts > 1:
        raise UnsupportedModelError(
            f"`{metadata.name}` is one of {parts} parts of a model",
            hint="put them together with `llama-gguf-split --merge`",
        )
    other = next((key for key in metadata.fields if key.startswith(_OTHER_MODELS)), None)
    if other is not None:
        raise _unread(metadata, other)
    version = metadata.integer("general.quantization_version", 0, 2**16)
    quantized = any(tensor.in_blocks for tensor in header.tensors)
    if quantized and version not in (None, _QUANTIZATION_VERSION):
        raise _unread(metadata, "general.quantization_version")
    if not header.tensors:
        raise UnsupportedModelError(f"`{metadata.name}` holds no weights", hint=_KINDS_OF_FILES["vocab"])


def _described(metadata: Metadata, architecture: str) -> dict[str, Any]:
    """What a file says about its model; raises UnsupportedModelError for what is not read."""
    prefix = f"{architecture}."
    for key in (name.removeprefix(prefix) for name in metadata.fields if name.startswith(prefix)):
        value = metadata.fields[prefix + key]
        if key not in ARCHITECTURES[architecture] and (key, value) not in _WITHOUT_EFFECT:
            raise _unread(metadata, prefix + key)
        if isinstance(value, list):
            raise UnsupportedModelError(
                f"`{metadata.name}` has `{prefix}{key}` set for each layer, and only equal layers are supported",
                hint=HUB,
            )
    found: dict[str, Any] = {
        key: metadata.integer(prefix + key, *_INTEGERS[key]) if key in _INTEGERS else metadata.number(prefix + key)
        for key in ARCHITECTURES[architecture]
    }
    required = (*_REQUIRED, *(_WINDOW if architecture == "gemma3" else ()))
    missing = next((key for key in required if found[key] is None), None)
    if missing is not None:
        raise CheckpointError(f"`{metadata.name}` does not say `{prefix}{missing}`")
    # What llama.cpp takes where a file does not say it.
    defaults = {"attention.head_count_kv": found["attention.head_count"], "rope.freq_base": 10000.0}
    return found | {key: value for key, value in defaults.items() if found[key] is None}


def _unread(metadata: Metadata, key: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"`{metadata.name}` has `{shown(key)}` set to `{shown(metadata.fields[key])}`, which is not supported",
        hint=f"without it the model would be another one; {HUB}",
    )


def _check_sizes(name: str, architecture: str, about: Mapping[str, Any]) -> None:
    """Raise CheckpointError for sizes that do not fit together, UnsupportedModelError for heads that are not alike."""
    width, heads, kv_heads = (
        about[key] for key in ("embedding_length", "attention.head_count", "attention.head_count_kv")
    )
    if about["attention.key_length"] is None and width % heads:
        raise CheckpointError(f"`{name}` has an embedding of {width} numbers, which {heads} heads cannot share")
    if heads % kv_heads:
        raise CheckpointError(f"`{name}` has {heads} heads, which cannot share {kv_heads} of keys and values")
    context = about["context_length"]
    trained = about.get(_TRAINED_LENGTH) or context
    if trained != context:
        raise UnsupportedModelError(
            f"`{name}` reads {context} tokens and was trained on {trained}, "
            f"which is not supported for `{architecture}`",
            hint=HUB,
        )
    head = head_size(about)
    rotated, values = (about[key] or head for key in ("rope.dimension_count", "attention.value_length"))
    if rotated != head or values != head or head % 2:
        raise UnsupportedModelError(
            f"`{name}` has heads of {head} numbers, of which it rotates {rotated}, and values of {values}",
            hint=f"supported: heads that are rotated as a whole; {HUB}",
        )


def head_size(about: Mapping[str, Any]) -> int:
    """The size of a head, from what a file says about its model."""
    return int(about["attention.key_length"] or about["embedding_length"] // about["attention.head_count"])


def _check_tensors(name: str, architecture: str, about: Mapping[str, Any], tensors: tuple[GgufTensor, ...]) -> None:
    """Compare the tensors with the sizes that are stated, so that no model is made of sizes that nothing has."""
    names = {tensor.name: tensor for tensor in tensors}
    if ROPE_FACTORS in names and architecture != "llama":
        raise UnsupportedModelError(f"`{name}` has `{ROPE_FACTORS}`, which is supported for `llama` only", hint=HUB)
    numbers = {int(found[1]) for found in map(_BLOCK_NAME.match, names) if found is not None}
    stated = about["block_count"]
    if numbers != set(range(stated)):
        raise CheckpointError(
            f"`{name}` states {stated} blocks in `{architecture}.block_count` and has tensors of {len(numbers)}"
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
    """The ids that end a text, that of the metadata first."""
    stated = [vocabulary.ids.get(f"{name}_token_id") for name in ("eos", "eot", "eom")]
    places = {token: number for number, token in enumerate(vocabulary.tokens)}
    known = [places[end] for end in _ENDS if end in places and vocabulary.types[places[end]] == CONTROL]
    return tuple(dict.fromkeys([*(number for number in stated if number is not None), *known]))


def _sampling_of(metadata: Metadata) -> dict[str, float]:
    """How the publisher chooses tokens; raises UnsupportedModelError for a way that is not read."""
    prefix = "general.sampling."
    found = {}
    for key in (name.removeprefix(prefix) for name in metadata.fields if name.startswith(prefix)):
        if key in _SAMPLING:
            found[_SAMPLING[key]] = metadata.of_type(prefix + key, (int, float), "a number")
            if not math.isfinite(found[_SAMPLING[key]]):
                raise metadata.wrong(prefix + key, "a finite number")
        elif key not in _SAMPLING_WITHOUT_EFFECT and metadata.fields[prefix + key] != 0:
            raise _unread(metadata, prefix + key)
    return found
