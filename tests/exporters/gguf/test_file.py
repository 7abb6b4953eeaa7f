from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type

from ortkit.exporters.checkpoint.checkpoint import Checkpoint
from ortkit.exporters.decoder.config import check_tokens, decoder_facts
from ortkit.exporters.decoder.gguf_blocks import RowIndex
from ortkit.exporters.decoder.lazy_model import LazyDecoder, open_decoder
from ortkit.exporters.gguf.file import described_checkpoint, stored_matrices
from ortkit.exporters.gguf.header import read_header
from ortkit.exporters.gguf.metadata import ARCHITECTURES, GgufFile, open_gguf
from ortkit.exporters.models.loading import load_tokenizer
from ortkit.exporters.sources import find_checkpoint
from ortkit.runtime.decoder.prompt import encode_exactly
from ortkit.runtime.errors import CheckpointError, NotFoundError, OrtkitError, UnsupportedModelError
from ortkit.runtime.text.chat_template import ChatTemplate
from ortkit.runtime.text.messages import Message
from ortkit.runtime.text.safe_tokenizer import open_tokenizer
from tests.commands import Finished
from tests.exporters.gguf_files import MODELS, SPECIAL, TOKENS, rewritten, seeded, write_gguf

IDS = torch.randint(0, len(TOKENS), (1, 40), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", seeded("llama"))


def logits_of(model: transformers.PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


EPSILON = "llama.attention.layer_norm_rms_epsilon"


def described(path: Path, folder: Path) -> Checkpoint:
    return described_checkpoint(find_checkpoint(str(path)), open_gguf(path), folder)


def logits_of_file(path: Path, folder: Path) -> tuple[LazyDecoder, torch.Tensor]:
    """The model that an export reads, with all weights in memory, and its logits."""
    decoder = open_decoder(described(path, folder))
    with decoder.with_weights(decoder.model):
        return decoder, logits_of(decoder.model)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_the_one_that_was_written(name: str, tmp_path: Path) -> None:
    """Config and weights, by the logits; a text is longer than the windows."""
    model = seeded(name)
    write_gguf(tmp_path / "model.gguf", model)

    found, logits = logits_of_file(tmp_path / "model.gguf", tmp_path / "checkpoint")

    assert found.config.torch_dtype == torch.float32
    assert type(found.model) is type(model)
    difference = (logits - logits_of(model)).abs().max() / logits_of(model).abs().max()
    print(f"largest difference {difference:.1e}")
    assert difference < 1e-5


def test_every_architecture_is_tested() -> None:
    assert {name.split()[0] for name in MODELS} == set(ARCHITECTURES)


def test_metadata_of_the_real_file(smollm: GgufFile) -> None:
    file = smollm

    assert (file.architecture, file.context_length, file.license) == ("llama", 8192, "apache-2.0")
    assert (file.bos_id, file.add_bos) == (1, False)
    # The one that the file states, and <|endoftext|>.
    assert file.eos_ids == (2, 0)
    assert len(file.tokens) == 49152
    assert file.tokens[:3] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert file.chat_template is not None
    assert file.chat_template.startswith("{% for message in messages %}")
    # The embedding is in 8 bits, the rest in 4.
    assert [matrix.blocks.bits for matrix in islice(stored_matrices(file), 4)] == [8, 4, 4, 4]


def test_files_written_next_to_the_weights(tiny: Path, tmp_path: Path) -> None:
    described(tiny, tmp_path)

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    generation = transformers.GenerationConfig.from_pretrained(tmp_path)

    assert tokenizer("the 12").input_ids == [TOKENS.index(token) for token in ("t", "he", "Ġ", "1", "2")]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin|>", "<|im_end|>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert (generation.bos_token_id, generation.eos_token_id) == (0, [2])


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_1, Type.Q5_1, Type.Q8_0], ids=lambda kind: kind.name)
def test_the_rows_of_a_model_are_found_in_the_files_blocks(kind: Type, tmp_path: Path) -> None:
    """Though transformers turns those of queries and keys about, and the embedding is of another type."""
    types = {"token_embd.weight": Type.Q8_0, "norm.weight": Type.F32, ".weight": kind}
    write_gguf(tmp_path / "model.gguf", seeded("llama"), types=types)
    weights = described(tmp_path / "model.gguf", tmp_path).tensors
    assert weights is not None
    known = RowIndex(stored_matrices(open_gguf(tmp_path / "model.gguf")))
    layer = "model.layers.1.self_attn"
    merged = np.concatenate([weights[f"{layer}.{part}_proj.weight"].read() for part in "qkv"])

    for rows, bits in (
        (merged, 4 if kind in (Type.Q4_0, Type.Q4_1) else 8),
        (weights["model.embed_tokens.weight"].read(), 8),
    ):
        found = known.find(rows)

        assert found is not None
        assert found.bits == bits
        assert np.abs(found.dequantized().T - rows).max() < 1e-6


