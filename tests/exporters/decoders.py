"""Small seeded decoders of every family, and a way to run their graphs with the cache in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
import transformers
from numpy.typing import NDArray

from ortkit.exporters.checkpoint.checkpoint import Checkpoint
from ortkit.exporters.decoder.lazy_model import open_decoder
from ortkit.exporters.decoder.tracing import rebuild, trace
from ortkit.exporters.sources import find_checkpoint

VOCABULARY = 320
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Large enough for the attention to prefer some tokens to others.
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1 + 0.1 * index for index in range(8)],
    "long_factor": [2.0 + index for index in range(8)],
}
ALTERNATING = ["sliding_attention", "full_attention"]

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "rope_scaling": LLAMA3},
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 32, "head_dim": 32},
    "qwen2": {
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "rope_scaling": YARN,
        "use_sliding_window": True,
        "sliding_window": 32,
        "layer_types": ALTERNATING,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 32,
        "sliding_window": 40,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "tie_word_embeddings": True,
        "layer_types": ALTERNATING,
    },
    "gemma3_text": {
        "model_type": "gemma3_text",
        "head_dim": 32,
        "sliding_window": 40,
        "query_pre_attn_scalar": 24,
        "rope_theta": 100000.0,
        "rope_local_base_freq": 1000.0,
        "tie_word_embeddings": True,
        "layer_types": ALTERNATING,
    },
    "phi3": {
        "model_type": "phi3",
        "sliding_window": 100,
        "max_position_embeddings": 2048,
        "original_max_position_embeddings": 256,
        "rope_scaling": LONGROPE,
    },
    "phi3, partly rotated": {"model_type": "phi3", "head_dim": 32, "hidden_size": 128, "partial_rotary_factor": 0.5},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0]},
    "granite": {
        "model_type": "granite",
        "embedding_multiplier": 6.0,
        "attention_multiplier": 0.1,
        "residual_multiplier": 0.3,
        "logits_scaling": 4.0,
    },
}

PLAIN_FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "exaone4": {"model_type": "exaone4", "sliding_window": 32, "layer_types": ALTERNATING},
    "gemma": {"model_type": "gemma", "head_dim": 24},
    "glm": {"model_type": "glm", "head_dim": 16},
    "gpt2": {"model_type": "gpt2", "num_key_value_heads": None, "tie_word_embeddings": True},
    "gpt_neox": {"model_type": "gpt_neox", "num_key_value_heads": None, "rotary_pct": 0.25},
    "olmo2": {"model_type": "olmo2"},
    "persimmon": {"model_type": "persimmon", "num_key_value_heads": None},
    "phi": {"model_type": "phi", "partial_rotary_factor": 0.5},
    "starcoder2": {"model_type": "starcoder2", "sliding_window": 32},
}
"""Some of those that ortkit has no form of its own for."""


def tiny_config(family: str, **changes: object) -> Any:
    settings = {**TINY, **(FAMILIES | PLAIN_FAMILIES)[family], **changes}
    return transformers.AutoConfig.for_model(**settings)


def tiny_decoder(family: str, **changes: object) -> Any:
    """A decoder with seeded weights, its norms' among them."""
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(
        tiny_config(family, **changes), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def write_decoder(folder: Path, family: str, **changes: object) -> Checkpoint:
    tiny_decoder(family, **changes).save_pretrained(folder)
    return find_checkpoint(str(folder))


def token_ids(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(11).integers(3, VOCABULARY, size=count)


def logits_of(model: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """What PyTorch gives at every position, (tokens, vocabulary)."""
    with torch.inference_mode():
        return model(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()


def exported(folder: Path, family: str, **changes: object) -> tuple[Any, ir.Model]:
    """The model as transformers loads it, and its graph."""
    checkpoint = write_decoder(folder / "checkpoint", family, **changes)
    graph = traced(checkpoint, folder, plain=checkpoint.architecture.plain_attention)
    rebuild(graph)
    return loaded(checkpoint.folder), graph


def traced(checkpoint: Checkpoint, folder: Path, **options: Any) -> ir.Model:
    return trace(open_decoder(checkpoint), folder, **options)


def loaded(folder: Path) -> Any:
    """A decoder as transformers loads it, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    ).eval()


class GraphRun:
    """A decoder's graph in onnxruntime, its past and present in the same buffers."""

    def __init__(self, model: ir.Model | Path, *, capacity: int = 256, batch: int = 1) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        content = str(model) if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
        self.session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.caches = {
            value.name: ort.OrtValue.ortvalue_from_numpy(
                np.zeros((batch, value.shape[1], capacity, value.shape[3]), DTYPES[value.type])
            )
            for value in self.session.get_inputs()
            if value.name.startswith("past.")
        }
        self.past = 0

    def __call__(self, ids: NDArray[np.int64], positions: Sequence[int] | None = None) -> NDArray[np.float32]:
        """The logits after these tokens, which follow those of the calls before: (positions, vocabulary)."""
        self.past += len(ids)
        return self.batch(ids[None], np.array([self.past - 1]), positions)[0]

    def batch(
        self, ids: NDArray[np.int64], last_positions: NDArray[np.int64], positions: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """The logits of tokens (batch, tokens) of texts that end at these positions: (batch, tokens, vocabulary)."""
        binding = self.session.io_binding()
        wanted = np.arange(ids.shape[1]) if positions is None else np.array(positions)
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("last_positions", last_positions.astype(np.int32))
        binding.bind_cpu_input("total_length", np.array(last_positions.max() + 1, np.int32))
        binding.bind_cpu_input("logit_positions", wanted)
        binding.bind_output("logits")
        for name, cache in self.caches.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(name.replace("past.", "present."), cache)
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy()
