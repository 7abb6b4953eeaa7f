"""Attention that traces as onnxruntime's GroupQueryAttention, with the rotation and the cache inside.

transformers lets an attention function be registered by name. The one here calls an operator of torch's that computes
nothing and stands in the traced graph as `com.microsoft::GroupQueryAttention`, so every family of decoders whose code
goes through that interface traces to it: with its own scale, window, soft cap, norms and rotation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from optimum.exporters.onnx.base import OnnxConfig
from optimum.exporters.onnx.model_patcher import ModelPatcher, PatchingSpec
from optimum.utils import NormalizedTextConfig
from torch import Tensor, nn
from torch.onnx.symbolic_helper import parse_args
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from exporters.nodes import ORT_DOMAIN
from runtime.errors import UnsupportedModelError
from runtime.graph_io import INPUT_IDS, LAST_POSITIONS, LOGIT_POSITIONS, LOGITS, TOTAL_LENGTH, cache_names

GROUPED_ATTENTION = "GroupQueryAttention"
OPERATOR = "edgekit::grouped_query_attention"
SCHEMA = (
    "grouped_query_attention(Tensor query, Tensor key, Tensor value, Tensor past_key, Tensor past_value, "
    "Tensor last_positions, Tensor total_length, Tensor? cos, Tensor? sin, int heads, int kv_heads, int head_size, "
    "float scale, float softcap, int window) -> (Tensor, Tensor, Tensor)"
)
"""Of queries, keys and values (batch, heads, tokens, head size): (batch, tokens, heads, head size), and the cache."""
ATTENTION_NAME = "edgekit_grouped_query"
"""The name under which transformers knows the attention function while a model is traced."""
MULTIPLE = 16
"""Of which the operator wants the size of a head, and of what is rotated of it, to be a multiple."""
ROTATE = "apply_rotary_pos_emb"
"""What every family calls the function that rotates queries and keys."""

Past = Sequence[tuple[Tensor, Tensor]]
"""The keys and values of each layer, (batch, heads, capacity, head size)."""


@dataclass(frozen=True)
class CacheSizes:
    """How many keys and values a decoder has for each token, and how large they are."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int


def cache_sizes(config: Any) -> CacheSizes:
    """The sizes that transformers' config of a decoder gives."""
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return CacheSizes(config.num_hidden_layers, heads, kv_heads, head_size)


