"""A GGUF file -> a checkpoint in Hugging Face layout, and the blocks in which the file holds its matrices.

The weights are dequantized by way of transformers, which also knows how the file names them. What transformers leaves
out of a config is taken from the file's metadata here, and a file that says anything else about its model is refused:
a model without it would be another one. Tokenizer, special tokens and chat template come from the metadata too.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFReader, ReaderTensor, dequantize, get_tensor_name_map
from numpy.typing import NDArray
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from exporters.architectures import check_architecture
from exporters.block_weights import StoredMatrix
from exporters.checkpoint import Checkpoint
from exporters.checkpoint_files import TOKENIZER_CONFIG, WEIGHTS, read_json
from exporters.gguf_tokenizer import CONTROL, Vocabulary, make_tokenizer, read_vocabulary
from exporters.stored_blocks import BLOCK_READERS
from exporters.stored_tensors import write_tensors
from runtime.errors import CheckpointError, NotFoundError, UnsupportedModelError

MAGIC = b"GGUF"
PLAIN = ("F32", "F16", "BF16")
"""Types of tensors that are in no blocks."""
ROPE_FACTORS = "rope_freqs.weight"
SIZES = frozenset(
    {
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.dimension_count",
        "rope.freq_base",
        "vocab_size",
    }
)
"""What a file says about its model, after the architecture's name: what every decoder may have."""
WINDOW = frozenset({"attention.sliding_window"})
TRAINED_LENGTH = "rope.scaling.original_context_length"
"""llama.cpp writes it for every Phi-3, also where it is the whole context and nothing is scaled."""
CAPS = frozenset({"attn_logit_softcapping", "final_logit_softcapping"})
ARCHITECTURES: Mapping[str, frozenset[str]] = {
    "gemma2": SIZES | WINDOW | CAPS,
    "gemma3": SIZES | WINDOW,
    "llama": SIZES,
    "phi3": SIZES | WINDOW | {TRAINED_LENGTH},
    "qwen2": SIZES,
    "qwen3": SIZES,
}
"""As a file names them, with what may be said about each: what is tested against PyTorch."""
WITHOUT_EFFECT = (("rope.scaling.type", "none"), ("expert_count", 0), ("expert_used_count", 0))
"""Of other things that are said, what says that the model has no such thing."""
MODEL_TYPES = {"gemma3": "gemma3_text"}
"""The names that transformers has for them where it has others."""
QUERY_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
"""The layers of the one size, 27B, whose queries are scaled by another size than the heads'; no file says so."""
LLAMA3_FACTORS: dict[str, float] = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Those of every Llama 3.1 and later. A file holds what comes of them, for each frequency, instead."""
ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
)
"""Special tokens after which nothing comes, whether the file says so or not; llama.cpp takes them so too."""


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says about its model."""

    path: Path
    architecture: str
    context_length: int
    vocabulary: Vocabulary
    eos_ids: tuple[int, ...]
    chat_template: str | None
    licence: str | None
    fields: Mapping[str, Any] = field(repr=False)
    """The whole metadata."""
    reader: GGUFReader = field(repr=False)

    @property
    def tokens(self) -> tuple[str, ...]:
        return self.vocabulary.tokens

    @property
    def bos_id(self) -> int | None:
        return self.vocabulary.bos_id

    @property
    def add_bos(self) -> bool:
        return self.vocabulary.adds_bos

    def about(self, key: str) -> Any:
        """What the file says about its model under a key after the architecture's name, None where nothing."""
        return self.fields.get(f"{self.architecture}.{key}")


def open_gguf(path: Path) -> GgufFile:
    """Read what a GGUF file says, without its weights.

    Raises NotFoundError, CheckpointError for a file that is none or cut short, and UnsupportedModelError for a model
    that would not be exported exactly.
    """
    reader = read(path)
    try:
        fields = {name: found.contents() for name, found in reader.fields.items()}
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise damaged(path) from error
    architecture = str(fields.get("general.architecture"))
    check_model(path, architecture, fields, [tensor.name for tensor in reader.tensors])
    vocabulary = read_vocabulary(path.name, fields)
    return GgufFile(
        path,
        architecture,
        int(fields[f"{architecture}.context_length"]),
        vocabulary,
        ends_of(vocabulary, fields),
        fields.get("tokenizer.chat_template"),
        fields.get("general.license"),
        fields,
        reader,
    )


