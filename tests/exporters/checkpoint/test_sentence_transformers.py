from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers.util import import_from_string

from ortkit import CheckpointError, Kind, OrtkitError, Pooling, UnsupportedModelError
from ortkit.exporters.checkpoint.sentence_transformers import ACTIVATIONS, MODULE_CLASSES, OLD_POOLING_KEYS, POOLINGS
from ortkit.exporters.encoder.config import embedder_facts
from ortkit.exporters.options import ExportOptions, plan_export
from ortkit.exporters.sources import describe_source, find_checkpoint
from ortkit.runtime.bundle.manifest import Activation
from ortkit.runtime.encoder.dense import FUNCTIONS

NO_THRESHOLDS = dict.fromkeys(Kind)
MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
TRANSFORMER, POOLING, DENSE = "sentence_bert_config.json", "1_Pooling/config.json", "2_Dense/config.json"


def edit(folder: Path, file: str, change: Callable[[Any], object]) -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def write(folder: Path, file: str, content: object) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps(content))


def refusal(folder: Path) -> OrtkitError:
    """Why a checkpoint is not exported, before its weights are looked at."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    with pytest.raises(OrtkitError) as caught:
        plan_export(describe_source(str(folder)).checkpoint, ExportOptions(None, None, None, NO_THRESHOLDS))
    assert type(caught.value) in {CheckpointError, UnsupportedModelError}
    return caught.value


def unsupported(folder: Path) -> str:
    error = refusal(folder)
    assert error.exit_code == 10, error.message
    return error.message


def broken(folder: Path) -> str:
    error = refusal(folder)
    assert error.exit_code == 7, error.message
    return error.message


def add_dense(folder: Path, **settings: object) -> None:
    """A dense layer's config between pooling and normalization, without weights."""

    def insert(modules: list[dict[str, object]]) -> None:
        layer = {"idx": 9, "name": "dense", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
        modules.insert(2, layer)

    edit(folder, MODULES, insert)
    write(folder, DENSE, {"in_features": 48, "out_features": 20, "bias": True} | settings)


@pytest.mark.parametrize("path", sorted(MODULE_CLASSES))
def test_every_known_path_is_the_class_that_the_library_has_there(path: str) -> None:
    found = import_from_string(path)

    assert found.__name__ == MODULE_CLASSES[path]
    assert found.__module__.startswith("sentence_transformers.")


def test_what_the_library_writes_is_known() -> None:
    modules = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    for name in ("Transformer", "Pooling", "Dense", "Normalize", "Dropout"):
        module = getattr(modules, name)
        assert MODULE_CLASSES[f"{module.__module__}.{module.__qualname__}"] == name


@pytest.mark.parametrize(
    "path",
    [
        *("custom_st.Transformer", "my_code.Transformer", "Transformer", "xsentence_transformers.models.Transformer"),
        *("transformers.models.Transformer", "sentence_transformers.models.deeper.Transformer"),
    ],
)
def test_a_transformer_of_a_class_of_its_own(tiny_checkpoint: Path, path: str) -> None:
    edit(tiny_checkpoint, MODULES, lambda modules: modules[0].update(type=path))

    message = unsupported(tiny_checkpoint)
    assert f"`{path}`" in message
    if not path.startswith("sentence_transformers."):
        assert message == (
            f"`tiny-bert` has a module of a class that is not one of sentence-transformers: `{path}`; ortkit runs no "
            "code from a checkpoint"
        )


@pytest.mark.parametrize("path", ["my_code.Pooling", "Pooling", "models.Pooling"])
def test_a_pooling_of_a_class_of_its_own(tiny_checkpoint: Path, path: str) -> None:
    edit(tiny_checkpoint, MODULES, lambda modules: modules[1].update(type=path))

    assert f"is not one of sentence-transformers: `{path}`" in unsupported(tiny_checkpoint)


@pytest.mark.parametrize("place", [2, 1])
def test_other_modules_of_the_library(tiny_checkpoint: Path, place: int) -> None:
    lstm = {"idx": 3, "name": "lstm", "path": "3_LSTM", "type": "sentence_transformers.models.LSTM"}
    edit(tiny_checkpoint, MODULES, lambda modules: modules.insert(place, lstm))

    error = refusal(tiny_checkpoint)
    assert error.message == "`tiny-bert` has a module that is not supported: `sentence_transformers.models.LSTM`"
    assert error.hint == (
        "supported modules of sentence-transformers: `Transformer`, `Pooling`, `Dense`, `Normalize`, `Dropout`"
    )


def test_colbert_of_pylate_is_named(tiny_checkpoint: Path) -> None:
    edit(tiny_checkpoint, MODULES, lambda modules: modules[2].update(type="pylate.models.Dense.Dense"))

    error = refusal(tiny_checkpoint)
    assert "`pylate.models.Dense.Dense`" in error.message
    assert error.hint == "it is a ColBERT model of PyLate, a multi-vector embedder, which gives a vector for each token"


@pytest.mark.parametrize("model_type", ["SparseEncoder", "MultiVectorEncoder", "ColBERT", "Other", None, ["x"]])
def test_other_types_of_models_are_named(tiny_checkpoint: Path, model_type: object) -> None:
    write(tiny_checkpoint, SETTINGS, {"model_type": model_type})

    error = refusal(tiny_checkpoint)
    assert error.message.startswith(f"`tiny-bert` is of the type `{model_type}`")
    assert error.hint == "supported in `config_sentence_transformers.json`: `SentenceTransformer`, `CrossEncoder`"
    assert error.exit_code == 10


def test_a_model_that_begins_with_another_module(tiny_checkpoint: Path) -> None:
    (tiny_checkpoint / "config.json").unlink()
    words = "sentence_transformers.models.WordEmbeddings"
    edit(tiny_checkpoint, MODULES, lambda modules: modules[0].update(type=words, path="0_WordEmbeddings"))

    assert (
        unsupported(tiny_checkpoint) == f"`tiny-bert` begins with the module `{words}`, which ortkit does not support"
    )


@pytest.mark.parametrize("modules", [[{"path": ""}], [3], 3, {}, [{"path": "", "type": 3, "name": "0"}]])
def test_modules_that_are_none(tiny_checkpoint: Path, modules: object) -> None:
    write(tiny_checkpoint, MODULES, modules)

    with pytest.raises(CheckpointError, match="is not a list of modules"):
        embedder_facts(find_checkpoint(str(tiny_checkpoint)))


def test_two_modules_of_one_name(tiny_checkpoint: Path) -> None:
    edit(tiny_checkpoint, MODULES, lambda modules: modules[2].update(name="1"))

    assert broken(tiny_checkpoint).endswith("has two modules of the same name")


@pytest.mark.parametrize("order", [(0, 2, 1), (1, 0, 2), (1,), (0,), (0, 1, 1)])
def test_modules_in_another_order(tiny_checkpoint: Path, order: tuple[int, ...]) -> None:
    modules = json.loads((tiny_checkpoint / MODULES).read_text())
    write(tiny_checkpoint, MODULES, [modules[index] | {"name": str(at)} for at, index in enumerate(order)])

    with pytest.raises(UnsupportedModelError, match="has its modules in an order that is not supported: ") as caught:
        embedder_facts(find_checkpoint(str(tiny_checkpoint)))
    assert caught.value.hint == (
        "supported: `Transformer`, `Pooling`, any number of `Dense`, and `Normalize`, in this order"
    )


def test_dropout_changes_nothing(tiny_checkpoint: Path) -> None:
    dropout = {"idx": 3, "name": "3", "path": "3_Dropout", "type": "sentence_transformers.models.Dropout"}
    edit(tiny_checkpoint, MODULES, lambda modules: modules.insert(2, dropout))

    assert embedder_facts(find_checkpoint(str(tiny_checkpoint))).normalize


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b", "a\\b"])
def test_a_module_that_lies_elsewhere(tiny_checkpoint: Path, path: str) -> None:
    edit(tiny_checkpoint, MODULES, lambda modules: modules[1].update(path=path))

    assert f"has a module at `{path}`, which is not a folder of the checkpoint" in broken(tiny_checkpoint)


@pytest.mark.parametrize(
    ("file", "changes", "shown"),
    [
        (SETTINGS, {"query_length": 32}, "`query_length` set to `32`"),
        (SETTINGS, {"attend_to_expansion_tokens": False}, "`attend_to_expansion_tokens` set to `false`"),
        (TRANSFORMER, {"processing_kwargs": {"text": {"truncation": False}}}, "`processing_kwargs` set to "),
        (TRANSFORMER, {"transformer_task": "fill-mask"}, "`transformer_task` set to `'fill-mask'`"),
        (TRANSFORMER, {"tokenizer_name_or_path": "bert"}, "`tokenizer_name_or_path` set to `'bert'`"),
        (TRANSFORMER, {"tokenizer_args": {"do_lower_case": True}}, "`tokenizer_args.do_lower_case` set to `true`"),
        (TRANSFORMER, {"processor_kwargs": {"truncation_side": "left"}}, "`processor_kwargs.truncation_side` set to "),
        (TRANSFORMER, {"config_args": {"rope_theta": 3.5}}, "`config_args.rope_theta` set to `3.5`"),
        (TRANSFORMER, {"model_args": {"num_hidden_layers": 1}}, "`model_args.num_hidden_layers` set to `1`"),
        (TRANSFORMER, {"new_option": None}, "`new_option` set to null"),
        (
            TRANSFORMER,
            {"modality_config": {"message": {}}, "module_output_name": "token_embeddings"},
            "`modality_config` set to ",
        ),
        (POOLING, {"output_weights": True}, "`output_weights` set to `true`"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "`module_input_name` set to "),
        ("2_Normalize/config.json", {"p": 1}, "`p` set to `1`"),
        (MODULES, {"kwargs": ["task"]}, "`kwargs` set to `['task']`"),
        (MODULES, {"only_for": "queries"}, "`only_for` set to `'queries'`"),
    ],
)
def test_what_is_not_read_is_refused(tiny_checkpoint: Path, file: str, changes: dict[str, object], shown: str) -> None:
    if not (tiny_checkpoint / file).exists():
        write(tiny_checkpoint, file, {})
    edit(tiny_checkpoint, file, lambda content: (content[0] if file == MODULES else content).update(changes))

    message = unsupported(tiny_checkpoint)
    assert message.startswith(f"`tiny-bert` has {shown}")
    assert message.endswith(f" in `{file}`, which ortkit does not support")


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"use_residual": True}, "`use_residual` set to `true`"),
        ({"module_input_name": "token_embeddings"}, "`module_input_name` set to `'token_embeddings'`"),
        ({"module_output_name": "other"}, "`module_output_name` set to `'other'`"),
        ({"scale": 2}, "`scale` set to `2`"),
    ],
)
def test_what_is_not_read_of_a_dense_layer(tiny_checkpoint: Path, changes: dict[str, object], shown: str) -> None:
    add_dense(tiny_checkpoint, **changes)

    assert unsupported(tiny_checkpoint) == f"`tiny-bert` has {shown} in `{DENSE}`, which ortkit does not support"


