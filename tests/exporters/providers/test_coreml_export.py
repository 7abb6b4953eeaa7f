from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from ortkit import (
    Bundle,
    Embedder,
    Kind,
    OutOfMemoryError,
    Precision,
    Provider,
    ProviderError,
    Reranker,
    UnsupportedModelError,
)
from ortkit.exporters import Origin, export
from ortkit.exporters.providers.coreml import buckets_for
from ortkit.exporters.providers.coreml_certify import _compared, check_buckets, check_scores_fit, score_bytes
from ortkit.exporters.providers.coreml_partition import partition_faults
from ortkit.runtime.bundle.bundle import GRAPH
from ortkit.runtime.bundle.folder import DraftBundle
from ortkit.runtime.bundle.manifest import Buckets, Layout
from ortkit.runtime.encoder.buckets import pad_to
from ortkit.runtime.encoder.pooling import cosines
from ortkit.runtime.session.memory import Limit
from tests.assets import MODEL
from tests.shared import shared_folder

TEXTS = ["The pump runs dry.", "Zwei Sätze. Noch einer!", "word " * 60, "", "Knots for wet rope"]


def on_the_cpu(bundle: Bundle) -> DraftBundle:
    """The bundle as it was certified; this machine has no CoreML."""
    return DraftBundle(bundle.path, bundle.manifest)


