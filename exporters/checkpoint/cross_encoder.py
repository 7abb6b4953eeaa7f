"""A cross-encoder's own files as sentence-transformers' `CrossEncoder` reads them: modules, activation, prompt, length.

Nothing here needs the weights. A key or a module that has a meaning and is not read here is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, cast

from ...runtime.bundle.manifest import Scores
from ...runtime.errors import CheckpointError, UnsupportedModelError
from .architectures import answers_in_words, is_classifier
from .checkpoint import Checkpoint, checked_subfolder
from .files import MODEL_SETTINGS, MODULES, TRANSFORMER_SETTINGS
from .sentence_transformers import (
    LIBRARY,
    MODULE_CLASSES,
    PAIR_MODEL,
    checked_flag,
    checked_length,
    model_type_of,
    quoted,
    read_object,
    refuse_unread,
    transformer_file,
)

_CLASSES = MODULE_CLASSES | {
    f"{LIBRARY}.{place}.{name}": name
    for name, places in {
        "LogitScore": ("cross_encoder.modules.logit_score", "cross_encoder.modules"),
        "LayerNorm": ("sentence_transformer.modules.layer_norm", "sentence_transformer.modules", "models"),
    }.items()
    for place in places
}
"""Full dotted path -> class: a class of the same name elsewhere is code of the checkpoint."""
ACTIVATIONS = {
    f"torch.nn.{module}{name}": scores
    for name, home, scores in (
        ("Identity", "linear", Scores.RAW),
        ("Sigmoid", "activation", Scores.SIGMOID),
        ("Softmax", "activation", Scores.SOFTMAX),
    )
    for module in ("", "modules.", f"modules.{home}.")
}
"""Classes of torch by the names under which they can be imported."""
_READ = ("transformer_task", "modality_config", "module_output_name", "max_seq_length", "do_lower_case", "unpad_inputs")
"""Settings of the module `Transformer` that are read; `unpad_inputs` chooses between two ways to compute the same."""
_EMPTY = ("model_args", "tokenizer_args", "config_args", "model_kwargs", "processor_kwargs", "config_kwargs")
"""Options with which a model is loaded, which must be empty."""
_DENSE_KEYS = ("in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name")
_AFTER_TRANSFORMER = frozenset({"Pooling", "Dense", "Normalize", "LayerNorm"})
"""Modules that make a score of token embeddings, in any order; the last is a `Dense`."""
_MOST_LABELS = 1 << 16


Messages = Literal["auto", "flat", "structured"]


class Form(StrEnum):
    """How a pair becomes logits."""

    CLASSIFIER = "sequence-classification"
    """By a classification head of transformers."""
    ANSWER = "text-generation"
    """By the next token of a decoder, such as yes or no."""
    MODULES = "feature-extraction"
    """By pooling and dense layers after an encoder."""


_OUTPUTS = {
    Form.CLASSIFIER: ("logits", "scores"),
    Form.ANSWER: ("logits", "causal_logits"),
    Form.MODULES: ("last_hidden_state", "token_embeddings"),
}
"""What is taken from the model's output, and under which name the next module reads it."""


@dataclass(frozen=True)
class CrossEncoderFiles:
    """What the files say, without the weights and the tokenizer."""

    form: Form
    saved: bool
    """Whether sentence-transformers wrote it, with modules and settings; otherwise it is a model of transformers."""
    modules: tuple[tuple[str, str], ...] = ()
    """Class and folder of what follows the transformer."""
    messages: Messages | None = None
    """The format of messages where the chat template puts pairs together; None where the tokenizer does."""
    prompt: str = ""
    """Prefix of every query."""
    max_length: int | None = None
    """In tokens; None for what tokenizer and config say."""
    lower_case: bool = False


def _is_cross_encoder(checkpoint: Checkpoint) -> bool:
    """Whether sentence-transformers saved it as a `CrossEncoder`, whatever its modules are."""
    return checkpoint.read_module_json(MODULES) is not None and model_type_of(checkpoint) == PAIR_MODEL


