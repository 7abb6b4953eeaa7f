"""Open a GGUF file as a checkpoint whose weights stay in the file, and read its quantized blocks.

Weights are dequantized when they are asked for, by ggml's own package, and put in the order that transformers has them
in by transformers, which also knows how the file names them. What transformers leaves out of a config is taken from
the file's metadata. Tokenizer, special tokens and chat template come from the metadata too.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, dequantize, get_tensor_name_map
from numpy.typing import NDArray
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from ...runtime.errors import CheckpointError, UnsupportedModelError
from ..checkpoint.architectures import check_architecture
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.files import TOKENIZER_CONFIG, read_json
from ..checkpoint.safetensors_reader import StoredTensor
from ..quantization.blockwise import StoredMatrix
from .block_formats import BLOCK_READERS, SCALES, scales_of
from .header import GgufTensor, shown
from .metadata import ARCHITECTURES, HUB, ROPE_FACTORS, GgufFile, head_size
from .tokenizer import make_tokenizer

_MODEL_TYPES = {"gemma3": "gemma3_text"}
"""GGUF architecture -> the `model_type` of transformers where that differs."""
_QUERY_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
"""The layers of the one size, 27B, whose queries are scaled by another size than the heads'; no file says so."""
_LLAMA3_FACTORS: dict[str, float] = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Those of every Llama 3.1 and later. A file holds what comes of them, for each frequency, instead."""
_ROWS_AT_ONCE = 2**12
"""Bytes of a matrix that are dequantized, or checked for NaN and infinity, at a time."""


@dataclass(frozen=True)
class _DequantizedTensor(StoredTensor):
    """A tensor of a GGUF file, as float32 in the order that transformers has it in."""

    stored: GgufTensor
    processor: Any = field(compare=False)
    """transformers' own, which permutes some matrices."""

    def read(self) -> NDArray[np.float32]:
        found = np.asarray(self.processor.process(_dequantized(self.stored), self.stored.name).weights, np.float32)
        return found.reshape(self.shape)

    def flat(self, first: int, count: int) -> NDArray[np.float32]:
        return self.read().reshape(-1)[first : first + count]

    def equals(self, other: StoredTensor) -> bool:
        return self == other or (self.shape == other.shape and np.array_equal(self.read(), other.read()))


def _dequantized(tensor: GgufTensor) -> NDArray[np.float32]:
    """The numbers of a tensor as ggml has them, some rows at a time: in one call they would be in memory twice."""
    found = np.empty(tensor.shape, np.float32)
    rows = found.reshape(-1, tensor.shape[-1])
    for start, data in _row_chunks(tensor):
        rows[start : start + len(data)] = dequantize(data, GGMLQuantizationType[tensor.type])
    return found


def _row_chunks(tensor: GgufTensor) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield chunks of rows (rows, bytes) with the number of the first row."""
    data = tensor.bytes().reshape(tensor.size // tensor.shape[-1], -1)
    for start in range(0, len(data), _ROWS_AT_ONCE):
        yield start, data[start : start + _ROWS_AT_ONCE]


def described_checkpoint(checkpoint: Checkpoint, file: GgufFile, folder: Path) -> Checkpoint:
    """Return the checkpoint of a GGUF file; its config and tokenizer are written to `folder` in Hugging Face layout.

    Raises CheckpointError when tensors are missing, of the wrong size or not finite, UnsupportedModelError for some
    that the model has no place for.
    """
    config, model = _config_and_model(file)
    tensors = _named_tensors(file, config, model)
    _check_weights(file, model, tensors)
    _check_finite(file)
    _write_description(file, config, folder)
    written = read_json(folder / "config.json")
    check_architecture(checkpoint.name, written)
    source = dataclasses.replace(checkpoint.source, license=checkpoint.source.license or file.license)
    return dataclasses.replace(checkpoint, folder=folder, config=written, source=source, tensors=tensors)


def _write_description(file: GgufFile, config: Any, folder: Path) -> None:
    """Write config, tokenizer and generation config in Hugging Face layout."""
    tokenizer = make_tokenizer(file.vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / TOKENIZER_CONFIG, _tokenizer_config(file))
    _write_json(folder / "generation_config.json", _generation_config(file))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tokenizer_config(file: GgufFile) -> dict[str, Any]:
    """tokenizer_config.json, as transformers and ortkit read it."""
    ids = {"bos_token": file.bos_id, "eos_token": next(iter(file.eos_ids), None)}
    for name, key in (("unk_token", "unknown"), ("pad_token", "padding")):
        ids[name] = file.vocabulary.ids.get(f"{key}_token_id")
    named = {name: file.tokens[number] for name, number in ids.items() if number is not None}
    template = {} if file.chat_template is None else {"chat_template": file.chat_template}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.context_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": file.add_bos,
        **named,
        **template,
    }


def _generation_config(file: GgufFile) -> dict[str, Any]:
    samples = {"do_sample": True} if file.sampling.get("temperature", 0) > 0 else {}
    return {"bos_token_id": file.bos_id, "eos_token_id": list(file.eos_ids) or None, **samples, **file.sampling}


def _config_and_model(file: GgufFile) -> tuple[Any, Any]:
    """Return transformers' config, and the model without its weights."""
    # Not through `from_pretrained`, which would read the metadata three more times and needs one more package.
    config = transformers.AutoConfig.for_model(
        _MODEL_TYPES.get(file.architecture, file.architecture), **_config_settings(file)
    )
    _complete_config(config, file)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    return config, model