def check_rotation(model: nn.Module) -> None:
    """Raise UnsupportedModelError for a model that rotates otherwise than onnxruntime's operator, or heads it cannot.

    The operator turns the first half of what it rotates against the second, as most families do.
    """
    for size in (cache_sizes(model.config).head_size, *(2 * len(module.inv_freq) for module in rotaries(model))):
        if size % MULTIPLE:
            raise UnsupportedModelError(
                f"the attention of the model has heads of which {size} numbers are rotated, and onnxruntime's "
                f"attention takes multiples of {MULTIPLE} only"
            )
    vectors = torch.linspace(-1, 2, 4 * MULTIPLE).view(1, 1, 4, MULTIPLE)
    angles = torch.linspace(0, 3, 2 * MULTIPLE).view(1, 4, MULTIPLE // 2)
    cos, sin = (torch.cat([part, part], dim=-1) for part in (angles.cos(), angles.sin()))
    first, second = vectors.chunk(2, dim=-1)
    expected = vectors * cos + torch.cat([-second, first], dim=-1) * sin
    for module in modules_that_rotate(model):
        if not torch.allclose(getattr(module, ROTATE)(vectors, vectors, cos, sin)[0], expected, atol=1e-5):
            raise UnsupportedModelError(
                f"`{type(model).__name__}` does not rotate the first half of a head against the second, and edgekit "
                "knows no other way"
            )


def takes_heads(config: Any) -> bool:
    """Whether onnxruntime's operator rotates heads of the size that a model has."""
    size = cache_sizes(config).head_size
    rotated = int(size * (getattr(config, "partial_rotary_factor", None) or 1))
    return size % MULTIPLE == 0 and rotated % MULTIPLE == 0


def rotaries(model: nn.Module) -> list[Any]:
    """The modules of a model that compute angles."""
    return [module for module in model.modules() if hasattr(module, "inv_freq")]


def context_length(config: Any) -> int:
    """The tokens that a decoder can read with one table of angles.

    longrope takes other angles, for all tokens, when a text becomes longer than what the model was first trained on;
    with the keys of earlier tokens kept that is no longer the model that was trained.
    """
    scaling = getattr(config, "rope_scaling", None) or {}
    length: int = config.max_position_embeddings
    if scaling.get("rope_type", scaling.get("type")) == "longrope":
        return min(length, getattr(config, "original_max_position_embeddings", None) or length)
    return length


def zeros_of_attention(
    query: Tensor, _key: Tensor, _value: Tensor, past_key: Tensor, past_value: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros of the shapes of the operator's results, which is all that tracing asks for."""
    return torch.zeros_like(query.transpose(1, 2)), torch.zeros_like(past_key), torch.zeros_like(past_value)


LIBRARY: Any = torch.library.Library(OPERATOR.partition("::")[0], "DEF")  # type: ignore[no-untyped-call]
"""Holds the operator for as long as the process runs."""
LIBRARY.define(SCHEMA)
LIBRARY.impl(OPERATOR, zeros_of_attention, "CPU")
grouped_query_attention = torch.ops.edgekit.grouped_query_attention


@parse_args("v", "v", "v", "v", "v", "v", "v", "v", "v", "i", "i", "i", "f", "f", "i")
def grouped_query_symbolic(
    g: Any,
    query: Any,
    key: Any,
    value: Any,
    past_key: Any,
    past_value: Any,
    last_positions: Any,
    total_length: Any,
    cos: Any,
    sin: Any,
    heads: int,
    kv_heads: int,
    head_size: int,
    scale: float,
    softcap: float,
    window: int,
) -> tuple[Any, Any, Any]:
    """The operator's ONNX nodes; the attention among them works on (batch, tokens, heads * head size)."""
    rotates = not cos.node().mustBeNone()
    attended, present_key, present_value = g.op(
        f"{ORT_DOMAIN}::{GROUPED_ATTENTION}",
        in_rows(g, query, heads * head_size),
        in_rows(g, key, kv_heads * head_size),
        in_rows(g, value, kv_heads * head_size),
        past_key,
        past_value,
        last_positions,
        total_length,
        *((cos, sin) if rotates else ()),
        num_heads_i=heads,
        kv_num_heads_i=kv_heads,
        do_rotary_i=int(rotates),
        scale_f=scale,
        softcap_f=softcap,
        local_window_size_i=window,
        outputs=3,
    )
    # What the exporter does not know of an operator that is not its own; sizes that are not given are open.
    attended.setType(past_key.type().with_sizes([None, None, heads * head_size]))
    for present in (present_key, present_value):
        present.setType(past_key.type().with_sizes([None, kv_heads, None, head_size]))
    shape = g.op("Constant", value_t=torch.tensor([0, -1, heads, head_size]))
    return g.op("Reshape", attended, shape), present_key, present_value


def in_rows(g: Any, value: Any, width: int) -> Any:
    """(batch, heads, tokens, head size) as (batch, tokens, heads * head size)."""
    shape = g.op("Constant", value_t=torch.tensor([0, -1, width]))
    return g.op("Reshape", g.op("Transpose", value, perm_i=[0, 2, 1, 3]), shape)


torch.onnx.register_custom_op_symbolic(OPERATOR, grouped_query_symbolic, 1)  # type: ignore[attr-defined]


class DecoderOnnxConfig(OnnxConfig):  # type: ignore[misc] # Optimum has no types
    """Tells Optimum what the graph of a decoder reads and gives; `context_length` is that of its tables of angles."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig

    def __init__(self, config: Any, *, context_length: int) -> None:
        super().__init__(config, task="text-generation")
        self.context_length = context_length
        self.sizes = cache_sizes(config)
        self._MODEL_PATCHER = DecoderPatcher

    @property
    def values_override(self) -> None:
        """Nothing in the model's config is to be changed: the graph keeps no cache that transformers knows of."""

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {
            INPUT_IDS: {0: "batch", 1: "tokens"},
            LAST_POSITIONS: {0: "batch"},
            TOTAL_LENGTH: {},
            LOGIT_POSITIONS: {0: "logits"},
        } | {name: {0: "batch", 2: "capacity"} for name in cache_names("past", self.sizes.layers)}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {LOGITS: {0: "batch", 1: "logits"}} | {
            name: {0: "batch", 2: "capacity"} for name in cache_names("present", self.sizes.layers)
        }

    def generate_dummy_inputs(self, **_: Any) -> dict[str, Any]:
        """Inputs to trace with; all their sizes but the model's own differ from one another."""
        batch, tokens, logits, capacity = 2, 5, 3, 16
        cache = (batch, self.sizes.kv_heads, capacity, self.sizes.head_size)
        return {
            INPUT_IDS: torch.zeros((batch, tokens), dtype=torch.int64),
            LAST_POSITIONS: torch.full((batch,), tokens - 1, dtype=torch.int32),
            TOTAL_LENGTH: torch.tensor(tokens, dtype=torch.int32),
            LOGIT_POSITIONS: torch.arange(logits),
            "past": [(torch.zeros(cache), torch.zeros(cache)) for _ in range(self.sizes.layers)],
        }


class DecoderPatcher(ModelPatcher):  # type: ignore[misc] # Optimum has no types
    """While it is entered, a decoder reads and gives what its graph does, and its attention is the grouped one."""

    rotates_inside = True
    """The attention rotates queries and keys, and the model's code does not."""

    def __init__(self, config: DecoderOnnxConfig, model: Any, model_kwargs: dict[str, Any] | None = None) -> None:
        # A list of its own: Optimum adds to the one that it finds.
        rotate = modules_that_rotate(model) if self.rotates_inside else []
        config.PATCHING_SPECS = [PatchingSpec(module, ROTATE, self.rotate) for module in rotate]
        self.found = (model.config._attn_implementation, model.config.use_cache)  # noqa: SLF001 # it has no other name
        super().__init__(config, model, model_kwargs)
        self.patched_forward = self.forward
        self.context_length: int = config.context_length
        self.sizes: CacheSizes = config.sizes
        self.rotaries = rotaries(model) if self.rotates_inside else []
        self.rotated: tuple[Tensor, Tensor] | None = None
        self.angles: tuple[Tensor, Tensor] | None = None
        self.fed: tuple[Tensor, Tensor, Past] | None = None
        self.present: list[Tensor] = []

    def __enter__(self) -> None:
        # The first that can fail: what is done after it is undone only when all of it was.
        for module in self.rotaries:
            give_tables(module, self.context_length)
        super().__enter__()
        ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME] = self.attend
        ALL_MASK_ATTENTION_FUNCTIONS[ATTENTION_NAME] = no_mask
        self._model.config._attn_implementation = ATTENTION_NAME  # noqa: SLF001

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        del ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME], ALL_MASK_ATTENTION_FUNCTIONS[ATTENTION_NAME]
        self._model.config._attn_implementation, self._model.config.use_cache = self.found  # noqa: SLF001
        for module in self.rotaries:
            del module.forward, module.cos_table, module.sin_table

    def forward(
        self, input_ids: Tensor, last_positions: Tensor, total_length: Tensor, logit_positions: Tensor, past: Past
    ) -> tuple[Tensor, ...]:
        """The graph's outputs for its inputs."""
        self.fed, self.present = (last_positions, total_length, past), []
        outputs = self.orig_forward(input_ids=input_ids, logits_to_keep=logit_positions, use_cache=False)
        return (outputs.logits, *self.present)

    def rotate(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Leave queries and keys as they are; the attention that comes next rotates them by these tables."""
        self.rotated, self.angles = (query, key), (cos, sin)
        return query, key

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        _mask: Tensor | None,
        *,
        scaling: float,
        softcap: float | None = None,
        sliding_window: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Attention as transformers asks for it: of (batch, heads, tokens, head size), (batch, tokens, heads, size)."""
        if self.fed is None:
            raise RuntimeError("the attention was called outside the model's forward")
        last_positions, total_length, past = self.fed
        if self.rotated is not None and (query is not self.rotated[0] or key is not self.rotated[1]):
            raise UnsupportedModelError(
                f"`{type(self._model).__name__}` changes queries or keys between their rotation and the attention, and "
                "onnxruntime's attention rotates them last"
            )
        cos, sin = self.angles or (None, None)
        # A layer that does not rotate must not take the tables of the one before.
        self.rotated = self.angles = None
        attended, present_key, present_value = grouped_query_attention(
            query,
            key,
            value,
            *past[module.layer_idx],
            last_positions,
            total_length,
            cos,
            sin,
            self.sizes.heads,
            self.sizes.kv_heads,
            self.sizes.head_size,
            scaling,
            softcap or 0.0,
            # Both count the token itself among those that it sees; -1 stands for all before it.
            sliding_window if sliding_window is not None else -1,
        )
        self.present += [present_key, present_value]
        return attended, None


def no_mask(*_: Any, **__: Any) -> None:
    """The operator knows from the lengths what a token sees."""


def modules_that_rotate(model: nn.Module) -> list[ModuleType]:
    """The Python modules of a model's code that have the function which rotates."""
    names = {type(module).__module__ for module in model.modules()}
    return [sys.modules[name] for name in sorted(names) if hasattr(sys.modules[name], ROTATE)]


def give_tables(module: Any, length: int) -> None:
    """Let a model's rotary module give the whole tables of cos and sin, (length, rotated size / 2), for any positions.

    They are its own, so that whatever scales its angles is in them; as buffers they become initializers of the graph.
    """
    cos, sin = module(torch.zeros(1), torch.arange(length)[None])
    half = cos.shape[-1] // 2
    module.register_buffer("cos_table", cos[0, :, :half].contiguous())
    module.register_buffer("sin_table", sin[0, :, :half].contiguous())
    module.forward = lambda _vectors, _positions: (module.cos_table, module.sin_table)
