"""A cross-encoder's own files as sentence-transformers' `CrossEncoder` reads them: modules, activation, prompt, length.

Nothing here needs the weights. A key or a module that has a meaning and is not read here is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath
from typing import Any, Literal, cast

from exporters.architectures import answers_in_words, is_classifier
from exporters.checkpoint import Checkpoint
from runtime.errors import CheckpointError, UnsupportedModelError
from runtime.manifest import Scores

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
TRANSFORMER_SETTINGS = "sentence_bert_config.json"
CROSS_ENCODER = "CrossEncoder"
OWN_CLASSES = "sentence_transformers."
"""How the classes begin that sentence-transformers brings; others are code of the checkpoint."""
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
READ = frozenset(
    # `unpad_inputs` chooses between two ways to compute the same.
    {"transformer_task", "modality_config", "module_output_name", "max_seq_length", "do_lower_case", "unpad_inputs"}
)
"""The keys of `sentence_bert_config.json` that are read."""
AFTER_TRANSFORMER = frozenset({"Pooling", "Dense", "Normalize", "LayerNorm"})
"""Modules that make a score of token embeddings, in any order; the last is a `Dense`."""
MOST_LABELS = 1 << 16


Messages = Literal["auto", "flat", "structured"]


class Form(str, Enum):
    """How a pair becomes logits."""

    CLASSIFIER = "sequence-classification"
    """By a classification head of transformers."""
    ANSWER = "text-generation"
    """By the next token of a decoder, such as yes or no."""
    MODULES = "feature-extraction"
    """By pooling and dense layers after an encoder."""


OUTPUTS = {
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
    """Goes before every query."""
    max_length: int | None = None
    """In tokens; None for what tokenizer and config say."""
    lower_case: bool = False


def is_cross_encoder(checkpoint: Checkpoint) -> bool:
    """Whether sentence-transformers saved it as a `CrossEncoder`, whatever its modules are."""
    settings = checkpoint.read_json(SETTINGS)
    saved = checkpoint.read_json(MODULES) is not None
    return saved and isinstance(settings, dict) and settings.get("model_type") == CROSS_ENCODER


def read_cross_encoder(checkpoint: Checkpoint) -> CrossEncoderFiles:
    """Read the files; raises UnsupportedModelError for what would be left out, CheckpointError for what is not valid.

    As the library has it, the settings count only where `modules.json` is there and they name the type `CrossEncoder`.
    """
    if not is_cross_encoder(checkpoint):
        return plain_cross_encoder(checkpoint)
    own = read_object(checkpoint, TRANSFORMER_SETTINGS)
    modules = modules_of(checkpoint)
    form = form_of(checkpoint, own, tuple(kind for kind, _ in modules))
    if form is Form.MODULES:
        check_dense(checkpoint, modules)
    check_keys(checkpoint, own)
    length = own.get("max_seq_length")
    return CrossEncoderFiles(
        form=form,
        saved=True,
        modules=modules,
        messages=message_format(checkpoint, own, form),
        prompt=default_prompt(checkpoint),
        max_length=None if length is None else positive(length, "max_seq_length", TRANSFORMER_SETTINGS, checkpoint),
        lower_case=boolean(own.get("do_lower_case", False), "do_lower_case", checkpoint),
    )


def check_cross_encoder(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedModelError or CheckpointError for what the files say and is not exported."""
    files = read_cross_encoder(checkpoint)
    labels = 1
    if files.form is Form.CLASSIFIER:
        labels = len(labels_of(checkpoint))
    elif files.form is Form.MODULES:
        labels = len(labels_of_dense(checkpoint, files.modules))
    scores_of(checkpoint, labels)


