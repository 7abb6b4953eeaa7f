"""Checkpoints whose settings are drawn from a seed, and what a sweep over them asks: exact, or refused for a reason.

Every kind of model has its class with `write`, `refusal` and `compare`; see `DrawnEmbedder`.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from ortkit.exporters import export
from ortkit.exporters.encoder.tracing import IMPLEMENTED_HERE, load_model
from ortkit.exporters.encoder.embedder_reference import PublishedEmbedder
from ortkit.exporters.models.loading import quiet
from ortkit.exporters.sources import find_checkpoint
from ortkit import Bundle, CheckpointError, Embedder, Kind, Precision, UnsupportedModelError
from tests.encoder_checkpoints import edit_config
from tests.exporters.drawn_tokenizers import ADDED, added_tokens, write_tokenizer

LARGEST_DIFFERENCE = 1e-5
"""Of a component from the publisher's library, as a part of the vector's length."""
TEXTS = (
    "The pump runs dry.",
    "  Zwei  Sätze. Noch EINER!  ",
    "東京 naïve 👩‍👩‍👧 ﬁ",
    "",
    f"a {ADDED[0]} b{ADDED[1]}c {ADDED[1].lower()} {ADDED[3]}",
    "[SEP] </s> <|endoftext|> [PAD] <pad> [MASK]",
    *(f"begin {'word ' * count}end" for count in (3, 22, 30, 45, 120)),
)


class Drawn(Protocol):
    """A checkpoint of one kind of model with settings drawn from a seed."""

    kind: Kind
    refusal: str | None
    """What the message must say, for settings that are refused; None for settings that must be exported."""
    excuse: str | None
    """What the message may say, for settings of which some are refused; the class says for which."""

    def write(self, folder: Path) -> None:
        """Write the checkpoint."""

    def compare(self, folder: Path, bundle: Bundle) -> None:
        """Assert that a float32 bundle gives what the publisher's library does."""


def check_drawn(drawn: Drawn, folder: Path) -> None:
    """Export a drawn checkpoint, and assert that it is exact, or refused for the reason that was drawn."""
    checkpoint, out = folder / "drawn", folder / "bundle"
    checkpoint.mkdir(parents=True)
    drawn.write(checkpoint)
    found = exported(checkpoint, drawn.kind, out)
    if isinstance(found, Bundle):
        assert drawn.refusal is None, f"exported although: {drawn.refusal}"
        drawn.compare(checkpoint, found)
    else:
        reasons = [reason for reason in (drawn.refusal, drawn.excuse) if reason is not None]
        assert reasons, f"refused although valid: {found.message}"
        assert any(reason in found.message for reason in reasons), found.message


def exported(checkpoint: Path, kind: Kind, out: Path) -> Bundle | UnsupportedModelError | CheckpointError:
    """The float32 bundle of a checkpoint, or why there is none."""
    try:
        return export(str(checkpoint), kind=kind, precision=Precision.FP32, out=out).bundle
    except (UnsupportedModelError, CheckpointError) as error:
        return error


SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "initializer_range": 0.2}
CODE = {
    "jina-bert": {
        "position_embedding_type": "alibi",
        "feed_forward_type": "geglu",
        "auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"},
    },
    "nomic_bert": {
        "activation_function": "swiglu",
        "prenorm": False,
        "rotary_emb_fraction": 1.0,
        "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
    },
}
"""What makes a config.json one of code that ortkit implements."""
ACTIVATIONS = (torch.nn.Tanh, torch.nn.Identity, torch.nn.ReLU, torch.nn.GELU, torch.nn.SiLU, torch.nn.Sigmoid)
UNSUPPORTED = (torch.nn.PReLU, torch.nn.LogSigmoid)
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
OLD_MODES = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