def test_what_has_no_effect_is_no_obstacle(tiny_checkpoint: Path) -> None:
    write(
        tiny_checkpoint, SETTINGS, {"__version__": {"pytorch": "2"}, "similarity_fn_name": "dot", "truncate_dim": None}
    )
    harmless = {"torch_dtype": "float16", "attn_implementation": "flash_attention_2", "trust_remote_code": True}
    options = {"model_args": harmless, "tokenizer_args": {"padding_side": "left"}, "config_args": {}}
    edit(tiny_checkpoint, TRANSFORMER, lambda content: content.update(options, unpad_inputs=False))
    add_dense(tiny_checkpoint, use_residual=False, module_input_name="sentence_embedding", module_output_name=None)

    assert embedder_facts(find_checkpoint(str(tiny_checkpoint))).dimension == 48


def test_shortened_vectors(tiny_checkpoint: Path) -> None:
    write(tiny_checkpoint, SETTINGS, {"truncate_dim": 16})

    error = refusal(tiny_checkpoint)
    assert error.message == (
        "`tiny-bert` cuts its vectors to 16 components (`truncate_dim` in `config_sentence_transformers.json`), which "
        "ortkit does at run time only"
    )
    assert error.hint == "export a copy without that key, and embed with `--dim`"


@pytest.mark.parametrize("similarity", ["MaxSim", 3, "angular"])
def test_other_similarities(tiny_checkpoint: Path, similarity: object) -> None:
    write(tiny_checkpoint, SETTINGS, {"similarity_fn_name": similarity})

    assert unsupported(tiny_checkpoint) == f"`tiny-bert` compares its vectors by `{similarity}`"


