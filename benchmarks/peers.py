"""The peers' environment, and edgekit's model in the forms in which the peers read it.

`python -m benchmarks.peers FOLDER` writes fastembed's, from which the others are made. What this module imports at its
top is light on purpose: a process inherits the peak memory of the one that starts it, so `benchmarks.startup` must stay
small.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
MODEL = "all-MiniLM-L6-v2"
FASTEMBED_MODEL = f"sentence-transformers/{MODEL}"
BUNDLE = REPOSITORY / "bundles" / f"{MODEL}-int8"
PEERS = REPOSITORY / ".venv-peers"
CACHE = REPOSITORY / ".cache" / "peers"
OPENVINO_RECIPE = Path(__file__).with_name("openvino_int8.py")
CALIBRATION = REPOSITORY / "exporters" / "data" / "calibration.txt"
FASTEMBED_FILES = ("tokenizer.json", "special_tokens_map.json", "config.json")


def edgekit_name(bundle: Path) -> str:
    """What edgekit with this bundle is called in a table."""
    manifest = required(bundle / "manifest.json", f"run `edgekit export {MODEL} --from wheel`, or `make benchmark`")
    return f"edgekit {json.loads(manifest.read_text(encoding='utf-8'))['precision']}"


def peers_python(environment: Path) -> Path:
    """The interpreter of the peers' environment."""
    hint = "run `make benchmark`, or install `benchmarks/peers.txt` into a virtual environment of its own"
    return required(environment / "bin" / "python", hint).absolute()


def required(path: Path, hint: str) -> Path:
    """The same path; ends the program when there is nothing."""
    if not path.exists():
        raise SystemExit(f"there is no `{path}`\n\nhint: {hint}")
    return path


def version_in(python: Path, distribution: str) -> str:
    """The version of a distribution in the environment of this interpreter."""
    script = f"from importlib.metadata import version; print(version({distribution!r}))"
    return subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout.strip()


def fastembed_folder() -> Path:
    """The folder for fastembed's `specific_model_path`, made when it is not there yet."""
    folder = CACHE / f"{MODEL}-optimum-{version('optimum')}"
    if not folder.exists():
        subprocess.run([sys.executable, "-m", "benchmarks.peers", str(folder)], cwd=REPOSITORY, check=True)
    return folder


def sentence_transformers_onnx_folder(checkpoint: Path) -> Path:
    """The checkpoint with the same graph where sentence-transformers' onnx backend looks for it."""
    folder = CACHE / f"{MODEL}-sentence-transformers-onnx-optimum-{version('optimum')}"
    if not folder.exists():
        graph = fastembed_folder() / "model.onnx"
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=".writing-") as scratch:
            written = Path(scratch) / "model"
            shutil.copytree(checkpoint, written, ignore=shutil.ignore_patterns("*.safetensors", "onnx"))
            (written / "onnx").mkdir()
            shutil.copyfile(graph, written / "onnx" / "model.onnx")
            os.replace(written, folder)
    return folder


def openvino_folder(python: Path) -> Path:
    """The same graph in OpenVINO's int8, quantized in the peers' environment when it is not there yet."""
    recipe = hashlib.sha256(CALIBRATION.read_bytes() + OPENVINO_RECIPE.read_bytes()).hexdigest()[:8]
    versions = f"openvino-{version_in(python, 'openvino')}-nncf-{version_in(python, 'nncf')}"
    folder = CACHE / f"{MODEL}-{versions}-{recipe}"
    if not folder.exists():
        source = fastembed_folder()
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=".writing-") as scratch:
            written = Path(scratch) / "model"
            command = [str(python), "-m", "benchmarks.openvino_int8", str(source), str(CALIBRATION), str(written)]
            subprocess.run(command, cwd=REPOSITORY, check=True, stdout=sys.stderr)
            os.replace(written, folder)
    return folder


def write_fastembed_folder(target: Path) -> None:
    """Export the checkpoint to fp32 as Optimum does by default, beside a tokenizer that cuts where its card says."""
    from optimum.exporters.onnx import export
    from optimum.exporters.tasks import TasksManager
    from transformers import AutoModel

    from exporters.encoder import quiet
    from exporters.sources import Origin, find_checkpoint

    checkpoint = find_checkpoint(MODEL, origin=Origin.WHEEL, offline=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        with quiet():
            model = AutoModel.from_pretrained(str(checkpoint.folder), local_files_only=True).eval()
            config_class = TasksManager.get_exporter_config_constructor(
                "onnx", model, task="feature-extraction", library_name="transformers"
            )
            export(model, config_class(model.config), folder / "model.onnx")
        for name in FASTEMBED_FILES:
            shutil.copyfile(checkpoint.folder / name, folder / name)
        # fastembed cuts at `model_max_length`, which is 512 here; sentence-transformers and edgekit cut at this one.
        max_length = checkpoint.read_json("sentence_bert_config.json")["max_seq_length"]
        tokenizer_config = checkpoint.read_json("tokenizer_config.json") | {"model_max_length": max_length}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
        os.replace(folder, target)


if __name__ == "__main__":
    write_fastembed_folder(Path(sys.argv[1]))
