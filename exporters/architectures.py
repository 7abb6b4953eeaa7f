"""The architectures that edgekit exports: how their configs name things, and what those configs must say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.errors import UnsupportedModelError
from runtime.manifest import Kind


@dataclass(frozen=True)
class Architecture:
    """One kind of model, with the keys under which its config.json gives its sizes."""

    name: str
    width: str = "hidden_size"
    heads: str = "num_attention_heads"
    layers: str = "num_hidden_layers"
    positions: str = "max_position_embeddings"
    positions_after_padding: bool = False
    """Positions are numbered from the padding token's id + 1 on; the rows of the table before that are never used."""
    implementation: str | None = None
    """The code that such a checkpoint asks for, as `repository--class`; edgekit has its own and never runs that."""
    merged_attention: bool = True
    """Its attention is plain enough for query, key and value to become one product (`attention.py`)."""
    must_be: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Config key -> the values that are known; None stands for a key that is not there."""
    reads_last_token: bool = False
    """A classifier reads the last token of each text instead of the first."""
    kinds: tuple[Kind, ...] = (Kind.EMBEDDER, Kind.RERANKER)
    """What models of it are exported for."""


ABSOLUTE = {"position_embedding_type": ("absolute", None)}
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
NOT_QUANTIZED = {"quantization_config": (None,)}
"""Published in 32 or 16 bits: what is packed otherwise must be unpacked by the code that packed it."""


def decoder(name: str, must_be: Mapping[str, tuple[object, ...]] = NOT_QUANTIZED) -> Architecture:
    """A decoder whose attention transformers lets be replaced, so that all else in its config is followed exactly."""
    return Architecture(name, merged_attention=False, must_be=must_be, kinds=(Kind.DECODER,))


ARCHITECTURES = {
    known.name: known
    for known in (
        Architecture("bert", must_be=ABSOLUTE),
        Architecture("deberta-v2", merged_attention=False, kinds=(Kind.RERANKER,)),
        decoder("gemma2"),
        decoder("gemma3_text", {**NOT_QUANTIZED, "use_bidirectional_attention": (False, None)}),
        decoder("granite"),
        decoder("llama"),
        decoder("mistral"),
        decoder("phi3"),
        decoder("qwen2"),
        decoder("smollm3"),
        Architecture("distilbert", width="dim", heads="n_heads", layers="n_layers"),
        JINA_BERT,
        Architecture("modernbert", merged_attention=False),
        Architecture("mpnet", positions_after_padding=True),
        NOMIC_BERT,
        Architecture("qwen3", merged_attention=False, reads_last_token=True, must_be=NOT_QUANTIZED, kinds=tuple(Kind)),
        Architecture("roberta", positions_after_padding=True, must_be=ABSOLUTE),
        Architecture("xlm-roberta", positions_after_padding=True, must_be=ABSOLUTE),
    )
}
"""What is tested against PyTorch; anything else is refused."""


def architecture_of(config: Mapping[str, Any]) -> Architecture | None:
    """The architecture of a config.json, None for one that edgekit does not know.

    A checkpoint that brings code is known by that code's name alone: its `model_type` may say `bert` for what is not.
    """
    if "auto_map" in config:
        asked = asked_implementation(config)
        return next((known for known in ARCHITECTURES.values() if asked and known.implementation == asked), None)
    known = ARCHITECTURES.get(config["model_type"])
    return known if known is not None and known.implementation is None else None


def asked_implementation(config: Mapping[str, Any]) -> str | None:
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
            f"`{name}` has the architecture `{config['model_type']}`, which edgekit does not know",
            hint=f"known are {', '.join(f'`{known}`' for known in sorted(ARCHITECTURES))}",
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
                f"`{name}` has `{key}` set to `{value}`, and edgekit does not know such a `{architecture.name}`",
                hint=f"known is {named}" if named else "known is a config.json without it",
            )


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a model which classifies texts, as rerankers do."""
    return is_published_as(config, "ForSequenceClassification")


def answers_in_words(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a decoder: of rerankers, one whose next word is the answer."""
    return is_published_as(config, "ForCausalLM")


def is_published_as(config: Mapping[str, Any], suffix: str) -> bool:
    """Whether a config.json names a class of transformers that ends so."""
    return any(str(name).endswith(suffix) for name in config.get("architectures") or ())