@pytest.mark.parametrize("prompts", [["query: "], None, "query: ", {"query": 3}, {"query": ["a"]}])
def test_prompts_that_are_none(tiny_checkpoint: Path, prompts: object) -> None:
    write(tiny_checkpoint, SETTINGS, {"prompts": prompts})

    assert f"`prompts` in `{tiny_checkpoint / SETTINGS}` must be an object of texts, not " in broken(tiny_checkpoint)


@pytest.mark.parametrize("default", ["passage", 3, ["a"], True])
def test_a_default_that_is_no_prompt(tiny_checkpoint: Path, default: object) -> None:
    write(tiny_checkpoint, SETTINGS, {"prompts": {"a": "b"}, "default_prompt_name": default})

    message = broken(tiny_checkpoint)
    assert message.startswith(f"`default_prompt_name` in `{tiny_checkpoint / SETTINGS}` is ")
    assert message.endswith(", and the prompts are: `a`")


def test_prompts_that_the_library_has_by_itself(tiny_checkpoint: Path) -> None:
    """`query` and `document` are empty where a file does not have them, and so is one that is null."""
    write(tiny_checkpoint, SETTINGS, {"prompts": {"a": None}, "default_prompt_name": "query"})
    facts = embedder_facts(find_checkpoint(str(tiny_checkpoint)))

    assert (facts.prompts, facts.default_prompt) == ({"a": ""}, None)