def read_cross_encoder(checkpoint: Checkpoint) -> CrossEncoderFiles:
    """Read the files; raises UnsupportedModelError for what would be left out, CheckpointError for what is not valid.

    As the library has it, the settings count only where `modules.json` is there and they name the type `CrossEncoder`.
    """
    if not _is_cross_encoder(checkpoint):
        return _plain_cross_encoder(checkpoint)
    file, own = transformer_file(checkpoint)
    modules = modules_of(checkpoint)
    form = _form_of(checkpoint, own, tuple(kind for kind, _ in modules))
    if form is Form.MODULES:
        _check_modules(checkpoint, modules)
    known: dict[str, Any] = {**dict.fromkeys(_READ, ...), **{key: {} for key in _EMPTY}}
    refuse_unread(checkpoint, file, own, known | {"processing_kwargs": {}, "tokenizer_name_or_path": None})
    length = own.get("max_seq_length")
    where = f"`max_seq_length` in `{checkpoint.folder / file}`"
    return CrossEncoderFiles(
        form=form,
        saved=True,
        modules=modules,
        messages=_message_format(checkpoint, own, form),
        prompt=default_prompt(checkpoint),
        max_length=None if length is None else checked_length(length, where),
        lower_case=checked_flag(checkpoint, file, own, "do_lower_case", default=False),
    )


def checked_cross_encoder(checkpoint: Checkpoint) -> CrossEncoderFiles:
    """Read the files; raises UnsupportedModelError or CheckpointError for what they say and is not exported."""
    files = read_cross_encoder(checkpoint)
    labels = 1
    if files.form is Form.CLASSIFIER:
        labels = len(labels_of(checkpoint))
    elif files.form is Form.MODULES:
        labels = len(labels_of_dense(checkpoint, files.modules))
    scores_of(checkpoint, labels)
    return files


def _plain_cross_encoder(checkpoint: Checkpoint) -> CrossEncoderFiles:
    if checkpoint.subfolder:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` has its model in `{checkpoint.subfolder}`, where sentence-transformers does not look "
            f"for it: its `{MODEL_SETTINGS}` does not say that it is a `{PAIR_MODEL}`",
            hint="save it with sentence-transformers' `CrossEncoder.save_pretrained`",
        )
    if answers_in_words(checkpoint.config) and checkpoint.read_module_json(MODULES) is not None:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` has a `{MODULES}`, and its `{MODEL_SETTINGS}` does not say that it is a "
            f"`{PAIR_MODEL}`",
            hint="save it with sentence-transformers' `CrossEncoder.save_pretrained`",
        )
    return CrossEncoderFiles(Form.ANSWER if answers_in_words(checkpoint.config) else Form.CLASSIFIER, saved=False)


