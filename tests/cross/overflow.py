"""Prints what onnxruntime says of this processor's int8 products: `overflow` or `exact`."""

from __future__ import annotations

import onnxruntime

from ortkit.runtime.session.int8_overflow import matmuls_overflow

print("overflow" if matmuls_overflow(onnxruntime) else "exact")
