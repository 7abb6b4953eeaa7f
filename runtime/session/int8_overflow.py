"""Whether onnxruntime's int8 matmuls (u8 x s8) overflow on this CPU, found with a probe."""

from __future__ import annotations

from functools import cache
from typing import Any

PRECISION_MODE = "session.x64quantprecision"
"""onnxruntime's session option that converts weights to uint8, whose kernels cannot overflow and do not use VNNI."""
LARGEST = 127 * 255 * 4
"""The exact result of the graph below, in each element."""
# y = MatMulInteger(a, b), opset 13: `a` uint8 (2, 4), `b` a constant int8 (4, 16) of which all are 127.
_OVERFLOW_PROBE = bytes.fromhex(
    "08083a94010a180a01610a0162120179220d4d61744d756c496e74656765721201672a4b0804081010034201624a407f"
    "7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f"
    "7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f5a130a0161120e0a0c080212080a0208020a02080462130a0179120e0a0c080612"
    "080a0208020a0208104202100d"
)
"""The smallest graph that overflows, as the ONNX package writes it."""


@cache
def matmuls_overflow(ort: Any) -> bool:
    """Whether sums of uint8 x int8 saturate; runs the probe once per process.

    Kernels for AVX2 and AVX-512 without VNNI add pairs of products in 16 bits, where they saturate. The probe needs no
    table of CPUs and sees what a hypervisor hides. It takes 0.3 ms.
    """
    # `ortkit doctor` asks for the features where numpy may be broken.
    import numpy as np  # noqa: PLC0415

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry(PRECISION_MODE, "0")
    try:
        session = ort.InferenceSession(_OVERFLOW_PROBE, options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"a": np.full((2, 4), 255, np.uint8)})
    # Where the probe fails, the mode that is exact everywhere.
    except Exception:  # noqa: BLE001 - onnxruntime's exceptions share no base class but Exception
        return True
    return bool((np.asarray(found) != LARGEST).any())
