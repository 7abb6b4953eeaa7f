"""The tokenizer of Mistral-7B-Instruct-v0.1 in the files of its repository, from Mistral's own vocabulary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import transformers

from tests.assets import vocabulary_path

PIECES = 32000
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
AS_IT_IS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
TOKENIZER_CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "added_tokens_decoder": {
        str(number): {"content": token} | AS_IT_IS for number, token in enumerate(SPECIAL_TOKENS.values())
    },
    "additional_special_tokens": [],
    "chat_template": CHAT_TEMPLATE,
    "clean_up_tokenization_spaces": False,
    "legacy": True,
    # What transformers writes for no length at all.
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": None,
    "sp_model_kwargs": {},
    "spaces_between_special_tokens": False,
    "tokenizer_class": "LlamaTokenizer",
    "use_default_system_prompt": False,
    **SPECIAL_TOKENS,
}
GENERATION_CONFIG = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}


def write_mistral_tokenizer(folder: Path) -> None:
    """Write the vocabulary, what transformers makes of it, the chat template, and how an answer ends."""
    if not vocabulary_path().exists():
        raise SystemExit(f"there is no `{vocabulary_path()}`\n\nhint: `python -m tests.assets` fetches it")
    shutil.copyfile(vocabulary_path(), folder / "tokenizer.model")
    tokenizer = transformers.LlamaTokenizerFast(str(vocabulary_path()), legacy=True, add_prefix_space=True)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    # As `tokenizers` wrote them when the repository was made.
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    for name, written in (
        ("tokenizer.json", content),
        ("tokenizer_config.json", TOKENIZER_CONFIG),
        ("special_tokens_map.json", SPECIAL_TOKENS),
        ("generation_config.json", GENERATION_CONFIG),
    ):
        (folder / name).write_text(json.dumps(written, indent=2, ensure_ascii=False), encoding="utf-8")
