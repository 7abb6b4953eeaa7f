from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ortkit import Bundle, BundleError, Embedder
from ortkit.runtime.bundle.manifest import Activation, DenseFacts
from ortkit.runtime.encoder.dense import Dense
from ortkit.runtime.file_hash import sha256_of

EditManifest = Callable[[Callable[[dict], None]], Path]
FACTS = DenseFacts("dense-0.npz", Activation.IDENTITY)


def save(path: Path, inputs: int, outputs: int, kind: type = np.float32) -> None:
    np.savez(path, weight=np.eye(inputs, outputs, dtype=kind), bias=np.zeros(outputs, kind))


def add_layers(bundle_copy: Path, edit_manifest: EditManifest, widths: list[tuple[int, int]], dimension: int) -> None:
    """Put dense layers of these inputs and outputs into a bundle."""
    names = [f"dense-{number}.npz" for number in range(len(widths))]
    for name, (inputs, outputs) in zip(names, widths, strict=True):
        save(bundle_copy / name, inputs, outputs)

    def change(manifest: dict) -> None:
        for name in names:
            path = bundle_copy / name
            manifest["files"][name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
        layers = [{"file": name, "activation": "identity"} for name in names]
        manifest["embedder"].update(dense=layers, dimension=dimension)

    edit_manifest(change)


@pytest.mark.parametrize("name", ["../outside.npz", "{outside}", "dense-0.npz"])
def test_a_dense_layer_that_is_not_a_file_of_the_bundle(
    bundle_copy: Path, edit_manifest: EditManifest, name: str
) -> None:
    outside = bundle_copy.with_name("outside.npz")
    save(outside, 384, 384)
    name = name.format(outside=outside)
    layers = [{"file": name, "activation": "identity"}]
    edit_manifest(lambda manifest: manifest["embedder"].update(dense=layers))

    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle_copy)

    assert caught.value.message == (
        f"the manifest of `{bundle_copy}` names a dense layer `{name}` that is not one of its files"
    )
    assert caught.value.exit_code == 7


def test_layers_that_fit_each_other(bundle_copy: Path, edit_manifest: EditManifest) -> None:
    plain = Embedder(bundle_copy).embed(["water"], dim=20)
    add_layers(bundle_copy, edit_manifest, [(384, 48), (48, 20)], dimension=20)

    found = Embedder(bundle_copy).embed(["water"])

    assert np.allclose(found, plain, atol=1e-6)


@pytest.mark.parametrize(
    ("widths", "dimension", "message"),
    [
        ([(384, 48), (47, 20)], 20, "dense-0.npz` outputs 48 components, and the next layer expects 47"),
        ([(384, 48)], 384, "dense-0.npz` outputs 48 components, and the next layer expects 384"),
        ([(3, 3)], 3, "model.onnx` gives embeddings of 384 components, and the manifest says 3"),
    ],
)
def test_layers_of_other_widths(
    bundle_copy: Path, edit_manifest: EditManifest, widths: list[tuple[int, int]], dimension: int, message: str
) -> None:
    add_layers(bundle_copy, edit_manifest, widths, dimension)

    with pytest.raises(BundleError) as caught:
        Embedder(bundle_copy)

    assert caught.value.message.endswith(message)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    empty, single = tmp_path / "empty.npz", tmp_path / "single.npz"
    empty.touch()
    with single.open("wb") as file:
        np.save(file, np.eye(3, dtype=np.float32))

    for path in (empty, single, tmp_path / "none.npz"):
        with pytest.raises(BundleError, match="does not hold the arrays `weight` and `bias`"):
            Dense(path, FACTS)


def test_numbers_of_another_type(tmp_path: Path) -> None:
    save(tmp_path / "dense.npz", 3, 3, np.float64)

    with pytest.raises(BundleError) as caught:
        Dense(tmp_path / "dense.npz", FACTS)

    assert caught.value.message == (
        f"`{tmp_path / 'dense.npz'}` does not hold the arrays `weight` and `bias`: "
        "`weight.npy` has the type `<f8`, not float32 (`<f4`)"
    )


def damaged(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Dense(path, FACTS)
    assert caught.value.exit_code == 7
    return caught.value.message


def test_weights_of_columns_one_after_another(tmp_path: Path) -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "dense.npz", weight=np.asfortranarray(weight), bias=np.zeros(3, np.float32))

    assert np.array_equal(Dense(tmp_path / "dense.npz", FACTS).weight, weight)


def test_a_file_that_becomes_larger_when_it_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "dense.npz", weight=np.zeros((4096, 4096), "f4"), bias=np.zeros(4096, "f4"))

    assert damaged(tmp_path / "dense.npz").endswith("`weight.npy` is compressed")


@pytest.mark.parametrize("shape", ["(999999, 999999)", "(3,)", "(-3, 3)", "(3, 3, 1)", "()", "(3, 3), 'x': (3,)"])
def test_a_shape_that_is_another(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "dense.npz"
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("weight.npy", "bias.npy"):
            archive.writestr(name, b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(36))

    assert "does not hold the arrays `weight` and `bias`: `weight.npy`" in damaged(path)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_nan_and_infinite_weights(tmp_path: Path, number: float) -> None:
    np.savez(tmp_path / "dense.npz", weight=np.full((3, 3), number, "f4"), bias=np.zeros(3, "f4"))

    assert damaged(tmp_path / "dense.npz") == f"`{tmp_path / 'dense.npz'}` has weights that are not finite numbers"