@pytest.mark.parametrize("settings", [[], 3, "x"])
@pytest.mark.parametrize("file", [SETTINGS, TRANSFORMER, POOLING])
def test_settings_that_are_no_object(tiny_checkpoint: Path, file: str, settings: object) -> None:
    write(tiny_checkpoint, file, settings)

    assert f"`{tiny_checkpoint / file}` must be a JSON object, not " in broken(tiny_checkpoint)


@pytest.mark.parametrize(
    ("file", "key"), [(TRANSFORMER, "do_lower_case"), (POOLING, "include_prompt"), (POOLING, "pooling_mode_cls_token")]
)
def test_a_flag_that_is_none(tiny_checkpoint: Path, file: str, key: str) -> None:
    edit(tiny_checkpoint, file, lambda content: content.update({key: "false"}))

    assert f"`{key}` in `{tiny_checkpoint / file}` must be true or false, not `'false'`" in broken(tiny_checkpoint)


POOLED = [
    ({"pooling_mode": "mean"}, (Pooling.MEAN,)),
    ({"pooling_mode": "mean_sqrt_len_tokens"}, (Pooling.MEAN_SQRT,)),
    ({"pooling_mode": ["max", "cls"]}, (Pooling.MAX, Pooling.CLS)),
    ({"pooling_mode": "cls", "pooling_mode_max_tokens": True}, (Pooling.CLS,)),
    ({}, (Pooling.MEAN,)),
    ({"pooling_mode_mean_tokens": False}, (Pooling.MEAN,)),
    (
        {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        (Pooling.CLS, Pooling.MEAN, Pooling.LAST_TOKEN),
    ),
]


@pytest.mark.parametrize(("settings", "expected"), POOLED)
def test_pooling_in_every_form(tiny_checkpoint: Path, settings: dict, expected: tuple[Pooling, ...]) -> None:
    write(tiny_checkpoint, POOLING, {"embedding_dimension": 48} | settings)
    facts = embedder_facts(find_checkpoint(str(tiny_checkpoint)))

    assert facts.poolings == expected
    assert facts.dimension == 48 * len(expected)


def test_every_mode_of_the_library_is_supported() -> None:
    from sentence_transformers.sentence_transformer.modules import pooling

    assert tuple(POOLINGS) == pooling.Pooling.POOLING_MODES
    assert list(OLD_POOLING_KEYS.items()) == list(pooling._LEGACY_POOLING_MODE_KWARGS.items())


@pytest.mark.parametrize("modes", ["median", ["mean", "median"]])
def test_a_pooling_that_is_not_known(tiny_checkpoint: Path, modes: object) -> None:
    write(tiny_checkpoint, POOLING, {"embedding_dimension": 48, "pooling_mode": modes})

    error = refusal(tiny_checkpoint)
    assert error.message == "`tiny-bert` pools its tokens by `median`, which is not supported"
    assert error.hint == "supported: `cls`, `max`, `mean`, `mean_sqrt_len_tokens`, `weightedmean`, `lasttoken`"


@pytest.mark.parametrize("modes", [[], 3, None, [3], {"mean": True}])
def test_a_pooling_that_is_none(tiny_checkpoint: Path, modes: object) -> None:
    write(tiny_checkpoint, POOLING, {"embedding_dimension": 48, "pooling_mode": modes})

    assert "must be the name of a mode or a list of them, not " in broken(tiny_checkpoint)


def test_a_pooling_without_a_width_or_a_file(tiny_checkpoint: Path) -> None:
    write(tiny_checkpoint, POOLING, {"pooling_mode": "mean"})
    assert broken(tiny_checkpoint) == f"`{tiny_checkpoint / POOLING}` lacks `embedding_dimension`"

    (tiny_checkpoint / POOLING).unlink()
    assert broken(tiny_checkpoint) == f"`{tiny_checkpoint}` has a module `Pooling` without its `{POOLING}`"


def test_tokens_of_prompts_are_counted_later(tiny_checkpoint: Path) -> None:
    write(tiny_checkpoint, SETTINGS, {"prompts": {"q": "query: ", "none": ""}})
    edit(tiny_checkpoint, POOLING, lambda content: content.update(include_prompt=False))

    assert embedder_facts(find_checkpoint(str(tiny_checkpoint))).unpooled_tokens == {"q": 0}


@pytest.mark.parametrize("sizes", [(47, 20), (96, 20)])
def test_a_dense_layer_that_does_not_fit(tiny_checkpoint: Path, sizes: tuple[int, int]) -> None:
    add_dense(tiny_checkpoint, in_features=sizes[0], out_features=sizes[1])

    assert broken(tiny_checkpoint) == (
        f"the module in `{tiny_checkpoint / '2_Dense'}` reads vectors of {sizes[0]} components, and what comes before "
        "gives 48"
    )


@pytest.mark.parametrize("size", [0, -3, "48", None, True, 2.5])
def test_a_dense_layer_without_a_size(tiny_checkpoint: Path, size: object) -> None:
    add_dense(tiny_checkpoint, out_features=size)

    assert f"`in_features` and `out_features` in `{tiny_checkpoint / DENSE}` must be" in broken(tiny_checkpoint)


@pytest.mark.parametrize(
    "path",
    [
        "torch.nn.modules.activation.PReLU",
        "torch.nn.Softmax",
        "transformers.activations.GELUActivation",
        "GELU",
        None,
        3,
    ],
)
def test_an_activation_that_is_not_known(tiny_checkpoint: Path, path: object) -> None:
    add_dense(tiny_checkpoint, activation_function=path)

    assert unsupported(tiny_checkpoint) == (
        f"`tiny-bert` has a module `Dense` with the activation `{path}`, which is not supported"
    )


def test_every_activation_has_the_class_that_it_is_named_for() -> None:
    values = torch.cat([torch.linspace(-30, 30, 601), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 500, -500])])
    for name, activation in ACTIVATIONS.items():
        expected = getattr(torch.nn, name)()(values).numpy()
        found = FUNCTIONS[activation](values.numpy())
        assert found.dtype == expected.dtype
        assert abs(found - expected).max() <= 2e-6, name
    assert set(ACTIVATIONS.values()) == set(FUNCTIONS) == set(Activation)


