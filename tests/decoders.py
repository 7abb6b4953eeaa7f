"""A small decoder with seeded weights: its graph as the exporters make it, its bundle, and the same model in numpy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import tokenizers
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from ortkit import Bundle, Decoder, Kind, Manifest, Precision, Provider
from ortkit.runtime.bundle.bundle import GRAPH, GRAPH_DATA, TOKENIZER
from ortkit.runtime.bundle.graph_io import decoder_inputs, decoder_outputs
from ortkit.runtime.bundle.manifest import (
    SCHEMA,
    CacheType,
    ChatFacts,
    DecoderFacts,
    GenerationDefaults,
    Source,
    TokenizerFacts,
)
from ortkit.runtime.bundle.writer import BundleWriter

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps. Größe, naïve, 東京, 🙂. " * 3
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LAYERS, HEADS, KV_HEADS, HEAD_SIZE, HIDDEN, CONTEXT = 2, 4, 2, 16, 64, 1024
BASE, EPSILON = 10_000.0, 1e-5
INT8_CACHE = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
LARGEST_CACHED = 4.0
"""Larger numbers are clipped by an int8 cache; the decoder here has none."""


def write_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """A byte-level BPE as SmolLM2's, with the tokens of its chat template."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=320,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[AddedToken(text, special=True) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")],
        ),
    )
    tokenizer.save(str(path))
    return tokenizer