class DrawnEmbedder:
    """An embedder: architecture, rotation, tokenizer, lengths, pooling, dense layers, prompts and layout are drawn.

    Refused may be a `do_lower_case` that tokenizer.json has not, where an added token has capitals: the libraries match
    it by the normalizer that they replace, and no tokenizer.json can say so.
    """

    kind = Kind.EMBEDDER

    def __init__(self, architecture: str, seed: int) -> None:
        self.architecture = architecture
        self.seed = seed
        self.draw = random.Random(f"{architecture} {seed}")
        self.refusal: str | None = None
        self.excuse: str | None = None

    def write(self, folder: Path) -> None:
        draw = self.draw
        vocabulary = write_tokenizer(folder, self.architecture, draw)
        self.write_model(folder, vocabulary + draw.choice([0, 0, 5]))
        modules = self.modules()
        settings = self.settings()
        if any(token in ADDED and token != token.lower() for token in added_tokens(folder)):
            self.excuse = "as other tokens than its tokenizer.json"
        # The library saves today's layout only where it can open the model, which it cannot with code.
        if self.architecture not in CODE and draw.random() < 0.5:
            self.save(folder, modules, settings)
        else:
            self.write_files(folder, modules, settings)
        if draw.random() < 0.15:
            self.spoil(folder)

    def write_model(self, folder: Path, vocabulary: int) -> None:
        """The model's config.json and weights."""
        config = self.config() | {"vocab_size": vocabulary}
        torch.manual_seed(self.seed)
        implementation = IMPLEMENTED_HERE.get(self.architecture)
        with quiet():
            if implementation is None:
                made = transformers.AutoConfig.for_model(self.architecture, **config)
                model = transformers.AutoModel.from_config(made)
            else:
                model = implementation(implementation.config_class(**config))
            for name, parameter in model.named_parameters():
                # Seeded biases and norms are zeros and ones, with which a wrong one would not be seen.
                if parameter.ndim == 1:
                    torch.nn.init.normal_(parameter, mean=1.0 if "orm.weight" in name else 0.0, std=0.1)
            model.save_pretrained(folder)
        if implementation is not None:
            edit_config(folder, **config)

    def config(self) -> dict[str, Any]:
        """The settings of the transformer."""
        draw = self.draw
        layers, positions = draw.choice([1, 2, 3]), draw.choice([40, 64])
        epsilon = draw.choice([1e-12, 1e-5])
        act = draw.choice(["gelu", "gelu", "relu", "silu", "gelu_new"])
        if self.architecture == "distilbert":
            sizes = {"dim": 32, "n_heads": 4, "hidden_dim": 48, "n_layers": layers, "initializer_range": 0.2}
            return sizes | {"max_position_embeddings": positions, "activation": draw.choice(["gelu", "relu"])}
        if self.architecture == "nomic_bert":
            sizes = {"n_embd": 32, "n_head": 4, "n_inner": 48, "n_layer": layers, "n_positions": positions}
            sizes |= {"initializer_range": 0.2, "layer_norm_epsilon": epsilon}
            biases = {key: draw.random() < 0.5 for key in ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias")}
            return CODE["nomic_bert"] | sizes | biases | {"rotary_emb_base": draw.choice([100, 10000])}
        config = SIZES | {"num_hidden_layers": layers, "max_position_embeddings": positions}
        if self.architecture == "modernbert":
            return config | self.modernbert(epsilon)
        if self.architecture == "qwen3":
            return config | self.qwen3(positions)
        config |= {"layer_norm_eps": epsilon, "hidden_act": act}
        if self.architecture in {"roberta", "xlm-roberta"}:
            config |= {"pad_token_id": draw.choice([0, 1, 1, 3]), "type_vocab_size": 1}
        if self.architecture == "jina-bert":
            config |= CODE["jina-bert"] | {"hidden_act": "gelu", "num_attention_heads": draw.choice([2, 4])}
        return config

    def modernbert(self, epsilon: float) -> dict[str, Any]:
        draw = self.draw
        ids = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
        biases = {key: draw.random() < 0.5 for key in ("attention_bias", "mlp_bias", "norm_bias")}
        rotation = {"global_rope_theta": draw.choice([1e4, 160000.0]), "local_rope_theta": draw.choice([100.0, 1e4])}
        reach = {"local_attention": draw.choice([8, 16]), "global_attn_every_n_layers": draw.choice([1, 2, 3])}
        return ids | biases | rotation | reach | {"norm_eps": epsilon, "reference_compile": False}

    def qwen3(self, positions: int) -> dict[str, Any]:
        draw = self.draw
        scaling = draw.choice([None, {"rope_type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 2.0}])
        if scaling is not None and scaling["rope_type"] == "yarn":
            scaling = scaling | {"original_max_position_embeddings": positions // 2}
        heads = {"num_key_value_heads": draw.choice([1, 2, 4]), "head_dim": draw.choice([8, 16])}
        rotation = {"rope_theta": draw.choice([100.0, 1e6]), "rope_scaling": scaling}
        return heads | rotation | {"attention_bias": draw.random() < 0.5, "tie_word_embeddings": draw.random() < 0.5}

    def modules(self) -> list[torch.nn.Module]:
        """What follows the transformer."""
        draw = self.draw
        modes = draw.sample(MODES, draw.choice([1, 1, 2, 3]))
        torch.manual_seed(self.seed)
        prompts = draw.random() < 0.6
        found: list[torch.nn.Module] = [Pooling(32, tuple(modes) if len(modes) > 1 else modes[0], prompts)]
        width = 32 * len(modes)
        for _ in range(draw.choice([0, 0, 1, 2])):
            activation = draw.choice(ACTIVATIONS)
            if draw.random() < 0.08 and self.refusal is None:
                activation = draw.choice(UNSUPPORTED)
                self.refusal = f"with the activation `torch.nn.modules.activation.{activation.__name__}`"
            outputs = draw.choice([16, 40])
            found.append(Dense(width, outputs, draw.random() < 0.5, activation()))
            width = outputs
        return found + [Normalize()] * (draw.random() < 0.6)

    def settings(self) -> dict[str, Any]:
        """Lengths, case and prompts."""
        draw = self.draw
        prompts = draw.choice(
            [{}, {"query": "query: ", "passage": "a Passage:"}, {"document": "", "q": "Represent this "}]
        )
        return {
            "max_seq_length": draw.choice([None, 8, 24, 1000]),
            "do_lower_case": draw.random() < 0.3,
            "prompts": prompts,
            "default_prompt_name": draw.choice([None, *prompts]),
        }

    def save(self, folder: Path, modules: list[torch.nn.Module], settings: dict[str, Any]) -> None:
        """As the library saves it today."""
        length = settings["max_seq_length"]
        with quiet():
            transformer = Transformer(str(folder), max_seq_length=length)
            prompts, default = settings["prompts"], settings["default_prompt_name"]
            model = SentenceTransformer(
                modules=[transformer, *modules], device="cpu", prompts=prompts, default_prompt_name=default
            )
            model.save(str(folder), create_model_card=False)

    def write_files(self, folder: Path, modules: list[torch.nn.Module], settings: dict[str, Any]) -> None:
        """In the layout of versions 2 to 5.3, sometimes in that of version 1."""
        subfolder = "0_Transformer" if self.draw.random() < 0.25 else ""
        entries = [{"idx": 0, "name": "0", "path": subfolder, "type": "sentence_transformers.models.Transformer"}]
        for number, module in enumerate(modules, 1):
            name = type(module).__name__
            entry = {"idx": number, "name": str(number), "path": f"{number}_{name}"}
            entries.append(entry | {"type": f"sentence_transformers.models.{name}"})
            if name == "Normalize":
                continue
            (folder / entry["path"]).mkdir()
            module.save(str(folder / entry["path"]))
            if name == "Pooling":
                self.write_old_pooling(folder / entry["path"], module)
        shown = {"max_seq_length": settings["max_seq_length"], "do_lower_case": settings["do_lower_case"]}
        (folder / "sentence_bert_config.json").write_text(json.dumps(shown))
        if subfolder:
            (folder / subfolder).mkdir()
            for path in list(folder.iterdir()):
                if path.is_file():
                    shutil.move(path, folder / subfolder / path.name)
        (folder / "modules.json").write_text(json.dumps(entries))
        kept = {key: settings[key] for key in ("prompts", "default_prompt_name")}
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"__version__": {}} | kept))

    @staticmethod
    def write_old_pooling(folder: Path, module: Pooling) -> None:
        chosen = (module.pooling_mode,) if isinstance(module.pooling_mode, str) else module.pooling_mode
        keys = {f"pooling_mode_{old}": mode in chosen for old, mode in zip(OLD_MODES, MODES, strict=True)}
        config = {"word_embedding_dimension": 32, "include_prompt": module.include_prompt} | keys
        (folder / "config.json").write_text(json.dumps(config))

    def spoil(self, folder: Path) -> None:
        """Something that makes it another model, which ortkit must refuse by its name."""
        name, spoil = self.draw.choice(SPOILS)
        if spoil(folder):
            self.refusal = name

    def compare(self, folder: Path, bundle: Bundle) -> None:
        embedder = Embedder(bundle)
        if self.architecture in CODE:
            checkpoint = find_checkpoint(str(folder))
            published = PublishedEmbedder(checkpoint, load_model(checkpoint), implemented_here=True)
            model = published.model
        else:
            with quiet():
                model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        # The library fails on texts beyond the positions.
        model.max_seq_length = min(model.max_seq_length, embedder.max_length)
        for prompt in (None, *bundle.manifest.embedder.prompts):
            name = prompt or model.default_prompt_name
            prefix = model.prompts[name] if name else ""
            unpooled = bundle.manifest.embedder.unpooled_tokens.get(name, 0)
            counts = [model.preprocess([text], prompt=prefix)["input_ids"].numel() for text in TEXTS]
            # Of a text that ends within such a prompt the library makes zeros, or an infinite maximum.
            texts = [text for text, tokens in zip(TEXTS, counts, strict=True) if tokens > unpooled]
            if not texts:
                continue
            expected = model.encode(texts, prompt_name=prompt, batch_size=1, show_progress_bar=False)
            found = embedder.embed_with_report(texts, prompt=prompt).vectors
            lengths = np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), np.finfo(np.float32).tiny)
            differences = (np.abs(found - expected) / lengths).max(axis=1)
            assert differences.max() <= LARGEST_DIFFERENCE, f"{texts[int(differences.argmax())]!r} behind {prompt}"


