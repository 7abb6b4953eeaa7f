"""GGUF files of small models with seeded weights, written as llama.cpp's convert_hf_to_gguf.py writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from tokenizers import pre_tokenizers

ANY_ARCHITECTURE = ("general.", "split.", "adapter.", "clip.")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
MERGES = ["Ġ t", "h e", "Ġt he", "i n", "Ġ Ġ", "1 2"]
SPECIAL = ["<|begin|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
TOKENIZER = {
    "model": "gpt2",
    "pre": "smollm",
    "tokens": TOKENS,
    "token_type": [CONTROL] * len(SPECIAL) + [NORMAL] * (len(TOKENS) - len(SPECIAL)),
    "merges": MERGES,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "add_bos_token": False,
}
TINY = {"vocab_size": len(TOKENS), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "intermediate_size": 96, "initializer_range": 0.1, "max_position_embeddings": 128}
TINY |= {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 2}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
MODELS: dict[str, tuple[str, dict]] = {
    "gemma2": ("gemma2", {"head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 8}),
    # Those of 27B, known by their layers, divide the products of queries and keys by another size than the heads'.
    "gemma2 27B": ("gemma2", {"num_hidden_layers": 46, "head_dim": 24, "query_pre_attn_scalar": 16}),
    "gemma3 27B": ("gemma3_text", {"num_hidden_layers": 62, "head_dim": 24, "query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3_text", {"head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 8}),
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama 3": ("llama", {"rope_scaling": LLAMA3, "rope_theta": 500000.0, "max_position_embeddings": 131072}),
    "phi3": ("phi3", {"sliding_window": 8}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 24}),
}


def seeded(name: str, **settings: object) -> transformers.PreTrainedModel:
    """A small model of one of `MODELS`; no weight is at its neutral value."""
    model_type, own = MODELS[name]
    config = transformers.AutoConfig.for_model(model_type, **TINY | own | settings)
    torch.manual_seed(7)
    # As an export reads it: the plain attention, which alone caps logits as Gemma 2 does.
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(mean=0.5, std=0.2)
    return model.eval()


def write_gguf(
    path: Path,
    model: transformers.PreTrainedModel,
    *,
    types: Mapping[str, Type] | None = None,
    tokenizer: Mapping[str, object] | None = None,
    fields: Mapping[str, object] | None = None,
    without: Iterable[str] = (),
) -> Path:
    """Write a model; `types` are for tensors whose names end so, `fields` are set besides, after the architecture."""
    name = architecture_of(model)
    writer = gguf.GGUFWriter(str(path), name)
    add_sizes(writer, model.config, name)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    writer.add_license("apache-2.0")
    for key, value in (fields or {}).items():
        add(writer, key if key.startswith(ANY_ARCHITECTURE) else f"{name}.{key}", value)
    for key, value in (TOKENIZER | dict(tokenizer or {})).items():
        if value is not None:
            add(writer, f"tokenizer.ggml.{key}", value)
    for stored_name, array in tensors_of(model, name).items():
        if stored_name not in without:
            wanted = next((kind for end, kind in (types or {}).items() if stored_name.endswith(end)), Type.F32)
            writer.add_tensor(stored_name, gguf.quantize(array, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def architecture_of(model: transformers.PreTrainedModel) -> str:
    return {"gemma3_text": "gemma3"}.get(model.config.model_type, model.config.model_type)


def head_of(config: transformers.PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def add_sizes(writer: gguf.GGUFWriter, config: transformers.PretrainedConfig, name: str) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if name in ("gemma2", "gemma3", "qwen3"):
        writer.add_key_length(head_of(config))
        writer.add_value_length(head_of(config))
    else:
        writer.add_rope_dimension_count(head_of(config))
    if name in ("gemma2", "gemma3", "phi3") and config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
    if name == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def tensors_of(model: transformers.PreTrainedModel, name: str) -> dict[str, np.ndarray]:
    """The weights by the names and in the order of numbers that the file has."""
    config = model.config
    found = {}
    if getattr(config, "rope_scaling", None):
        plain = config.rope_theta ** -(torch.arange(0, head_of(config), 2) / head_of(config))
        factors = plain / model.model.rotary_emb.inv_freq
        found["rope_freqs.weight"] = factors.numpy().astype(np.float32)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], config.num_hidden_layers)
    for parameter_name, parameter in model.named_parameters():
        array = parameter.detach().numpy()
        stored_name = names.get_name(parameter_name, try_suffixes=(".weight", ".bias"))
        assert stored_name is not None, parameter_name
        if name == "llama" and ".attn_q." in stored_name:
            array = turned(array, config.num_attention_heads)
        if name == "llama" and ".attn_k." in stored_name:
            array = turned(array, config.num_key_value_heads)
        if name.startswith("gemma") and "norm" in stored_name:
            array = array + 1
        found[stored_name] = array
    return found


def add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    adders.get(type(value), writer.add_array)(key, value)


def turned(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head's halves by turns: llama.cpp rotates neighbours where transformers rotates halves."""
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def rewritten(path: Path, fields: dict[str, object], target: Path) -> Path:
    """The same tensors with other metadata."""
    old = gguf.GGUFReader(str(path))
    writer = gguf.GGUFWriter(str(target), str(fields["general.architecture"]))
    adders = {bool: writer.add_bool, int: writer.add_int64, float: writer.add_float64, str: writer.add_string}
    for key, value in fields.items():
        if key in writer.kv_data[0]:
            del writer.kv_data[0][key]
        adders.get(type(value), writer.add_array)(key, value)
    for tensor in old.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