@dataclass(frozen=True)
class TinyDecoder:
    """The weights of a decoder of two layers, and what they compute."""

    weights: dict[str, np.ndarray]
    window: int | None = None

    @classmethod
    def seeded(cls, vocabulary: int, *, window: int | None = None) -> TinyDecoder:
        random = np.random.default_rng(7)

        def matrix(*shape: int, scale: float = 1.0) -> np.ndarray:
            return (random.normal(0, scale / shape[0] ** 0.5, shape)).astype(np.float32)

        weights = {"embedding": random.normal(0, 1, (vocabulary, HIDDEN)).astype(np.float32)}
        for layer in range(LAYERS):
            weights |= {
                f"{layer}.norm": 1 + matrix(HIDDEN),
                f"{layer}.query": matrix(HIDDEN, HEADS * HEAD_SIZE, scale=2),
                f"{layer}.key": matrix(HIDDEN, KV_HEADS * HEAD_SIZE, scale=2),
                f"{layer}.value": matrix(HIDDEN, KV_HEADS * HEAD_SIZE),
                f"{layer}.out": matrix(HEADS * HEAD_SIZE, HIDDEN, scale=2),
                f"{layer}.norm2": 1 + matrix(HIDDEN),
                f"{layer}.up": matrix(HIDDEN, 2 * HIDDEN),
                f"{layer}.down": matrix(2 * HIDDEN, HIDDEN),
            }
        return cls(weights | {"norm": 1 + matrix(HIDDEN), "head": matrix(HIDDEN, vocabulary, scale=3)}, window)

    @property
    def vocabulary(self) -> int:
        return len(self.weights["embedding"])

    def logits(self, ids: list[int]) -> np.ndarray:
        """(tokens, vocabulary) in float64, the whole sequence at once and without a cache."""
        weights = {name: value.astype(np.float64) for name, value in self.weights.items()}
        count = len(ids)
        angles = np.arange(count)[:, None] * BASE ** (-np.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
        distance = np.arange(count)[:, None] - np.arange(count)
        hidden_from = (distance < 0) | (distance >= (self.window or count + 1))

        def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * weight

        def heads(x: np.ndarray, number: int) -> np.ndarray:
            return x.reshape(count, number, HEAD_SIZE).transpose(1, 0, 2)

        def rotated(x: np.ndarray) -> np.ndarray:
            first, second = np.split(x, 2, axis=-1)
            cos, sin = np.cos(angles), np.sin(angles)
            return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

        x = weights["embedding"][ids]
        for layer in range(LAYERS):
            normed = norm(x, weights[f"{layer}.norm"])
            query = rotated(heads(normed @ weights[f"{layer}.query"], HEADS))
            key = rotated(heads(normed @ weights[f"{layer}.key"], KV_HEADS)).repeat(HEADS // KV_HEADS, axis=0)
            value = heads(normed @ weights[f"{layer}.value"], KV_HEADS).repeat(HEADS // KV_HEADS, axis=0)
            scores = query @ key.transpose(0, 2, 1) / HEAD_SIZE**0.5
            scores[:, hidden_from] = -np.inf
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            attended = (shares / shares.sum(-1, keepdims=True)) @ value
            x = x + attended.transpose(1, 0, 2).reshape(count, -1) @ weights[f"{layer}.out"]
            up = norm(x, weights[f"{layer}.norm2"]) @ weights[f"{layer}.up"]
            x = x + np.maximum(up, 0) @ weights[f"{layer}.down"]
        return np.asarray(norm(x, weights["norm"]) @ weights["head"])

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The next `count` ids."""
        found = list(ids)
        for _ in range(count):
            found.append(int(self.logits(found)[-1].argmax()))
        return found[len(ids) :]

    def graph(self, cache: CacheType = CacheType.FLOAT32, batch: int | str = "batch") -> onnx.ModelProto:
        """`cache` is the type of its KV cache; if it is float16, the attention alone is. `batch` is the first axis."""
        half, quantized = cache is CacheType.FLOAT16, cache is CacheType.INT8
        nodes: list[onnx.NodeProto] = []

        def node(operator: str, inputs: list[str], output: str, **attributes: object) -> str:
            nodes.append(helper.make_node(operator, inputs, [output], **attributes))
            return output

        def norm(x: str, weight: str, name: str) -> str:
            square = node("Mul", [x, x], f"{name}.square")
            mean = node("ReduceMean", [square, "last"], f"{name}.mean", keepdims=1)
            root = node("Sqrt", [node("Add", [mean, "epsilon"], f"{name}.sum")], f"{name}.root")
            return node("Mul", [node("Div", [x, root], f"{name}.unit"), weight], f"{name}.normed")

        x = node("Gather", ["embedding", "input_ids"], "embedded")
        for layer in range(LAYERS):
            normed = norm(x, f"{layer}.norm", f"{layer}.n")
            packed = [
                node("MatMul", [normed, f"{layer}.{name}"], f"{layer}.{name}s") for name in ("query", "key", "value")
            ]
            if half:
                packed = [node("Cast", [name], f"{name}.half", to=TensorProto.FLOAT16) for name in packed]
            kept = [f"past.{layer}.key", f"past.{layer}.value", "last_positions", "total_length", "cos", "sin"]
            if quantized:
                kept += ["", "", "no_sink", "scales", "scales"]
            attended = helper.make_node(
                "GroupQueryAttention",
                [*packed, *kept],
                [f"{layer}.attended{'.half' if half else ''}", f"present.{layer}.key", f"present.{layer}.value"],
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=KV_HEADS,
                do_rotary=1,
                **({} if self.window is None else {"local_window_size": self.window}),
                **(INT8_CACHE if quantized else {}),
            )
            nodes.append(attended)
            if half:
                node("Cast", [f"{layer}.attended.half"], f"{layer}.attended", to=TensorProto.FLOAT)
            x = node("Add", [x, node("MatMul", [f"{layer}.attended", f"{layer}.out"], f"{layer}.o")], f"{layer}.x")
            up = node("MatMul", [norm(x, f"{layer}.norm2", f"{layer}.m"), f"{layer}.up"], f"{layer}.ups")
            down = node("MatMul", [node("Relu", [up], f"{layer}.relu"), f"{layer}.down"], f"{layer}.downs")
            x = node("Add", [x, down], f"{layer}.y")
        wanted = node("Gather", [x, "logit_positions"], "wanted", axis=1)
        node("MatMul", [norm(wanted, "norm", "f"), "head"], "logits")
        angles = np.arange(CONTEXT)[:, None] * BASE ** (-np.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
        constants = self.weights | {
            "last": np.array([-1]),
            "epsilon": np.array(EPSILON, np.float32),
            "cos": np.cos(angles).astype(np.float16 if half else np.float32),
            "sin": np.sin(angles).astype(np.float16 if half else np.float32),
        }
        if quantized:
            constants["no_sink"] = np.full(HEADS, -1e30, np.float32)
            constants["scales"] = np.full((KV_HEADS, 1, HEAD_SIZE), LARGEST_CACHED / 127, np.float32)
        floats = TensorProto.FLOAT
        cached = {CacheType.FLOAT16: TensorProto.FLOAT16, CacheType.INT8: TensorProto.INT8}.get(cache, floats)
        shape = [batch, KV_HEADS, "capacity", HEAD_SIZE]
        kinds = {
            "input_ids": (TensorProto.INT64, [batch, "tokens"]),
            "last_positions": (TensorProto.INT32, [batch]),
            "total_length": (TensorProto.INT32, []),
            "logit_positions": (TensorProto.INT64, ["positions"]),
            "logits": (floats, [batch, "positions", self.vocabulary]),
        }

        def values(names: tuple[str, ...]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(name, *kinds.get(name, (cached, shape))) for name in names]

        graph = helper.make_graph(
            nodes,
            "tiny",
            values(decoder_inputs(LAYERS)),
            values(decoder_outputs(LAYERS)),
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def facts_of(decoder: TinyDecoder, **changes: object) -> DecoderFacts:
    facts = DecoderFacts(
        context_length=CONTEXT,
        sliding_window=decoder.window,
        layers=LAYERS,
        kv_heads=KV_HEADS,
        head_size=HEAD_SIZE,
        vocabulary=decoder.vocabulary,
        bos_id=0,
        add_bos=False,
        eos_ids=(2,),
        chat=ChatFacts(CHATML, {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}),
        generation=GenerationDefaults(),
    )
    return dataclasses.replace(facts, **changes)


def write_decoder(
    target: Path,
    *,
    window: int | None = None,
    cache: CacheType = CacheType.FLOAT32,
    weights_beside: bool = False,
    batch: int | str = "batch",
    **facts: object,
) -> tuple[Bundle, TinyDecoder]:
    """The bundle of a small decoder, and the decoder; `facts` replace what its manifest says."""
    with BundleWriter(target) as writer:
        vocabulary = write_tokenizer(writer.folder / TOKENIZER).get_vocab_size()
        decoder = TinyDecoder.seeded(vocabulary, window=window)
        onnx.save(
            decoder.graph(cache, batch),
            writer.folder / GRAPH,
            save_as_external_data=weights_beside,
            location=GRAPH_DATA,
        )
        manifest = Manifest(
            schema=SCHEMA,
            kind=Kind.DECODER,
            name="tiny-decoder",
            precision=Precision.FP32,
            provider=Provider.CPU,
            architecture="llama",
            inputs=decoder_inputs(LAYERS),
            source=Source("folder", "tiny", "tiny", None, None, None, None, {}),
            files={},
            tokenizer=TokenizerFacts(CONTEXT, lower_case=False, special_tokens={}),
            embedder=None,
            certificate=None,
            made_with={},
            decoder=facts_of(decoder, **{"cache_type": cache} | facts),
        )
        return writer.commit(manifest), decoder


def with_facts(decoder: Decoder, **facts: object) -> Decoder:
    """The same decoder under another manifest."""
    manifest = decoder.bundle.manifest
    changed = dataclasses.replace(manifest, decoder=dataclasses.replace(decoder.facts, **facts))
    return Decoder(Bundle(decoder.bundle.path, changed), threads=1)
