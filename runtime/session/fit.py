"""Whether a manifest's provider, layout and inputs fit each other: what its graph must be for the provider."""

from __future__ import annotations

from collections.abc import Iterator

from ..bundle.folder import BundleFolder, DraftBundle
from ..bundle.graph_io import BIAS
from ..bundle.manifest import CacheType, Kind, Layout, Manifest, Precision, Provider
from ..errors import BundleError


def check_fit(bundle: BundleFolder) -> None:
    """Raise BundleError for a manifest that contradicts itself; one that an export is writing is incomplete."""
    if isinstance(bundle, DraftBundle):
        return
    fault = next(faults_of(bundle.manifest), None)
    if fault is not None:
        raise BundleError(
            f"the manifest of `{bundle.path}` names the provider `{bundle.manifest.provider.value}`, and {fault}",
            hint="export the model again, with `--provider`: a graph is for one provider",
        )


def faults_of(manifest: Manifest) -> Iterator[str]:
    """What does not fit a manifest's provider."""
    if manifest.prefill is not None and (manifest.provider is not Provider.CPU or manifest.kind is not Kind.DECODER):
        yield "it has an 8-bit graph for prompts, which only decoders for `cpu` have"
    if manifest.provider is Provider.COREML:
        yield from _coreml_faults(manifest)
        return
    if manifest.buckets is not None:
        yield "it has buckets, which only graphs for `coreml` have"
    if BIAS in manifest.inputs:
        yield f"its input `{BIAS}` is one of graphs for `coreml`"
    if manifest.provider is Provider.CUDA:
        yield from _cuda_faults(manifest)


def _coreml_faults(manifest: Manifest) -> Iterator[str]:
    if manifest.kind is Kind.DECODER:
        yield "decoders cannot run there: it has no attention with a KV cache"
    if manifest.buckets is None:
        yield "it has no buckets, the fixed shapes that CoreML needs"
    if BIAS not in manifest.inputs:
        yield f"it has no input `{BIAS}`, which masks the padding of a bucket"
    if manifest.layout is not Layout.TEXTS_FIRST:
        yield f"its layout is `{manifest.layout.value}` instead of `{Layout.TEXTS_FIRST.value}`"


def _cuda_faults(manifest: Manifest) -> Iterator[str]:
    if manifest.decoder is not None:
        if manifest.decoder.cache_type is not CacheType.FLOAT16:
            yield "its KV cache is float32, for which CUDA has no attention"
        if manifest.decoder.plain_attention:
            yield "its attention consists of plain operators"
        return
    if manifest.precision is Precision.INT8:
        yield "its matmuls are int8, for which CUDA has no kernels"
    if manifest.layout is not Layout.TEXTS_FIRST:
        yield f"its layout is `{manifest.layout.value}` instead of `{Layout.TEXTS_FIRST.value}`"
