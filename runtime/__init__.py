"""edgekit's runtime: opens a bundle and runs it, without a network, on onnxruntime, tokenizers, numpy and jinja2."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from runtime import telemetry

telemetry.switch_off()

# Each name is imported when it is first asked for: a process that decodes waits for nothing that embeds, and a command
# that runs no model not even for numpy.
if TYPE_CHECKING:
    from runtime.bundle import Bundle
    from runtime.chat import Chat
    from runtime.decoder import Decoder
    from runtime.embedder import Embedder
    from runtime.encoder import Plan, TruncationWarning
    from runtime.errors import (
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
        TextError,
        TextTooLongError,
        UnsupportedModelError,
    )
    from runtime.kv_cache import KVCache
    from runtime.manifest import CacheType, Certificate, Kind, Manifest, Pooling, Precision, Provider, Scores
    from runtime.messages import Message
    from runtime.ranking import Ranked, Ranking
    from runtime.reranker import PairScores, Reranker
    from runtime.results import Embeddings
    from runtime.sampler import Sampling, make_sampler
    from runtime.steps import FinishReason, Rates, Step, TokenLogprob
    from runtime.stream import Answer, Stream, Token
    from runtime.telemetry import TelemetryWarning
    from runtime.tokenizer import LongTexts
    from runtime.vectors import Metric, VectorType, convert, ranges_of, similarity

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
    "TextError",
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

HOMES = {
    "AccessError": "errors",
    "Answer": "stream",
    "Bundle": "bundle",
    "BundleError": "errors",
    "CacheType": "manifest",
    "Certificate": "manifest",
    "Chat": "chat",
    "CheckpointError": "errors",
    "Decoder": "decoder",
    "EdgekitError": "errors",
    "Embedder": "embedder",
    "Embeddings": "results",
    "FinishReason": "steps",
    "InputError": "errors",
    "KVCache": "kv_cache",
    "Kind": "manifest",
    "LongTexts": "tokenizer",
    "Manifest": "manifest",
    "Message": "messages",
    "Metric": "vectors",
    "MissingPartError": "errors",
    "NetworkError": "errors",
    "NotFoundError": "errors",
    "NotSignedInError": "errors",
    "OutOfMemoryError": "errors",
    "OutputError": "errors",
    "PairScores": "reranker",
    "Plan": "encoder",
    "Pooling": "manifest",
    "Precision": "manifest",
    "Provider": "manifest",
    "ProviderError": "errors",
    "Ranked": "ranking",
    "Ranking": "ranking",
    "Rates": "steps",
    "Reranker": "reranker",
    "Sampling": "sampler",
    "Scores": "manifest",
    "Step": "steps",
    "Stream": "stream",
    "TelemetryWarning": "telemetry",
    "TextError": "errors",
    "TextTooLongError": "errors",
    "Token": "stream",
    "TokenLogprob": "steps",
    "TruncationWarning": "encoder",
    "UnsupportedModelError": "errors",
    "VectorType": "vectors",
    "convert": "vectors",
    "make_sampler": "sampler",
    "ranges_of": "vectors",
    "similarity": "vectors",
}
"""The module of each public name."""


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module `runtime` has no attribute `{name}`")
    found: object = getattr(import_module(f"runtime.{HOMES[name]}"), name)
    # The next time it is found without asking.
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
