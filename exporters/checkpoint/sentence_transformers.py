"""The files that sentence-transformers leaves beside a model: modules.json and the configs of its modules.

Every key is read, known not to matter for the result, or refused by its name: a key that nobody read may be what makes
the model another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...runtime.bundle.manifest import Activation, Pooling
from ...runtime.errors import CheckpointError, UnsupportedModelError
from .checkpoint import Checkpoint, checked_subfolder
from .files import MODEL_SETTINGS, MODULES, TRANSFORMER_SETTINGS

LIBRARY = "sentence_transformers"
_DEFINED_IN = {
    "Transformer": ("base.modules.transformer", "base.modules", "sentence_transformer.modules"),
    "Pooling": ("sentence_transformer.modules.pooling", "sentence_transformer.modules"),
    "Dense": ("base.modules.dense", "base.modules", "sentence_transformer.modules"),
    "Normalize": ("sentence_transformer.modules.normalize", "sentence_transformer.modules"),
    "Dropout": ("sentence_transformer.modules.dropout", "sentence_transformer.modules"),
}
"""Class -> the modules of the library that have it since version 5.4; until then all lay in `models`."""
MODULE_CLASSES = {
    f"{LIBRARY}.{place}.{name}": name
    for name, places in _DEFINED_IN.items()
    for place in (*places, "models", f"models.{name}")
}
"""Full dotted path -> class, for all that is exported: a class of the same name elsewhere is code of the checkpoint."""
EMBEDDING_MODEL = "SentenceTransformer"
PAIR_MODEL = "CrossEncoder"
_OTHER_MODELS = {
    "SparseEncoder": "a sparse embedder, whose vectors have one component for each token of the vocabulary",
    "MultiVectorEncoder": "a multi-vector embedder, which gives a vector for each token",
    "ColBERT": "a multi-vector embedder, which gives a vector for each token",
}
"""What `model_type` says beside those that are exported."""
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
"""They compare vectors and do not change them."""
POOLINGS = {
    "cls": Pooling.CLS,
    "max": Pooling.MAX,
    "mean": Pooling.MEAN,
    "mean_sqrt_len_tokens": Pooling.MEAN_SQRT,
    "weightedmean": Pooling.WEIGHTED_MEAN,
    "lasttoken": Pooling.LAST_TOKEN,
}
OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""A key for each mode, as before version 5.4, in the order in which their vectors are concatenated."""
ACTIVATIONS = {
    "Tanh": Activation.TANH,
    "Identity": Activation.IDENTITY,
    "ELU": Activation.ELU,
    "GELU": Activation.GELU,
    "Hardswish": Activation.HARDSWISH,
    "Hardtanh": Activation.HARDTANH,
    "LeakyReLU": Activation.LEAKY_RELU,
    "Mish": Activation.MISH,
    "ReLU": Activation.RELU,
    "ReLU6": Activation.RELU6,
    "SELU": Activation.SELU,
    "Sigmoid": Activation.SIGMOID,
    "SiLU": Activation.SILU,
    "Softplus": Activation.SOFTPLUS,
    "Softsign": Activation.SOFTSIGN,
}
"""Classes of torch.nn without parameters of their own."""
_TORCH_PLACES = ("torch.nn", "torch.nn.modules", "torch.nn.modules.activation", "torch.nn.modules.linear")
_TEXT_ALONE = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
_WITHOUT_EFFECT = {
    "model_kwargs": {
        *("add_pooling_layer", "attn_implementation", "device_map", "dtype", "low_cpu_mem_usage", "torch_dtype"),
        *("trust_remote_code", "use_safetensors"),
    },
    "processor_kwargs": {
        *("clean_up_tokenization_spaces", "model_max_length", "padding_side", "trust_remote_code", "use_fast"),
    },
    "config_kwargs": {"trust_remote_code"},
}
"""Options with which a model is loaded that are read, do not change what it computes in float32, or are dropped by the
library."""
_SHOWN = 60
"""Characters of a value that a message repeats."""
_OLD_NAMES = {"model_args": "model_kwargs", "tokenizer_args": "processor_kwargs", "config_args": "config_kwargs"}