def plain_cross_encoder(checkpoint: Checkpoint) -> CrossEncoderFiles:
    if answers_in_words(checkpoint.config) and checkpoint.read_json(MODULES) is not None:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` has a `{MODULES}`, and its `{SETTINGS}` does not say `model_type: {CROSS_ENCODER}`",
            hint="save it with sentence-transformers' `CrossEncoder.save_pretrained`",
        )
    return CrossEncoderFiles(Form.ANSWER if answers_in_words(checkpoint.config) else Form.CLASSIFIER, saved=False)


def modules_of(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """Class and folder of each module after the transformer, which comes first and lies in the checkpoint's folder."""
    content = checkpoint.read_json(MODULES)
    try:
        found = [(module["type"], module["path"]) for module in content]
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"`{checkpoint.folder / MODULES}` must be a list of modules") from error
    if not all(isinstance(kind, str) and isinstance(path, str) for kind, path in found):
        raise CheckpointError(f"`{checkpoint.folder / MODULES}` must give each module a `type` and a `path`")
    for kind, path in found:
        if not kind.startswith(OWN_CLASSES):
            raise UnsupportedModelError(
                f"`{checkpoint.name}` has a module of its own, `{kind}`, and edgekit runs no code from a checkpoint",
                hint="supported: modules of sentence-transformers",
            )
        if path != PurePosixPath(path).name and path != "":
            raise UnsupportedModelError(
                f"`{checkpoint.name}` has a module in `{path}`, which is not supported",
                hint="supported: modules in folders right below that of the checkpoint",
            )
    named = tuple((kind.rpartition(".")[2], path) for kind, path in found)
    if not named or named[0][0] != "Transformer" or named[0][1] != "":
        first = f"`{found[0][0]}` in `{found[0][1]}`" if found else "none"
        raise UnsupportedModelError(
            f"`{checkpoint.name}` does not begin with a `Transformer` in its own folder: its first module is {first}",
            hint="save it with sentence-transformers 5.4 or newer",
        )
    return named[1:]


def form_of(checkpoint: Checkpoint, own: Mapping[str, Any], kinds: tuple[str, ...]) -> Form:
    """How a pair becomes logits; raises UnsupportedModelError for modules that do not make a score together."""
    task = own.get("transformer_task", Form.MODULES.value)
    if task == Form.CLASSIFIER.value and not kinds:
        return Form.CLASSIFIER
    if task == Form.ANSWER.value and kinds == ("LogitScore",):
        return Form.ANSWER
    if task == Form.MODULES.value and kinds and AFTER_TRANSFORMER.issuperset(kinds) and kinds[-1] == "Dense":
        return Form.MODULES
    raise UnsupportedModelError(
        f"`{checkpoint.name}` has the modules {', '.join(('Transformer', *kinds))} for the task `{task}`, which is not "
        "supported",
        hint="supported: a classifier alone, a decoder with `LogitScore`, an encoder with `Pooling` and `Dense`",
    )


def check_dense(checkpoint: Checkpoint, modules: tuple[tuple[str, str], ...]) -> None:
    """Refuse dense layers with code of their own, and a last one that gives no scores."""
    for kind, path in modules:
        config = read_object(checkpoint, f"{path}/config.json")
        activation = config.get("activation_function")
        if kind == "Dense" and activation is not None and not str(activation).startswith("torch."):
            raise UnsupportedModelError(
                f"the module `{path}` of `{checkpoint.name}` has an activation of its own, `{activation}`, and edgekit "
                "runs no code from a checkpoint"
            )
        if kind == "Pooling" and config.get("include_prompt") is False and default_prompt(checkpoint):
            raise UnsupportedModelError(
                f"the module `{path}` of `{checkpoint.name}` leaves the prompt out of pooling (`include_prompt: "
                "false`), which is not supported for rerankers"
            )
    config = read_object(checkpoint, f"{modules[-1][1]}/config.json")
    if config.get("module_output_name") != "scores":
        raise UnsupportedModelError(
            f"the last module of `{checkpoint.name}` gives `{config.get('module_output_name')}`, not `scores`"
        )
    labels_of_dense(checkpoint, modules)


def check_keys(checkpoint: Checkpoint, own: Mapping[str, Any]) -> None:
    unread = sorted(key for key, value in own.items() if key not in READ and value not in (None, {}, [], ""))
    if unread:
        raise UnsupportedModelError(
            f"`{TRANSFORMER_SETTINGS}` of `{checkpoint.name}` sets `{unread[0]}`, which is not supported for rerankers",
            hint=f"supported: {', '.join(f'`{key}`' for key in sorted(READ))}",
        )


