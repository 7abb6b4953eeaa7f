"""edgekit's runtime: opens a bundle and runs it, with no network and nothing but onnxruntime, tokenizers and numpy."""

from runtime import telemetry

telemetry.switch_off()

from runtime.bundle import Bundle  # noqa: E402
from runtime.embedder import Embedder, Embeddings, TruncationWarning  # noqa: E402
from runtime.errors import (  # noqa: E402
    AccessError,
    BundleError,
    CheckpointError,
    EdgekitError,
    InputError,
    MissingPartError,
    NetworkError,
    NotFoundError,
    NotSignedInError,
    OutputError,
    ProviderError,
    TextTooLongError,
    UnsupportedModelError,
)
from runtime.manifest import Certificate, Kind, Manifest, Pooling, Precision, Provider  # noqa: E402
from runtime.telemetry import TelemetryWarning  # noqa: E402

__all__ = [
    "AccessError",
    "Bundle",
    "BundleError",
    "Certificate",
    "CheckpointError",
    "EdgekitError",
    "Embedder",
    "Embeddings",
    "InputError",
    "Kind",
    "Manifest",
    "MissingPartError",
    "NetworkError",
    "NotFoundError",
    "NotSignedInError",
    "OutputError",
    "Pooling",
    "Precision",
    "Provider",
    "ProviderError",
    "TelemetryWarning",
    "TextTooLongError",
    "TruncationWarning",
    "UnsupportedModelError",
]
