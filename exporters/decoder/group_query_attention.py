"""Trace attention as onnxruntime's GroupQueryAttention, with rotary embeddings and KV cache inside.

transformers lets an attention function be registered by name. The one here calls a custom torch operator that computes
nothing and exports as `com.microsoft::GroupQueryAttention`, so every model family that uses this interface traces to
it, with its own scale, sliding window, soft cap, norms and rotary embeddings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
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

from ...runtime.bundle.graph_io import INPUT_IDS, LAST_POSITIONS, LOGIT_POSITIONS, LOGITS, TOTAL_LENGTH, cache_names
from ...runtime.errors import UnsupportedModelError
from ..graph.nodes import ORT_DOMAIN
from .config import HEAD_SIZE_MULTIPLE, CacheSizes, cache_sizes

GROUP_QUERY_ATTENTION = "GroupQueryAttention"
_OPERATOR = "ortkit::grouped_query_attention"
_SCHEMA = (
    "grouped_query_attention(Tensor query, Tensor key, Tensor value, Tensor past_key, Tensor past_value, "
    "Tensor last_positions, Tensor total_length, Tensor? cos, Tensor? sin, int heads, int kv_heads, int head_size, "
    "float scale, float softcap, int window) -> (Tensor, Tensor, Tensor)"
)
"""Queries, keys, values (batch, heads, tokens, head size) -> (batch, tokens, heads, head size), present cache."""
ATTENTION_NAME = "ortkit_grouped_query"
"""The name of the attention function in transformers' registry while a model is traced."""
_ROTATE = "apply_rotary_pos_emb"
"""The name of the function that rotates queries and keys, the same in every family."""

Past = Sequence[tuple[Tensor, Tensor]]
"""The KV cache of each layer, (batch, heads, capacity, head size)."""