def _named_tensors(file: GgufFile, config: Any, model: Any) -> dict[str, StoredTensor]:
    """Return the file's tensors with transformers' names and shapes."""
    processor = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)(config=config.to_dict())
    names = _weight_names(file, model)
    return {
        names[tensor.name]: _DequantizedTensor(
            tensor.path, names[tensor.name], "F32", tensor.shape, tensor.start, tensor, processor
        )
        for tensor in file.tensors
        if tensor.name in names
    }


def _weight_names(file: GgufFile, model: Any) -> dict[str | None, str]:
    """Map the names of the file's tensors to the names of weights."""
    # transformers' own function for this makes the table again for every module, which takes longer than all the rest.
    architecture = next(found for found in MODEL_ARCH if MODEL_ARCH_NAMES[found] == file.architecture)
    known = get_tensor_name_map(architecture, model.config.num_hidden_layers)
    return {known.get_name(name, (".weight", ".bias")): name for name, _ in model.named_parameters()}


def _config_settings(file: GgufFile) -> dict[str, Any]:
    """Return the settings that transformers reads from a GGUF file."""
    names = GGUF_CONFIG_MAPPING[file.architecture]
    found = {names[key]: file.about[key] for key in ARCHITECTURES[file.architecture] if names.get(key)}
    stated = {name: value for name, value in found.items() if value is not None}
    tied = all(tensor.name != "output.weight" for tensor in file.tensors)
    return {"vocab_size": len(file.tokens), **stated, "tie_word_embeddings": tied}


def _complete_config(config: Any, file: GgufFile) -> None:
    """Set in a config what transformers does not read from the file."""
    config.head_dim = head_size(file.about)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if file.about.get(key) is not None:
            setattr(config, key, file.about[key])
    window = file.about.get("attention.sliding_window")
    if window is not None:
        # None is 0 in these files.
        config.sliding_window = window or None
    if file.architecture in _QUERY_SCALED_BY_WIDTH:
        by_width = config.num_hidden_layers == _QUERY_SCALED_BY_WIDTH[file.architecture]
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if by_width else config.head_dim
    factors = next((tensor for tensor in file.tensors if tensor.name == ROPE_FACTORS), None)
    if factors is not None:
        config.rope_scaling = _llama3_scaling(file, factors, config)
    config.bos_token_id = file.bos_id
    config.eos_token_id = list(file.eos_ids)
    config.pad_token_id = None
    config.dtype = torch.float32


def _llama3_scaling(file: GgufFile, tensor: GgufTensor, config: Any) -> dict[str, Any]:
    """Return the `rope_scaling` of Llama 3.1 and later that gives a file's factors; other factors are refused."""
    if tensor.shape != (config.head_dim // 2,):
        raise CheckpointError(
            f"in `{file.path}`, `{ROPE_FACTORS}` has the shape {tensor.shape} instead of {(config.head_dim // 2,)}"
        )
    factors = _dequantized(tensor)
    scaling: dict[str, Any] = {"rope_type": "llama3", "factor": float(factors.max()), **_LLAMA3_FACTORS}
    # None of Llama 3's is below 1, but for what float32 rounds away; written so that NaN fails too.
    same = factors.min() >= 1 - 1e-4 and np.allclose(
        factors, _llama3_factors(scaling, config.rope_theta, config.head_dim), rtol=1e-4
    )
    if not same:
        raise UnsupportedModelError(
            f"`{file.path.name}` slows its rotations down in another way than Llama 3 does (`{ROPE_FACTORS}`)",
            hint=HUB,
        )
    return scaling


def _llama3_factors(scaling: Mapping[str, Any], base: float, head: int) -> NDArray[np.float64]:
    """Return the divisor of each frequency: 1 for high frequencies, `factor` for low ones."""
    frequencies = base ** -(np.arange(0, head, 2) / head)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / scaling["factor"] + smooth))


def _check_weights(file: GgufFile, model: Any, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise an error unless the file's tensors are exactly the model's weights."""
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    missing = sorted(expected.keys() - tensors.keys())
    if missing:
        raise CheckpointError(f"`{file.path}` lacks {len(missing)} of its model's weights, such as `{missing[0]}`")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name]:
            raise CheckpointError(
                f"in `{file.path}`, `{name}` has the shape {tensor.shape} instead of {expected[name]}"
            )
    names = _weight_names(file, model)
    left = [tensor.name for tensor in file.tensors if tensor.name not in names and tensor.name != ROPE_FACTORS]
    if left:
        raise UnsupportedModelError(
            f"`{file.path}` holds {len(file.tensors)} tensors, of which {len(left)} have no place in a "
            f"`{file.architecture}`, such as `{shown(left[0])}`",
            hint=HUB,
        )


def _check_finite(file: GgufFile) -> None:
    """Raise CheckpointError for a tensor with NaN or infinity; of quantized blocks, the scales are checked."""
    for tensor in file.tensors:
        for _, rows in _row_chunks(tensor):
            if tensor.type in SCALES:
                finite = all(np.isfinite(scales).all() for scales in scales_of(tensor.type, rows))
            else:
                with np.errstate(all="ignore"):
                    finite = bool(np.isfinite(dequantize(rows, GGMLQuantizationType[tensor.type])).all())
            if not finite:
                raise CheckpointError(
                    f"`{file.path}` has a number that is not finite (NaN or Inf) in the tensor `{shown(tensor.name)}`",
                    hint="the file was made from damaged weights, or damaged itself: copy or download it again",
                )


def stored_matrices(file: GgufFile) -> Iterator[StoredMatrix]:
    """Yield the quantized matrices of a file, all of supported types: see `choices.check_blocks`."""
    for tensor in file.tensors:
        if len(tensor.shape) == 2 and tensor.in_blocks:
            blocks = BLOCK_READERS[tensor.type](tensor.bytes())
            yield StoredMatrix(_dequantized(tensor), blocks)