def refused(path: Path) -> OrtkitError:
    with pytest.raises(OrtkitError) as caught:
        described(path, path.parent / "never")
    assert not (path.parent / "never").exists()
    return caught.value


@pytest.mark.parametrize(
    ("share", "within"),
    [
        (0.999, "within the tensor `blk.1.ffn_norm.weight`, which takes 256 bytes from 320160 on"),
        (0.5, "within the tensor `blk.0.ffn_up.weight`, which takes 24576 bytes from 147360 on"),
        (0.01, "within the metadata `tokenizer.ggml.tokens`"),
        (0.00002, "within its first bytes"),
    ],
)
def test_truncated_files_are_refused(share: float, within: str, tiny: Path, tmp_path: Path) -> None:
    """In the last tensor, in the weights, in the metadata, at its very beginning."""
    content = tiny.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[: int(share * len(content))])

    error = refused(path)

    size = path.stat().st_size
    assert error.message == f"`{path}` is cut short or damaged: it has {size} bytes and ends {within}"
    assert error.hint == "copy or download the file again"
    assert error.exit_code == 7


def test_huge_sizes_are_refused(tiny: Path, tmp_path: Path) -> None:
    content = bytearray(tiny.read_bytes())
    content[8:16] = (2**60).to_bytes(8, "little")  # the number of tensors
    path = tmp_path / "absurd.gguf"
    path.write_bytes(content)

    assert "is cut short or damaged" in refused(path).message


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a wheel", b"\x00" * 100])
def test_files_that_are_not_gguf_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)

    error = refused(path)

    assert error.message == f"`{path}` is not a GGUF file: it does not begin with `GGUF`"
    assert error.exit_code == 7


def test_missing_file(tmp_path: Path) -> None:
    error = refused(tmp_path / "none.gguf")

    assert isinstance(error, NotFoundError)
    assert error.message == f"there is no file `{tmp_path / 'none.gguf'}`"


