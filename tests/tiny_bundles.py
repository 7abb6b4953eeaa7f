"""Bundles of an embedder and a reranker of a few kilobytes, made without exporters, whose graphs may be replaced."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ortkit import Bundle, Decoder, Kind, Pooling, Precision, Provider, Scores
from ortkit.runtime.bundle.bundle import GRAPH, TOKENIZER
from ortkit.runtime.bundle.folder import MANIFEST
from ortkit.runtime.bundle.golden_vector import pack_vector
from ortkit.runtime.bundle.manifest import (
    SCHEMA,
    Activation,
    Certificate,
    DenseFacts,
    EmbedderFacts,
    Golden,
    GoldenAnswer,
    Manifest,
    PairFacts,
    RerankerFacts,
    Source,
    TokenizerFacts,
)
from ortkit.runtime.bundle.writer import BundleWriter
from ortkit.runtime.file_hash import sha256_of
from tests.decoders import write_decoder, write_tokenizer

WIDTH, DENSE = 8, 6
TEXTS = ("The quick brown fox", "jumps over the lazy dog", "and the dog sleeps")
BEFORE, BETWEEN, AFTER = (0,), (1,), (1,)


def graph(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, np.ndarray], inputs: Sequence[str], output: Any
) -> onnx.ModelProto:
    """A graph of int64 inputs (texts, tokens) and one output."""
    made = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "tokens"]) for name in inputs],
        [output],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def weights(vocabulary: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    return {
        "embedding": random.normal(0, 1, (vocabulary, WIDTH)).astype(np.float32),
        "types": random.normal(0, 1, (2, WIDTH)).astype(np.float32),
        "head": random.normal(0, 1, (WIDTH, 1)).astype(np.float32),
    }


def embedder_graph(vocabulary: int) -> onnx.ModelProto:
    """The vectors of tokens (tokens, texts, width)."""
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["embedded"]),
        helper.make_node("Transpose", ["embedded"], ["vectors"], perm=[1, 0, 2]),
    ]
    output = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["tokens", "texts", WIDTH])
    return graph(nodes, {"embedding": weights(vocabulary)["embedding"]}, ["input_ids"], output)


def reranker_graph(vocabulary: int) -> onnx.ModelProto:
    """Logits (pairs, 1) of the mean of tokens."""
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["embedded"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["typed"]),
        helper.make_node("Mul", ["embedded", "typed"], ["product"]),
        helper.make_node("ReduceMean", ["product", "tokens_axis"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "head"], ["logits"]),
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["texts", 1])
    constants = weights(vocabulary) | {"tokens_axis": np.array([1])}
    return graph(nodes, constants, ["input_ids", "token_type_ids"], output)


def manifest_of(kind: Kind, inputs: tuple[str, ...], **facts: Any) -> Manifest:
    return Manifest(
        schema=SCHEMA,
        kind=kind,
        name=f"tiny-{kind.value}",
        precision=Precision.FP32,
        provider=Provider.CPU,
        architecture="bert",
        inputs=inputs,
        source=Source("folder", "tiny", "tiny", None, "apache-2.0", None, None, {}),
        files={},
        tokenizer=TokenizerFacts(64, lower_case=False, special_tokens={"[CLS]": 0}),
        made_with={},
        **facts,
    )


def write_embedder(target: Path, *, dense: bool = False) -> Bundle:
    """An embedder with a certificate by numpy: the mean of token embeddings, through a dense layer if that is asked."""
    with BundleWriter(target) as writer:
        tokenizer = write_tokenizer(writer.folder / TOKENIZER)
        vocabulary = tokenizer.get_vocab_size()
        onnx.save(embedder_graph(vocabulary), writer.folder / GRAPH)
        embedding = weights(vocabulary)["embedding"]
        layer = np.random.default_rng(8).normal(0, 1, (WIDTH, DENSE)).astype(np.float32)
        if dense:
            np.savez(writer.folder / "dense-0.npz", weight=layer, bias=np.zeros(DENSE, np.float32))
        golden = []
        for text in TEXTS:
            vector = embedding[tokenizer.encode(text).ids].mean(axis=0)
            vector = np.tanh(vector @ layer) if dense else vector
            packed = pack_vector(vector / np.linalg.norm(vector))
            golden.append(Golden(text, packed, packed))
        layers = (DenseFacts("dense-0.npz", Activation.TANH),) if dense else ()
        facts = EmbedderFacts(DENSE if dense else WIDTH, Pooling.MEAN, True, {"query": "query: "}, None, (4,), layers)
        return writer.commit(
            manifest_of(
                Kind.EMBEDDER,
                ("input_ids",),
                embedder=facts,
                certificate=Certificate("numpy", "none", "", 3, {"cosine_min": 1.0}, tuple(golden)),
            )
        )


def write_reranker(target: Path) -> Bundle:
    """A reranker with a certificate by numpy."""
    with BundleWriter(target) as writer:
        tokenizer = write_tokenizer(writer.folder / TOKENIZER)
        vocabulary = tokenizer.get_vocab_size()
        onnx.save(reranker_graph(vocabulary), writer.folder / GRAPH)
        made = weights(vocabulary)
        golden = []
        for text in TEXTS:
            first = [*BEFORE, *tokenizer.encode("fox").ids, *BETWEEN]
            second = [*tokenizer.encode(text).ids, *AFTER]
            typed = made["types"][[0] * len(first) + [1] * len(second)]
            packed = pack_vector((made["embedding"][first + second] * typed).mean(axis=0) @ made["head"])
            golden.append(Golden(text, packed, packed, "fox"))
        pair = PairFacts(BEFORE, BETWEEN, AFTER, 1)
        return writer.commit(
            manifest_of(
                Kind.RERANKER,
                ("input_ids", "token_type_ids"),
                embedder=None,
                reranker=RerankerFacts(("LABEL_0",), Scores.SIGMOID, pair),
                certificate=Certificate("numpy", "none", "", 3, {"tau_mean": 1.0}, tuple(golden)),
            )
        )


def write_certified_decoder(target: Path) -> Bundle:
    """The decoder of tests.decoders with a certificate by numpy."""
    bundle, model = write_decoder(target)
    ids = Decoder(bundle, threads=1).encode(TEXTS[0])
    answer = tuple(model.greedy(ids, 6))
    golden = GoldenAnswer(TEXTS[0], tuple(ids), answer, answer)
    certificate = Certificate("numpy", "none", "", 1, {"kl_mean": 0.0}, (), (golden,), (0.0, 0.0))
    return with_manifest(bundle.path, dataclasses.replace(bundle.manifest, certificate=certificate))


def with_manifest(folder: Path, manifest: Manifest) -> Bundle:
    from ortkit.runtime.bundle.manifest_json import manifest_to_json

    (folder / MANIFEST).write_text(manifest_to_json(manifest), encoding="utf-8")
    return Bundle.open(folder)


def rehash(folder: Path, change: Callable[[dict], None] = lambda _: None) -> None:
    """Change a manifest by a function on its JSON, and have it list the files as they are now."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST:
            manifest["files"][path.name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def replace_graph(folder: Path, made: onnx.ModelProto) -> Path:
    """Put another graph into a bundle."""
    onnx.save(made, folder / GRAPH)
    rehash(folder)
    return folder
