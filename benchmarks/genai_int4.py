"""onnxruntime-genai's own builder in ortkit's environment: `python -m benchmarks.genai_int4 MODELS FOLDER TARGET`.

MODELS is the folder of the builder inside the package, FOLDER a checkpoint in Hugging Face layout, TARGET where the
int4 graph and genai's config are written. The peers' environment has no PyTorch, which the builder needs.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

ACCURACY_LEVEL = 4
"""Activations are quantized to 8 bits in matmuls, as ortkit's: the fastest kernels."""
BLOCK = 32
"""Group size; the builder's default."""
NEWER_CLASSES = ("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration")
"""Classes of transformers 5 that the builder always imports and uses only for their own models."""


def build(models: Path, checkpoint: Path, target: Path) -> None:
    """Run the builder as its command line does."""
    import transformers

    for name in NEWER_CLASSES:
        if not hasattr(transformers, name):
            setattr(transformers, name, type(name, (), {}))
    sys.path.insert(0, str(models))
    # The builder keeps what it has loaded here: in the scratch folder that the target is written in.
    arguments = ["-i", str(checkpoint), "-o", str(target), "-p", "int4", "-e", "cpu", "-c", str(target / "cache")]
    arguments += ["--extra_options", f"accuracy_level={ACCURACY_LEVEL}", f"block_size={BLOCK}", "hf_token=false"]
    sys.argv = [str(models / "builder.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    build(*map(Path, sys.argv[1:]))