def test_unsupported_architecture(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", seeded("llama"), fields={"general.architecture": "falcon"})

    error = refused(path)

    assert error.message == "`m.gguf` has the architecture `falcon`, which is not supported in GGUF files"
    assert error.hint is not None
    assert error.hint.startswith("supported: `gemma2`, `gemma3`, `llama`, ")
    assert error.exit_code == 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"rope.scaling.type": "yarn"},
            "`m.gguf` has `llama.rope.scaling.type` set to `yarn`, which is not supported",
        ),
        (
            {"expert_count": 8},
            "`m.gguf` has `llama.expert_count` set to `8`, which is not supported",
        ),
        (
            {"attention.head_count_kv": [2, 1]},
            "`m.gguf` has `llama.attention.head_count_kv` set per layer; supported: the same value for all layers",
        ),
        ({"attention.value_length": 8}, "`m.gguf` has a head size of 16, 16 rotary dimensions and a value size of 8"),
        ({"split.count": 3}, "`m.gguf` is one of 3 shards of a model"),
    ],
    ids=str,
)
def test_unsupported_metadata_is_refused(fields: dict, message: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", seeded("llama"), fields=fields)

    error = refused(path)

    assert error.message == message
    assert error.hint is not None
    assert error.exit_code == 10


def test_metadata_without_effect_is_accepted(tmp_path: Path) -> None:
    fields = {"rope.scaling.type": "none", "expert_count": 0}

    assert open_gguf(write_gguf(tmp_path / "m.gguf", seeded("llama"), fields=fields)).architecture == "llama"


def test_phi3_with_its_original_context_is_accepted(tmp_path: Path) -> None:
    """As llama.cpp writes them; 0 means no window there."""
    model = seeded("phi3", sliding_window=None)
    fields = {"rope.scaling.original_context_length": 128, "attention.sliding_window": 0}
    write_gguf(tmp_path / "m.gguf", model, fields=fields)

    _, logits = logits_of_file(tmp_path / "m.gguf", tmp_path / "checkpoint")

    assert (logits - logits_of(model)).abs().max() < 1e-5


def test_phi3_beyond_its_original_context_is_refused(tmp_path: Path) -> None:
    fields = {"rope.scaling.original_context_length": 64}

    error = refused(write_gguf(tmp_path / "m.gguf", seeded("phi3"), fields=fields))

    assert error.message == (
        "`m.gguf` has a context of 128 tokens and was trained with 64, which is not supported for `phi3`"
    )
    assert error.exit_code == 10


def test_rope_factors_that_are_not_llama3_are_refused(tmp_path: Path) -> None:
    model = seeded("llama", rope_scaling={"rope_type": "linear", "factor": 2.0})
    # Halved, all of them: Llama 3 leaves the high frequencies as they are.
    path = write_gguf(tmp_path / "m.gguf", model)

    error = refused(path)

    assert error.message == "`m.gguf` slows its rotations down in another way than Llama 3 does (`rope_freqs.weight`)"
    assert error.exit_code == 10


def test_missing_tensors_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", seeded("llama"), without={"blk.1.ffn_up.weight"})

    error = refused(path)

    assert error.message == f"`{path}` lacks 1 of its model's weights, such as `model.layers.1.mlp.up_proj.weight`"
    assert error.exit_code == 7


def test_unexpected_tensors_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", seeded("llama", attention_bias=True))

    error = refused(path)

    assert error.message == (
        f"`{path}` holds 28 tensors, of which 8 have no place in a `llama`, such as `blk.0.attn_q.bias`"
    )
    assert error.exit_code == 10


def test_tensors_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", seeded("llama"), fields={"feed_forward_length": 128})

    assert "has the shape (96, 64) instead of (128, 64)" in refused(path).message


def test_missing_metadata_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", seeded("llama"), fields={"general.architecture": "qwen2"})

    error = refused(path)

    assert isinstance(error, CheckpointError)
    assert error.message == "`m.gguf` has no `qwen2.block_count` in its metadata"


def test_eos_tokens_that_the_metadata_does_not_list(tmp_path: Path) -> None:
    """But that are special tokens of a well-known name."""
    stated = write_gguf(tmp_path / "stated.gguf", seeded("llama"), tokenizer={"eot_token_id": 1})
    silent = write_gguf(tmp_path / "silent.gguf", seeded("llama"), tokenizer={"eos_token_id": None})
    beyond = write_gguf(tmp_path / "beyond.gguf", seeded("llama"), tokenizer={"eos_token_id": 9999})

    assert open_gguf(stated).eos_ids == (2, 1)
    assert open_gguf(silent).eos_ids == (SPECIAL.index("<|im_end|>"),)
    assert (
        refused(beyond).message == f"`beyond.gguf` has {len(TOKENS)} tokens, and `tokenizer.ggml.eos_token_id` is 9999"
    )


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        (
            {"general.type": "adapter"},
            "`m.gguf` has `general.type` set to `adapter`, so it is not a model",
            "merge it into its model first",
        ),
        (
            {"general.type": "mmproj"},
            "`m.gguf` has `general.type` set to `mmproj`, so it is not a model",
            "it holds a multimodal projector; export the model's own file",
        ),
        ({"general.type": "x\x1b"}, "`m.gguf` has `general.type` set to `x\\x1b`, so it is not a model", "export the"),
        ({"clip.has_vision_encoder": True}, "`m.gguf` has `clip.has_vision_encoder` set to `True`, which is not", ""),
        ({"adapter.lora.alpha": 2.0}, "`m.gguf` has `adapter.lora.alpha` set to `2.0`, which is not", ""),
        ({"rope.scaling.factor": 8.0}, "`m.gguf` has `llama.rope.scaling.factor` set to `8.0`, which is not", ""),
        ({"attn_logit_softcapping": 50.0}, "`m.gguf` has `llama.attn_logit_softcapping` set to `50.0`, which", ""),
        ({"attention.sliding_window": 8}, "`m.gguf` has `llama.attention.sliding_window` set to `8`, which", ""),
        ({"attention.scale": 0.5}, "`m.gguf` has `llama.attention.scale` set to `0.5`, which is not", ""),
        ({"attention.causal": False}, "`m.gguf` has `llama.attention.causal` set to `False`, which is not", ""),
        ({"general.sampling.mirostat": 2}, "`m.gguf` has `general.sampling.mirostat` set to `2`, which is not", ""),
    ],
    ids=str,
)
def test_unsupported_metadata_is_named(fields: dict, message: str, hint: str, tmp_path: Path) -> None:
    """When the file is found, before torch is needed for anything."""
    path = write_gguf(tmp_path / "m.gguf", seeded("llama"), fields=fields)

    with pytest.raises(UnsupportedModelError) as caught:
        find_checkpoint(str(path))

    assert caught.value.message.startswith(message)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint or "ignoring it would change the model; export the Hub's")
    assert caught.value.exit_code == 10


