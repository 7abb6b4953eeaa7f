from __future__ import annotations

import os

# Set before anything imports the libraries that read them.
os.environ.update(
    ORT_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="true"
)

import io
import json
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.texts import held_out_texts
from exporters import Origin, export
from exporters.catalog import find_model
from exporters.wheel import fetch_checkpoint
from runtime import Bundle, Precision
from tests.assets import MODEL


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test reach beyond the loopback."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else address
        assert self.family == socket.AF_UNIX or host in {"127.0.0.1", "::1", "localhost"}, f"a test connects to {host}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The folder of the real all-MiniLM-L6-v2, fetched by `python -m tests.assets`."""
    return fetch_checkpoint(find_model(MODEL), offline=True)


@pytest.fixture(scope="session")
def held_out() -> list[str]:
    """500 real English texts of 3 to 250 words."""
    return held_out_texts(500)


def exported(tmp_path_factory: pytest.TempPathFactory, precision: Precision) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / f"{MODEL}-{precision.value}"
    return export(MODEL, precision=precision, out=out, origin=Origin.WHEEL, offline=True).bundle


@pytest.fixture(scope="session")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(tmp_path_factory, Precision.INT8)


@pytest.fixture(scope="session")
def fp32_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(tmp_path_factory, Precision.FP32)


@pytest.fixture
def bundle_copy(int8_bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    target = tmp_path / "copy"
    shutil.copytree(int8_bundle.path, target)
    return target


@pytest.fixture
def edit_manifest(bundle_copy: Path) -> Callable[[Callable[[dict], None]], Path]:
    """Change the manifest of `bundle_copy` by a function on its JSON."""

    def edit(change: Callable[[dict], None]) -> Path:
        path = bundle_copy / "manifest.json"
        manifest = json.loads(path.read_text(encoding="utf-8"))
        change(manifest)
        path.write_text(json.dumps(manifest), encoding="utf-8")
        return bundle_copy

    return edit


@pytest.fixture(scope="session")
def tiny_checkpoint_base(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with seeded weights, in the layout of sentence-transformers, with the real tokenizer."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("tiny") / "tiny-bert"
    torch.manual_seed(7)
    config = transformers.BertConfig(
        vocab_size=30522,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "modules.json"):
        shutil.copyfile(checkpoint / name, folder / name)
    (folder / "1_Pooling").mkdir()
    pooling = json.loads((checkpoint / "1_Pooling" / "config.json").read_text())
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling | {"word_embedding_dimension": 48}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48, "do_lower_case": False}))
    return folder


@pytest.fixture
def tiny_checkpoint(tiny_checkpoint_base: Path, tmp_path: Path) -> Path:
    """A copy of the small BERT that a test may change."""
    target = tmp_path / "tiny-bert"
    shutil.copytree(tiny_checkpoint_base, target)
    return target


@dataclass(frozen=True)
class Finished:
    """A command that ran to its end."""

    code: int
    out: bytes
    err: str


@pytest.fixture
def edgekit(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finished]:
    """Run a command line in this process, as the console script does, and return what it printed and its exit code."""
    from toolkit.cli import cli, exit_code_of

    def run(*arguments: object, stdin: bytes = b"", tty: bool = False) -> Finished:
        buffer = io.BytesIO(stdin)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=buffer, isatty=lambda: tty))
        capfdbinary.readouterr()
        code = exit_code_of(lambda: cli.main([str(argument) for argument in arguments], standalone_mode=False))
        captured = capfdbinary.readouterr()
        return Finished(code, captured.out, captured.err.decode("utf-8"))

    return run
