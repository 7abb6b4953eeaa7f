"""JinaBERT in the shape of the real jina-embeddings-v2-base-en, with seeded weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from ortkit import Bundle, Precision
from ortkit.exporters import export
from ortkit.exporters.models.jina_bert import alibi_bias, alibi_slopes
from ortkit.runtime.session.config import SessionConfig
from ortkit.runtime.session.session import Session
from tests.encoder_checkpoints import TINY_CONFIGS, write_checkpoint
from tests.exporters import by_the_book

# config.json of jina-embeddings-v2-base-en, as far as it decides the computation.
REAL = {
    "vocab_size": 30528,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 8192,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "position_embedding_type": "alibi",
    "feed_forward_type": "geglu",
    "auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"},
}
MEBIBYTE = 2**20
EMBED = """
import json, sys
import numpy as np
from ortkit import Embedder
embedder = Embedder(sys.argv[1], workers=1)
embedder.embed(["warm"])
def memory(name):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024
# Forgets the peak so far, which is that of loading, or inherited from the process that started this one.
open("/proc/self/clear_refs", "w").write("5")
resident = memory("VmRSS:")
vectors = np.stack([embedder.embed_with_report([text]).vectors[0] for text in json.load(open(sys.argv[2]))])
np.save(sys.argv[3], vectors)
print(memory("VmHWM:") - resident)
"""


def test_the_slopes_are_those_of_the_authors() -> None:
    for heads, slopes in by_the_book.SLOPES.items():
        assert alibi_slopes(heads) == pytest.approx(slopes, abs=0)
    assert alibi_slopes(1) == [2**-8]
    assert alibi_slopes(16)[:3] == pytest.approx([2**-0.5, 2**-1, 2**-1.5])


def test_the_bias_falls_alike_in_both_directions() -> None:
    bias = alibi_bias(5, 12)

    assert bias.shape == (12, 5, 5)
    assert torch.equal(bias, bias.transpose(1, 2))
    assert bias[0, 0].tolist() == [0, -0.5, -1, -1.5, -2]


# Several layers where that takes seconds, one at the longest: a layer uses the memory of the one before.
@pytest.mark.parametrize(("layers", "lengths"), [(2, (16, 300)), pytest.param(1, (8192,), marks=pytest.mark.slow)])
def test_vectors_are_those_of_the_book_up_to_8192_tokens_within_two_gibibytes(
    checkpoint: Path, tmp_path: Path, layers: int, lengths: tuple[int, ...]
) -> None:
    folder = tmp_path / "jina"
    write_checkpoint(folder, checkpoint, "jina-bert", REAL | {"num_hidden_layers": layers})
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8192}))
    bundle = export(str(folder), precision=Precision.FP32, out=tmp_path / "bundle").bundle
    words = ["pump", "river", "cold", "knot", "night", "storm", "rope", "water", "engine", "light", "map", "fire"]
    choose = np.random.default_rng(3)
    texts = [" ".join(choose.choice(words, length - 2)) for length in lengths]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    command = [sys.executable, "-c", EMBED, bundle.path, tmp_path / "texts.json", tmp_path / "vectors.npy"]
    above_weights = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    weights = by_the_book.load_weights(folder, torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    for text, found, length in zip(texts, np.load(tmp_path / "vectors.npy"), lengths, strict=True):
        ids = torch.tensor(tokenizer(text, truncation=True, max_length=8192)["input_ids"])
        assert len(ids) == length
        expected = by_the_book.jina_bert(weights, ids, heads=12).mean(0)
        expected /= expected.norm()
        difference = np.abs(found - expected.numpy()).max()
        print(f"{length} tokens: largest difference {difference:.1e}")
        assert difference < 1e-4
    print(f"peak memory above the weights: {above_weights / MEBIBYTE:.0f} MiB")
    assert above_weights < 2 * 1024 * MEBIBYTE

    # Nor is a bias of 8,192 x 8,192 baked into the graph.
    size = (folder / "model.safetensors").stat().st_size
    assert bundle.file("model.onnx").stat().st_size < size * 1.001 + 200_000


@pytest.mark.parametrize("tokens", [1023, 1024, 1025, 1280, 1300])
def test_the_way_of_long_texts_begins_without_a_seam(
    tokens: int, tiny_jina: Bundle, tiny_jina_weights: by_the_book.Weights
) -> None:
    ids = np.random.default_rng(tokens).integers(1000, 20000, tokens)
    manifest = tiny_jina.manifest
    session = Session(tiny_jina.file("model.onnx"), SessionConfig(manifest.provider, manifest.inputs))
    expected = by_the_book.jina_bert(tiny_jina_weights, torch.from_numpy(ids), heads=6).numpy()

    found = session.run({"input_ids": np.stack([ids, ids[::-1]])})

    assert found.shape == (tokens, 2, 48)
    assert np.abs(found[:, 0] - expected).max() < 1e-4
    assert np.array_equal(session.run({"input_ids": ids[np.newaxis]})[:, 0], found[:, 0])


@pytest.fixture(scope="module")
def tiny_jina_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-jina") / "jina"
    write_checkpoint(folder, checkpoint, "jina-bert", TINY_CONFIGS["jina-bert"] | {"max_position_embeddings": 2048})
    return folder


@pytest.fixture(scope="module")
def tiny_jina(tiny_jina_folder: Path) -> Bundle:
    return export(str(tiny_jina_folder), precision=Precision.FP32, out=tiny_jina_folder.parent / "bundle").bundle


@pytest.fixture(scope="module")
def tiny_jina_weights(tiny_jina_folder: Path) -> by_the_book.Weights:
    return by_the_book.load_weights(tiny_jina_folder)
