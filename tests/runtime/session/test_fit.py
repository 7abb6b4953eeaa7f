"""Manifests whose provider, layout or inputs contradict each other: exit code 7, before onnxruntime opens anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ortkit import Bundle, Precision, Provider
from ortkit.runtime.bundle.folder import BundleFolder, DraftBundle
from ortkit.runtime.bundle.manifest import Buckets, CacheType, Layout, Manifest
from ortkit.runtime.session.fit import check_fit, faults_of
from tests.commands import Finished
from tests.decoders import write_decoder
from tests.tiny_bundles import rehash, write_embedder

BUCKETS = Buckets(tokens=(64,), texts=(1,))
FIRST = Layout.TEXTS_FIRST


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_embedder(tmp_path_factory.mktemp("fit") / "embedder")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_decoder(tmp_path_factory.mktemp("fit") / "decoder")[0]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"provider": Provider.CPU}, None),
        ({"provider": Provider.CPU, "layout": FIRST}, None),
        ({"provider": Provider.CPU, "buckets": BUCKETS}, "it has buckets, which only graphs for `coreml` have"),
        ({"provider": Provider.CPU, "inputs": ("input_ids", "bias")}, "its input `bias` is one of graphs for `coreml`"),
        ({"provider": Provider.CUDA, "layout": FIRST}, None),
        ({"provider": Provider.CUDA}, "its layout is `tokens_first` instead of `texts_first`"),
        (
            {"provider": Provider.CUDA, "layout": FIRST, "precision": Precision.INT8},
            "its matmuls are int8, for which CUDA has no kernels",
        ),
        ({"provider": Provider.CUDA, "layout": FIRST, "buckets": BUCKETS}, "it has buckets, which only graphs for"),
        (
            {"provider": Provider.COREML, "layout": FIRST, "buckets": BUCKETS, "inputs": ("input_ids", "bias")},
            None,
        ),
        (
            {"provider": Provider.COREML, "layout": FIRST, "inputs": ("input_ids", "bias")},
            "it has no buckets, the fixed shapes that CoreML needs",
        ),
        (
            {"provider": Provider.COREML, "layout": FIRST, "buckets": BUCKETS},
            "it has no input `bias`, which masks the padding of a bucket",
        ),
        (
            {"provider": Provider.COREML, "buckets": BUCKETS, "inputs": ("input_ids", "bias")},
            "its layout is `tokens_first` instead of `texts_first`",
        ),
    ],
)
def test_encoders(embedder: Bundle, changes: dict[str, Any], fault: str | None) -> None:
    found = list(faults_of(replace(embedder.manifest, **changes)))

    assert len(found) == (fault is not None)
    if fault is not None:
        assert found[0].startswith(fault)


def with_cache(manifest: Manifest, cache: CacheType, *, plain: bool = False) -> Manifest:
    assert manifest.decoder is not None
    facts = replace(manifest.decoder, cache_type=cache, plain_attention=plain)
    return replace(manifest, provider=Provider.CUDA, precision=Precision.INT4, decoder=facts)


def test_decoders(decoder: Bundle) -> None:
    manifest = decoder.manifest

    assert list(faults_of(with_cache(manifest, CacheType.FLOAT16))) == []
    assert list(faults_of(with_cache(manifest, CacheType.FLOAT32))) == [
        "its KV cache is float32, for which CUDA has no attention"
    ]
    assert list(faults_of(with_cache(manifest, CacheType.FLOAT16, plain=True))) == [
        "its attention consists of plain operators"
    ]
    assert next(faults_of(replace(manifest, provider=Provider.COREML))) == (
        "decoders cannot run there: it has no attention with a KV cache"
    )


def test_a_manifest_that_an_export_is_writing(embedder: Bundle) -> None:
    manifest = replace(embedder.manifest, provider=Provider.COREML)

    check_fit(DraftBundle(embedder.path, manifest))
    with pytest.raises(Exception, match="names the provider `coreml`"):
        check_fit(BundleFolder(embedder.path, manifest))


def test_on_the_command_line(tmp_path: Path, ortkit: Callable[..., Finished]) -> None:
    """A bundle for the CPU whose manifest was changed to run on CUDA."""
    bundle = write_embedder(tmp_path / "embedder")
    rehash(bundle.path, lambda manifest: manifest.update(provider="cuda"))

    finished = ortkit("embed", bundle.path, "the fox")

    assert finished.code == 7
    assert finished.err == (
        f"error: the manifest of `{bundle.path}` names the provider `cuda`, and its layout is `tokens_first` instead "
        "of `texts_first`\n\nhint: export the model again, with `--provider`: a graph is for one provider\n"
    )
