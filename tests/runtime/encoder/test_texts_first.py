"""Graphs for other providers than the CPU: texts first, with the input `positions`; here they run on the CPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import tokenizers
from onnx import TensorProto, helper, numpy_helper

from ortkit import Bundle, BundleError, Embedder, Provider, Reranker
from ortkit.runtime.bundle.bundle import GRAPH, TOKENIZER
from ortkit.runtime.bundle.folder import DraftBundle
from ortkit.runtime.bundle.manifest import Layout
from ortkit.runtime.encoder.base import GPU_BATCH_TOKENS, batching_for
from ortkit.runtime.session.cpu import BATCH_TOKENS
from tests.tiny_bundles import WIDTH, weights, write_embedder, write_reranker

TEXTS = ["the dog sleeps", "the quick brown fox", "a fox", "the dog jumps"]


def with_positions(path: Path) -> np.ndarray:
    """Let the graph of a bundle add a vector for the position of each token; returns the table (tokens, width)."""
    model = onnx.load(path)
    table = np.random.default_rng(9).normal(size=(64, WIDTH)).astype(np.float32)
    first = next(node for node in model.graph.node if node.op_type == "Gather")
    embedded = first.output[0]
    first.output[0] = "embedded_alone"
    after = list(model.graph.node).index(first) + 1
    added = [
        helper.make_node("Gather", ["places", "positions"], ["placed"]),
        helper.make_node("Add", ["embedded_alone", "placed"], [embedded]),
    ]
    for place, node in enumerate(added):
        model.graph.node.insert(after + place, node)
    model.graph.initializer.append(numpy_helper.from_array(table, "places"))
    model.graph.input.append(helper.make_tensor_value_info("positions", TensorProto.INT64, ["tokens"]))
    onnx.save(model, path)
    return table


def tokenizer_of(bundle: Bundle) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(bundle.path / TOKENIZER))


def draft_of(bundle: Bundle, **changes: object) -> DraftBundle:
    """The bundle as an export for CUDA has it before it is complete, which runs on the CPU."""
    inputs = (*bundle.manifest.inputs, "positions")
    manifest = dataclasses.replace(
        bundle.manifest, provider=Provider.CUDA, layout=Layout.TEXTS_FIRST, inputs=inputs, **changes
    )
    return DraftBundle(bundle.path, manifest)


def texts_first(path: Path) -> None:
    """Let the graph of an embedder give (texts, tokens, width)."""
    model = onnx.load(path)
    last = model.graph.node[-1]
    assert last.op_type == "Transpose"
    last.op_type = "Identity"
    del last.attribute[:]
    dimensions = model.graph.output[0].type.tensor_type.shape.dim
    dimensions[0].dim_param, dimensions[1].dim_param = "texts", "tokens"
    onnx.save(model, path)


def test_an_embedder_feeds_positions_and_pools_what_comes_texts_first(tmp_path: Path) -> None:
    bundle = write_embedder(tmp_path / "bundle")
    texts_first(bundle.path / GRAPH)
    places = with_positions(bundle.path / GRAPH)
    made = tokenizer_of(bundle)
    table = weights(made.get_vocab_size())["embedding"]

    found = Embedder(draft_of(bundle)).embed(TEXTS)

    for text, vector in zip(TEXTS, found, strict=True):
        ids = made.encode(text).ids
        expected = (table[ids] + places[: len(ids)]).mean(axis=0)
        assert np.allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)


def test_a_reranker_feeds_positions(tmp_path: Path) -> None:
    bundle = write_reranker(tmp_path / "bundle")
    places = with_positions(bundle.path / GRAPH)
    made = weights(tokenizer_of(bundle).get_vocab_size())
    reranker = Reranker(draft_of(bundle))

    found = reranker.score_with_report([("fox", text) for text in TEXTS]).logits

    for text, logits in zip(TEXTS, found, strict=True):
        [pair] = reranker.tokenizer.tokenize([("fox", text)])
        types = made["types"][(np.arange(len(pair.ids)) >= pair.document_start).astype(int)]
        expected = ((made["embedding"][pair.ids] + places[: len(pair.ids)]) * types).mean(axis=0) @ made["head"]
        assert np.allclose(logits, expected, atol=1e-6)


def test_a_layout_that_is_not_that_of_the_graph(tmp_path: Path) -> None:
    bundle = write_embedder(tmp_path / "bundle")
    with_positions(bundle.path / GRAPH)

    message = r"gives token embeddings of the shape \['tokens', 'texts', 8\], and the manifest says `texts_first`"
    with pytest.raises(BundleError, match=message):
        Embedder(draft_of(bundle))


def test_positions_come_last(tmp_path: Path) -> None:
    draft = draft_of(write_embedder(tmp_path / "bundle"))
    swapped = dataclasses.replace(
        draft, manifest=dataclasses.replace(draft.manifest, inputs=("positions", "input_ids"))
    )

    message = r"expects the inputs \['positions', 'input_ids'\]; supported: `input_ids`, `positions`"
    with pytest.raises(BundleError, match=message):
        Embedder(swapped)


def test_a_device_gets_one_large_batch_and_each_cpu_core_a_small_one() -> None:
    cores = SimpleNamespace(usable=3, reason="because")

    assert (batching_for(Provider.CPU, cores).workers, batching_for(Provider.CPU, cores).tokens) == (3, BATCH_TOKENS)
    for provider in (Provider.CUDA, Provider.COREML):
        batching = batching_for(provider, cores)
        assert (batching.workers, batching.tokens) == (1, GPU_BATCH_TOKENS)
