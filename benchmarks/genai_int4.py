"""onnxruntime-genai's own builder in ortkit's environment: `python -m benchmarks.genai_int4 MODELS FOLDER TARGET`.

MODELS is the folder of the builder inside the package, FOLDER a checkpoint in Hugging Face layout, TARGET where the
int4 graph and genai's config are written. The peers' environment has no PyTorch, which the builder wants.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

ACCURACY_LEVEL = 4
"""Activations are rounded to 8 bits for the products, as ortkit's are: the fastest kernels."""
BLOCK = 32
"""Columns that share a scale; the builder's default."""
NEWER_CLASSES = ("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration")
"""Of transformers 5: the builder imports them whatever it builds, and uses them for their own models alone."""


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
