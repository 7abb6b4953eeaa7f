"""An LLM in OpenVINO GenAI's format: `python -m benchmarks.openvino_int4 PACKAGES FOLDER TARGET`.

PACKAGES is the folder of the peers' packages, FOLDER a Llama checkpoint in Hugging Face layout, TARGET where the model
and its tokenizer are written. It runs in ortkit's environment, as the peers' has no PyTorch, and does what
`optimum-cli export openvino --weight-format int4 --sym --group-size 64` does, which needs another Optimum than ortkit.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decoding_worker import OPENVINO_MODEL

GROUP = 64
"""Group size."""
INPUTS = ("input_ids", "attention_mask", "position_ids")
CACHE = "past_key_values"


def build(checkpoint: Path, target: Path) -> None:
    """Trace, make the KV cache a state, quantize the weights, and write the model with its tokenizer."""
    import nncf
    import openvino
    import openvino_tokenizers
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, local_files_only=True).eval()
    converted = traced(model)
    keep_cache_inside(converted)
    # The output matrix, tied to the embedding table, gets 8 bits, the default of NNCF and Optimum.
    mode = nncf.CompressWeightsMode.INT4_SYM
    rounded = nncf.compress_weights(converted, mode=mode, group_size=GROUP, ratio=1.0)
    openvino.save_model(rounded, target / OPENVINO_MODEL, compress_to_fp16=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    parts = openvino_tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, part in zip(("tokenizer", "detokenizer"), parts, strict=True):
        openvino.save_model(part, target / f"openvino_{name}.xml")


def traced(model: Any) -> Any:
    """Convert a model of transformers to OpenVINO, with past and present KV cache as inputs and outputs."""
    import openvino
    import torch
    from optimum.exporters.onnx.model_configs import LlamaOnnxConfig

    class Traced(torch.nn.Module):
        """Positional inputs and a tuple of outputs, as tracing requires."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> tuple[Any, ...]:
            return tuple(self.model(**dict(zip((*INPUTS, CACHE), values, strict=True))).values())

    config = LlamaOnnxConfig(model.config, task="text-generation", use_past=True, use_past_in_inputs=True)
    given = config.generate_dummy_inputs(framework="pt")
    # Optimum's patches remove what cannot be traced.
    with torch.no_grad(), config.patch_model_for_export(model):
        converted = openvino.convert_model(Traced(), example_input=tuple(given[name] for name in (*INPUTS, CACHE)))
    _, heads, _, size = given[CACHE][0][0].shape
    pasts = [name for name in config.inputs if name.startswith(CACHE)]
    for value, name in zip(converted.inputs, [*INPUTS, *pasts], strict=True):
        value.get_tensor().set_names({name})
        # GenAI looks for the name of the node too.
        value.get_node().set_friendly_name(name)
        value.get_node().set_partial_shape(openvino.PartialShape([-1, heads, -1, size] if name in pasts else [-1, -1]))
    for value, name in zip(converted.outputs, config.outputs, strict=True):
        value.get_tensor().set_names({name})
    converted.validate_nodes_and_infer_types()
    return converted


def keep_cache_inside(model: Any) -> None:
    """Make the KV cache a state of the model, empty at first.

    `beam_idx`, which of the sequences of the last run each sequence continues, becomes an input: GenAI asks for it.
    """
    import openvino
    from openvino import opset13 as operators
    from openvino._offline_transformations import apply_make_stateful_transformation

    names = [value.get_any_name() for value in model.inputs]
    pasts = {name: name.replace(CACHE, "present") for name in names if name.startswith(CACHE)}
    beams = operators.parameter([-1], openvino.Type.i32, name="beam_idx")
    beams.output(0).get_tensor().set_names({"beam_idx"})
    model.add_parameters([beams])
    for past in map(model.input, pasts):
        readers = past.get_target_inputs()
        chosen = operators.gather(past, beams, operators.constant(0))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, pasts)
    sequences = operators.gather(operators.shape_of(model.input("input_ids")), [0], 0)
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            _, heads, _, size = node.get_output_partial_shape(0)
            shape = operators.concat([sequences, [heads.get_length()], [0], [size.get_length()]], 0)
            node.set_arguments([operators.broadcast(operators.constant(np.float32(0)), shape)])
    model.validate_nodes_and_infer_types()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Behind ortkit's own packages, so that both sides keep theirs.
    sys.path.append(sys.argv[1])
    build(*map(Path, sys.argv[2:]))