@dataclass(frozen=True)
class Modules:
    """What follows the transformer, by the folders of the modules."""

    pooling: str
    dense: tuple[str, ...]
    normalize: bool


@dataclass(frozen=True)
class TransformerSettings:
    """How texts reach the transformer."""

    max_length: int | None
    """In tokens; None where the tokenizer decides."""
    lower_case: bool


@dataclass(frozen=True)
class PoolingSettings:
    """How the vectors of tokens become one."""

    modes: tuple[Pooling, ...]
    include_prompt: bool


@dataclass(frozen=True)
class DenseSettings:
    """A dense layer without its weights."""

    inputs: int
    outputs: int
    bias: bool
    activation: Activation


@dataclass(frozen=True)
class ModelSettings:
    """What concerns the model as a whole."""

    model_type: str
    prompts: dict[str, str]
    default_prompt: str | None


def model_type_of(checkpoint: Checkpoint) -> str:
    """The class of sentence-transformers that a checkpoint was saved from; UnsupportedModelError for other ones."""
    settings = read_object(checkpoint, MODEL_SETTINGS)
    found = settings.get("model_type", EMBEDDING_MODEL)
    if found in (EMBEDDING_MODEL, PAIR_MODEL):
        return str(found)
    described = _OTHER_MODELS.get(found) if isinstance(found, str) else None
    raise UnsupportedModelError(
        f"`{checkpoint.name}` is of the type `{found}`" + (f", {described}" if described else ""),
        hint=f"supported in `{MODEL_SETTINGS}`: `{EMBEDDING_MODEL}`, `{PAIR_MODEL}`",
    )


def modules_of(checkpoint: Checkpoint) -> Modules:
    """What modules.json says; raises UnsupportedModelError for other classes, or another order of them."""
    entries = _module_entries(checkpoint)
    kinds = [kind for kind, _ in entries]
    normalize = kinds[-1:] == ["Normalize"]
    if kinds != ["Transformer", "Pooling", *["Dense"] * kinds.count("Dense"), *["Normalize"] * normalize]:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` has its modules in an order that is not supported: {', '.join(kinds) or 'none'}",
            hint="supported: `Transformer`, `Pooling`, any number of `Dense`, and `Normalize`, in this order",
        )
    if normalize:
        # Versions that write no config for this module read none.
        file = f"{entries[-1][1]}/config.json"
        refuse_unread(checkpoint, file, read_object(checkpoint, file), {"module_input_name": "sentence_embedding"})
    return Modules(entries[1][1], tuple(path for kind, path in entries if kind == "Dense"), normalize)


def _module_entries(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Class and folder of each module that does something at inference, in order."""
    modules = checkpoint.read_module_json(MODULES)
    if modules is None:
        raise CheckpointError(
            f"`{checkpoint.top}` does not say how its tokens become one vector: it holds no `{MODULES}`",
            hint="an embedder is published in the layout of sentence-transformers; export that one",
        )
    if not isinstance(modules, list) or not all(
        isinstance(module, dict) and all(isinstance(module.get(key), str) for key in ("type", "path", "name"))
        for module in modules
    ):
        raise CheckpointError(f"`{checkpoint.top / MODULES}` is not a list of modules")
    if len({module["name"] for module in modules}) != len(modules):
        raise CheckpointError(f"`{checkpoint.top / MODULES}` has two modules of the same name")
    entries = []
    for module in modules:
        kind = _module_class(checkpoint, module["type"])
        harmless = {"idx": ..., "name": ..., "type": ..., "path": ..., "kwargs": []}
        refuse_unread(checkpoint, MODULES, module, harmless)
        if kind != "Dropout":
            entries.append((kind, checked_subfolder(checkpoint.top, module["path"])))
    return entries


def _module_class(checkpoint: Checkpoint, path: str) -> str:
    """The name of a module's class; raises UnsupportedModelError for a class that is not exported."""
    if path in MODULE_CLASSES:
        return MODULE_CLASSES[path]
    hint = f"supported modules of sentence-transformers: {', '.join(f'`{name}`' for name in _DEFINED_IN)}"
    root = path.partition(".")[0]
    if root == "pylate":
        hint = f"it is a ColBERT model of PyLate, {_OTHER_MODELS['ColBERT']}"
    if root != LIBRARY:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` has a module of a class that is not one of sentence-transformers: `{path}`; ortkit "
            "runs no code from a checkpoint",
            hint=hint,
        )
    raise UnsupportedModelError(f"`{checkpoint.name}` has a module that is not supported: `{path}`", hint=hint)