def test_other_quantization_versions_are_refused(tmp_path: Path) -> None:
    fields = {"general.quantization_version": 1}
    types = {"attn_v.weight": Type.Q4_0}
    plain = write_gguf(tmp_path / "plain.gguf", seeded("llama"), fields=fields)
    path = write_gguf(tmp_path / "m.gguf", seeded("llama"), fields=fields, types=types)

    assert open_gguf(plain).block_types == frozenset()
    error = refused(path)

    assert error.message == "`m.gguf` has `general.quantization_version` set to `1`, which is not supported"
    assert error.exit_code == 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"general.license": 5},
            "`m.gguf` has `general.license` set to `5` (int); it must be a string",
        ),
        (
            {"general.license": ["mit"]},
            "`m.gguf` has `general.license` set to `a list of 1`; it must be a string",
        ),
        (
            {"general.license": "x" * 201},
            "`m.gguf` has a string of 201 characters as `general.license`, and at most 200 are read",
        ),
        (
            {"block_count": 65536},
            "`m.gguf` has `llama.block_count` set to `65536` (int); it must be from 1 to 1024",
        ),
        ({"block_count": 3}, "`m.gguf` has 3 layers by `llama.block_count`, and tensors of 2 layers"),
        ({"block_count": 1}, "`m.gguf` has 1 layers by `llama.block_count`, and tensors of 2 layers"),
        (
            {"embedding_length": 2**31},
            "`m.gguf` has `llama.embedding_length` set to `2147483648` (int); it must be from 1 to 1048576",
        ),
        (
            {"embedding_length": 128, "rope.dimension_count": 32},
            f"`m.gguf` has `token_embd.weight` of the shape [{len(TOKENS)}, 64] instead of ['tokens', 128]",
        ),
        (
            {"vocab_size": 300},
            f"`m.gguf` has `token_embd.weight` of the shape [{len(TOKENS)}, 64] instead of [300, 64]",
        ),
        ({"attention.head_count": 3}, "`m.gguf` has an embedding length of 64, which is not a multiple of its 3 heads"),
        ({"attention.head_count_kv": 3}, "`m.gguf` has 4 heads, which is not a multiple of its 3 key-value heads"),
        (
            {"attention.layer_norm_rms_epsilon": float("nan")},
            f"`m.gguf` has `{EPSILON}` set to `nan` (float); it must be a finite number above 0",
        ),
        (
            {"rope.freq_base": -1.0},
            "`m.gguf` has `llama.rope.freq_base` set to `-1.0` (float); it must be a finite number above 0",
        ),
        (
            {"context_length": "128"},
            "`m.gguf` has `llama.context_length` set to `128` (str); it must be an integer",
        ),
        (
            {"general.sampling.temp": float("inf")},
            "`m.gguf` has `general.sampling.temp` set to `inf` (float); it must be a finite number",
        ),
    ],
    ids=str,
)
def test_invalid_values_are_refused(fields: dict, message: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", seeded("llama"), fields=fields)

    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(str(path))

    assert caught.value.message == message
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blk.1.ffn_norm.weight", Type.F32),
        ("blk.0.attn_k.weight", Type.F16),
        ("token_embd.weight", Type.BF16),
        ("blk.1.ffn_down.weight", Type.Q4_1),
        ("blk.1.ffn_up.weight", Type.Q8_0),
        ("blk.0.attn_v.weight", Type.TQ2_0),
    ],
    ids=str,
)
def test_tensors_with_nan_or_infinity_are_named(name: str, kind: Type, value: float, tmp_path: Path) -> None:
    """In weights, and in the scale of a block."""
    model = seeded("llama", hidden_size=256, intermediate_size=256)
    path = write_gguf(tmp_path / "m.gguf", model, types={name: kind})
    tensor = next(found for found in open_gguf(path).tensors if found.name == name)
    wrong = {
        Type.F32: np.array([value], "<f4").tobytes(),
        Type.BF16: (np.array([value], "<f4").view("<u4") >> 16).astype("<u2").tobytes(),
    }.get(kind, np.array([value], "<f2").tobytes())
    place = tensor.nbytes - len(wrong) if kind is Type.TQ2_0 else {Type.Q4_1: 20, Type.Q8_0: 34}.get(kind, 40)
    content = bytearray(path.read_bytes())
    content[tensor.start + place : tensor.start + place + len(wrong)] = wrong
    path.write_bytes(content)

    error = refused(path)

    assert error.message == f"`{path}` has a number that is not finite (NaN or Inf) in the tensor `{name}`"
    assert error.hint == "the file was made from damaged weights, or damaged itself: copy or download it again"
    assert error.exit_code == 7


