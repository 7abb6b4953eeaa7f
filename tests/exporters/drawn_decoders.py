"""Decoders whose settings are drawn from a seed; see `drawn_checkpoints`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import processors

from ortkit.exporters.models.loading import quiet
from ortkit import Bundle, Decoder, Kind, Message
from ortkit.runtime.text.chat_template import ChatTemplate
from ortkit.runtime.decoder.model_runner import ModelRunner
from tests.decoders import CHATML
from tests.exporters.drawn_tokenizers import ADDED, add_tokens, trained

LARGEST_DIFFERENCE = 1e-4
"""Of a logit from transformers', as a part of the largest one."""
CLOSE = 1e-3
"""By how much the most probable token may lead for another order to be one of rounding, as a part of the same."""
LENGTH = 160
"""Tokens that are compared: more than any window that is drawn."""
ANSWER = 24
SIZES = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.2, "pad_token_id": 0}
POSITIONS = 256
LAYERED = {"gemma2", "gemma3_text", "qwen2", "qwen3", "smollm3"}
"""Whose layers reach differently far."""
WINDOWED = LAYERED | {"mistral", "phi3"}
TEXTS = (
    "The pump runs dry.",
    "  Zwei  Sätze. Noch EINER!  \n\n",
    "東京 naïve 👩‍👩‍👧 ﬁ",
    f"a {ADDED[0]} b{ADDED[1]}c {ADDED[1].lower()} {ADDED[3]}",
    "<|im_end|> </s> <|endoftext|><|im_start|> 1234567",
)
CONVERSATIONS = (
    (("user", "What is a pump?"),),
    (("system", "Be brief."), ("user", " Why? "), ("assistant", "It moves\nwater."), ("user", "And?")),
)
UPPER = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] | upper }}] {{ m['content'] | trim }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[ASSISTANT]{% endif %}"
)
WITHOUT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
)
CHATS = (CHATML, UPPER, WITHOUT_SYSTEM)


