"""OpenVINO's int8 with the fastest and most exact settings found: the rival of ortkit's int8.

`python -m benchmarks.openvino_int8 GRAPH CALIBRATION TARGET` quantizes an fp32 graph with NNCF. It runs in the peers'
environment, and so imports nothing of ortkit.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as operators
from tokenizers import Encoding, Tokenizer

Inputs = dict[str, NDArray[np.int64]]
Outputs = NDArray[np.float32]
Text = str | tuple[str, str]
"""A text, or a pair of them, as rerankers read."""

STREAMS = os.cpu_count() or 1
"""Concurrent batches, one per CPU core, as many as ortkit's workers."""
BATCH_TOKENS = 512
"""Tokens in one batch, padding included; `benchmarks.contest` looks for the best number and passes it."""
SMOOTHING = 0.85
"""SmoothQuant's alpha. NNCF's default of 0.95 gives embeddings a lowest cosine of .989, 0.80 to 0.85 .994, 0.5 .977."""
EPSILON = 1e-12


class Encoder:
    """A quantized model with its tokenizer: texts to embeddings, or pairs to logits."""

    def __init__(self, folder: Path, batch_tokens: int = BATCH_TOKENS) -> None:
        self.tokenizer = tokenizer_of(folder)
        self.batch_tokens = batch_tokens
        core = openvino.Core()
        model = core.read_model(folder / "model.xml")
        self.width = model.output(0).get_partial_shape()[1].get_length()
        # Other operators run in the precision that OpenVINO chooses: float32 or, if the CPU has it,
        # bfloat16. Asking for either by hand was slower. More requests than streams gained nothing.
        many = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(STREAMS)}
        self.queue = openvino.AsyncInferQueue(core.compile_model(model, "CPU", many), STREAMS)
        self.queue.set_callback(self.store)
        # On a short text two threads took half as long again as one.
        single = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": "1"}
        self.single = core.compile_model(model, "CPU", single).create_infer_request()
        self.outputs = np.empty((0, self.width), np.float32)

    def run(self, texts: Sequence[Text]) -> Outputs:
        """Embeddings or logits (texts, width); a single text goes to the model compiled for latency."""
        encodings = self.tokenizer.encode_batch_fast(texts)
        if len(texts) == 1:
            self.single.infer(inputs_of(encodings), share_inputs=True, share_outputs=True)
            return np.array(self.single.get_output_tensor(0).data)
        self.outputs = np.empty((len(texts), self.width), np.float32)
        order = sorted(range(len(encodings)), key=lambda index: -len(encodings[index].ids))
        start = 0
        while start < len(order):
            # The first is the longest, and the others are padded to it.
            chosen = order[start : start + max(1, self.batch_tokens // len(encodings[order[start]].ids))]
            inputs = inputs_of([encodings[index] for index in chosen])
            # The request reads these arrays where they lie: what is passed with it keeps them alive.
            self.queue.start_async(inputs, (chosen, inputs), share_inputs=True)
            start += len(chosen)
        self.queue.wait_all()
        return self.outputs

    def store(self, request: Any, batch: tuple[list[int], Inputs]) -> None:
        """Store the outputs of a finished batch."""
        self.outputs[batch[0]] = request.get_output_tensor(0).data


def tokenizer_of(folder: Path) -> Tokenizer:
    facts = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(facts["model_max_length"])
    return tokenizer


def inputs_of(encodings: Sequence[Encoding]) -> Inputs:
    """The inputs for texts whose first is the longest; the id of the padding is 0."""
    padded = np.zeros((len(encodings), len(encodings[0].ids)), np.int64)
    mask, types = np.zeros_like(padded), np.zeros_like(padded)
    for row, own in enumerate(encodings):
        length = len(own.ids)
        padded[row, :length] = own.ids
        mask[row, :length] = 1
        types[row, :length] = own.type_ids
    return {"input_ids": padded, "attention_mask": mask, "token_type_ids": types}


def with_pooling(model: Any) -> Any:
    """The model that returns the mean over a text's own tokens, scaled to length 1: (texts, width).

    In the graph this was 1 to 2% faster than in numpy.
    """
    (tokens,) = (output.get_node().input_value(0) for output in model.outputs)
    mask = next(given for given in model.get_parameters() if "attention_mask" in given.output(0).get_names())
    weights = operators.unsqueeze(operators.convert(mask, "f32"), 1)
    sums = operators.squeeze(operators.matmul(weights, tokens, False, False), 1)
    # Dividing by the number of tokens would change the length alone.
    vectors = operators.normalize_l2(sums, [1], EPSILON, "add")
    return openvino.Model([vectors.output(0)], model.get_parameters(), "embedder")


def quantize(graph: Path, calibration: Path, target: Path) -> None:
    """Write the folder for `Encoder`: the graph in int8, calibrated on the texts or pairs in a JSON file.

    The tokenizer lies beside the graph or one folder above it, as in the Hub's layout. What gives token vectors gets
    its pooling.
    """
    import nncf

    source = next(folder for folder in graph.parents if (folder / "tokenizer.json").exists())
    texts = [text if isinstance(text, str) else tuple(text) for text in json.loads(calibration.read_text("utf-8"))]
    inputs = [inputs_of([encoding]) for encoding in tokenizer_of(source).encode_batch(texts)]
    quantized = nncf.quantize(
        openvino.Core().read_model(graph),
        nncf.Dataset(inputs),
        subset_size=len(inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=SMOOTHING)
        ),
    )
    if quantized.output(0).get_partial_shape().rank.get_length() == 3:
        quantized = with_pooling(quantized)
    openvino.save_model(quantized, target / "model.xml", compress_to_fp16=False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, target / name)


if __name__ == "__main__":
    quantize(*map(Path, sys.argv[1:]))