def check_rotation(model: nn.Module) -> None:
    """Raise UnsupportedModelError for rotary embeddings that GroupQueryAttention does not support.

    It rotates the first half of a head against the second (half-rotated layout), as most families do.
    """
    for size in (cache_sizes(model.config).head_size, *(2 * len(module.inv_freq) for module in _rotary_modules(model))):
        if size % HEAD_SIZE_MULTIPLE:
            raise UnsupportedModelError(
                f"the model rotates {size} dimensions of each head, and onnxruntime's attention supports multiples of "
                f"{HEAD_SIZE_MULTIPLE} only"
            )
    vectors = torch.linspace(-1, 2, 4 * HEAD_SIZE_MULTIPLE).view(1, 1, 4, HEAD_SIZE_MULTIPLE)
    angles = torch.linspace(0, 3, 2 * HEAD_SIZE_MULTIPLE).view(1, 4, HEAD_SIZE_MULTIPLE // 2)
    cos, sin = (torch.cat([part, part], dim=-1) for part in (angles.cos(), angles.sin()))
    first, second = vectors.chunk(2, dim=-1)
    expected = vectors * cos + torch.cat([-second, first], dim=-1) * sin
    for module in _python_modules_that_rotate(model):
        if not torch.allclose(getattr(module, _ROTATE)(vectors, vectors, cos, sin)[0], expected, atol=1e-5):
            raise UnsupportedModelError(
                f"`{type(model).__name__}` does not rotate the first half of a head against the second; other rotary "
                "layouts are not supported"
            )


def _rotary_modules(model: nn.Module) -> list[Any]:
    """Return the modules of a model that compute rotary angles."""
    return [module for module in model.modules() if hasattr(module, "inv_freq")]


def _trace_outputs(
    query: Tensor, _key: Tensor, _value: Tensor, past_key: Tensor, past_value: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    """Return zeros in the shapes of the operator's outputs, all that tracing needs."""
    return torch.zeros_like(query.transpose(1, 2)), torch.zeros_like(past_key), torch.zeros_like(past_value)


_LIBRARY: Any = torch.library.Library(_OPERATOR.partition("::")[0], "DEF")  # type: ignore[no-untyped-call]
"""Keeps the operator registered for the life of the process."""
_LIBRARY.define(_SCHEMA)
_LIBRARY.impl(_OPERATOR, _trace_outputs, "CPU")
_group_query_attention = torch.ops.ortkit.grouped_query_attention


@parse_args("v", "v", "v", "v", "v", "v", "v", "v", "v", "i", "i", "i", "f", "f", "i")
def _symbolic(
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
    """Export the operator as ONNX nodes; GroupQueryAttention works on (batch, tokens, heads * head size)."""
    rotates = not cos.node().mustBeNone()
    attended, present_key, present_value = g.op(
        f"{ORT_DOMAIN}::{GROUP_QUERY_ATTENTION}",
        _merge_heads(g, query, heads * head_size),
        _merge_heads(g, key, kv_heads * head_size),
        _merge_heads(g, value, kv_heads * head_size),
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
    # The exporter does not infer the outputs of custom operators; None is a dynamic size.
    attended.setType(past_key.type().with_sizes([None, None, heads * head_size]))
    for present in (present_key, present_value):
        present.setType(past_key.type().with_sizes([None, kv_heads, None, head_size]))
    shape = g.op("Constant", value_t=torch.tensor([0, -1, heads, head_size]))
    return g.op("Reshape", attended, shape), present_key, present_value


def _merge_heads(g: Any, value: Any, width: int) -> Any:
    """(batch, heads, tokens, head size) -> (batch, tokens, heads * head size)."""
    shape = g.op("Constant", value_t=torch.tensor([0, -1, width]))
    return g.op("Reshape", g.op("Transpose", value, perm_i=[0, 2, 1, 3]), shape)


torch.onnx.register_custom_op_symbolic(_OPERATOR, _symbolic, 1)  # type: ignore[attr-defined]


class DecoderOnnxConfig(OnnxConfig):  # type: ignore[misc] # Optimum has no types
    """Inputs and outputs of a decoder's graph, for Optimum; `context_length` is the length of the rotary tables."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig

    def __init__(self, config: Any, *, context_length: int) -> None:
        super().__init__(config, task="text-generation")
        self.context_length = context_length
        self.sizes = cache_sizes(config)
        self._MODEL_PATCHER = DecoderPatcher

    @property
    def values_override(self) -> None:
        """No change to the model's config: the cache is not transformers' own."""

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
        """Inputs to trace with; all dynamic sizes differ from one another."""
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
    """While entered, a decoder takes and returns what its graph does, with GroupQueryAttention as its attention."""

    rotates_inside = True
    """Whether the attention operator applies rotary embeddings, and not the model's code."""

    def __init__(self, config: DecoderOnnxConfig, model: Any, model_kwargs: dict[str, Any] | None = None) -> None:
        # A new list: Optimum appends to the one that it finds.
        rotate = _python_modules_that_rotate(model) if self.rotates_inside else []
        config.PATCHING_SPECS = [PatchingSpec(module, _ROTATE, self.rotate) for module in rotate]
        self.found = (model.config._attn_implementation, model.config.use_cache)  # noqa: SLF001 # it has no other name
        super().__init__(config, model, model_kwargs)
        self.patched_forward = self.forward
        self.context_length: int = config.context_length
        self.sizes: CacheSizes = config.sizes
        self.rotaries = _rotary_modules(model) if self.rotates_inside else []
        self.rotated: tuple[Tensor, Tensor] | None = None
        self.angles: tuple[Tensor, Tensor] | None = None
        self.fed: tuple[Tensor, Tensor, Past] | None = None
        self.present: list[Tensor] = []

    def __enter__(self) -> None:
        # First, since it can fail: what follows is only undone when all of it was done.
        for module in self.rotaries:
            use_rotary_tables(module, self.context_length)
        super().__enter__()
        ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME] = self.attend
        ALL_MASK_ATTENTION_FUNCTIONS[ATTENTION_NAME] = _no_mask
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
        """Run the model on the graph's inputs and return the graph's outputs."""
        self.fed, self.present = (last_positions, total_length, past), []
        outputs = self.orig_forward(input_ids=input_ids, logits_to_keep=logit_positions, use_cache=False)
        return (outputs.logits, *self.present)

    def rotate(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys unrotated; the attention that follows rotates them by these tables."""
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
        """Attention function of transformers: (batch, heads, tokens, size) -> (batch, tokens, heads, size)."""
        if self.fed is None:
            raise RuntimeError("the attention was called outside the model's forward")
        last_positions, total_length, past = self.fed
        if self.rotated is not None and (query is not self.rotated[0] or key is not self.rotated[1]):
            raise UnsupportedModelError(
                f"`{type(self._model).__name__}` changes queries or keys between their rotation and the attention; "
                "onnxruntime's attention rotates them last"
            )
        cos, sin = self.angles or (None, None)
        # A layer without rotary embeddings must not use the tables of the layer before.
        self.rotated = self.angles = None
        attended, present_key, present_value = _group_query_attention(
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
            # Both count the token itself; -1 means no window.
            sliding_window if sliding_window is not None else -1,
        )
        self.present += [present_key, present_value]
        return attended, None


def _no_mask(*_: Any, **__: Any) -> None:
    """No mask: GroupQueryAttention masks by the lengths."""


def _python_modules_that_rotate(model: nn.Module) -> list[ModuleType]:
    """Return the Python modules of a model's code that define the rotation."""
    names = {type(module).__module__ for module in model.modules()}
    return [sys.modules[name] for name in sorted(names) if hasattr(sys.modules[name], _ROTATE)]


def use_rotary_tables(module: Any, length: int) -> None:
    """Let a rotary module return whole cos and sin tables, (length, rotated size / 2), for any positions.

    The module computes them, so its rope scaling is in them; as buffers they become initializers of the graph.
    """
    cos, sin = module(torch.zeros(1), torch.arange(length)[None])
    half = cos.shape[-1] // 2
    module.register_buffer("cos_table", cos[0, :, :half].contiguous())
    module.register_buffer("sin_table", sin[0, :, :half].contiguous())
    module.forward = lambda _vectors, _positions: (module.cos_table, module.sin_table)
