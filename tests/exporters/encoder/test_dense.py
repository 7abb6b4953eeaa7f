from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense

from ortkit import BundleError, CheckpointError, Embedder, Precision
from ortkit.exporters import export
from ortkit.exporters.encoder.dense import dense_layers
from ortkit.exporters.sources import find_checkpoint
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
        [(48, 64, False, torch.nn.GELU()), (64, 32, True, torch.nn.Identity())],
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


def test_weights_that_are_missing(with_dense: Path) -> None:
    (with_dense / "2_Dense" / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"the module in `.*2_Dense` holds no `model.safetensors`"):
        dense_layers(find_checkpoint(str(with_dense)), 48)


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.zeros(20, 48)},
        {"linear.weight": torch.zeros(20, 48)},
        {"linear.weight": torch.zeros(48, 20), "linear.bias": torch.zeros(20)},
        {"linear.weight": torch.zeros(20, 48), "linear.bias": torch.zeros(20), "residual": torch.zeros(1)},
        {},
    ],
)
def test_weights_that_are_not_those_of_the_config(with_dense: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, with_dense / "2_Dense" / "model.safetensors")

    with pytest.raises(
        CheckpointError, match=r"holds the tensors .*, and its config.json promises `linear\.bias` \[20\]"
    ):
        dense_layers(find_checkpoint(str(with_dense)), 48)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["linear.weight", "linear.bias"])
def test_weights_that_are_no_numbers(with_dense: Path, name: str, wrong: float) -> None:
    path = with_dense / "2_Dense" / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[3] = wrong
    save_file(tensors, path)

    with pytest.raises(CheckpointError) as caught:
        dense_layers(find_checkpoint(str(with_dense)), 48)
    assert f"`{name}`" in caught.value.message
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_the_size(with_dense: Path, dtype: torch.dtype) -> None:
    path = with_dense / "2_Dense" / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(tensors, path)

    (layer,) = dense_layers(find_checkpoint(str(with_dense)), 48)

    assert np.array_equal(layer.weight, tensors["linear.weight"].float().numpy().T)
    assert np.array_equal(layer.bias, tensors["linear.bias"].float().numpy())


def test_weights_of_another_type(with_dense: Path) -> None:
    save_file({"linear.weight": torch.zeros(20, 48, dtype=torch.int32)}, with_dense / "2_Dense" / "model.safetensors")
    edit_config(with_dense / "2_Dense", bias=False)

    with pytest.raises(CheckpointError, match="I32"):
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
    with pytest.raises(BundleError, match=r"the shapes of weight .* do not match"):
        Embedder(bundle)
    with (bundle.path / "dense-0.npz").open("wb") as file:
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(BundleError, match="does not hold the arrays"):
        Embedder(bundle)
