"""An embedder's configuration: pooling, prompts, dense layers and dimensions, from sentence-transformers' files."""

from __future__ import annotations

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.kind import required_int
from ..checkpoint.sentence_transformers import EMBEDDING_MODEL, DenseSettings, check_transformer, dense_settings, model_settings, modules_of, pooling_settings
from ...runtime.errors import CheckpointError, UnsupportedModelError
from ...runtime.bundle.manifest import EmbedderFacts


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