def read(path: Path) -> GGUFReader:
    """The file, mapped; each tensor is known to lie within it."""
    if not path.is_file():
        raise NotFoundError(f"there is no file `{path}`")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise CheckpointError(f"`{path}` is no GGUF file: it does not begin with `GGUF`")
    try:
        # The reader warns of numbers that run over where a damaged file states absurd sizes.
        with np.errstate(all="ignore"):
            return Reader(str(path))
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, TypeError) as error:
        raise damaged(path) from error


class Reader(GGUFReader):  # type: ignore[misc] # gguf has no types
    """Reads the half a million small parts of a file's metadata from a plain array.

    Each part of numpy's own array on a mapped file takes several times as long to make.
    """

    @property
    def data(self) -> NDArray[np.uint8]:
        return self.plain

    @data.setter
    def data(self, mapped: NDArray[np.uint8]) -> None:
        self.plain = np.asarray(mapped)


def damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"`{path}` is cut short or damaged: its {path.stat().st_size} bytes do not hold what its beginning promises",
        hint="copy or download the file again",
    )


def check_model(path: Path, architecture: str, fields: Mapping[str, Any], tensors: Sequence[str]) -> None:
    """Raise UnsupportedModelError for a model that edgekit does not know, or that the file says something new about."""
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"`{path.name}` has the architecture `{architecture}`, which edgekit does not know in a GGUF file",
            hint=f"known are {', '.join(f'`{known}`' for known in ARCHITECTURES)}; export the Hub's checkpoint instead",
        )
    if int(fields.get("split.count", 1)) > 1:
        raise UnsupportedModelError(
            f"`{path.name}` is one of {fields['split.count']} parts of a model",
            hint="put them together with `llama-gguf-split --merge`",
        )
    prefix = f"{architecture}."
    said = {name.removeprefix(prefix): value for name, value in fields.items() if name.startswith(prefix)}
    for key in ("block_count", "context_length", "embedding_length", "attention.head_count"):
        if not said.get(key):
            raise CheckpointError(f"`{path.name}` does not say `{prefix}{key}`")
    for key, value in said.items():
        if key not in ARCHITECTURES[architecture] and (key, value) not in WITHOUT_EFFECT:
            raise UnsupportedModelError(
                f"`{path.name}` has `{prefix}{key}` set to `{value}`, "
                f"and edgekit does not know such a `{architecture}`",
                hint="export the Hub's checkpoint instead",
            )
        if isinstance(value, list):
            raise UnsupportedModelError(
                f"`{path.name}` has `{prefix}{key}` set for each layer, and edgekit knows layers that are alike",
                hint="export the Hub's checkpoint instead",
            )
    check_rotation(path, architecture, said)
    if ROPE_FACTORS in tensors and architecture != "llama":
        raise UnsupportedModelError(f"`{path.name}` has `{ROPE_FACTORS}`, and edgekit knows it in a `llama` only")


