from __future__ import annotations

from pathlib import Path

import pytest

from ortkit import UnsupportedModelError
from ortkit.exporters.checkpoint.architectures import architecture_of, check_architecture
from ortkit.exporters.sources import find_checkpoint
from tests.encoder_checkpoints import TINY_CONFIGS, edit_config


def test_an_unknown_architecture(tiny_checkpoint: Path) -> None:
    edit_config(tiny_checkpoint, model_type="mamba")

    with pytest.raises(UnsupportedModelError) as caught:
        find_checkpoint(str(tiny_checkpoint))
    assert caught.value.exit_code == 10
    assert caught.value.message == "`tiny-bert` has the architecture `mamba`, which is not supported"
    assert caught.value.hint == (
        "supported: `bert`, `deberta-v2`, `distilbert`, `gemma2`, `gemma3_text`, `granite`, `jina-bert`, `llama`, "
        "`mistral`, `modernbert`, `mpnet`, `nomic_bert`, `phi3`, `qwen2`, `qwen3`, `roberta`, `smollm3`, "
        "`xlm-roberta`, and decoders of whose attention transformers has a plain form"
    )


def test_an_unknown_position_embedding(tiny_checkpoint: Path) -> None:
    edit_config(tiny_checkpoint, position_embedding_type="relative_key")

    with pytest.raises(UnsupportedModelError) as caught:
        find_checkpoint(str(tiny_checkpoint))
    assert caught.value.message == (
        "`tiny-bert` has `position_embedding_type` set to `relative_key`, which is not supported for `bert`"
    )
    assert caught.value.hint == "supported: `absolute`"


@pytest.mark.parametrize(
    ("architecture", "changes", "shown"),
    [
        ("jina-bert", {"position_embedding_type": "absolute"}, "position_embedding_type"),
        ("jina-bert", {"feed_forward_type": "reglu"}, "feed_forward_type"),
        ("nomic_bert", {"activation_function": "geglu"}, "activation_function"),
        ("nomic_bert", {"prenorm": True}, "prenorm"),
        ("nomic_bert", {"rotary_scaling_factor": 2}, "rotary_scaling_factor"),
        ("nomic_bert", {"moe_every_n_layers": 2}, "moe_every_n_layers"),
    ],
)
def test_a_variant_that_is_not_implemented_is_refused(architecture: str, changes: dict, shown: str) -> None:
    config = TINY_CONFIGS[architecture] | {"model_type": "bert"}
    check_architecture("org/model", config)

    message = f"`org/model` has `{shown}` set to .*which is not supported for `{architecture}`"
    with pytest.raises(UnsupportedModelError, match=message):
        check_architecture("org/model", config | changes)


def test_a_gemma_that_sees_what_follows_is_no_decoder() -> None:
    with pytest.raises(UnsupportedModelError, match="has `use_bidirectional_attention` set to `True`"):
        check_architecture("org/model", {"model_type": "gemma3_text", "use_bidirectional_attention": True})


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoModel": "someone/jina-bert-implementation--modeling_bert.JinaBertModel"},
        {"AutoModel": "jinaai/jina-bert-v2-qk-post-norm--modeling_bert.JinaBertModel"},
        {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertForMaskedLM"},
        {"AutoModel": "modeling_bert.JinaBertModel"},
        {"AutoConfig": "jinaai/jina-bert-implementation--configuration_bert.JinaBertConfig"},
        {"AutoModel": ["jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"]},
        "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel",
        {},
    ],
)
def test_other_code_is_not_taken_for_what_ortkit_implements(auto_map: object) -> None:
    """A repository's own variant may compute something else under the same class name."""
    assert architecture_of(TINY_CONFIGS["jina-bert"] | {"model_type": "bert", "auto_map": auto_map}) is None


def test_what_has_code_of_its_own_is_not_known_without_it() -> None:
    """transformers would load a `bert`, and give wrong vectors without a word."""
    assert architecture_of({"model_type": "jina-bert"}) is None
    assert architecture_of({"model_type": "nomic_bert"}) is None