def message_format(checkpoint: Checkpoint, own: Mapping[str, Any], form: Form) -> Messages | None:
    """The format of the messages that a chat template renders, None where pairs are texts for the tokenizer."""
    output, name = OUTPUTS[form]
    modalities = own.get("modality_config", {"text": {"method": "forward", "method_output_name": output}})
    if not isinstance(modalities, dict) or not all(isinstance(value, dict) for value in modalities.values()):
        raise CheckpointError(f"`modality_config` in `{checkpoint.folder / TRANSFORMER_SETTINGS}` must hold objects")
    as_known = {"method": "forward", "method_output_name": output}
    for modality, told in modalities.items():
        said = {key: value for key, value in told.items() if key != "format"}
        if modality not in ("text", "message") or said != as_known:
            raise UnsupportedModelError(
                f"`{TRANSFORMER_SETTINGS}` of `{checkpoint.name}` reads `{modality}` by {said}, which is not supported",
                hint=f"supported: `text` and `message` by {as_known}",
            )
    if own.get("module_output_name", name) != name:
        raise UnsupportedModelError(
            f"`{TRANSFORMER_SETTINGS}` of `{checkpoint.name}` has `module_output_name` set to "
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
            f"the format of messages in `{checkpoint.folder / TRANSFORMER_SETTINGS}` must be flat or structured, not "
            f"`{form_of_messages}`"
        )
    return cast("Messages", form_of_messages)


def default_prompt(checkpoint: Checkpoint) -> str:
    """The text before every query, empty where none is set."""
    settings = read_object(checkpoint, SETTINGS)
    prompts = settings.get("prompts", {})
    where = checkpoint.folder / SETTINGS
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
    named = activation_of(checkpoint)
    if named is None:
        return Scores.SIGMOID if labels == 1 else Scores.RAW
    scores = ACTIVATIONS.get(named)
    if scores is None or (scores is Scores.SOFTMAX and labels == 1):
        raise UnsupportedModelError(
            f"`{checkpoint.name}` applies `{named}` to its logits, which is not supported",
            hint="supported: `torch.nn.Identity`, `torch.nn.Sigmoid`, and `torch.nn.Softmax` for several labels",
        )
    return scores


def activation_of(checkpoint: Checkpoint) -> str | None:
    """The class that a checkpoint names, looked for where and in the order in which sentence-transformers looks."""
    config = checkpoint.config
    if is_cross_encoder(checkpoint):
        named = read_object(checkpoint, SETTINGS).get("activation_fn")
        if named is not None:
            return class_name(named, "activation_fn", SETTINGS, checkpoint)
    if "sentence_transformers" in config:
        settings = config["sentence_transformers"]
        if not isinstance(settings, dict):
            raise CheckpointError(f"`sentence_transformers` in `{checkpoint.folder / 'config.json'}` must be an object")
        if "activation_fn" in settings:
            return class_name(settings["activation_fn"], "activation_fn", "config.json", checkpoint)
    older = "sbert_ce_default_activation_function"
    return class_name(config.get(older), older, "config.json", checkpoint)


def class_name(named: object, key: str, file: str, checkpoint: Checkpoint) -> str | None:
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
        if type(count) is not int or not 1 <= count <= MOST_LABELS:
            raise CheckpointError(
                f"`num_labels` in `{where}` must be an integer from 1 to {MOST_LABELS}, not `{count}`"
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
    count = positive(
        read_object(checkpoint, f"{path}/config.json").get("out_features"), "out_features", path, checkpoint
    )
    if count > MOST_LABELS:
        raise CheckpointError(f"`out_features` in `{checkpoint.folder / path}` must be at most {MOST_LABELS}")
    return tuple(f"LABEL_{number}" for number in range(count))


def read_object(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no such file."""
    content = checkpoint.read_json(name)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise CheckpointError(f"`{checkpoint.folder / name}` must hold an object, not {type(content).__name__}")
    return content


def positive(value: object, key: str, file: str, checkpoint: Checkpoint) -> int:
    """A whole number above 0, which older files write as 512.0."""
    whole = isinstance(value, float) and value.is_integer()
    if not (whole or type(value) is int) or not value >= 1:  # type: ignore[operator] # a number here
        raise CheckpointError(f"`{key}` in `{checkpoint.folder / file}` must be a positive integer, not `{value}`")
    return int(value)  # type: ignore[call-overload, no-any-return] # a number here


def boolean(value: object, key: str, checkpoint: Checkpoint) -> bool:
    if not isinstance(value, bool):
        raise CheckpointError(
            f"`{key}` in `{checkpoint.folder / TRANSFORMER_SETTINGS}` must be true or false, not `{value}`"
        )
    return value
