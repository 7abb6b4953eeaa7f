from __future__ import annotations

from pathlib import Path

import pytest

from ortkit.exporters.checkpoint.architectures import architecture_of
from ortkit.exporters.checkpoint.catalog import ModelSpec, find_model
from ortkit.exporters.checkpoint.checkpoint import Checkpoint
from ortkit.exporters.gguf.file import _MODEL_TYPES as MODEL_TYPES
from ortkit.exporters.gguf.metadata import ARCHITECTURES
from ortkit.exporters.options import (
    ExportOptions,
    check_for_catalog,
    check_precision,
    checked_cache,
    checked_prefill,
    default_precision,
)
from ortkit.exporters.providers.support import SUPPORT, check_supported
from ortkit.runtime.bundle.manifest import CacheType, Kind, Precision, Provider, Source
from ortkit.runtime.errors import InputError, UnsupportedModelError
from tests.assets import DECODER

SOURCE = Source("file", "m.gguf", "m.gguf", None, None, None, None, {})


def checkpoint(*types: str, gguf: bool = True, spec: ModelSpec | None = None) -> Checkpoint:
    path = Path("m.gguf") if gguf else None
    return Checkpoint("m", Path(), {}, SOURCE, spec, path, frozenset(types))


def test_the_precision_follows_from_what_the_checkpoint_is_and_then_from_the_catalog() -> None:
    """A catalog model that comes in a quantized GGUF file from one place and in safetensors from another is both."""
    smollm = find_model(DECODER)
    assert smollm.precision is Precision.INT4

    assert default_precision(checkpoint("Q4_1", spec=smollm), Kind.DECODER) is Precision.SOURCE
    assert default_precision(checkpoint("Q4_K", "Q6_K"), Kind.DECODER) is Precision.SOURCE
    assert default_precision(checkpoint("IQ2_XS"), Kind.DECODER) is Precision.SOURCE, "refused, and not rounded again"
    assert default_precision(checkpoint(spec=smollm), Kind.DECODER) is Precision.INT4
    assert default_precision(checkpoint(gguf=False, spec=smollm), Kind.DECODER) is Precision.INT4
    assert default_precision(checkpoint(), Kind.DECODER) is Precision.INT4
    assert default_precision(checkpoint(gguf=False), Kind.EMBEDDER) is Precision.INT8


def test_blocks_that_cannot_be_kept() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        check_precision(checkpoint("TQ1_0", "Q4_0", "IQ2_XS"), Kind.DECODER, Precision.SOURCE)

    assert caught.value.message == (
        "`m` has weights of the type `IQ2_XS` and `TQ1_0`, so its own precision cannot be kept"
    )
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("supported: `Q2_K`, `Q3_K`, `Q4_0`, ")
    assert caught.value.hint.endswith("; `--precision int8` or `int4` quantizes any weights again")
    assert caught.value.exit_code == 10
    for precision in (Precision.INT4, Precision.INT8, Precision.FP32):
        check_precision(checkpoint("TQ1_0"), Kind.DECODER, precision)


@pytest.mark.parametrize(("gguf", "how"), [(True, "has no weights in blocks"), (False, "comes in none")])
def test_there_are_no_blocks_to_keep(how: str, *, gguf: bool) -> None:
    with pytest.raises(InputError) as caught:
        check_precision(checkpoint(gguf=gguf), Kind.DECODER, Precision.SOURCE)

    assert caught.value.message == f"`source` keeps the blocks of a GGUF file, and `m` {how}"
    assert caught.value.hint == "choose one of `int4`, `int8`, `fp32`"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_architecture_of_gguf_files_is_exported_as_a_decoder(architecture: str) -> None:
    """So the plan of a GGUF file needs no config.json, which is written only when the file is converted."""
    found = architecture_of({"model_type": MODEL_TYPES.get(architecture, architecture)})

    assert found is not None
    assert Kind.DECODER in found.kinds


FOUR_BITS = "weights of 4 bits make LLMs faster, which read all of them for each token, and encoders less accurate"
NOT_GGUF = "it keeps the blocks of a quantized GGUF file, and encoders are not exported from such files"


@pytest.mark.parametrize("provider", Provider)
def test_every_precision_that_is_refused_has_a_reason_and_a_hint(provider: Provider) -> None:
    known = SUPPORT[provider].precisions
    refused = {(kind, precision) for kind in Kind for precision in Precision if precision not in known[kind]}
    assert refused
    for kind, precision in sorted(refused):
        with pytest.raises(InputError) as caught:
            check_supported(provider, kind, precision)
        assert ": " in caught.value.message
        assert caught.value.hint is not None
        assert caught.value.hint.startswith(("use ", "add "))


@pytest.mark.parametrize(
    ("name", "precision", "thresholds", "problem"),
    [
        ("all-MiniLM-L6-v2", None, {Kind.RERANKER: 0.9}, "`min_tau` is for rerankers, and this is an embedder"),
        (DECODER, None, {Kind.EMBEDDER: 0.9}, "`min_cosine` is for embedders, and this is a decoder"),
        ("all-MiniLM-L6-v2", Precision.INT4, {}, f"embedders are not exported to `int4`: {FOUR_BITS}"),
        ("ms-marco-MiniLM-L-12-v2", Precision.SOURCE, {}, f"rerankers are not exported to `source`: {NOT_GGUF}"),
    ],
)
def test_what_does_not_go_with_a_model_of_the_catalog(
    name: str, precision: Precision | None, thresholds: dict[Kind, float], problem: str
) -> None:
    every = dict.fromkeys(Kind) | thresholds
    with pytest.raises(InputError) as caught:
        check_for_catalog(name, ExportOptions(None, precision, None, every))
    assert caught.value.message == problem
    check_for_catalog(f"somebody/{name}", ExportOptions(None, precision, None, every))


