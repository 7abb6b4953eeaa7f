"""How onnxruntime is asked for a session: options and config entries, for CUDA and CoreML; `cpu.py` has the CPU's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..cache_folder import usable_folder
from .config import SessionConfig

NO_FALLBACK = "session.disable_cpu_ep_fallback"
"""onnxruntime's session option that makes opening fail where a node has no kernel on the provider."""
RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
"""onnxruntime's session option that records which provider got which node."""


@dataclass(frozen=True)
class Request:
    """What a session is opened with, beside the graph."""

    options: Mapping[str, str] = field(default_factory=dict)
    """Options of the provider."""
    entries: Mapping[str, str] = field(default_factory=dict)
    """Config entries of the session."""
    threads: int = 1
    memory_pattern: bool = True
    """Whether the memory of a run is one block, planned when its shape is first seen."""
    basic_optimizations: bool = False
    """Whether graph optimizers that make operators of onnxruntime's own are off."""
    disabled_optimizers: tuple[str, ...] = ()
    dimensions: Mapping[str, int] = field(default_factory=dict)
    """Symbolic dimension -> its fixed size."""
    cpu_beside: bool = False
    """Whether the CPU is named as a second provider; `placement.py` checks that it gets no node."""
    huge_pages: bool = False
    """Whether the weights are put on huge pages."""
    silent: bool = False
    """Whether onnxruntime's default logger, which is of the whole process, reports fatal errors alone."""


def cuda_request(_ort: Any, config: SessionConfig) -> Request:
    """CUDA alone: onnxruntime refuses to open a graph of which a node would be left to the CPU.

    https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
    """
    entries = {NO_FALLBACK: "1", RECORD_ASSIGNMENT: "1", "session.use_device_allocator_for_initializers": "1"}
    if config.compact_blocks:
        # CUTLASS kernels for weights of 4 and 8 bits: otherwise a prompt's matmuls dequantize the whole weight first.
        entries["ep.cuda.fpa_intb_gemm"] = "1"
    # `device_id` is 0 by default; where it is stated, onnxruntime 1.31 warns that no plugin has the device.
    options = {
        # By default the arena doubles, up to twice the memory that is needed.
        "arena_extend_strategy": "kSameAsRequested",
        # By default float32 matmuls have mantissas of 10 bits.
        "use_tf32": "0",
        "do_copy_in_default_stream": "1",
    }
    if config.max_memory is not None:
        options["gpu_mem_limit"] = str(config.max_memory)
    return Request(
        options=options,
        entries=entries,
        memory_pattern=config.threads is None,
        dimensions=dimensions_of(config),
        # What it says of the provider's library and devices goes to the default logger, on stderr.
        silent=True,
    )


def coreml_request(_ort: Any, config: SessionConfig) -> Request:
    """One program of a fixed shape. The CPU is named beside CoreML, as it requires, and must get no node.

    https://onnxruntime.ai/docs/execution-providers/CoreML-ExecutionProvider.html
    """
    options = {
        "ModelFormat": "MLProgram",
        # With dynamic shapes predictions fail, abort the process or are NaN.
        "RequireStaticInputShapes": "1",
        # The Neural Engine computes in float16 only.
        "MLComputeUnits": "ALL" if config.float16 else "CPUAndGPU",
    }
    # Made here, where the provider is known to be there.
    cache = None if config.model_cache is None else usable_folder(config.model_cache)
    if cache is not None and config.bucket is not None:
        options["ModelCacheDirectory"] = str(cache / str(config.bucket))
    return Request(
        options=options,
        entries={RECORD_ASSIGNMENT: "1"},
        # Others make operators of onnxruntime's own, which CoreML does not have.
        basic_optimizations=True,
        dimensions=dimensions_of(config),
        cpu_beside=True,
    )


def dimensions_of(config: SessionConfig) -> dict[str, int]:
    """The graph's symbolic dimensions that a bucket fixes."""
    return {} if config.bucket is None else {"batch": config.bucket.texts, "tokens": config.bucket.tokens}


def session_options(ort: Any, request: Request) -> Any:
    """Onnxruntime's SessionOptions for a request."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = request.threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = request.memory_pattern
    # Its log quotes the graph, unescaped, on stderr; errors say the same.
    options.log_severity_level = 4
    if request.basic_optimizations:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    for name, value in request.entries.items():
        options.add_session_config_entry(name, value)
    for name, size in request.dimensions.items():
        options.add_free_dimension_override_by_name(name, size)
    return options
