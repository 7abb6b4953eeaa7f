from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense

from exporters import export
from exporters.dense import dense_layers
from exporters.sources import find_checkpoint
from runtime import BundleError, CheckpointError, Embedder, Precision, UnsupportedModelError
from tests.encoder_checkpoints import edit_config

TEXTS = ["a", "The pump runs dry.", "Zwei Sätze. Noch einer!"]


def add_dense(folder: Path, layers: list[Dense]) -> None:
    """Put dense layers between the pooling and the normalization of a checkpoint."""
    transformer, pooling, normalize = json.loads((folder / "modules.json").read_text())
    modules = [transformer, pooling]
    for layer in layers:
        path = f"{len(modules)}_Dense"
        (folder / path).mkdir()
        layer.save(str(folder / path))
        modules.append({"path": path, "type": "sentence_transformers.models.Dense"})
    modules.append(normalize | {"path": f"{len(modules)}_Normalize"})
    numbered = [module | {"idx": index, "name": str(index)} for index, module in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(numbered))


@pytest.mark.parametrize(
    "layers",
    [
        [(48, 20, True, torch.nn.Tanh())],
        [(48, 64, False, torch.nn.Identity()), (64, 32, True, torch.nn.Tanh())],
    ],
)
def test_vectors_are_those_of_sentence_transformers(tiny_checkpoint: Path, tmp_path: Path, layers: list) -> None:
    torch.manual_seed(3)
    add_dense(tiny_checkpoint, [Dense(*layer) for layer in layers])
    model = SentenceTransformer(str(tiny_checkpoint), device="cpu", local_files_only=True)
    expected = model.encode(TEXTS, show_progress_bar=False)
    bundle = export(str(tiny_checkpoint), precision=Precision.FP32, out=tmp_path / "bundle").bundle
    embedder = Embedder(bundle)

    found = embedder.embed(TEXTS)

    assert embedder.dimension == layers[-1][1]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5
    for text, vector in zip(TEXTS, found, strict=True):
        assert np.array_equal(embedder.embed([text])[0], vector), "the same bits in any company"
    shorter = embedder.embed(TEXTS, dim=8)
    assert np.abs(shorter - model.encode(TEXTS, truncate_dim=8, normalize_embeddings=True)).max() < 1e-5


@pytest.fixture
def with_dense(tiny_checkpoint: Path) -> Path:
    add_dense(tiny_checkpoint, [Dense(48, 20)])
    return tiny_checkpoint


def test_an_activation_that_is_not_known(with_dense: Path) -> None:
    edit_config(with_dense / "2_Dense", activation_function="torch.nn.modules.activation.GELU")

    with pytest.raises(UnsupportedModelError) as caught:
        dense_layers(find_checkpoint(str(with_dense)), 48)
    assert caught.value.message == (
        "`tiny-bert` has a module `Dense` with the activation `torch.nn.modules.activation.GELU`, which edgekit does "
        "not know"
    )
    assert caught.value.exit_code == 10


def test_weights_that_are_missing(with_dense: Path) -> None:
    (with_dense / "2_Dense" / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"the module in `.*2_Dense` holds no `model.safetensors`"):
        dense_layers(find_checkpoint(str(with_dense)), 48)


def test_weights_of_another_name(with_dense: Path) -> None:
    save_file({"weight": torch.zeros(20, 48)}, with_dense / "2_Dense" / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"holds no matrix `linear\.weight`"):
        dense_layers(find_checkpoint(str(with_dense)), 48)


def test_weights_that_do_not_fit_what_comes_before(with_dense: Path) -> None:
    with pytest.raises(CheckpointError, match="reads vectors of 48 components, and what comes before gives 47"):
        dense_layers(find_checkpoint(str(with_dense)), 47)


def test_a_bundle_whose_layer_is_damaged(with_dense: Path, tmp_path: Path) -> None:
    bundle = export(str(with_dense), precision=Precision.FP32, out=tmp_path / "bundle").bundle
    np.savez(bundle.path / "dense-0.npz", weight=np.zeros((48, 20), np.float32))

    with pytest.raises(BundleError, match=r"`.*dense-0\.npz` does not hold the arrays `weight` and `bias`"):
        Embedder(bundle)
    np.savez(bundle.path / "dense-0.npz", weight=np.zeros((48, 20), np.float32), bias=np.zeros(3, np.float32))
    with pytest.raises(BundleError, match="holds arrays that do not fit each other"):
        Embedder(bundle)
    with (bundle.path / "dense-0.npz").open("wb") as file:
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(BundleError, match="does not hold the arrays"):
        Embedder(bundle)
