"""What a model is for and how long its inputs may be, from the checkpoint's own files."""

from __future__ import annotations

from ...runtime.bundle.manifest import Kind
from ...runtime.errors import CheckpointError, UnsupportedModelError
from .architectures import answers_in_words, is_classifier
from .checkpoint import Checkpoint
from .files import MODULES, TOKENIZER_CONFIG
from .sentence_transformers import PAIR_MODEL, checked_length, model_type_of, read_object, transformer_settings

_ROTATES_BY_LENGTH = "longrope"
"""The rotation whose angles depend on how long a text is."""


def kind_of(checkpoint: Checkpoint, asked: Kind | None) -> Kind:
    """What a model is for: what the user or the catalog says, else what its own files do."""
    if checkpoint.gguf is not None and asked not in (None, Kind.DECODER):
        raise UnsupportedModelError(f"`{checkpoint.gguf.name}` is a GGUF file, of which ortkit exports decoders only")
    if asked is not None:
        return asked
    if checkpoint.gguf is not None:
        return Kind.DECODER
    return checkpoint.spec.kind if checkpoint.spec is not None else _kind_by_files(checkpoint)


def _kind_by_files(checkpoint: Checkpoint) -> Kind:
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
            f"ortkit exports {known} only"
        )
    scaling = checkpoint.config.get("rope_scaling")
    form = (scaling.get("rope_type") or scaling.get("type")) if isinstance(scaling, dict) else None
    # A trace has the angles of one length; a decoder's context ends where they change.
    if form == _ROTATES_BY_LENGTH and kind is not Kind.DECODER:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` rotates long texts by other angles than short ones (`rope_scaling` in config.json: "
            f"`{form}`), which ortkit does not export for {kind.value}s"
        )


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