def model_settings(checkpoint: Checkpoint) -> ModelSettings:
    """The prompts; raises CheckpointError for what are none, UnsupportedModelError for what is not read."""
    model_type = model_type_of(checkpoint)
    settings = read_object(checkpoint, MODEL_SETTINGS)
    similarity = settings.get("similarity_fn_name")
    if similarity is not None and similarity not in _SIMILARITIES:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` compares its vectors by `{similarity}`",
            hint=f"supported: {', '.join(f'`{name}`' for name in _SIMILARITIES)}",
        )
    if settings.get("truncate_dim") is not None:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` cuts its vectors to {settings['truncate_dim']} components (`truncate_dim` in "
            f"`{MODEL_SETTINGS}`), which ortkit does at run time only",
            hint="export a copy without that key, and embed with `--dim`",
        )
    read = ("__version__", "default_prompt_name", "model_type", "prompts", "similarity_fn_name", "truncate_dim")
    refuse_unread(checkpoint, MODEL_SETTINGS, settings, dict.fromkeys(read, ...))
    prompts = settings.get("prompts", {})
    if not isinstance(prompts, dict) or not all(isinstance(text, (str, type(None))) for text in prompts.values()):
        raise CheckpointError(
            f"`prompts` in `{checkpoint.top / MODEL_SETTINGS}` must be an object of texts, not {quoted(prompts)}"
        )
    prompts = {name: text or "" for name, text in prompts.items()}
    default = settings.get("default_prompt_name")
    # The library has these two, and they are empty, where the file does not.
    if default in ("query", "document") and default not in prompts:
        default = None
    if default is not None and (not isinstance(default, str) or default not in prompts):
        known = ", ".join(f"`{name}`" for name in prompts) or "none"
        raise CheckpointError(
            f"`default_prompt_name` in `{checkpoint.top / MODEL_SETTINGS}` is {quoted(default)}, and the prompts are: "
            f"{known}"
        )
    return ModelSettings(model_type, prompts, default)


def transformer_settings(checkpoint: Checkpoint) -> TransformerSettings:
    """What the module `Transformer` does to texts, whatever else its settings say."""
    file, settings = transformer_file(checkpoint)
    length = _tokenizer_options(checkpoint, file, settings).get("model_max_length", settings.get("max_seq_length"))
    return TransformerSettings(
        None if length is None else checked_length(length, f"`max_seq_length` in `{checkpoint.folder / file}`"),
        checked_flag(checkpoint, file, settings, "do_lower_case", default=False),
    )


def transformer_file(checkpoint: Checkpoint) -> tuple[str, Mapping[str, Any]]:
    """The settings of the module `Transformer`, and the file in which they are."""
    files = ((name, read_object(checkpoint, name, of_model=True)) for name in TRANSFORMER_SETTINGS)
    return next(((name, found) for name, found in files if found), (TRANSFORMER_SETTINGS[0], {}))