@pytest.fixture(scope="module")
def tiny_coreml(tiny_checkpoint_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small BERT for CoreML."""
    folder = shared_folder(
        tmp_path_factory,
        "tiny-coreml",
        lambda out: export(str(tiny_checkpoint_base), provider=Provider.COREML, out=out) and None,
    )
    return Bundle.open(folder)


@pytest.mark.parametrize(
    ("max_length", "tokens"),
    [
        (48, (48,)),
        (64, (64,)),
        (256, (64, 128, 256)),
        (300, (64, 128, 256, 300)),
        (512, (64, 128, 256, 512)),
        (2048, (64, 128, 256, 512, 1024, 2048)),
    ],
)
def test_buckets_end_at_the_models_limit(max_length: int, tokens: tuple[int, ...]) -> None:
    assert buckets_for(max_length) == Buckets(tokens, (1, 8))


def test_an_embedder(tiny_coreml: Bundle, tiny_checkpoint_base: Path) -> None:
    manifest = tiny_coreml.manifest
    library = SentenceTransformer(str(tiny_checkpoint_base), device="cpu", local_files_only=True)

    assert manifest.precision is Precision.FP32
    assert manifest.provider is Provider.COREML
    assert manifest.certified_on is Provider.CPU
    assert manifest.layout is Layout.TEXTS_FIRST
    assert manifest.inputs == ("input_ids", "bias")
    assert manifest.buckets == Buckets((48,), (1, 8))
    assert not (tiny_coreml.path / "model.onnx.data").exists()
    embedder = Embedder(on_the_cpu(tiny_coreml))
    expected = library.encode(TEXTS, show_progress_bar=False)
    assert np.abs(embedder.embed_with_report(TEXTS).vectors - expected).max() <= 1e-5


def test_it_is_not_run_on_a_machine_without_coreml(tiny_coreml: Bundle) -> None:
    with pytest.raises(ProviderError, match="`coreml` is not available") as caught:
        Embedder(tiny_coreml)

    assert caught.value.exit_code == 8


def test_an_embedder_in_float16(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTKIT_BUNDLES", str(tmp_path / "bundles"))

    bundle = export(str(tiny_checkpoint), provider=Provider.COREML, precision=Precision.FP16).bundle

    assert bundle.path.name == "tiny-bert-fp16-coreml"
    assert bundle.manifest.certificate is not None
    assert bundle.manifest.certificate.figures["cosine_min"] >= 0.9999
    assert (bundle.path / GRAPH).stat().st_size < 0.6 * (tiny_checkpoint / "model.safetensors").stat().st_size
    library = SentenceTransformer(str(tiny_checkpoint), device="cpu", local_files_only=True)
    expected = library.encode(TEXTS, show_progress_bar=False)
    assert cosines(Embedder(on_the_cpu(bundle)).embed_with_report(TEXTS).vectors, expected).min() >= 0.9999


def test_a_reranker(reranker_checkpoint: Path, tmp_path: Path) -> None:
    bundle = export(str(reranker_checkpoint), provider=Provider.COREML, kind=Kind.RERANKER, out=tmp_path / "b").bundle

    assert bundle.manifest.inputs == ("input_ids", "token_type_ids", "bias")
    pairs = [("pump", text) for text in TEXTS]
    expected = CrossEncoder(str(reranker_checkpoint), device="cpu", local_files_only=True).predict(pairs)
    assert np.abs(Reranker(on_the_cpu(bundle)).score(pairs) - expected).max() <= 1e-5


def test_a_reranker_that_pools_all_tokens_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    dense = Dense(48, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
    modules = [Transformer(str(tiny_checkpoint)), Pooling(48, pooling_mode="mean"), dense]
    CrossEncoder(modules=modules, device="cpu").save_pretrained(str(tmp_path / "pooled"))

    message = "`pooled` is not exported for `coreml`: it is made of modules that pool all tokens"
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        export(str(tmp_path / "pooled"), kind=Kind.RERANKER, provider=Provider.COREML, out=tmp_path / "bundle")

    assert caught.value.exit_code == 10
    assert caught.value.hint == "use `--provider cpu`"


def test_a_graph_that_does_not_mask_padding_is_refused(tiny_coreml: Bundle, tmp_path: Path) -> None:
    model = onnx.load(tiny_coreml.path / GRAPH)
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    for node in model.graph.node:
        node.input[:] = ["unmasked" if name == "bias" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Mul", ["bias", "nothing"], ["unmasked"]))
    for path in tiny_coreml.path.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    onnx.save(model, tmp_path / GRAPH)
    embedder = Embedder(DraftBundle(tmp_path, tiny_coreml.manifest))
    rows = [{"input_ids": text.ids[np.newaxis]} for text in embedder.tokenizer.tokenize(TEXTS)]

    message = re.escape("padding to 48 tokens changes what the graph of `tiny-bert` for CoreML gives, by ")
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        check_buckets(embedder, rows)

    assert caught.value.exit_code == 10
    check_buckets(Embedder(on_the_cpu(tiny_coreml)), rows)


def test_the_longest_buckets_are_compared_with_one_text() -> None:
    compared = _compared(Buckets(tokens=(64, 4096, 8192), texts=(1, 8)))

    assert compared == [(1, 64), (8, 64), (1, 4096), (1, 8192)]


def test_a_bucket_that_cannot_be_compared_here(
    tiny_coreml: Bundle, tiny_checkpoint_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention takes the square of the tokens, for each head."""
    heads = json.loads((tiny_checkpoint_base / "config.json").read_text())["num_attention_heads"]
    assert score_bytes(tiny_coreml.path / GRAPH, 48) == heads * 48 * 48 * 4
    monkeypatch.setattr(
        "ortkit.exporters.providers.coreml_certify.smallest_limit", lambda: Limit(20 << 20, "the memory limit")
    )
    check_scores_fit(6 << 20, "m", 8192)

    with pytest.raises(OutOfMemoryError) as caught:
        check_scores_fit(10 << 20, "m", 8192)
    assert caught.value.message == (
        "a text in the bucket of 8192 tokens, in which `m` is compared too, takes at least 30 MiB, and 20 MiB are left "
        "by the memory limit"
    )
    assert caught.value.hint == "export it on a machine with more memory, or use `--provider cpu`"


def test_bundles_for_coreml_require_the_version_whose_rules_were_checked(tiny_coreml: Bundle) -> None:
    assert tiny_coreml.manifest.requires == {"onnxruntime": "1.31"}


@pytest.mark.slow
def test_the_real_minilm(checkpoint: Path, held_out: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every bucket, padded, gives what the graph gives without padding, and that is what the library gives."""
    folder = shared_folder(
        tmp_path_factory,
        f"{MODEL}-coreml",
        lambda out: export(MODEL, provider=Provider.COREML, out=out, origin=Origin.WHEEL, offline=True) and None,
    )
    bundle = Bundle.open(folder)
    buckets = bundle.manifest.buckets
    assert buckets == Buckets((64, 128, 256), (1, 8))
    assert partition_faults(folder / GRAPH, texts=8, tokens=256) == []
    embedder = Embedder(on_the_cpu(bundle))
    texts = [*held_out[:24], *(" ".join(held_out[start : start + 8]) for start in range(24, 56, 8))]
    library = SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True)
    expected = library.encode(texts, batch_size=1, show_progress_bar=False)
    assert np.abs(embedder.embed_with_report(texts).vectors - expected).max() <= 1e-5
    rows = [{"input_ids": text.ids[np.newaxis]} for text in embedder.tokenizer.tokenize(texts)]

    def run(bucket: tuple[int, int], batch: list[dict[str, NDArray[np.int64]]]) -> list[NDArray[np.float32]]:
        padded = pad_to(bucket, batch)
        found = embedder.session.run(padded.feeds, (*bucket, 384))
        return [text[:length] for text, length in zip(found, padded.lengths, strict=False)]

    for tokens in buckets.tokens:
        fitting = [row for row in rows if row["input_ids"].shape[1] <= tokens]
        assert fitting
        for count in buckets.texts:
            for start in range(0, len(fitting), count):
                batch = fitting[start : start + count]
                for row, found in zip(batch, run((count, tokens), batch), strict=True):
                    [alone] = run((1, row["input_ids"].shape[1]), [row])
                    assert np.abs(found - alone).max() <= 1e-5 * max(1, np.abs(alone).max())