def check_rotation(path: Path, architecture: str, said: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError for heads that are not rotated whole, or as far as the context alone asks for."""
    context = said["context_length"]
    if said.get(TRAINED_LENGTH, context) != context:
        raise UnsupportedModelError(
            f"`{path.name}` reads {context} tokens and was trained on {said[TRAINED_LENGTH]}, "
            f"and edgekit does not know such a `{architecture}`",
            hint="export the Hub's checkpoint instead",
        )
    head = head_size(said)
    rotated = said.get("rope.dimension_count", head)
    if rotated != head or said.get("attention.value_length", head) != head:
        raise UnsupportedModelError(
            f"`{path.name}` has heads of {head} numbers, of which it rotates {rotated}, "
            f"and values of {said.get('attention.value_length', head)}",
            hint="known are heads that are rotated whole; export the Hub's checkpoint instead",
        )


def head_size(said: Mapping[str, Any]) -> int:
    """The size of a head, from what a file says about its model."""
    return int(said.get("attention.key_length") or said["embedding_length"] // said["attention.head_count"])


def ends_of(vocabulary: Vocabulary, fields: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end a text, that of the metadata first."""
    stated = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    places = {token: number for number, token in enumerate(vocabulary.tokens)}
    known = [places[end] for end in ENDS if end in places and vocabulary.types[places[end]] == CONTROL]
    found = dict.fromkeys([*(number for number in stated if number is not None), *known])
    beyond = [number for number in found if number >= len(vocabulary.tokens)]
    if beyond:
        raise CheckpointError(f"`{vocabulary.name}` has {len(places)} tokens, and ends texts with number {beyond[0]}")
    return tuple(found)


def unpacked(checkpoint: Checkpoint, file: GgufFile, folder: Path) -> Checkpoint:
    """A checkpoint that comes in a GGUF file, with its files in Hugging Face layout in `folder`."""
    write_checkpoint(file, folder)
    config = read_json(folder / "config.json")
    check_architecture(checkpoint.name, config)
    source = dataclasses.replace(checkpoint.source, licence=checkpoint.source.licence or file.licence)
    return dataclasses.replace(checkpoint, folder=folder, config=config, source=source)


def write_checkpoint(file: GgufFile, folder: Path) -> None:
    """Write the model in Hugging Face layout: config, float32 weights, tokenizer, generation config.

    One tensor is in memory at a time. Raises CheckpointError when tensors are missing, too many or of the wrong size.
    """
    config, model = described(file)
    tensors = named_tensors(file, model)
    check_weights(file, model, tensors)
    tokenizer = make_tokenizer(file.vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    processor = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)(config=config.to_dict())
    write_tensors(
        folder / WEIGHTS,
        {name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
        lambda name: float32_of(tensors[name], processor),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / TOKENIZER_CONFIG, tokenizer_config(file))
    write_json(
        folder / "generation_config.json", {"bos_token_id": file.bos_id, "eos_token_id": list(file.eos_ids) or None}
    )


def float32_of(tensor: ReaderTensor, processor: Any) -> NDArray[np.float32]:
    """The numbers of a tensor, in the order that transformers has them in."""
    dequantized = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
    return np.asarray(processor.process(dequantized, tensor.name).weights, np.float32)


def unpacked_size(file: GgufFile) -> int:
    """Bytes of the float32 weights of a GGUF file."""
    return 4 * sum(int(tensor.n_elements) for tensor in file.reader.tensors)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer_config(file: GgufFile) -> dict[str, Any]:
    """What transformers, and edgekit, read beside tokenizer.json."""
    ids = {"bos_token": file.bos_id, "eos_token": next(iter(file.eos_ids), None)}
    for name, key in (("unk_token", "unknown"), ("pad_token", "padding")):
        ids[name] = file.fields.get(f"tokenizer.ggml.{key}_token_id")
    named = {
        name: file.tokens[number] for name, number in ids.items() if number is not None and number < len(file.tokens)
    }
    template = {} if file.chat_template is None else {"chat_template": file.chat_template}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.context_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": file.add_bos,
        **named,
        **template,
    }


def described(file: GgufFile) -> tuple[Any, Any]:
    """The config as transformers has it, and the model without its weights."""
    # Not through `from_pretrained`, which would read the metadata three more times and needs one more package.
    config = transformers.AutoConfig.for_model(MODEL_TYPES.get(file.architecture, file.architecture), **settings(file))
    complete(config, file)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    return config, model


def named_tensors(file: GgufFile, model: Any) -> dict[str, ReaderTensor]:
    """The file's tensors by the names that transformers gives them."""
    names = names_of_weights(file, model)
    return {names[tensor.name]: tensor for tensor in file.reader.tensors if tensor.name in names}


def names_of_weights(file: GgufFile, model: Any) -> dict[str | None, str]:
    """The name of each tensor in the file -> that of the weight."""
    # transformers' own function for this makes the table again for every module, which takes longer than all the rest.
    architecture = next(found for found in MODEL_ARCH if MODEL_ARCH_NAMES[found] == file.architecture)
    known = get_tensor_name_map(architecture, model.config.num_hidden_layers)
    return {known.get_name(name, (".weight", ".bias")): name for name, _ in model.named_parameters()}


def settings(file: GgufFile) -> dict[str, Any]:
    """The config's settings, as far as transformers knows them from a GGUF file."""
    names = GGUF_CONFIG_MAPPING[file.architecture]
    found = {names[key]: file.about(key) for key in ARCHITECTURES[file.architecture] if names.get(key)}
    stated = {name: value for name, value in found.items() if value is not None}
    tied = all(tensor.name != "output.weight" for tensor in file.reader.tensors)
    return {"vocab_size": len(file.tokens), **stated, "tie_word_embeddings": tied}


def complete(config: Any, file: GgufFile) -> None:
    """Set in a config what transformers does not take from the file."""
    said = {key: file.about(key) for key in ARCHITECTURES[file.architecture]}
    config.head_dim = head_size({key: value for key, value in said.items() if value is not None})
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if said.get(key) is not None:
            setattr(config, key, said[key])
    window = said.get("attention.sliding_window")
    if window is not None:
        # None is 0 in these files.
        config.sliding_window = window or None
    if file.architecture in QUERY_SCALED_BY_WIDTH:
        by_width = config.num_hidden_layers == QUERY_SCALED_BY_WIDTH[file.architecture]
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if by_width else config.head_dim
    factors = next((tensor for tensor in file.reader.tensors if tensor.name == ROPE_FACTORS), None)
    if factors is not None:
        config.rope_scaling = llama3_scaling(file, np.asarray(factors.data, np.float32), config)
    config.bos_token_id = file.bos_id
    config.eos_token_id = list(file.eos_ids)
    config.pad_token_id = None
    config.dtype = torch.float32


def llama3_scaling(file: GgufFile, factors: NDArray[np.float32], config: Any) -> dict[str, Any]:
    """The setting of Llama 3.1 and later from which a file's factors come; refused where they come from another."""
    scaling: dict[str, Any] = {"rope_type": "llama3", "factor": float(factors.max()), **LLAMA3_FACTORS}
    if not np.allclose(factors, llama3_factors(scaling, config.rope_theta, config.head_dim), rtol=1e-4):
        raise UnsupportedModelError(
            f"`{file.path.name}` slows its rotations down in another way than Llama 3 does (`{ROPE_FACTORS}`)",
            hint="export the Hub's checkpoint instead",
        )
    return scaling


def llama3_factors(scaling: Mapping[str, Any], base: float, head: int) -> NDArray[np.float64]:
    """By what each frequency is divided: not at all where it is high, by `factor` where it is low."""
    frequencies = base ** -(np.arange(0, head, 2) / head)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / scaling["factor"] + smooth))


