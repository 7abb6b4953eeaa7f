"""Small encoders with seeded weights, in the layouts in which embedders and rerankers are published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

TINY = {"vocab_size": 30522, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"intermediate_size": 96, "initializer_range": 0.1}
# Those that number positions from the padding token's id on have two more, as the real ones do.
TINY_CONFIGS = {
    "bert": TINY | {"max_position_embeddings": 64},
    "distilbert": {"vocab_size": 30522, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 96}
    | {"initializer_range": 0.1, "max_position_embeddings": 64},
    # A number of heads that is not a power of two, as in the real one.
    "jina-bert": TINY
    | {"num_attention_heads": 6, "max_position_embeddings": 64, "position_embedding_type": "alibi"}
    | {
        "feed_forward_type": "geglu",
        "auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"},
    },
    # Attention to neighbours only, beyond which some of the texts reach, in all layers but the first and the fourth.
    "modernbert": TINY
    | {"num_hidden_layers": 5, "max_position_embeddings": 64, "local_attention": 16, "pad_token_id": 0}
    | {"cls_token_id": 101, "bos_token_id": 101, "sep_token_id": 102, "eos_token_id": 102},
    "mpnet": TINY | {"max_position_embeddings": 66},
    "nomic_bert": {"vocab_size": 30522, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_inner": 96, "n_positions": 64}
    | {"initializer_range": 0.1, "activation_function": "swiglu", "prenorm": False, "rotary_emb_base": 1000}
    | {"rotary_emb_fraction": 1.0, "layer_norm_epsilon": 1e-12}
    | {"auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"}},
    "qwen3": TINY | {"max_position_embeddings": 64, "num_key_value_heads": 2, "head_dim": 12},
    "roberta": TINY | {"max_position_embeddings": 66},
    "xlm-roberta": TINY | {"max_position_embeddings": 66},
}


RERANKER_CONFIGS = {
    "deberta-v2": TINY
    | {"max_position_embeddings": 64, "relative_attention": True, "position_buckets": 16, "type_vocab_size": 0}
    | {"pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm", "share_att_key": True}
    | {"position_biased_input": False, "pooler_hidden_size": 48},
    "qwen3": TINY_CONFIGS["qwen3"] | {"max_position_embeddings": 256, "pad_token_id": 0},
}


def write_tiny_checkpoint(folder: Path, checkpoint: Path, architecture: str) -> None:
    """A small model with seeded weights, in the layout of sentence-transformers, with the real MiniLM's tokenizer."""
    write_checkpoint(folder, checkpoint, architecture, TINY_CONFIGS[architecture])
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48, "do_lower_case": False}))


def write_checkpoint(folder: Path, checkpoint: Path, architecture: str, settings: dict) -> None:
    """A model of this config with seeded weights; those that come with code of their own say so in their config."""
    import torch
    import transformers

    from ortkit.exporters.encoder.tracing import IMPLEMENTED_HERE
    from ortkit.exporters.models.loading import quiet

    torch.manual_seed(7)
    implementation = IMPLEMENTED_HERE.get(architecture)
    with quiet():
        if implementation is None:
            config = transformers.AutoConfig.for_model(architecture, **settings)
            model = transformers.AutoModel.from_config(config)
        else:
            config = implementation.config_class(**settings)
            model = implementation(config)
        model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | settings))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "modules.json"):
        shutil.copyfile(checkpoint / name, folder / name)
    if architecture in {"distilbert", "modernbert"}:
        # As in the real ones: they have no token types.
        path = folder / "tokenizer_config.json"
        names = {"model_input_names": ["input_ids", "attention_mask"]}
        path.write_text(json.dumps(json.loads(path.read_text()) | names))
    (folder / "1_Pooling").mkdir()
    pooling = json.loads((checkpoint / "1_Pooling" / "config.json").read_text())
    width = getattr(config, "dim", config.hidden_size)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling | {"word_embedding_dimension": width}))


def write_reranker(folder: Path, checkpoint: Path, architecture: str = "bert", **settings: object) -> None:
    """A small cross-encoder with seeded weights and MiniLM's tokenizer, its activation stated as ms-marco's."""
    import torch
    import transformers

    from ortkit.exporters.models.loading import quiet

    torch.manual_seed(7)
    config = {"num_labels": 1} | RERANKER_CONFIGS.get(architecture, TINY_CONFIGS.get(architecture, {})) | settings
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_config(
            transformers.AutoConfig.for_model(architecture, **config)
        )
        save_reranker(model, folder, checkpoint)


def write_reranker_on_minilm(folder: Path, checkpoint: Path) -> None:
    """The real MiniLM encoder under a seeded head: no trained cross-encoder is to be had without the Hub."""
    from benchmarks.seeded import write_head

    write_head(folder, checkpoint)


def save_reranker(model: object, folder: Path, checkpoint: Path) -> None:
    model.save_pretrained(folder)
    edit_config(folder, sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(checkpoint / name, folder / name)
    if json.loads((folder / "config.json").read_text())["model_type"] != "bert":
        path = folder / "tokenizer_config.json"
        names = {"model_input_names": ["input_ids", "attention_mask"]}
        path.write_text(json.dumps(json.loads(path.read_text()) | names))


def edit_config(folder: Path, **changes: object) -> None:
    """Change the config.json of a checkpoint, or of one of its modules."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
