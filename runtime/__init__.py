"""edgekit's runtime: opens a bundle and runs it, without a network, on onnxruntime, tokenizers, numpy and jinja2."""

from runtime import telemetry

telemetry.switch_off()

from runtime.bundle import Bundle  # noqa: E402
from runtime.chat import Chat  # noqa: E402
from runtime.decoder import Decoder  # noqa: E402
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
from runtime.kv_cache import KVCache  # noqa: E402
from runtime.manifest import CacheType, Certificate, Kind, Manifest, Pooling, Precision, Provider, Scores  # noqa: E402
from runtime.messages import Message  # noqa: E402
from runtime.ranking import Ranked, Ranking  # noqa: E402
from runtime.reranker import PairScores, Reranker  # noqa: E402
from runtime.results import Embeddings  # noqa: E402
from runtime.sampler import Sampling, make_sampler  # noqa: E402
from runtime.steps import FinishReason, Rates, Step, TokenLogprob  # noqa: E402
from runtime.stream import Answer, Stream, Token  # noqa: E402
from runtime.telemetry import TelemetryWarning  # noqa: E402
from runtime.tokenizer import LongTexts  # noqa: E402
from runtime.vectors import Metric, VectorType, convert, ranges_of, similarity  # noqa: E402

__all__ = [
    "AccessError",
    "Answer",
    "Bundle",
    "BundleError",
    "CacheType",
    "Certificate",
    "Chat",
    "CheckpointError",
    "Decoder",
    "EdgekitError",
    "Embedder",
    "Embeddings",
    "FinishReason",
    "InputError",
    "KVCache",
    "Kind",
    "LongTexts",
    "Manifest",
    "Message",
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
    "Rates",
    "Reranker",
    "Sampling",
    "Scores",
    "Step",
    "Stream",
    "TelemetryWarning",
    "TextTooLongError",
    "Token",
    "TokenLogprob",
    "TruncationWarning",
    "UnsupportedModelError",
    "VectorType",
    "convert",
    "make_sampler",
    "ranges_of",
    "similarity",
]