def test_the_files_of_modules_are_named_in_the_source_whatever_their_folders_are_called(tiny_checkpoint: Path) -> None:
    """What a bundle says it was made from has every file that was read, the weights above all."""
    folder = tiny_checkpoint / "encoder"
    folder.mkdir()
    for path in list(tiny_checkpoint.iterdir()):
        if path.is_file() and path.name != MODULES:
            path.rename(folder / path.name)
    (tiny_checkpoint / "1_Pooling").rename(tiny_checkpoint / "pooling")
    edit(tiny_checkpoint, MODULES, lambda modules: modules[0].update(path="encoder"))
    edit(tiny_checkpoint, MODULES, lambda modules: modules[1].update(path="pooling"))

    files = find_checkpoint(str(tiny_checkpoint)).source.files

    assert {"encoder/model.safetensors", "encoder/tokenizer.json", "pooling/config.json", MODULES} <= files.keys()


@pytest.mark.parametrize("place", [0, 1])
def test_a_module_in_a_folder_within_a_folder(place: int, tiny_checkpoint: Path) -> None:
    """Links, sizes and hashes of files are looked at no deeper."""
    edit(tiny_checkpoint, MODULES, lambda modules: modules[place].update(path="a/b"))

    assert "has a module at `a/b`, a folder within a folder" in unsupported(tiny_checkpoint)
