from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from ortkit.exporters import export
from ortkit.exporters.encoder.tracing import load_model
from ortkit.exporters.sources import find_checkpoint
from ortkit.exporters.models.weights_format import with_format
from ortkit import Embedder, Precision

SAID = [None, {"format": "pt"}, {"format": "mlx"}]
UNSAID = [{"made_by": "another tool"}, {"format": "np"}, {"format": "", "x": "y"}]


def say(folder: Path, metadata: dict[str, str] | None) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path), path, metadata=metadata)


@pytest.mark.parametrize("metadata", SAID)
def test_what_transformers_reads_is_left_alone(tiny_checkpoint: Path, metadata: dict | None, tmp_path: Path) -> None:
    say(tiny_checkpoint, metadata)
    checkpoint = find_checkpoint(str(tiny_checkpoint))

    assert with_format(checkpoint, tmp_path / "copy") is checkpoint
    load_model(checkpoint)


@pytest.mark.parametrize("metadata", UNSAID)
def test_what_it_does_not_read_is_copied(tiny_checkpoint: Path, metadata: dict, tmp_path: Path) -> None:
    say(tiny_checkpoint, metadata)
    before = hashlib.sha256((tiny_checkpoint / "model.safetensors").read_bytes()).digest()
    checkpoint = find_checkpoint(str(tiny_checkpoint))

    found = with_format(checkpoint, tmp_path / "copy")

    assert hashlib.sha256((tiny_checkpoint / "model.safetensors").read_bytes()).digest() == before
    assert found.source == checkpoint.source
    with safe_open(tmp_path / "copy" / "model.safetensors", "pt") as file:
        assert file.metadata() == metadata | {"format": "pt"}
    weights, expected = load_model(found).state_dict(), load_file(tiny_checkpoint / "model.safetensors")
    assert all((weights[name] == expected[name]).all() for name in expected)


def test_an_embedder_of_which_the_weights_do_not_say_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    expected = SentenceTransformer(str(tiny_checkpoint), device="cpu").encode(["A pump."])
    say(tiny_checkpoint, UNSAID[0])

    bundle = export(str(tiny_checkpoint), precision=Precision.FP32, out=tmp_path / "b").bundle

    assert np.abs(Embedder(bundle).embed(["A pump."]) - expected).max() < 1e-5
