"""edgekit's runtime: opens a bundle and runs it, with no network and nothing but onnxruntime, tokenizers and numpy."""

from runtime import telemetry

telemetry.switch_off()

from runtime.bundle import Bundle  # noqa: E402
from runtime.embedder import Embedder  # noqa: E402
from runtime.encoder import Plan, TruncationWarning  # noqa: E402
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
    OutOfMemoryError,
    OutputError,
    ProviderError,
    TextTooLongError,
    UnsupportedModelError,
)
from runtime.manifest import Certificate, Kind, Manifest, Pooling, Precision, Provider, Scores  # noqa: E402
from runtime.ranking import Ranked, Ranking  # noqa: E402
from runtime.reranker import PairScores, Reranker  # noqa: E402
from runtime.results import Embeddings  # noqa: E402
from runtime.telemetry import TelemetryWarning  # noqa: E402
from runtime.tokenizer import LongTexts  # noqa: E402
from runtime.vectors import Metric, VectorType, convert, ranges_of, similarity  # noqa: E402

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
    "LongTexts",
    "Manifest",
    "Metric",
    "MissingPartError",
    "NetworkError",
    "NotFoundError",
    "NotSignedInError",
    "OutOfMemoryError",
    "OutputError",
    "PairScores",
    "Plan",
    "Pooling",
    "Precision",
    "Provider",
    "ProviderError",
    "Ranked",
    "Ranking",
    "Reranker",
    "Scores",
    "TelemetryWarning",
    "TextTooLongError",
    "TruncationWarning",
    "UnsupportedModelError",
    "VectorType",
    "convert",
    "ranges_of",
    "similarity",
]
