from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime import Bundle, BundleError, Embedder
from runtime.manifest import pack_vector, unpack_vector
from runtime.replay import replay

EditManifest = Callable[[Callable[[dict], None]], Path]


def test_a_bundle_replays_to_the_same_bits_where_it_was_made(int8_bundle: Bundle) -> None:
    replayed = replay(Embedder(int8_bundle))

    assert replayed.count == 8
    assert replayed.same_bits
    assert replayed.agreement.startswith("cosine 0.99")


def test_a_machine_that_computes_something_else_is_found_out(edit_manifest: EditManifest) -> None:
    """As if this machine's arithmetic had moved every vector: the certified output is right and the one here is not."""
    other = np.random.default_rng(0).normal(size=384).astype(np.float32)

    def change(manifest: dict) -> None:
        manifest["certificate"]["golden"][3].update(reference=pack_vector(other), output=pack_vector(other))

    with pytest.raises(BundleError, match=r"gives cosine -?0\.\d+ to PyTorch where 1\.0000 was certified"):
        replay(Embedder(edit_manifest(change)))


def test_other_bits_within_the_tolerance_are_reported(edit_manifest: EditManifest, int8_bundle: Bundle) -> None:
    certificate = int8_bundle.manifest.certificate
    assert certificate is not None
    nudged = unpack_vector(certificate.golden[0].output)
    nudged[0] += 1e-5
    path = edit_manifest(lambda manifest: manifest["certificate"]["golden"][0].update(output=pack_vector(nudged)))

    assert not replay(Embedder(path)).same_bits


def test_a_bundle_without_a_certificate(edit_manifest: EditManifest) -> None:
    with pytest.raises(BundleError, match="has no certificate to replay"):
        replay(Embedder(edit_manifest(lambda manifest: manifest.update(certificate=None))))


def test_a_golden_vector_of_another_dimension(edit_manifest: EditManifest) -> None:
    path = edit_manifest(
        lambda manifest: manifest["certificate"]["golden"][0].update(output=pack_vector(np.ones(3, "f4")))
    )

    with pytest.raises(BundleError, match="has another dimension than the model"):
        replay(Embedder(path))
