from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type

from exporters.block_weights import KnownRows
from exporters.checkpoint import Checkpoint
from exporters.gguf import described_checkpoint, stored_matrices
from exporters.gguf_facts import ARCHITECTURES, GgufFile, open_gguf
from exporters.sources import find_checkpoint
from exporters.weightless import WeightlessDecoder, open_decoder
from runtime.errors import CheckpointError, EdgekitError, NotFoundError
from tests.exporters.gguf_files import MODELS, SPECIAL, TOKENS, seeded, write_gguf

IDS = torch.randint(0, len(TOKENS), (1, 40), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", seeded("llama"))


def logits_of(model: transformers.PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def described(path: Path, folder: Path) -> Checkpoint:
    return described_checkpoint(find_checkpoint(str(path)), open_gguf(path), folder)


def logits_of_file(path: Path, folder: Path) -> tuple[WeightlessDecoder, torch.Tensor]:
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


def test_what_the_real_file_says(smollm: GgufFile) -> None:
    file = smollm

    assert (file.architecture, file.context_length, file.licence) == ("llama", 8192, "apache-2.0")
    assert (file.bos_id, file.add_bos) == (1, False)
    # The one that the file states, and <|endoftext|>.
    assert file.eos_ids == (2, 0)
    assert len(file.tokens) == 49152
    assert file.tokens[:3] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert file.chat_template is not None
    assert file.chat_template.startswith("{% for message in messages %}")
    # The embedding is in 8 bits, the rest in 4.
    assert [matrix.blocks.bits for matrix in islice(stored_matrices(file), 4)] == [8, 4, 4, 4]


def test_the_files_beside_the_weights(tiny: Path, tmp_path: Path) -> None:
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
    known = KnownRows(stored_matrices(open_gguf(tmp_path / "model.gguf")))
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


def refused(path: Path) -> EdgekitError:
    with pytest.raises(EdgekitError) as caught:
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
def test_a_file_that_is_cut_short(share: float, within: str, tiny: Path, tmp_path: Path) -> None:
    """In the last tensor, in the weights, in the metadata, at its very beginning."""
    content = tiny.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[: int(share * len(content))])

    error = refused(path)

    size = path.stat().st_size
    assert error.message == f"`{path}` is cut short or damaged: it has {size} bytes and ends {within}"
    assert error.hint == "copy or download the file again"
    assert error.exit_code == 7


def test_absurd_sizes(tiny: Path, tmp_path: Path) -> None:
    content = bytearray(tiny.read_bytes())
    content[8:16] = (2**60).to_bytes(8, "little")  # the number of tensors
    path = tmp_path / "absurd.gguf"
    path.write_bytes(content)

    assert "is cut short or damaged" in refused(path).message


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a wheel", b"\x00" * 100])
def test_a_file_that_is_no_gguf(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)

    error = refused(path)

    assert error.message == f"`{path}` is no GGUF file: it does not begin with `GGUF`"
    assert error.exit_code == 7


def test_no_file(tmp_path: Path) -> None:
    error = refused(tmp_path / "none.gguf")

    assert isinstance(error, NotFoundError)
    assert error.message == f"there is no file `{tmp_path / 'none.gguf'}`"


def test_an_unknown_architecture(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", seeded("llama"), fields={"general.architecture": "falcon"})

    error = refused(path)

    assert error.message == "`m.gguf` has the architecture `falcon`, which edgekit does not know in a GGUF file"
    assert error.hint is not None
    assert error.hint.startswith("known are `gemma2`, `gemma3`, `llama`, ")
    assert error.exit_code == 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"rope.scaling.type": "yarn"},
            "`m.gguf` has `llama.rope.scaling.type` set to `yarn`, which edgekit does not read",
        ),
        (
            {"expert_count": 8},
            "`m.gguf` has `llama.expert_count` set to `8`, which edgekit does not read",
        ),
        (
            {"attention.head_count_kv": [2, 1]},
            "`m.gguf` has `llama.attention.head_count_kv` set for each layer, and edgekit knows layers that are alike",
        ),
        ({"attention.value_length": 8}, "`m.gguf` has heads of 16 numbers, of which it rotates 16, and values of 8"),
        ({"split.count": 3}, "`m.gguf` is one of 3 parts of a model"),
    ],
    ids=str,
)
def test_a_model_that_would_come_out_as_another(fields: dict, message: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", seeded("llama"), fields=fields)

    error = refused(path)

    assert error.message == message
    assert error.hint is not None
    assert error.exit_code == 10


def test_settings_without_effect_are_no_reason_to_refuse(tmp_path: Path) -> None:
    fields = {"rope.scaling.type": "none", "expert_count": 0}

    assert open_gguf(write_gguf(tmp_path / "m.gguf", seeded("llama"), fields=fields)).architecture == "llama"


def test_a_phi_3_whose_whole_context_was_trained(tmp_path: Path) -> None:
    """As llama.cpp writes them; 0 is no window there."""
    model = seeded("phi3", sliding_window=None)
    fields = {"rope.scaling.original_context_length": 128, "attention.sliding_window": 0}
    write_gguf(tmp_path / "m.gguf", model, fields=fields)

    _, logits = logits_of_file(tmp_path / "m.gguf", tmp_path / "checkpoint")

    assert (logits - logits_of(model)).abs().max() < 1e-5


def test_a_phi_3_that_reads_further_than_it_was_trained(tmp_path: Path) -> None:
    fields = {"rope.scaling.original_context_length": 64}

    error = refused(write_gguf(tmp_path / "m.gguf", seeded("phi3"), fields=fields))

    assert error.message == ("`m.gguf` reads 128 tokens and was trained on 64, and edgekit does not know such a `phi3`")
    assert error.exit_code == 10


def test_rotations_that_are_not_llama_3s(tmp_path: Path) -> None:
    model = seeded("llama", rope_scaling={"rope_type": "linear", "factor": 2.0})
    # Halved, all of them: Llama 3 leaves the high frequencies as they are.
    path = write_gguf(tmp_path / "m.gguf", model)

    error = refused(path)

    assert error.message == "`m.gguf` slows its rotations down in another way than Llama 3 does (`rope_freqs.weight`)"
    assert error.exit_code == 10


def test_weights_that_are_missing(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", seeded("llama"), without={"blk.1.ffn_up.weight"})

    error = refused(path)

    assert error.message == f"`{path}` lacks 1 of its model's weights, such as `model.layers.1.mlp.up_proj.weight`"
    assert error.exit_code == 7


def test_weights_that_have_no_place(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", seeded("llama", attention_bias=True))

    error = refused(path)

    assert error.message == (
        f"`{path}` holds 28 tensors, of which 8 have no place in a `llama`, such as `blk.0.attn_q.bias`"
    )
    assert error.exit_code == 10


def test_weights_of_the_wrong_size(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", seeded("llama"), fields={"feed_forward_length": 128})

    assert "has the shape (96, 64) instead of (128, 64)" in refused(path).message


def test_sizes_that_are_not_said(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", seeded("llama"), fields={"general.architecture": "qwen2"})

    error = refused(path)

    assert isinstance(error, CheckpointError)
    assert error.message == "`m.gguf` does not say `qwen2.block_count`"


def test_ends_that_the_file_does_not_state(tmp_path: Path) -> None:
    """But that are special tokens of a well-known name."""
    stated = write_gguf(tmp_path / "stated.gguf", seeded("llama"), tokenizer={"eot_token_id": 1})
    silent = write_gguf(tmp_path / "silent.gguf", seeded("llama"), tokenizer={"eos_token_id": None})
    beyond = write_gguf(tmp_path / "beyond.gguf", seeded("llama"), tokenizer={"eos_token_id": 9999})

    assert open_gguf(stated).eos_ids == (2, 1)
    assert open_gguf(silent).eos_ids == (SPECIAL.index("<|im_end|>"),)
    assert (
        refused(beyond).message == f"`beyond.gguf` has {len(TOKENS)} tokens, and `tokenizer.ggml.eos_token_id` is 9999"
    )