def test_file_truncated_during_reading(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny.read_bytes())
    weights = described(path, tmp_path / "described").tensors
    assert weights is not None
    path.write_bytes(tiny.read_bytes()[:-100])

    with pytest.raises(CheckpointError, match=r"ends within the tensor `output_norm\.weight`"):
        [tensor.read() for tensor in weights.values()]


def test_sampling_parameters(tmp_path: Path) -> None:
    sampling = {"temp": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "penalty_repeat": 1.05, "mirostat": 0}
    fields = {f"general.sampling.{key}": value for key, value in sampling.items()}
    checkpoint = described(write_gguf(tmp_path / "m.gguf", seeded("llama"), fields=fields), tmp_path / "described")

    found = decoder_facts(checkpoint, load_tokenizer(checkpoint)).generation

    assert dataclasses.asdict(found) == pytest.approx(
        {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.05}
    )


def test_defaults_are_those_of_llama_cpp(tmp_path: Path) -> None:
    model = seeded("llama", num_key_value_heads=4, rope_theta=10000.0)
    own = write_gguf(tmp_path / "own.gguf", model)
    known = read_header(own).fields
    keys = ("llama.attention.head_count_kv", "llama.rope.freq_base", "llama.rope.dimension_count")
    silent = rewritten(own, {key: value for key, value in known.items() if key not in keys}, tmp_path / "silent.gguf")

    _, logits = logits_of_file(silent, tmp_path / "checkpoint")

    assert (logits - logits_of(model)).abs().max() < 1e-5


def test_conversations_of_the_real_file_match_transformers(smollm: GgufFile, tmp_path: Path) -> None:
    """Rendered by its own template, and with the ids of the tokenizer that was made of its metadata."""
    checkpoint = described(smollm.path, tmp_path)
    tokenizer = load_tokenizer(checkpoint)
    facts = decoder_facts(checkpoint, tokenizer)
    assert facts.chat is not None
    asked = [{"role": "user", "content": "Grüße 12!"}, {"role": "assistant", "content": "Ja"}]

    rendered = ChatTemplate(facts.chat).render([Message(**turn) for turn in asked], for_answer=True)

    assert rendered == tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nGrüße 12!<|im_end|>\n<|im_start|>assistant\nJa<|im_end|>\n<|im_start|>assistant\n"
    )
    own = open_tokenizer(tmp_path / "tokenizer.json")
    assert encode_exactly(own, rendered) == tokenizer.apply_chat_template(asked, add_generation_prompt=True)
    check_tokens(checkpoint.name, tokenizer, own, facts)


def test_license_that_is_a_number_on_the_command_line(ortkit: Callable[..., Finished], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", seeded("llama"), fields={"general.license": 2})

    finished = ortkit("export", path, "--out", tmp_path / "b")

    assert finished.code == 7
    assert finished.err.endswith("error: `m.gguf` has `general.license` set to `2` (int); it must be a string\n")
    assert [one.name for one in tmp_path.iterdir()] == ["m.gguf"]