def modules_of(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """Class and folder of each module after the transformer, which comes first; those without effect are left out."""
    content = checkpoint.read_module_json(MODULES)
    where = checkpoint.top / MODULES
    if not isinstance(content, list) or not all(isinstance(module, dict) for module in content):
        raise CheckpointError(f"`{where}` must be a list of modules")
    found = []
    for module in content:
        refuse_unread(checkpoint, MODULES, module, {"idx": ..., "name": ..., "type": ..., "path": ..., "kwargs": []})
        kind, path = module.get("type"), module.get("path")
        if not isinstance(kind, str) or not isinstance(path, str):
            raise CheckpointError(f"`{where}` must give each module a `type` and a `path`")
        found.append((_class_of(checkpoint, kind), checked_subfolder(checkpoint.top, path)))
    if not found or found[0] != ("Transformer", checkpoint.subfolder):
        raise UnsupportedModelError(
            f"`{checkpoint.name}` does not begin with the module `Transformer`",
            hint="supported: models that begin with the module `Transformer`",
        )
    return tuple((kind, path) for kind, path in found[1:] if kind != "Dropout")


def _class_of(checkpoint: Checkpoint, path: str) -> str:
    """The name of a module's class; raises UnsupportedModelError for a class that is not exported."""
    if path in _CLASSES:
        return _CLASSES[path]
    own = "" if path.startswith(f"{LIBRARY}.") else "; ortkit runs no code from a checkpoint"
    known = ", ".join(f"`{name}`" for name in sorted(set(_CLASSES.values())))
    raise UnsupportedModelError(
        f"`{checkpoint.name}` has a module of a class that is not supported: `{path}`{own}",
        hint=f"supported modules of sentence-transformers: {known}",
    )


def _form_of(checkpoint: Checkpoint, own: Mapping[str, Any], kinds: tuple[str, ...]) -> Form:
    """How a pair becomes logits; raises UnsupportedModelError for modules that do not make a score together."""
    task = own.get("transformer_task", Form.MODULES.value)
    if task == Form.CLASSIFIER.value and not kinds:
        return Form.CLASSIFIER
    if task == Form.ANSWER.value and kinds == ("LogitScore",):
        return Form.ANSWER
    if task == Form.MODULES.value and kinds and _AFTER_TRANSFORMER.issuperset(kinds) and kinds[-1] == "Dense":
        return Form.MODULES
    raise UnsupportedModelError(
        f"`{checkpoint.name}` has the modules {', '.join(('Transformer', *kinds))} for the task `{task}`, which is not "
        "supported",
        hint="supported: a classifier alone, a decoder with `LogitScore`, an encoder with `Pooling` and `Dense`",
    )


def _check_modules(checkpoint: Checkpoint, modules: tuple[tuple[str, str], ...]) -> None:
    """Refuse dense layers with code of their own, keys that are not read, and a last module that gives no scores."""
    for kind, path in modules:
        file = f"{path}/config.json"
        config = read_object(checkpoint, file)
        if kind == "Dense":
            refuse_unread(checkpoint, file, config, dict.fromkeys(_DENSE_KEYS, ...) | {"use_residual": False})
            activation = config.get("activation_function")
            if activation is not None and not str(activation).startswith("torch.nn."):
                raise UnsupportedModelError(
                    f"`{checkpoint.name}` has a module `Dense` with the activation `{activation}`, which is not "
                    "supported",
                    hint="supported: classes of torch.nn",
                )
        if kind == "Pooling" and config.get("include_prompt") is False and default_prompt(checkpoint):
            raise UnsupportedModelError(
                f"`{checkpoint.name}` leaves its prompt out of pooling (`include_prompt: false` in `{file}`), which is "
                "not supported for rerankers"
            )
    file = f"{modules[-1][1]}/config.json"
    output = read_object(checkpoint, file).get("module_output_name")
    if output != "scores":
        raise UnsupportedModelError(
            f"the last module of `{checkpoint.name}` gives `{output}`, not `scores` (`module_output_name` in `{file}`)"
        )
    labels_of_dense(checkpoint, modules)


def _message_format(checkpoint: Checkpoint, own: Mapping[str, Any], form: Form) -> Messages | None:
    """The format of the messages that a chat template renders, None where pairs are texts for the tokenizer."""
    output, name = _OUTPUTS[form]
    modalities = own.get("modality_config", {"text": {"method": "forward", "method_output_name": output}})
    if not isinstance(modalities, dict) or not all(isinstance(value, dict) for value in modalities.values()):
        raise CheckpointError(f"`modality_config` in `{checkpoint.folder / TRANSFORMER_SETTINGS[0]}` must hold objects")
    as_known = {"method": "forward", "method_output_name": output}
    for modality, told in modalities.items():
        said = {key: value for key, value in told.items() if key != "format"}
        if modality not in ("text", "message") or said != as_known:
            raise UnsupportedModelError(
                f"`{TRANSFORMER_SETTINGS[0]}` of `{checkpoint.name}` reads `{modality}` by {said}, which is not "
                "supported",
                hint=f"supported: `text` and `message` by {as_known}",
            )
    if own.get("module_output_name", name) != name:
        raise UnsupportedModelError(
            f"`{TRANSFORMER_SETTINGS[0]}` of `{checkpoint.name}` has `module_output_name` set to "
            f"`{own['module_output_name']}`, which is not supported",
            hint=f"supported: `{name}`",
        )
    if "message" not in modalities:
        if "text" not in modalities:
            raise UnsupportedModelError(f"`{checkpoint.name}` reads neither texts nor messages")
        return None
    form_of_messages = modalities["message"].get("format", "auto")
    if form_of_messages not in ("auto", "flat", "structured"):
        raise CheckpointError(
            f"the format of messages in `{checkpoint.folder / TRANSFORMER_SETTINGS[0]}` must be flat or structured, "
            f"not {quoted(form_of_messages)}"
        )
    return cast("Messages", form_of_messages)


def default_prompt(checkpoint: Checkpoint) -> str:
    """The text before every query, empty where none is set."""
    settings = read_object(checkpoint, MODEL_SETTINGS)
    prompts = settings.get("prompts", {})
    where = checkpoint.top / MODEL_SETTINGS
    if not isinstance(prompts, dict) or not all(isinstance(text, (str, type(None))) for text in prompts.values()):
        raise CheckpointError(f"`prompts` in `{where}` must give each name a text")
    name = settings.get("default_prompt_name")
    if name is None:
        return ""
    if not isinstance(name, str) or name not in prompts:
        raise CheckpointError(f"`default_prompt_name` in `{where}` is `{name}`, and `prompts` does not hold it")
    return prompts[name] or ""


def scores_of(checkpoint: Checkpoint, labels: int) -> Scores:
    """What the publisher makes of the logits: Sigmoid for one label and the logits for more where nothing is stated."""
    named = _activation_of(checkpoint)
    if named is None:
        return Scores.SIGMOID if labels == 1 else Scores.RAW
    scores = ACTIVATIONS.get(named)
    if scores is None or (scores is Scores.SOFTMAX and labels == 1):
        raise UnsupportedModelError(
            f"`{checkpoint.name}` applies `{named}` to its logits, which is not supported",
            hint="supported: `torch.nn.Identity`, `torch.nn.Sigmoid`, and `torch.nn.Softmax` for several labels",
        )
    return scores


def _activation_of(checkpoint: Checkpoint) -> str | None:
    """The class that a checkpoint names, looked for where and in the order in which sentence-transformers looks."""
    config = checkpoint.config
    if _is_cross_encoder(checkpoint):
        named = read_object(checkpoint, MODEL_SETTINGS).get("activation_fn")
        if named is not None:
            return _class_name(named, "activation_fn", MODEL_SETTINGS, checkpoint)
    if "sentence_transformers" in config:
        settings = config["sentence_transformers"]
        if not isinstance(settings, dict):
            raise CheckpointError(f"`sentence_transformers` in `{checkpoint.folder / 'config.json'}` must be an object")
        if "activation_fn" in settings:
            return _class_name(settings["activation_fn"], "activation_fn", "config.json", checkpoint)
    older = "sbert_ce_default_activation_function"
    return _class_name(config.get(older), older, "config.json", checkpoint)


def _class_name(named: object, key: str, file: str, checkpoint: Checkpoint) -> str | None:
    if named is not None and not isinstance(named, str):
        raise CheckpointError(
            f"`{key}` in `{checkpoint.folder / file}` must be the name of a class, not {type(named).__name__}"
        )
    return named


def labels_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The names of a classifier's logits; those of transformers' default where the config names none.

    As sentence-transformers has it, what is not published as a classifier gets one label.
    """
    where = checkpoint.folder / "config.json"
    published = is_classifier(checkpoint.config)
    named = checkpoint.config.get("id2label")
    if named is None or (not published and isinstance(named, dict) and len(named) != 1):
        count = checkpoint.config.get("num_labels", 2) if published else 1
        if type(count) is not int or not 1 <= count <= _MOST_LABELS:
            raise CheckpointError(
                f"`num_labels` in `{where}` must be an integer from 1 to {_MOST_LABELS}, not {quoted(count)}"
            )
        return tuple(f"LABEL_{number}" for number in range(count))
    numbers = [str(number) for number in range(len(named))] if isinstance(named, dict) else []
    texts = isinstance(named, dict) and all(isinstance(value, (str, int)) for value in named.values())
    if not numbers or not texts or set(named) != set(numbers) or len(set(map(str, named.values()))) != len(numbers):
        raise CheckpointError(f"`id2label` in `{where}` must give the labels 0, 1, ... names of their own")
    return tuple(str(named[number]) for number in numbers)


def labels_of_dense(checkpoint: Checkpoint, modules: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Names for the scores that the last dense layer gives."""
    path = modules[-1][1]
    file = f"{path}/config.json"
    count = read_object(checkpoint, file).get("out_features")
    if type(count) is not int or not 1 <= count <= _MOST_LABELS:
        raise CheckpointError(
            f"`out_features` in `{checkpoint.top / file}` must be an integer from 1 to {_MOST_LABELS}, not "
            f"{quoted(count)}"
        )
    return tuple(f"LABEL_{number}" for number in range(count))