def check_transformer(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedModelError for settings of the module `Transformer` that make an embedder another model."""
    file, settings = transformer_file(checkpoint)
    harmless: dict[str, Any] = {
        "max_seq_length": ...,
        "do_lower_case": ...,
        "unpad_inputs": ...,
        "transformer_task": "feature-extraction",
        "processing_kwargs": {},
        "tokenizer_name_or_path": None,
        **dict.fromkeys((*_OLD_NAMES, *_OLD_NAMES.values()), ...),
    }
    if "modality_config" in settings:
        harmless |= {"modality_config": _TEXT_ALONE, "module_output_name": "token_embeddings"}
    refuse_unread(checkpoint, file, settings, harmless)
    if "modality_config" in settings and "module_output_name" not in settings:
        raise CheckpointError(f"`{checkpoint.folder / file}` has a `modality_config` without `module_output_name`")
    for key in (*_OLD_NAMES, *_OLD_NAMES.values()):
        harmless = dict.fromkeys(_WITHOUT_EFFECT[_OLD_NAMES.get(key, key)], ...)
        refuse_unread(checkpoint, file, _options_of(checkpoint, file, settings, key), harmless, within=key)


def _tokenizer_options(checkpoint: Checkpoint, file: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the tokenizer is loaded with, under the older name where that is there, as in the library."""
    key = "tokenizer_args" if "tokenizer_args" in settings else "processor_kwargs"
    return _options_of(checkpoint, file, settings, key)


def _options_of(checkpoint: Checkpoint, file: str, settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    options = settings.get(key, {})
    if not isinstance(options, dict):
        raise CheckpointError(f"`{key}` in `{checkpoint.folder / file}` must be an object, not {quoted(options)}")
    return options


def pooling_settings(checkpoint: Checkpoint, path: str) -> PoolingSettings:
    """The modes of the module `Pooling` in this folder, in the order in which their vectors are concatenated."""
    file = f"{path}/config.json"
    settings = _module_config(checkpoint, "Pooling", file)
    sizes = ("embedding_dimension", "word_embedding_dimension")
    read = (*sizes, "pooling_mode", "include_prompt", *OLD_POOLING_KEYS)
    refuse_unread(checkpoint, file, settings, dict.fromkeys(read, ...))
    if not any(key in settings for key in sizes):
        raise CheckpointError(f"`{checkpoint.top / file}` lacks `{sizes[0]}`")
    chosen = tuple(
        mode
        for key, mode in OLD_POOLING_KEYS.items()
        if checked_flag(checkpoint, file, settings, key, default=False, of_model=False)
    )
    modes = settings.get("pooling_mode", chosen or ("mean",))
    modes = (modes,) if isinstance(modes, str) else modes
    if not isinstance(modes, (list, tuple)) or not modes or not all(isinstance(mode, str) for mode in modes):
        raise CheckpointError(
            f"`pooling_mode` in `{checkpoint.top / file}` must be the name of a mode or a list of them, not "
            f"{quoted(modes)}"
        )
    unknown = next((mode for mode in modes if mode not in POOLINGS), None)
    if unknown is not None:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` pools its tokens by `{unknown}`, which is not supported",
            hint=f"supported: {', '.join(f'`{mode}`' for mode in POOLINGS)}",
        )
    include = checked_flag(checkpoint, file, settings, "include_prompt", default=True, of_model=False)
    return PoolingSettings(tuple(POOLINGS[mode] for mode in modes), include)


def dense_settings(checkpoint: Checkpoint, path: str) -> DenseSettings:
    """The module `Dense` in this folder."""
    file = f"{path}/config.json"
    settings = _module_config(checkpoint, "Dense", file)
    harmless: dict[str, Any] = dict.fromkeys(("in_features", "out_features", "bias", "activation_function"), ...)
    # A residual would be added by versions of the library that ortkit's reference is not.
    harmless |= {"use_residual": False, "module_input_name": "sentence_embedding"}
    harmless |= {"module_output_name": ("sentence_embedding", None)}
    refuse_unread(checkpoint, file, settings, harmless)
    sizes: list[Any] = [settings.get(key) for key in ("in_features", "out_features")]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise CheckpointError(
            f"`in_features` and `out_features` in `{checkpoint.top / file}` must be positive integers, not "
            f"{quoted(sizes[0])} and {quoted(sizes[1])}"
        )
    bias = checked_flag(checkpoint, file, settings, "bias", default=True, of_model=False)
    return DenseSettings(int(sizes[0]), int(sizes[1]), bias, _activation_of(checkpoint, settings))


def _activation_of(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Activation:
    """What a dense layer applies to its results, a hyperbolic tangent where it says nothing."""
    asked = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    place, _, name = str(asked).rpartition(".")
    if not isinstance(asked, str) or place not in _TORCH_PLACES or name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` has a module `Dense` with the activation `{asked}`, which is not supported",
            hint=f"supported: {', '.join(f'`torch.nn.{known}`' for known in ACTIVATIONS)}",
        )
    return ACTIVATIONS[name]


def _module_config(checkpoint: Checkpoint, kind: str, file: str) -> Mapping[str, Any]:
    """The config of a module that cannot be without one."""
    if checkpoint.read_module_json(file) is None:
        raise CheckpointError(f"`{checkpoint.top}` has a module `{kind}` without its `{file}`")
    return read_object(checkpoint, file)


def read_object(checkpoint: Checkpoint, file: str, *, of_model: bool = False) -> Mapping[str, Any]:
    """A JSON object of a checkpoint, empty where there is no such file; raises CheckpointError for other values."""
    found = checkpoint.read_json(file) if of_model else checkpoint.read_module_json(file)
    if found is None:
        return {}
    if not isinstance(found, dict):
        folder = checkpoint.folder if of_model else checkpoint.top
        raise CheckpointError(f"`{folder / file}` must be a JSON object, not {quoted(found)}")
    return found


def refuse_unread(
    checkpoint: Checkpoint,
    file: str,
    settings: Mapping[str, Any],
    known: Mapping[str, Any],
    *,
    within: str = "",
) -> None:
    """Raise UnsupportedModelError for a key that is not known, or whose value is not one that is.

    `known` has `...` for a key that is read or does not matter, else the value that it must have, or a tuple of them.
    """
    for key, value in settings.items():
        expected = known.get(key, None)
        values = expected if isinstance(expected, tuple) else (expected,)
        if expected is ... or (key in known and any(value == one and type(value) is type(one) for one in values)):
            continue
        named = f"{within}.{key}" if within else key
        allowed = " or ".join(quoted(one) for one in values if key in known)
        raise UnsupportedModelError(
            f"`{checkpoint.name}` has `{named}` set to {quoted(value)} in `{file}`, which ortkit does not support",
            hint=f"supported: {allowed}" if allowed else "without that key the model may be another one",
        )


def checked_flag(
    checkpoint: Checkpoint, file: str, settings: Mapping[str, Any], key: str, *, default: bool, of_model: bool = True
) -> bool:
    """True or false; raises CheckpointError for anything else."""
    value = settings.get(key, default)
    if not isinstance(value, bool):
        folder = checkpoint.folder if of_model else checkpoint.top
        raise CheckpointError(f"`{key}` in `{folder / file}` must be true or false, not {quoted(value)}")
    return value


def checked_length(value: Any, where: str) -> int:
    """A number of tokens; raises CheckpointError for what cannot be one."""
    whole = isinstance(value, float) and math.isfinite(value) and value.is_integer()
    if not (type(value) is int or whole) or value < 1:
        raise CheckpointError(f"{where} must be a positive integer, not {quoted(value)}")
    return int(value)


def quoted(value: Any) -> str:
    """A value from a file, in a message."""
    if value is None:
        return "null"
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return f"`{text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}`"
