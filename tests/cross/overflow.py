"""Prints what onnxruntime says of this processor's int8 products: `overflow` or `exact`."""

from __future__ import annotations

import onnxruntime

from runtime.cpu import products_overflow

print("overflow" if products_overflow(onnxruntime) else "exact")
