"""The runtime: opens bundles and runs them offline. Imports only onnxruntime, tokenizers, numpy and jinja2."""

from . import telemetry

telemetry.switch_off()
