"""The architectures that ortkit exports: how their configs name things, and what those configs must say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

from ...runtime.bundle.manifest import Kind
from ...runtime.errors import UnsupportedModelError

_DEFAULT_POSITIONS = "max_position_embeddings"


@dataclass(frozen=True)
class Architecture:
    """One kind of model, with the keys under which its config.json gives its sizes."""

    name: str
    width: str = "hidden_size"
    heads: str = "num_attention_heads"
    layers: str = "num_hidden_layers"
    positions: str = _DEFAULT_POSITIONS
    positions_after_padding: bool = False
    """Positions are numbered from the padding token's id + 1 on; the rows of the table before that are never used."""
    padding: int | None = None
    """The padding token's id where the code has it, whatever a config.json says."""
    implementation: str | None = None
    """The code that such a checkpoint asks for, as `repository--class`; ortkit has its own and never runs that."""
    merged_attention: bool = True
    """Its attention is plain enough for query, key and value to become one matmul (`attention.py`)."""
    must_be: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Config key -> the values that are known; None stands for a key that is not there."""
    reads_last_token: bool = False
    """A classifier reads the last token of each text instead of the first."""
    kinds: tuple[Kind, ...] = (Kind.EMBEDDER, Kind.RERANKER)
    """What models of it are exported for."""
    plain_attention: bool = False
    """A decoder that ortkit has no faster form of, which is to agree with PyTorch before it is quantized."""

    @property
    def is_encoder(self) -> bool:
        """Whether its models read texts in both directions."""
        return Kind.DECODER not in self.kinds


_ABSOLUTE = {"position_embedding_type": ("absolute", None)}
JINA_BERT = Architecture(
    "jina-bert",
    kinds=(Kind.EMBEDDER,),
    implementation="jinaai/jina-bert-implementation--JinaBertModel",
    must_be={
        "position_embedding_type": ("alibi",),
        "feed_forward_type": ("geglu",),
        "hidden_act": ("gelu", None),
    },
)
NOMIC_BERT = Architecture(
    "nomic_bert",
    kinds=(Kind.EMBEDDER,),
    width="n_embd",
    heads="n_head",
    layers="n_layer",
    positions="n_positions",
    implementation="nomic-ai/nomic-bert-2048--NomicBertModel",
    merged_attention=False,
    must_be={
        "activation_function": ("swiglu",),
        "causal": (False, None),
        "moe_every_n_layers": (0, None),
        "parallel_block": (False, None),
        "prenorm": (False,),
        "rotary_emb_fraction": (1, 1.0),
        "rotary_emb_interleaved": (False, None),
        "rotary_emb_scale_base": (None,),
        "rotary_scaling_factor": (None,),
        "use_rms_norm": (False, None),
    },
)


def decoder(name: str, must_be: Mapping[str, tuple[object, ...]] | None = None) -> Architecture:
    """A decoder whose attention transformers lets be replaced, so that all else in its config is followed exactly."""
    return Architecture(name, merged_attention=False, must_be=must_be or {}, kinds=(Kind.DECODER,))


ARCHITECTURES = {
    known.name: known
    for known in (
        Architecture("bert", must_be=_ABSOLUTE),
        Architecture("deberta-v2", merged_attention=False, kinds=(Kind.RERANKER,)),
        decoder("gemma2"),
        decoder("gemma3_text", {"use_bidirectional_attention": (False, None)}),
        decoder("granite"),
        decoder("llama"),
        decoder("mistral"),
        decoder("phi3"),
        decoder("qwen2"),
        decoder("smollm3"),
        Architecture("distilbert", width="dim", heads="n_heads", layers="n_layers"),
        JINA_BERT,
        Architecture("modernbert", merged_attention=False),
        Architecture("mpnet", positions_after_padding=True, padding=1),
        NOMIC_BERT,
        Architecture("qwen3", merged_attention=False, reads_last_token=True, kinds=tuple(Kind)),
        Architecture("roberta", positions_after_padding=True, must_be=_ABSOLUTE),
        Architecture("xlm-roberta", positions_after_padding=True, must_be=_ABSOLUTE),
    )
}
"""What is tested against PyTorch."""
_NOT_PLAIN = frozenset(
    {
        # Which expert reads a token, or what a picture is, a trace would fix as it was for one text.
        *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "vision_config", "text_config"),
        # What is kept of a token is not a key and a value.
        *("kv_lora_rank", "ssm_cfg", "state_size", "conv_L_cache"),
    }
)
"""Keys of a config.json whose decoder is none that plain attention would be enough for."""
_PLAIN_LAYERS = frozenset({"full_attention", "sliding_attention"})
_WANTED_INPUTS = frozenset({"input_ids", "position_ids", "logits_to_keep", "use_cache"})
"""What the code of a decoder must let a trace tell it."""


def architecture_of(config: Mapping[str, Any]) -> Architecture | None:
    """The architecture of a config.json, None for one that is not supported.

    A checkpoint that brings code is known by that code's name alone: its `model_type` may say `bert` for what is not.
    """
    if "auto_map" in config:
        asked = _asked_implementation(config)
        return next((known for known in ARCHITECTURES.values() if asked and known.implementation == asked), None)
    known = ARCHITECTURES.get(config["model_type"])
    if known is None:
        return _plain_decoder(config)
    return known if known.implementation is None else None


def _plain_decoder(config: Mapping[str, Any]) -> Architecture | None:
    """A decoder whose attention transformers lets be replaced by the plain one; None where it does not."""
    published = config.get("architectures")
    others = not _PLAIN_LAYERS.issuperset(config.get("layer_types") or ())
    if not published or is_classifier(config) or others or any(config.get(key) for key in _NOT_PLAIN):
        return None
    # Takes seconds, and only decoders that are not known by name come so far.
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING  # noqa: PLC0415

    try:
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[config["model_type"]]]
    except KeyError:
        return None
    replaceable = getattr(model_class, "_supports_attention_backend", False)
    told = _WANTED_INPUTS.issubset(signature(model_class.forward).parameters)
    if model_class.__name__ not in published or not replaceable or not told:
        return None
    positions = model_class.config_class.attribute_map.get(_DEFAULT_POSITIONS, _DEFAULT_POSITIONS)
    return replace(decoder(config["model_type"]), positions=positions, plain_attention=True)


def _asked_implementation(config: Mapping[str, Any]) -> str | None:
    """The code that `auto_map` names for the model, as `repository--class`, None where it names no repository."""
    auto_map = config["auto_map"]
    reference = auto_map.get("AutoModel") if isinstance(auto_map, Mapping) else None
    if not isinstance(reference, str) or reference.count("--") != 1:
        return None
    repository, _, path = reference.partition("--")
    return f"{repository}--{path.rpartition('.')[2]}"


def known_architecture(name: str, config: Mapping[str, Any]) -> Architecture:
    """The architecture of a config.json; raises UnsupportedModelError, with the model's name, for an unknown one."""
    architecture = architecture_of(config)
    if architecture is None:
        raise UnsupportedModelError(
            f"`{name}` has the architecture `{config['model_type']}`, which is not supported",
            hint=f"supported: {', '.join(f'`{known}`' for known in sorted(ARCHITECTURES))}, and decoders of whose "
            "attention transformers has a plain form",
        )
    return architecture


def check_architecture(name: str, config: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError for a config that would not be exported exactly."""
    architecture = known_architecture(name, config)
    for key, known_values in architecture.must_be.items():
        value = config.get(key)
        if value not in known_values:
            named = " or ".join(f"`{known}`" for known in known_values if known is not None)
            raise UnsupportedModelError(
                f"`{name}` has `{key}` set to `{value}`, which is not supported for `{architecture.name}`",
                hint=f"supported: {named}" if named else "supported: a config.json without it",
            )


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a model which classifies texts, as rerankers do."""
    return _is_published_as(config, "ForSequenceClassification")


def answers_in_words(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a decoder: of rerankers, one whose next word is the answer."""
    return _is_published_as(config, "ForCausalLM") or _is_published_as(config, "LMHeadModel")


def _is_published_as(config: Mapping[str, Any], suffix: str) -> bool:
    """Whether a config.json names a class of transformers that ends so."""
    return any(str(name).endswith(suffix) for name in config.get("architectures") or ())
