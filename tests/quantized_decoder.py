"""A decoder with seeded 4-bit weights, whose graph has the operators of an exported one, and its bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ortkit import Bundle, Kind, Manifest, Precision, Provider
from ortkit.runtime.bundle.bundle import GRAPH, PREFILL_GRAPH, TOKENIZER
from ortkit.runtime.bundle.graph_io import decoder_inputs, decoder_outputs
from ortkit.runtime.bundle.manifest import (
    SCHEMA,
    DecoderFacts,
    GenerationDefaults,
    PrefillGraph,
    Source,
    TokenizerFacts,
    WeightBlocks,
)
from ortkit.runtime.bundle.writer import BundleWriter
from tests.decoders import write_tokenizer

LAYERS, WIDTH, CONTEXT = 2, 512, 1024
"""Wide enough for groups of 128, and for several of them in a row."""


def write_quantized(
    target: Path,
    *,
    block: int = 64,
    bits: int = 4,
    head_size: int = 64,
    window: int | None = None,
    prefill: bool = False,
) -> Bundle:
    """The bundle; `block` is the group size of its weights, and `prefill` adds an 8-bit graph for prompts."""
    with BundleWriter(target) as writer:
        vocabulary = write_tokenizer(writer.folder / TOKENIZER).get_vocab_size()
        facts = DecoderFacts(
            context_length=CONTEXT,
            sliding_window=window,
            layers=LAYERS,
            kv_heads=max(1, WIDTH // head_size // 4),
            head_size=head_size,
            vocabulary=vocabulary,
            bos_id=0,
            add_bos=False,
            eos_ids=(),
            chat=None,
            generation=GenerationDefaults(),
        )
        onnx.save(_Graph(facts, block, bits).model(), writer.folder / GRAPH)
        if prefill:
            onnx.save(_Graph(facts, block, bits, int8=True).model(), writer.folder / PREFILL_GRAPH)
        manifest = Manifest(
            schema=SCHEMA,
            kind=Kind.DECODER,
            name="quantized-decoder",
            precision=Precision.INT4,
            provider=Provider.CPU,
            architecture="llama",
            inputs=decoder_inputs(LAYERS),
            source=Source("folder", "tiny", "tiny", None, None, None, None, {}),
            files={},
            tokenizer=TokenizerFacts(CONTEXT, lower_case=False, special_tokens={}),
            embedder=None,
            certificate=None,
            made_with={},
            decoder=facts,
            blocks=WeightBlocks(2 * LAYERS + 1, 0, bits, bits, block, block, symmetric=False, rounding="nearest"),
            prefill=PrefillGraph(2 * LAYERS) if prefill else None,
        )
        return writer.commit(manifest)


_CONTRIBUTED = {"GroupQueryAttention", "MatMulNBits", "MatMulIntegerToFloat"}


class _Graph:
    """The graph, part by part."""

    def __init__(self, facts: DecoderFacts, block: int, bits: int, *, int8: bool = False) -> None:
        self.facts, self.block, self.bits, self.int8 = facts, block, bits, int8
        self.random = np.random.default_rng(5)
        self.constants: dict[str, np.ndarray] = {}
        self.nodes: list[onnx.NodeProto] = []

    def node(self, operator: str, inputs: list[str], outputs: list[str], **attributes: object) -> str:
        domain = "com.microsoft" if operator in _CONTRIBUTED else ""
        self.nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def matmul(self, name: str, x: str, width: int) -> str:
        """A linear layer from WIDTH to `width`."""
        groups, levels = WIDTH // self.block, 1 << self.bits
        self.constants |= {
            f"{name}.levels": self.random.integers(
                0, 256, (width, groups, self.block * self.bits // 8), dtype=np.uint8
            ),
            f"{name}.scales": (self.random.random(width * groups).astype(np.float32) + 0.5) / (4 * levels),
        }
        if self.int8 and name != "logits":
            return self.int8_matmul(name, x)
        inputs = [x, f"{name}.levels", f"{name}.scales"]
        return self.node(
            "MatMulNBits",
            inputs,
            [name],
            K=WIDTH,
            N=width,
            bits=self.bits,
            block_size=self.block,
            accuracy_level=4,
        )

    def int8_matmul(self, name: str, x: str) -> str:
        """The same layer with 4-bit weights rounded to int8, a scale per output and per token."""
        packed, scales = self.constants.pop(f"{name}.levels"), self.constants.pop(f"{name}.scales")
        levels = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1).astype(np.float32)
        weight = (levels - 8) * np.repeat(scales, self.block).reshape(levels.shape)
        unit = np.abs(weight).max(axis=1) / 127
        self.constants |= {
            f"{name}.int8": np.ascontiguousarray(np.rint(weight / unit[:, None]).astype(np.int8).T),
            f"{name}.units": unit.astype(np.float32),
            "last": np.array([-1], np.int64),
            "share": np.array(1 / 127, np.float32),
            "middle": np.array(128, np.uint8),
            "unit": np.array(1, np.float32),
        }
        peak = self.node("ReduceMax", [self.node("Abs", [x], [f"{name}.abs"]), "last"], [f"{name}.peak"], keepdims=1)
        scale = self.node("Mul", [peak, "share"], [f"{name}.scale"])
        by_token = self.node("Reshape", [scale, "last"], [f"{name}.tokens"])
        count = self.node("Shape", [by_token], [f"{name}.count"])
        middles = self.node("Expand", ["middle", count], [f"{name}.middles"])
        rows = self.node("QuantizeLinear", [x, by_token, middles], [f"{name}.rows"], axis=1)
        inputs = [rows, f"{name}.int8", "unit", f"{name}.units", "middle"]
        return self.node("Mul", [self.node("MatMulIntegerToFloat", inputs, [f"{name}.sums"]), scale], [name])

    def norm(self, x: str, name: str) -> str:
        return self.node("SimplifiedLayerNormalization", [x, "one"], [name], axis=-1, epsilon=1e-5)

    def model(self) -> onnx.ModelProto:
        facts = self.facts
        heads = WIDTH // facts.head_size
        angles = np.arange(CONTEXT)[:, None] / 10_000 ** (np.arange(facts.head_size // 2) / (facts.head_size // 2))
        self.constants |= {
            "embedding": self.random.normal(0, 1, (facts.vocabulary, WIDTH)).astype(np.float32),
            "one": np.ones(WIDTH, np.float32),
            "cos": np.cos(angles).astype(np.float32),
            "sin": np.sin(angles).astype(np.float32),
        }
        x = self.node("Gather", ["embedding", "input_ids"], ["embedded"])
        for layer in range(LAYERS):
            packed = self.matmul(
                f"{layer}.qkv", self.norm(x, f"{layer}.n"), (heads + 2 * facts.kv_heads) * facts.head_size
            )
            kept = [f"past.{layer}.key", f"past.{layer}.value", "last_positions", "total_length", "cos", "sin"]
            attended = self.node(
                "GroupQueryAttention",
                [packed, "", "", *kept],
                [f"{layer}.attended", f"present.{layer}.key", f"present.{layer}.value"],
                num_heads=heads,
                kv_num_heads=facts.kv_heads,
                do_rotary=1,
                local_window_size=facts.sliding_window or -1,
            )
            x = self.node("Add", [x, self.matmul(f"{layer}.o", attended, WIDTH)], [f"{layer}.x"])
        wanted = self.node("Gather", [x, "logit_positions"], ["wanted"], axis=1)
        self.matmul("logits", self.norm(wanted, "normed"), facts.vocabulary)
        kinds = {
            "input_ids": (TensorProto.INT64, ["batch", "tokens"]),
            "last_positions": (TensorProto.INT32, ["batch"]),
            "total_length": (TensorProto.INT32, []),
            "logit_positions": (TensorProto.INT64, ["positions"]),
            "logits": (TensorProto.FLOAT, ["batch", "positions", facts.vocabulary]),
        }
        cached = (TensorProto.FLOAT, ["batch", facts.kv_heads, "capacity", facts.head_size])

        def values(names: tuple[str, ...]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(name, *kinds.get(name, cached)) for name in names]

        graph = helper.make_graph(
            self.nodes,
            "quantized",
            values(decoder_inputs(LAYERS)),
            values(decoder_outputs(LAYERS)),
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)