class DrawnDecoder:
    """A decoder: rotation, windows, norms, biases, ties, activations, scales, tokenizer and template are drawn."""

    kind = Kind.DECODER

    def __init__(self, architecture: str, seed: int) -> None:
        self.architecture = architecture
        self.seed = seed
        self.draw = random.Random(f"decoder {architecture} {seed}")
        self.refusal: str | None = None
        self.excuse: str | None = None

    def write(self, folder: Path) -> None:
        draw = self.draw
        vocabulary = self.write_tokenizer(folder)
        config = self.config() | {"vocab_size": vocabulary + draw.choice([0, 0, 9])}
        torch.manual_seed(self.seed)
        with quiet():
            made = transformers.AutoConfig.for_model(self.architecture, **config)
            model = transformers.AutoModelForCausalLM.from_config(made)
            for name, parameter in model.named_parameters():
                # Seeded biases and norms are zeros and ones, with which a wrong one would not be seen.
                if parameter.ndim == 1:
                    centred = "norm" in name and not self.architecture.startswith("gemma")
                    torch.nn.init.normal_(parameter, mean=1.0 if centred else 0.0, std=0.2)
            stored = draw.choice([torch.float32, torch.float32, torch.bfloat16])
            model.to(stored).save_pretrained(folder, max_shard_size=draw.choice(["5GB", "60KB"]))
        ends = draw.choice([None, {}, {"eos_token_id": [5, 7]}, {"do_sample": True, "top_k": 20, "temperature": 0.7}])
        if ends is not None:
            (folder / "generation_config.json").write_text(json.dumps(ends))
        if draw.random() < 0.2:
            self.spoil(folder)

    def config(self) -> dict[str, Any]:
        """The settings of the model."""
        draw, name = self.draw, self.architecture
        heads = draw.choice([2, 4])
        layers = draw.choice([1, 2, 3])
        config: dict[str, Any] = SIZES | {"num_hidden_layers": layers, "num_attention_heads": heads}
        config |= {"num_key_value_heads": draw.choice([heads, heads // 2, 1]), "max_position_embeddings": POSITIONS}
        config |= {"rms_norm_eps": draw.choice([1e-6, 1e-5, 1e-3]), "tie_word_embeddings": draw.random() < 0.5}
        config["rope_theta"] = draw.choice([100.0, 10000.0, 1e6])
        if name not in {"qwen2", "phi3", "granite", "smollm3"}:
            config["head_dim"] = draw.choice([16, 32, 48])
        act = draw.choice(["silu", "silu", "gelu", "gelu_pytorch_tanh", "relu"])
        config["hidden_activation" if name.startswith("gemma") else "hidden_act"] = act
        if name in {"llama", "granite", "qwen3", "gemma2", "gemma3_text", "smollm3"}:
            config["attention_bias"] = draw.random() < 0.4
        if name in {"llama", "granite", "smollm3"}:
            config["mlp_bias"] = draw.random() < 0.4
        if name in WINDOWED:
            config |= self.windows(layers)
        scaling = self.scaling(heads)
        if scaling is not None:
            config["rope_scaling"] = scaling
        return config | self.scales() | self.rest(layers)

    def windows(self, layers: int) -> dict[str, Any]:
        draw = self.draw
        config: dict[str, Any] = {"sliding_window": draw.choice([None, 8, 40])}
        if self.architecture in LAYERED:
            kinds = draw.choice([["full_attention"], ["sliding_attention"], ["sliding_attention", "full_attention"]])
            # Gemma's masks are made with the window, whether a layer asks for it or not.
            config["sliding_window"] = draw.choice([8, 40])
            config["layer_types"] = (kinds * layers)[:layers]
            if self.architecture in {"qwen2", "qwen3", "smollm3"}:
                config["use_sliding_window"] = "sliding_attention" in config["layer_types"]
        return config

    def scaling(self, heads: int) -> dict[str, Any] | None:
        """How rotations are stretched."""
        draw, name = self.draw, self.architecture
        if name == "phi3":
            size = SIZES["hidden_size"] // heads // 2
            factors = {f"{kind}_factor": [1 + draw.random() for _ in range(size)] for kind in ("short", "long")}
            return draw.choice([None, {"type": "longrope"} | factors])
        if name == "gemma2" or draw.random() < 0.4:
            return None
        half = POSITIONS // 2
        llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": half}
        yarn = {"original_max_position_embeddings": half}
        yarn |= draw.choice([{}, {"attention_factor": 1.3}, {"beta_fast": 16.0, "beta_slow": 2.0}])
        return draw.choice(
            [
                {"rope_type": "linear", "factor": 2.0},
                {"rope_type": "dynamic", "factor": 2.0},
                {"rope_type": "llama3", "factor": 8.0} | llama3,
                {"rope_type": "yarn", "factor": 2.0} | yarn,
                {"rope_type": "default"},
            ]
        )

    def scales(self) -> dict[str, Any]:
        """What multiplies, divides or caps."""
        draw, name = self.draw, self.architecture
        if name == "granite":
            keys = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
            return {key: draw.choice([0.25, 1.0, 3.0]) for key in keys}
        if not name.startswith("gemma"):
            return {}
        caps = {key: draw.choice([None, 4.0, 30.0]) for key in ("attn_logit_softcapping", "final_logit_softcapping")}
        if name == "gemma3_text":
            caps = {"rope_local_base_freq": draw.choice([100.0, 10000.0])}
        return caps | {"query_pre_attn_scalar": draw.choice([16, 24, 64])}

    def rest(self, layers: int) -> dict[str, Any]:
        draw = self.draw
        if self.architecture == "smollm3":
            return {"no_rope_layers": [draw.choice([0, 1]) for _ in range(layers)]}
        if self.architecture == "phi3":
            return {"original_max_position_embeddings": draw.choice([POSITIONS, POSITIONS - 64])}
        return {}

    def write_tokenizer(self, folder: Path) -> int:
        """Write the files of a byte-level tokenizer; returns how many ids it has."""
        draw = self.draw
        tokenizer = trained("bytes")
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
        settings |= {"bos_token": "<s>", "eos_token": draw.choice(["</s>", "<|im_end|>"])}
        settings["clean_up_tokenization_spaces"] = draw.random() < 0.5
        if draw.random() < 0.4:
            bos = ("<s>", tokenizer.token_to_id("<s>"))
            tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
        template = draw.choice([None, *CHATS])
        if template is not None and draw.random() < 0.5:
            (folder / "chat_template.jinja").write_text(template)
        elif template is not None:
            settings["chat_template"] = template
        count = add_tokens(tokenizer, settings, draw)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return count

    def spoil(self, folder: Path) -> None:
        """Something that makes it another model, which ortkit must refuse by its name."""
        name, change = self.draw.choice(SPOILS)
        change(folder)
        self.refusal = name

    def compare(self, folder: Path, bundle: Bundle) -> None:
        with quiet():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
            ).eval()
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        decoder = Decoder(bundle, threads=1)
        self.compare_tokens(decoder, tokenizer)
        known = min(decoder.facts.vocabulary, len(tokenizer))
        ids = np.random.default_rng(self.seed).integers(0, known, size=min(LENGTH, decoder.facts.context_length - 1))
        self.compare_logits(decoder, model, ids)

    @staticmethod
    def compare_tokens(decoder: Decoder, tokenizer: Any) -> None:
        for text in TEXTS:
            assert decoder.encode(text) == tokenizer(text)["input_ids"], text
        chat = decoder.facts.chat
        template = ChatTemplate(chat) if chat is not None else None
        assert (template is None) == (tokenizer.chat_template is None)
        for conversation in CONVERSATIONS if template is not None else ():
            records = [{"role": role, "content": content} for role, content in conversation]
            messages = [Message(role, content) for role, content in conversation]
            if "raise_exception" in tokenizer.chat_template and conversation[0][0] == "system":
                continue
            expected = tokenizer.apply_chat_template(records, tokenize=False, add_generation_prompt=True)
            assert template.render(messages) == expected

    @staticmethod
    def compare_logits(decoder: Decoder, model: Any, ids: np.ndarray) -> None:
        with torch.inference_mode():
            expected = model(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()
        # Read in parts, as a prompt and what follows it are.
        forward = ModelRunner(decoder.session, decoder.new_cache())
        parts = np.split(ids, [len(ids) // 3, len(ids) - 8, *range(len(ids) - 7, len(ids))])
        found = np.concatenate([forward.run(part.tolist(), len(part)).copy() for part in parts])
        largest = float(np.abs(expected).max())
        difference = float(np.abs(found - expected).max())
        assert difference <= LARGEST_DIFFERENCE * largest, f"{difference} of {largest}"
        best = expected.argmax(axis=-1)
        other = found.argmax(axis=-1)
        rows = np.arange(len(ids))
        lead = expected[rows, best] - expected[rows, other]
        assert (lead <= CLOSE * largest).all()


def set_in(file: str, **changes: object) -> Any:
    def change(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | changes))

    return change


def bad_number(folder: Path) -> None:
    """NaN in the last number of the last tensor."""
    path = max(folder.glob("model*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-4:] = np.float32(np.nan).tobytes()[-4:] if b'"F32"' in content[:4000] else b"\xff\x7f\xff\x7f"
    path.write_bytes(bytes(content))


SPOILS = (
    ("published quantized", set_in("config.json", quantization_config={"quant_method": "gptq", "bits": 4})),
    ("is an adapter, or has one", set_in("adapter_config.json", peft_type="LORA")),
    ("`vision_config`", set_in("config.json", vision_config={"hidden_size": 8})),
    ("its own code", set_in("config.json", auto_map={"AutoModelForCausalLM": "modeling.Other"})),
    ("promises 1000000 layers", set_in("config.json", num_hidden_layers=10**6)),
    ("`rms_norm_eps`", set_in("config.json", rms_norm_eps="1e-6")),
    ("NaN or infinite numbers", bad_number),
)
"""What the message must name, and what makes it so."""