def edit(folder: Path, name: str, change: Callable[[Any], object]) -> bool:
    """Change a JSON file of a checkpoint; whether there is one."""
    path = folder / name
    if not path.exists():
        return False
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return True


def setting(file: str, **changes: object) -> Callable[[Path], bool]:
    return lambda folder: edit(folder, file, lambda content: content.update(changes))


def module_type(place: int, path: str) -> Callable[[Path], bool]:
    return lambda folder: edit(folder, "modules.json", lambda modules: modules[place].update(type=path))


SPOILS = (
    ("`truncate_dim`", setting("config_sentence_transformers.json", truncate_dim=8)),
    ("of the type `SparseEncoder`", setting("config_sentence_transformers.json", model_type="SparseEncoder")),
    ("compares its vectors by `MaxSim`", setting("config_sentence_transformers.json", similarity_fn_name="MaxSim")),
    ("`query_length`", setting("config_sentence_transformers.json", query_length=32)),
    ("`processing_kwargs`", setting("sentence_bert_config.json", processing_kwargs={"text": {"truncation": False}})),
    ("`config_args.rope_theta`", setting("sentence_bert_config.json", config_args={"rope_theta": 3.0})),
    ("`my_code.Pooling`", module_type(1, "my_code.Pooling")),
    ("`custom_st.Transformer`", module_type(0, "custom_st.Transformer")),
    ("`use_residual`", setting("2_Dense/config.json", use_residual=True)),
    ("`module_input_name`", setting("2_Dense/config.json", module_input_name="token_embeddings")),
    ("`output_weights`", setting("1_Pooling/config.json", output_weights=True)),
)
"""What the message must name, and what makes it so."""
