"""The exact options and config entries that each provider is asked with, as onnxruntime receives them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnxruntime
import pytest

from ortkit import Bundle, Precision, Provider
from ortkit.runtime.bundle.manifest import Layout, WeightBlocks
from ortkit.runtime.session.config import Bucket, SessionConfig
from ortkit.runtime.session.cpu import STOPS_SPINNING, WITHOUT_KLEIDIAI, cpu_request, int8_arithmetic
from ortkit.runtime.session.int8_overflow import PRECISION_MODE
from ortkit.runtime.session.providers import PROVIDERS
from ortkit.runtime.session.request import Request, coreml_request, cuda_request, session_options
from tests.tiny_bundles import write_embedder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_embedder(tmp_path_factory.mktemp("request") / "tiny")


ENCODER = SessionConfig(Provider.CUDA, ("input_ids", "positions"))


def test_cuda_encoder() -> None:
    assert cuda_request(onnxruntime, ENCODER) == Request(
        options={
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "0",
            "do_copy_in_default_stream": "1",
        },
        entries={
            "session.disable_cpu_ep_fallback": "1",
            "session.record_ep_graph_assignment_info": "1",
            "session.use_device_allocator_for_initializers": "1",
        },
        threads=1,
        memory_pattern=True,
        basic_optimizations=False,
        disabled_optimizers=(),
        dimensions={},
        cpu_beside=False,
        huge_pages=False,
        silent=True,
    )


def test_cuda_decoder_with_compact_blocks_and_a_limit() -> None:
    config = dataclasses.replace(ENCODER, threads=8, compact_blocks=True, max_memory=3 << 30)

    request = cuda_request(onnxruntime, config)

    assert request.options == {
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": "3221225472",
        "use_tf32": "0",
        "do_copy_in_default_stream": "1",
    }
    assert request.entries == {
        "session.disable_cpu_ep_fallback": "1",
        "session.record_ep_graph_assignment_info": "1",
        "session.use_device_allocator_for_initializers": "1",
        "ep.cuda.fpa_intb_gemm": "1",
    }
    # A prompt has as many shapes as lengths; threads of the CPU compute nothing.
    assert (request.memory_pattern, request.threads) == (False, 1)


@pytest.mark.parametrize(("float16", "units"), [(False, "CPUAndGPU"), (True, "ALL")])
def test_coreml(float16: bool, units: str) -> None:  # noqa: FBT001
    config = SessionConfig(
        Provider.COREML,
        ("input_ids", "bias"),
        float16=float16,
        bucket=Bucket(8, 128),
        model_cache=Path("/var/cache/ortkit/0123"),
    )

    assert coreml_request(onnxruntime, config) == Request(
        options={
            "ModelFormat": "MLProgram",
            "RequireStaticInputShapes": "1",
            "MLComputeUnits": units,
            "ModelCacheDirectory": "/var/cache/ortkit/0123/8x128",
        },
        entries={"session.record_ep_graph_assignment_info": "1"},
        threads=1,
        memory_pattern=True,
        basic_optimizations=True,
        disabled_optimizers=(),
        dimensions={"batch": 8, "tokens": 128},
        cpu_beside=True,
        huge_pages=False,
    )


def test_coreml_without_a_cache() -> None:
    config = SessionConfig(Provider.COREML, ("input_ids", "bias"), bucket=Bucket(1, 64))

    assert set(coreml_request(onnxruntime, config).options) == {
        "ModelFormat",
        "RequireStaticInputShapes",
        "MLComputeUnits",
    }


def test_cpu() -> None:
    precise = {PRECISION_MODE: "1"} if int8_arithmetic(onnxruntime).precision_mode else {}
    encoder = SessionConfig(Provider.CPU, ("input_ids",), int8=True)
    decoder = SessionConfig(Provider.CPU, ("input_ids",), threads=4, symmetric_blocks=True)

    assert cpu_request(onnxruntime, encoder) == Request(entries=precise, disabled_optimizers=("SkipLayerNormFusion",))
    assert cpu_request(onnxruntime, decoder) == Request(
        entries={WITHOUT_KLEIDIAI: "1"}, threads=4, memory_pattern=False, huge_pages=True
    )


def test_what_onnxruntime_receives() -> None:
    request = Request(
        entries={"session.disable_cpu_ep_fallback": "1"}, threads=3, memory_pattern=False, basic_optimizations=True
    )

    options = session_options(onnxruntime, request)

    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.enable_mem_pattern is False
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # Nothing of its own on stderr.
    assert options.log_severity_level == 4


@pytest.mark.parametrize(
    ("provider", "named"),
    [
        (Provider.CPU, [("CPUExecutionProvider", {})]),
        (Provider.CUDA, [("CUDAExecutionProvider", {"a": "1"})]),
        # It takes no node: `placement.py`.
        (Provider.COREML, [("CoreMLExecutionProvider", {"a": "1"}), "CPUExecutionProvider"]),
    ],
)
def test_the_providers_that_are_named(provider: Provider, named: list[object]) -> None:
    """Beside `disable_cpu_ep_fallback`, onnxruntime refuses the CPU's name."""
    given = {"a": "1"} if provider is not Provider.CPU else {}
    request = Request(options=given, cpu_beside=provider is Provider.COREML)

    assert PROVIDERS[provider].select(onnxruntime, None, request) == named


def test_a_gpu_shares_its_weights_whatever_the_threads(tiny: Bundle) -> None:
    """A session is shared by its config, and threads of the CPU compute nothing there."""
    on_cuda = Bundle(tiny.path, dataclasses.replace(tiny.manifest, provider=Provider.CUDA, layout=Layout.TEXTS_FIRST))

    assert SessionConfig.of(on_cuda, threads=2) == SessionConfig.of(on_cuda, threads=16)
    assert SessionConfig.of(on_cuda, threads=2) != SessionConfig.of(on_cuda)
    assert SessionConfig.of(tiny, threads=2) != SessionConfig.of(tiny, threads=16)


@pytest.mark.parametrize(
    ("blocks", "compact"),
    [
        (WeightBlocks(1, 0, 4, 8, 32, 32, True, "gptq"), True),
        (WeightBlocks(1, 0, 4, 32, 32, 0, True, "gptq"), True),
        (WeightBlocks(1, 0, 4, 4, 64, 64, True, "gptq"), False),
        (WeightBlocks(1, 0, 4, 4, 32, 64, True, "gptq"), False),
        (WeightBlocks(1, 0, 4, 4, 32, 32, False, "gptq"), False),
        (None, False),
    ],
)
def test_the_config_of_a_bundle(tiny: Bundle, blocks: WeightBlocks | None, compact: bool) -> None:  # noqa: FBT001
    """onnxruntime's wheels have fpA_intB kernels for symmetric blocks of 32 alone."""
    manifest = dataclasses.replace(tiny.manifest, precision=Precision.FP16, blocks=blocks)

    config = SessionConfig.of(Bundle(tiny.path, manifest), max_memory=1 << 30)

    assert config.compact_blocks is compact
    assert config.float16
    assert config.max_memory == 1 << 30
    assert config.layout is Layout.TOKENS_FIRST
    assert config.provider is Provider.CPU


def test_threads_of_a_graph_for_prompts_sleep_after_its_run() -> None:
    """They would spin on the cores that the decoding session's threads need."""
    config = SessionConfig(Provider.CPU, (), threads=4)
    assert STOPS_SPINNING not in cpu_request(onnxruntime, config).entries
    assert cpu_request(onnxruntime, config.for_prefill()).entries[STOPS_SPINNING] == "1"
