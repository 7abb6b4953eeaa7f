"""What depends on the CPU: session options, threads, batches, rows of a run; each with its reason and measurement.

CPU classes are in `cpu_class.py`, figures of a class in `benchmarks/results/CLASS/`, and `benchmarks/README.md` says
how they were measured. One choice follows from the class, `int8_prefill_pays`; one asks a probe (`int8_overflow.py`),
which sees what a hypervisor hides, and the others were best, or cost nothing, on every class that was measured.

Not of the CPU but of the kernel of the system: which memory is put on huge pages (`huge_pages.py`,
`decoder/cache/cache_memory.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .config import SessionConfig
from .cores import Cores
from .cpu_class import CpuClass, cpu_features
from .int8_overflow import PRECISION_MODE, matmuls_overflow
from .request import Request, dimensions_of

WITHOUT_KLEIDIAI = "mlas.disable_kleidiai"
"""onnxruntime's session option that disables KleidiAI's kernels for 4-bit matmuls on ARM.

Those for symmetric weights quantize activations per row instead of per block: a decoder with the blocks of its GGUF
file has a KL divergence of 0.037 to 0.043 from exact matmuls, and 0.007 with onnxruntime's own kernels (qemu,
Cortex-A76 and Neoverse-V1). Those for weights with zero points quantize per block and are kept. x86 has no KleidiAI.
"""
STOPS_SPINNING = "session.force_spinning_stop"
"""onnxruntime's session option that lets a session's threads sleep as soon as its last run ends."""
# Measured on encoders, x86 with VNNI: for 256 sentences the fused operator takes 292 ms, the two that it replaces 51.
# Its counterpart for decoders, without a mean, is faster.
DISABLED_OPTIMIZERS = ("SkipLayerNormFusion",)
"""Graph optimizers of onnxruntime that are disabled for encoders on the CPU."""
BATCH_TOKENS = 256
"""Tokens in one run of an encoder's graph: more is not faster on a CPU, and the activations fit in its cache."""
RUN_COSTS = {2: 1.22, 4: 1.95, 8: 3.34}
"""Rows of a decoder's run with a draft -> its time relative to a run of one row (int4, two threads).

Measured on x86 with AVX2 alone. With VNNI a draft costs less (1.07, 1.55 and 2.4), so drafts that pay by these figures
pay there too; other classes were not measured. One table for all: which tokens are drafted is the same everywhere.
"""


@dataclass(frozen=True)
class Int8Arithmetic:
    """How int8 matmuls run on this CPU."""

    precision_mode: bool
    """Whether onnxruntime's slower mode, which cannot overflow, is on."""
    features: tuple[str, ...]
    """Those of FEATURES that the CPU has; empty where the system does not say."""

    @property
    def reason(self) -> str:
        """The reason, for people."""
        if self.precision_mode:
            return "int8 matmuls overflow in onnxruntime's faster mode on this CPU, so its precision mode is on"
        return "int8 matmuls are exact on this CPU, so onnxruntime's slower precision mode is off"


def int8_arithmetic(ort: Any) -> Int8Arithmetic:
    """How to run int8 matmuls with this onnxruntime on this CPU."""
    return Int8Arithmetic(matmuls_overflow(ort), cpu_features())


def cpu_request(ort: Any, config: SessionConfig) -> Request:
    """The session of a graph on the CPU: a decoder's threads share each matmul, an encoder's session has one thread."""
    entries = {}
    # Needed without VNNI, where int8 is wrong otherwise. With VNNI it makes int8 slow: 437 sentences/s instead of 725,
    # 906 microseconds a query instead of 630 (all-MiniLM-L6-v2, two Zen 5 cores).
    if config.int8 and int8_arithmetic(ort).precision_mode:
        entries[PRECISION_MODE] = "1"
    # The threads of a session go on spinning after its run, on the cores that the next session's threads need.
    if config.beside_another:
        entries[STOPS_SPINNING] = "1"
    if config.symmetric_blocks:
        entries[WITHOUT_KLEIDIAI] = "1"
    decoder = config.threads is not None
    return Request(
        entries=entries,
        threads=config.threads or 1,
        # Without the plan every operator takes its output from what the other core's run has just freed, and fetches
        # it out of that core's cache. A decoder's prompts have as many shapes as lengths, and a plan for each would
        # never be freed.
        memory_pattern=not decoder,
        disabled_optimizers=() if decoder else DISABLED_OPTIMIZERS,
        dimensions=dimensions_of(config),
        # A decoder reads all its weights for each token; an encoder's are small and read once for many.
        huge_pages=decoder,
    )


def encoder_workers(cores: Cores) -> int:
    """Batches of an encoder that run at once: one for each core.

    Two workers on one session of one thread beat a session of two threads by 10 to 30% (x86 with VNNI).
    """
    return cores.usable


def decoder_threads(cores: Cores) -> int:
    """Threads of each matmul of a decoder: one for each core. A token's matmuls come one after the other."""
    return cores.usable


def needs_even_rows(device: str) -> bool:
    """Whether each run of a decoder gets an even number of rows, by padding, so that its bits do not depend on others.

    onnxruntime's 4-bit kernels (MatMulNBits, group size 64 and 128) compute the last row of an odd number like a single
    row, with other bits. With an even number in every run, KV cache and logits do not depend on how a prompt is split
    into runs. Done on all CPUs, since onnxruntime does not say which kernel runs. On a GPU bits depend on the number of
    rows anyway: it has different kernels for few and for many.
    """
    return device == "cpu"


def int8_prefill_pays(cpu: CpuClass) -> bool:
    """Whether the 8-bit graph for prompts, where a bundle has one, is used unless something else is asked for.

    x86 with VNNI (two Zen 4 cores, SmolLM2's shapes): u8 x s8 matmuls with a scale per token do 0.41 to 0.65 TOPS with
    64 to 512 rows, 4-bit MatMulNBits 0.19 to 0.26, so a prompt of 900 tokens is read 1.7 times as fast. With AMX too
    (two cores of a Xeon, 8 rounds). On x86 with AVX2 alone (two Zen 3 cores, 5 rounds), where u8 x s8 needs
    onnxruntime's slower precision mode (`int8_overflow.py`), 900 tokens are read 1.37 (1.07 to 1.47) times as fast, but
    a new process takes 1.56 times as long to its first token after them: off unless asked for. Other classes were not
    measured with this graph.
    """
    return cpu in {CpuClass.X86_AMX, CpuClass.X86_VNNI}