@pytest.mark.parametrize(
    ("provider", "kind", "precision", "message", "hint"),
    [
        (
            Provider.CUDA,
            Kind.EMBEDDER,
            Precision.INT8,
            (
                "embedders are not exported to `int8` for `cuda`: onnxruntime has no CUDA kernels for the matmuls of "
                "int8 encoders"
            ),
            "use `--precision fp16`",
        ),
        (
            Provider.CUDA,
            Kind.DECODER,
            Precision.FP32,
            (
                "decoders are not exported to `fp32` for `cuda`: onnxruntime's attention with a KV cache has no "
                "float32 kernel on CUDA"
            ),
            "use `--precision fp16`",
        ),
        (
            Provider.CUDA,
            Kind.RERANKER,
            Precision.INT4,
            f"rerankers are not exported to `int4` for `cuda`: {FOUR_BITS}",
            "use `--precision fp16`",
        ),
        (
            Provider.COREML,
            Kind.EMBEDDER,
            Precision.INT4,
            (
                "embedders are not exported to `int4` for `coreml`: CoreML has no kernels for weights of 4 bits, and "
                "encoders are quantized to 8 bits at least"
            ),
            "use `--precision fp32`, or `--provider cpu --precision int8` for a small bundle",
        ),
        (
            Provider.COREML,
            Kind.RERANKER,
            Precision.SOURCE,
            f"rerankers are not exported to `source` for `coreml`: {NOT_GGUF}",
            "use `--precision fp32`",
        ),
        (
            Provider.COREML,
            Kind.DECODER,
            None,
            (
                "decoders are not exported for `coreml`: CoreML has no kernels for LLMs: neither attention with a KV "
                "cache nor matmuls of 4 or 8 bits"
            ),
            "use `--provider cpu`",
        ),
        (
            Provider.CPU,
            Kind.EMBEDDER,
            Precision.FP16,
            "embedders are not exported to `fp16`: a CPU computes it in float32, slower than `int8`",
            "add `--provider cuda` or `coreml`, or use `--precision int8`",
        ),
        (
            Provider.CPU,
            Kind.DECODER,
            Precision.FP16,
            (
                "decoders are not exported to `fp16`: a CPU computes it in float32, slower than `int4`, and the bundle "
                "is larger"
            ),
            "add `--provider cuda` for a GPU, or use `--precision int4`",
        ),
    ],
)
def test_what_a_provider_has_no_graphs_for(
    provider: Provider, kind: Kind, precision: Precision | None, message: str, hint: str
) -> None:
    with pytest.raises(InputError) as caught:
        check_supported(provider, kind, precision)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_defaults_by_provider() -> None:
    smollm = find_model(DECODER)
    quantized = checkpoint("Q4_K", spec=smollm)
    assert default_precision(quantized, Kind.DECODER, Provider.CUDA) is Precision.INT4
    assert default_precision(checkpoint(), Kind.EMBEDDER, Provider.CUDA) is Precision.FP16
    assert default_precision(checkpoint(), Kind.RERANKER, Provider.COREML) is Precision.FP32
    for cache in (None, CacheType.FLOAT16):
        assert checked_cache(Kind.DECODER, Precision.INT4, cache, Provider.CUDA) is CacheType.FLOAT16
    with pytest.raises(InputError, match="a graph for `cuda` has a float16 KV cache only") as caught:
        checked_cache(Kind.DECODER, Precision.INT4, CacheType.FLOAT32, Provider.CUDA)
    assert caught.value.hint == "leave out `--cache`"


def test_an_8_bit_graph_for_prompts_is_for_decoders_with_quantized_weights_on_the_cpu() -> None:
    for precision in (Precision.INT4, Precision.INT8, Precision.SOURCE):
        assert checked_prefill(Kind.DECODER, precision, Precision.INT8)
        assert not checked_prefill(Kind.DECODER, precision, None)


@pytest.mark.parametrize(
    ("kind", "precision", "prefill", "provider", "message", "hint"),
    [
        (
            Kind.EMBEDDER,
            Precision.INT8,
            Precision.INT8,
            Provider.CPU,
            "`prefill` is for decoders, and this is an embedder",
            "leave out `--prefill`",
        ),
        (
            Kind.DECODER,
            Precision.INT4,
            Precision.INT8,
            Provider.CUDA,
            "an 8-bit graph for prompts is for the CPU, and this graph is for `cuda`",
            "leave out `--prefill`, or use `--provider cpu`",
        ),
        (
            Kind.DECODER,
            Precision.FP32,
            Precision.INT8,
            Provider.CPU,
            "a graph in `fp32` has no 8-bit graph for prompts",
            "leave out `--prefill`, or choose one of `int4`, `int8`, `source`",
        ),
        (
            Kind.DECODER,
            Precision.INT4,
            Precision.INT4,
            Provider.CPU,
            "`prefill` must be `int8`, not `int4`",
            "leave out `--prefill`, or choose `int8`",
        ),
    ],
)
def test_where_there_is_no_8_bit_graph_for_prompts(
    kind: Kind, precision: Precision, prefill: Precision, provider: Provider, message: str, hint: str
) -> None:
    with pytest.raises(InputError) as caught:
        checked_prefill(kind, precision, prefill, provider)
    assert (caught.value.message, caught.value.hint, caught.value.exit_code) == (message, hint, 2)
