"""An LLM with layers of Mistral-7B's shape and seeded 4-bit weights, as a bundle.

`python -m benchmarks.wide_decoder FOLDER --layers 8` writes about a gigabyte, with no more than a matrix in memory.
Its text means nothing; memory and speed are those of trained weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import WordLevel

from ortkit import Bundle, Kind, Precision, Provider
from ortkit.exporters.decoder.recipe_search import COARSE
from ortkit.runtime.bundle.bundle import GRAPH, GRAPH_DATA, TOKENIZER
from ortkit.runtime.bundle.graph_io import decoder_inputs, decoder_outputs
from ortkit.runtime.bundle.manifest import (
    SCHEMA,
    DecoderFacts,
    GenerationDefaults,
    Manifest,
    Source,
    TokenizerFacts,
    WeightBlocks,
)
from ortkit.runtime.bundle.writer import BundleWriter

WIDTH, HEADS, KV_HEADS, HEAD_SIZE, INNER, VOCABULARY = 4096, 32, 8, 128, 14336, 32000
CONTEXT, WINDOW = 32768, 4096
ALIGNMENT = 4096
"""Alignment in the data file, so that it can be mapped."""
SEED = 7
ORT_DOMAIN = "com.microsoft"
SHAPES: dict[str, tuple[int, list[str | int]]] = {
    "input_ids": (TensorProto.INT64, [1, "tokens"]),
    "last_positions": (TensorProto.INT32, [1]),
    "total_length": (TensorProto.INT32, []),
    "logit_positions": (TensorProto.INT64, ["positions"]),
    "logits": (TensorProto.FLOAT, [1, "positions", VOCABULARY]),
}
CACHE_SHAPE: tuple[int, list[str | int]] = (TensorProto.FLOAT, [1, KV_HEADS, "capacity", HEAD_SIZE])


class Writer:
    """Builds a graph whose large constants are written to a file at once."""

    def __init__(self, data: BinaryIO, block: int) -> None:
        self.data = data
        self.block = block
        self.rng = np.random.default_rng(SEED)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def node(self, operator: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def large(self, name: str, array: NDArray[np.generic]) -> str:
        """A constant in the data file."""
        self.data.write(bytes(-self.data.tell() % ALIGNMENT))
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, dims=array.shape, data_type=kind, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", GRAPH_DATA), ("offset", self.data.tell()), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self.data.write(array.tobytes())
        self.constants.append(tensor)
        return name

    def small(self, name: str, array: NDArray[np.generic]) -> str:
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def blocks(self, name: str, inputs: int, outputs: int, block: int, *, apart: bool = False) -> list[str]:
        """A block-quantized matrix: levels, scales that keep the magnitude of outputs, and zero points of 7 or 8.

        With `apart`, scales and zero points have one more axis and a byte each, as GatherBlockQuantized expects.
        """
        count = inputs // block
        shape = (outputs, count, 1) if apart else (outputs, count)
        levels = np.frombuffer(self.rng.bytes(outputs * inputs // 2), np.uint8).reshape(outputs, count, -1)
        scales = seeded_scales(self.rng, shape, inputs).astype(np.float32)
        packed = shape if apart else (outputs, (count + 1) // 2)
        zeros = 7 + self.rng.integers(0, 2, packed).astype(np.uint8)
        zeros = zeros if apart else zeros * np.uint8(17)
        return [
            self.large(f"{name}_levels", levels),
            self.large(f"{name}_scales", scales),
            self.large(f"{name}_zeros", zeros),
        ]

    def product(self, name: str, value: str, inputs: int, outputs: int) -> str:
        return self.product_in(self.block, name, value, inputs, outputs, f"{name}_product")

    def product_in(self, block: int, name: str, value: str, inputs: int, outputs: int, result: str) -> str:
        """A matmul with a block-quantized matrix of this size."""
        constants = self.blocks(name, inputs, outputs, block)
        sizes = {"K": inputs, "N": outputs, "bits": 4, "block_size": block, "accuracy_level": 4}
        return self.node("MatMulNBits", [value, *constants], [result], ORT_DOMAIN, **sizes)

    def add_and_norm(self, name: str, value: str, added: str) -> tuple[str, str]:
        """A residual sum, and its norm."""
        weight = self.small(f"{name}_weight", np.ones(WIDTH, np.float32))
        outputs = [f"{name}_normed", "", "", f"{name}_sum"]
        self.node("SkipSimplifiedLayerNormalization", [value, added, weight], outputs, ORT_DOMAIN, epsilon=1e-5)
        return outputs[3], outputs[0]

    def decoder(self, layers: int) -> onnx.ModelProto:
        table = self.blocks("word_vectors", WIDTH, VOCABULARY, self.block, apart=True)
        table.insert(1, "input_ids")
        sizes = {"bits": 4, "block_size": self.block, "gather_axis": 0, "quantize_axis": 2}
        picked = self.node("GatherBlockQuantized", table, ["picked"], ORT_DOMAIN, **sizes)
        value = self.node("Reshape", [picked, self.small("rows", np.array([0, 0, -1]))], ["vectors"])
        weight = self.small("first_weight", np.ones(WIDTH, np.float32))
        normed = self.node("SimplifiedLayerNormalization", [value, weight], ["first_normed"], axis=-1, epsilon=1e-5)
        angles = np.arange(CONTEXT)[:, None] * 10000.0 ** (-np.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
        tables = [self.large("cos", np.cos(angles).astype(np.float32))]
        tables.append(self.large("sin", np.sin(angles).astype(np.float32)))
        halves = self.small("halves", np.array([INNER, INNER]))
        for layer in range(layers):
            packed = self.product(f"{layer}.qkv", normed, WIDTH, (HEADS + 2 * KV_HEADS) * HEAD_SIZE)
            attended = self.node(
                "GroupQueryAttention",
                [packed, "", "", *names("past", layer), "last_positions", "total_length", *tables],
                [f"{layer}.attended", *names("present", layer)],
                ORT_DOMAIN,
                do_rotary=1,
                num_heads=HEADS,
                kv_num_heads=KV_HEADS,
                local_window_size=WINDOW,
                scale=HEAD_SIZE**-0.5,
            )
            projected = self.product(f"{layer}.out", attended, HEADS * HEAD_SIZE, WIDTH)
            value, normed = self.add_and_norm(f"{layer}.inner", value, projected)
            both = self.product(f"{layer}.gate_up", normed, WIDTH, 2 * INNER)
            gate, up = f"{layer}.gate", f"{layer}.up"
            self.node("Split", [both, halves], [gate, up], axis=-1)
            share = self.node("Sigmoid", [gate], [f"{layer}.share"])
            active = self.node("Mul", [gate, share], [f"{layer}.active"])
            product = self.node("Mul", [active, up], [f"{layer}.gated"])
            down = self.product(f"{layer}.down", product, INNER, WIDTH)
            if layer == layers - 1:
                value = self.node("Gather", [value, "logit_positions"], ["picked_value"], axis=1)
                down = self.node("Gather", [down, "logit_positions"], ["picked_down"], axis=1)
            value, normed = self.add_and_norm(f"{layer}.outer", value, down)
        self.product_in(COARSE.output_form.block_size, "output", normed, WIDTH, VOCABULARY, "logits")
        inputs, outputs = (
            [helper.make_tensor_value_info(name, *SHAPES.get(name, CACHE_SHAPE)) for name in names_of(layers)]
            for names_of in (decoder_inputs, decoder_outputs)
        )
        graph = helper.make_graph(self.nodes, "wide", inputs, outputs, self.constants)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(ORT_DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def seeded_scales(rng: np.random.Generator, shape: tuple[int, ...], inputs: int) -> NDArray[np.float64]:
    """Block scales that keep the magnitude of matmuls with so many inputs: levels have a deviation of 4.6."""
    scales: NDArray[np.float64] = rng.uniform(0.8, 1.2, shape) / (4.6 * inputs**0.5)
    return scales


def names(prefix: str, layer: int) -> list[str]:
    return [f"{prefix}.{layer}.{part}" for part in ("key", "value")]


def write_wide_decoder(target: Path, *, layers: int, block: int) -> Bundle:
    """Write the bundle."""
    with BundleWriter(target) as writer:
        with (writer.folder / GRAPH_DATA).open("wb") as data:
            graph = Writer(data, block).decoder(layers)
        (writer.folder / GRAPH).write_bytes(graph.SerializeToString())
        words = {f"word{number}": number for number in range(VOCABULARY)}
        tokenizer = Tokenizer(WordLevel(words, unk_token="word0"))
        tokenizer.decoder = ByteLevel()
        tokenizer.save(str(writer.folder / TOKENIZER))
        facts = DecoderFacts(
            context_length=CONTEXT,
            sliding_window=WINDOW,
            layers=layers,
            kv_heads=KV_HEADS,
            head_size=HEAD_SIZE,
            vocabulary=VOCABULARY,
            bos_id=None,
            add_bos=False,
            eos_ids=(),
            chat=None,
            generation=GenerationDefaults(),
        )
        manifest = Manifest(
            schema=SCHEMA,
            kind=Kind.DECODER,
            name=f"wide-decoder-{layers}",
            precision=Precision.INT4,
            provider=Provider.CPU,
            architecture="mistral",
            inputs=decoder_inputs(layers),
            source=Source("folder", "seeded", "seeded", None, None, None, None, {}),
            files={},
            tokenizer=TokenizerFacts(CONTEXT, lower_case=False, special_tokens={}),
            embedder=None,
            certificate=None,
            made_with={},
            decoder=facts,
            blocks=WeightBlocks(
                4 * layers + 1, 0, 4, 4, block, COARSE.output_form.block_size, symmetric=False, rounding="nearest"
            ),
        )
        return writer.commit(manifest)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wide_decoder", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=8, help="32 are Mistral-7B's, and take 4.1 GB")
    parser.add_argument("--block", type=int, default=COARSE.block_size, help="group size")
    options = parser.parse_args()
    print(write_wide_decoder(options.folder, layers=options.layers, block=options.block).path)


if __name__ == "__main__":
    main()