def check_weights(file: GgufFile, model: Any, tensors: Mapping[str, ReaderTensor]) -> None:
    """Raise CheckpointError unless every tensor of the file became a weight of the model, and it lacks none."""
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    missing = sorted(expected.keys() - tensors.keys())
    if missing:
        raise CheckpointError(f"`{file.path}` lacks {len(missing)} of its model's weights, such as `{missing[0]}`")
    for name, tensor in tensors.items():
        # From the last to the first.
        shape = tuple(int(size) for size in reversed(tensor.shape))
        if shape != expected[name]:
            raise CheckpointError(f"in `{file.path}`, `{name}` has the shape {shape} instead of {expected[name]}")
    held = sum(tensor.name != ROPE_FACTORS for tensor in file.reader.tensors)
    if held != len(tensors):
        raise CheckpointError(
            f"`{file.path}` holds {held} tensors, of which {held - len(tensors)} have no place in a "
            f"`{file.architecture}`",
            hint="export the Hub's checkpoint instead",
        )


def stored_matrices(file: GgufFile) -> Iterator[StoredMatrix]:
    """The matrices that the file holds in blocks; raises UnsupportedModelError first where some are in unknown ones."""
    matrices = [
        tensor for tensor in file.reader.tensors if len(tensor.shape) == 2 and tensor.tensor_type.name not in PLAIN
    ]
    unknown = sorted({tensor.tensor_type.name for tensor in matrices} - BLOCK_READERS.keys())
    if unknown or not matrices:
        kinds = (
            f"weights of the type {' and '.join(f'`{kind}`' for kind in unknown)}"
            if unknown
            else "no weights in blocks"
        )
        raise UnsupportedModelError(
            f"`{file.path.name}` has {kinds}, so its own precision cannot be kept",
            hint=f"kept are {', '.join(f'`{kind}`' for kind in BLOCK_READERS)}; "
            "`--precision int4` or `int8` rounds any weights anew",
        )
    for tensor in matrices:
        blocks = BLOCK_READERS[tensor.tensor_type.name](np.asarray(tensor.data))
        yield StoredMatrix(np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32), blocks)
