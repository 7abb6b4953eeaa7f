"""What a checkpoint is for, and how an embedder wants to be used, from the files that sentence-transformers leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exporters.architectures import answers_in_words, is_classifier
from exporters.checkpoint import Checkpoint
from exporters.checkpoint_files import TOKENIZER_CONFIG
from runtime.errors import CheckpointError, UnsupportedModelError
from runtime.manifest import EmbedderFacts, Kind, Pooling

POOLING_KEYS = {
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_max_tokens": Pooling.MAX,
    "pooling_mode_lasttoken": Pooling.LAST_TOKEN,
    "pooling_mode_weightedmean_tokens": Pooling.WEIGHTED_MEAN,
}


def kind_of(checkpoint: Checkpoint, asked: Kind | None) -> Kind:
    """What a model is for: what the user or the catalog says, else what its own files do."""
    if checkpoint.gguf is not None and asked not in (None, Kind.DECODER):
        raise UnsupportedModelError(f"`{checkpoint.gguf.name}` is a GGUF file, of which edgekit exports decoders only")
    if asked is not None:
        return asked
    if checkpoint.gguf is not None:
        return Kind.DECODER
    if checkpoint.spec is not None:
        return checkpoint.spec.kind
    modules = str(checkpoint.read_json("modules.json"))
    if "Pooling" in modules:
        return Kind.EMBEDDER
    if "LogitScore" in modules or is_classifier(checkpoint.config):
        return Kind.RERANKER
    kinds = checkpoint.architecture.kinds
    only_decodes = kinds == (Kind.DECODER,)
    decodes = only_decodes or (Kind.DECODER in kinds and answers_in_words(checkpoint.config))
    return Kind.DECODER if decodes else Kind.EMBEDDER


def check_kind(checkpoint: Checkpoint, kind: Kind) -> None:
    """Raise UnsupportedModelError for a kind that models of this architecture are not exported as."""
    architecture = checkpoint.architecture
    if kind not in architecture.kinds:
        known = " and ".join(f"{known.value}s" for known in architecture.kinds)
        raise UnsupportedModelError(
            f"`{checkpoint.name}` is {kind.articled} of the architecture `{architecture.name}`, of which "
            f"edgekit exports {known} only"
        )


@dataclass(frozen=True)
class Modules:
    """The folders in which sentence-transformers keeps what follows the transformer."""

    pooling: str
    dense: tuple[str, ...]
    normalize: bool


def modules_of(checkpoint: Checkpoint) -> Modules:
    """What modules.json says; raises UnsupportedModelError for modules, or an order of them, that are not known."""
    modules = checkpoint.read_json("modules.json")
    if modules is None:
        raise CheckpointError(
            f"`{checkpoint.folder}` does not say how its tokens become one vector: it holds no `modules.json`",
            hint="an embedder is published in the layout of sentence-transformers; export that one",
        )
    try:
        found = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"`{checkpoint.folder / 'modules.json'}` is not a list of modules") from error
    kinds = [kind for kind, _ in found]
    hint = "known are `Transformer`, `Pooling`, any number of `Dense`, and `Normalize`, in this order"
    unknown = set(kinds) - {"Transformer", "Pooling", "Dense", "Normalize"}
    if unknown:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` has a module that edgekit does not know: `{min(unknown)}`", hint=hint
        )
    normalize = kinds[-1:] == ["Normalize"]
    if kinds != ["Transformer", "Pooling", *["Dense"] * kinds.count("Dense"), *["Normalize"] * normalize]:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` has its modules in an order that edgekit does not know: {', '.join(kinds) or 'none'}",
            hint=hint,
        )
    return Modules(found[1][1], tuple(path for kind, path in found if kind == "Dense"), normalize)


def embedder_facts(checkpoint: Checkpoint) -> EmbedderFacts:
    """Pooling, normalization, prompts and dimensions, from the files of the checkpoint; nothing is guessed.

    `dimension` is that of the pooled vectors, before any dense layer.
    """
    modules = modules_of(checkpoint)
    pooling = checkpoint.read_json(f"{modules.pooling}/config.json")
    settings = checkpoint.read_json("config_sentence_transformers.json") or {}
    return EmbedderFacts(
        dimension=required_int(checkpoint, checkpoint.architecture.width),
        pooling=pooling_of(checkpoint, pooling),
        normalize=modules.normalize,
        prompts=dict(settings.get("prompts") or {}),
        default_prompt=settings.get("default_prompt_name"),
        matryoshka_dimensions=matryoshka_dimensions(checkpoint),
    )


def matryoshka_dimensions(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The dimensions that config.json lists under the key which vLLM and text-embeddings-inference read, largest first.

    Empty for a model that lists none: it may have been trained for them all the same, but does not say so.
    """
    listed = checkpoint.config.get("matryoshka_dimensions") or ()
    if not isinstance(listed, (list, tuple)) or not all(type(one) is int and one > 0 for one in listed):
        raise CheckpointError(
            f"`matryoshka_dimensions` in `{checkpoint.folder / 'config.json'}` must be a list of positive integers"
        )
    return tuple(sorted(set(listed), reverse=True))


def pooling_of(checkpoint: Checkpoint, config: Any) -> Pooling:
    if not isinstance(config, dict):
        raise CheckpointError(f"`{checkpoint.folder}` has a module `Pooling` without its config.json")
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in POOLING_KEYS or config.get("include_prompt") is False:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` pools its tokens in a way that edgekit does not know: {', '.join(chosen) or 'none'}",
            hint=f"known is one of {', '.join(POOLING_KEYS)}",
        )
    return POOLING_KEYS[chosen[0]]


def max_length(checkpoint: Checkpoint) -> int:
    """Tokens that the model reads, special ones included: as sentence-transformers sets it, within its positions."""
    positions = required_int(checkpoint, checkpoint.architecture.positions)
    if checkpoint.architecture.positions_after_padding:
        positions -= int(checkpoint.config.get("pad_token_id", 1)) + 1
    settings = checkpoint.read_json("sentence_bert_config.json") or {}
    length = settings.get("max_seq_length")
    if length is None:
        length = (checkpoint.read_json(TOKENIZER_CONFIG) or {}).get("model_max_length")
    return positions if length is None else min(int(length), positions)


def lower_case(checkpoint: Checkpoint) -> bool:
    """Whether texts are put in lower case before they reach the tokenizer (which may do it once more itself)."""
    return bool((checkpoint.read_json("sentence_bert_config.json") or {}).get("do_lower_case", False))


def required_int(checkpoint: Checkpoint, key: str) -> int:
    value = checkpoint.config.get(key)
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"`{key}` in `{checkpoint.folder / 'config.json'}` must be a positive integer, not `{value}`"
        )
    return value
