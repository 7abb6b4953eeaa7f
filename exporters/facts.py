"""What a checkpoint is for, and how an embedder wants to be used, from the files that sentence-transformers leaves."""

from __future__ import annotations

from exporters.architectures import answers_in_words, is_classifier
from exporters.checkpoint import Checkpoint
from exporters.checkpoint_files import MODULES, TOKENIZER_CONFIG
from exporters.modules import (
    EMBEDDING_MODEL,
    PAIR_MODEL,
    DenseSettings,
    check_transformer,
    checked_length,
    dense_settings,
    model_settings,
    model_type_of,
    modules_of,
    pooling_settings,
    read_object,
    transformer_settings,
)
from runtime.errors import CheckpointError, UnsupportedModelError
from runtime.manifest import EmbedderFacts, Kind

ROTATES_BY_LENGTH = "longrope"
"""The rotation whose angles depend on how long a text is."""


def kind_of(checkpoint: Checkpoint, asked: Kind | None) -> Kind:
    """What a model is for: what the user or the catalog says, else what its own files do."""
    if checkpoint.gguf is not None and asked not in (None, Kind.DECODER):
        raise UnsupportedModelError(f"`{checkpoint.gguf.name}` is a GGUF file, of which edgekit exports decoders only")
    if asked is not None:
        return asked
    if checkpoint.gguf is not None:
        return Kind.DECODER
    return checkpoint.spec.kind if checkpoint.spec is not None else kind_by_files(checkpoint)


def kind_by_files(checkpoint: Checkpoint) -> Kind:
    """What a model's own files say; raises UnsupportedModelError for a type of sentence-transformers beside these."""
    pairs = model_type_of(checkpoint) == PAIR_MODEL
    modules = str(checkpoint.read_module_json(MODULES))
    if "Pooling" in modules and not pairs:
        return Kind.EMBEDDER
    if pairs or "LogitScore" in modules or is_classifier(checkpoint.config):
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
    scaling = checkpoint.config.get("rope_scaling")
    form = (scaling.get("rope_type") or scaling.get("type")) if isinstance(scaling, dict) else None
    # A trace has the angles of one length; a decoder's context ends where they change.
    if form == ROTATES_BY_LENGTH and kind is not Kind.DECODER:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` rotates long texts by other angles than short ones (`rope_scaling` in config.json: "
            f"`{form}`), which edgekit does not export for {kind.value}s"
        )


def embedder_facts(checkpoint: Checkpoint) -> EmbedderFacts:
    """Pooling, normalization, prompts and dimensions, from the files of the checkpoint; nothing is guessed.

    `dimension` is that of the pooled vectors, before any dense layer. Raises UnsupportedModelError for what is not
    exported exactly, and for every setting that is not read.
    """
    settings = model_settings(checkpoint)
    if settings.model_type != EMBEDDING_MODEL:
        raise UnsupportedModelError(f"`{checkpoint.name}` is a `{settings.model_type}`, not an embedder")
    modules = modules_of(checkpoint)
    check_transformer(checkpoint)
    pooling = pooling_settings(checkpoint, modules.pooling)
    dimension = required_int(checkpoint, checkpoint.architecture.width) * len(pooling.modes)
    dense_shapes(checkpoint, dimension)
    return EmbedderFacts(
        dimension=dimension,
        pooling=pooling.modes[0],
        normalize=modules.normalize,
        prompts=settings.prompts,
        default_prompt=settings.default_prompt,
        matryoshka_dimensions=matryoshka_dimensions(checkpoint),
        further_poolings=pooling.modes[1:],
        # How many they are is not known before the tokenizer is there.
        unpooled_tokens={} if pooling.include_prompt else {name: 0 for name, text in settings.prompts.items() if text},
    )


def dense_shapes(checkpoint: Checkpoint, width: int) -> list[DenseSettings]:
    """The dense layers, the first of which takes vectors of `width` components; CheckpointError for others."""
    layers = []
    for path in modules_of(checkpoint).dense:
        layers.append(dense_settings(checkpoint, path))
        if layers[-1].inputs != width:
            raise CheckpointError(
                f"the module in `{checkpoint.top / path}` reads vectors of {layers[-1].inputs} components, and what "
                f"comes before gives {width}"
            )
        width = layers[-1].outputs
    return layers


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


def max_length(checkpoint: Checkpoint) -> int:
    """Tokens that the model reads, special ones included: as sentence-transformers sets it, within its positions."""
    settings = transformer_settings(checkpoint)
    length = settings.max_length
    if length is None:
        tokenizer = read_object(checkpoint, TOKENIZER_CONFIG, of_model=True)
        stated = tokenizer.get("model_max_length")
        where = f"`model_max_length` in `{checkpoint.folder / TOKENIZER_CONFIG}`"
        length = None if stated is None else checked_length(stated, where)
    positions = positions_of(checkpoint)
    return positions if length is None else min(length, positions)


def positions_of(checkpoint: Checkpoint) -> int:
    """How many tokens a model has positions for."""
    architecture = checkpoint.architecture
    positions = required_int(checkpoint, architecture.positions)
    if architecture.positions_after_padding:
        padding = architecture.padding
        if padding is None:
            padding = int(checkpoint.config.get("pad_token_id", 1))
        positions -= padding + 1
        if positions < 1:
            raise CheckpointError(
                f"`{architecture.positions}` in `{checkpoint.folder / 'config.json'}` leaves no position behind that "
                f"of the padding token, {padding}"
            )
    return positions


def lower_case(checkpoint: Checkpoint) -> bool:
    """Whether texts are put in lower case before they reach the tokenizer (which may do it once more itself)."""
    return transformer_settings(checkpoint).lower_case


def required_int(checkpoint: Checkpoint, key: str) -> int:
    value = checkpoint.config.get(key)
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"`{key}` in `{checkpoint.folder / 'config.json'}` must be a positive integer, not `{value}`"
        )
    return value
