"""ortkit's runtime: opens a bundle and runs it, without a network, on onnxruntime, tokenizers, numpy and jinja2."""

from importlib import import_module
from typing import TYPE_CHECKING

from . import telemetry

telemetry.switch_off()

# Type checkers and editors read the imports, Python the mapping below: each name is imported when it is first used. A
# process that decodes waits for nothing that embeds, and a command that runs no model not even for numpy. `X as X` says
# to type checkers that a name is public (PEP 484).
if TYPE_CHECKING:
    # ruff would write a statement for each name.
    # isort: off
    from .bundle.bundle import Bundle as Bundle
    from .decoder.chat import Chat as Chat
    from .decoder.decoder import Decoder as Decoder, DecoderPlan as DecoderPlan
    from .encoder.embedder import Embedder as Embedder
    from .encoder.base import Plan as Plan, TruncationWarning as TruncationWarning
    from .errors import AccessError as AccessError, BundleError as BundleError, CheckpointError as CheckpointError, OrtkitError as OrtkitError, InputError as InputError, MissingPartError as MissingPartError, NetworkError as NetworkError, NotFoundError as NotFoundError, NotSignedInError as NotSignedInError, OutOfMemoryError as OutOfMemoryError, OutputError as OutputError, ProviderError as ProviderError, TextError as TextError, TextTooLongError as TextTooLongError, UnsupportedModelError as UnsupportedModelError, WrongKindError as WrongKindError
    from .decoder.generation_options import GenerationOptions as GenerationOptions
    from .decoder.kv_cache import KVCache as KVCache
    from .loading import load as load
    from .bundle.manifest import CacheType as CacheType, Certificate as Certificate, Kind as Kind, Manifest as Manifest, Pooling as Pooling, Precision as Precision, Provider as Provider, Scores as Scores
    from .text.messages import Message as Message, Messages as Messages
    from .encoder.ranking import Ranked as Ranked, Ranking as Ranking
    from .encoder.reranker import PairScores as PairScores, Reranker as Reranker
    from .encoder.embeddings import Embeddings as Embeddings
    from .decoder.sampler import Sampler as Sampler, Sampling as Sampling
    from .decoder.generation import FinishReason as FinishReason, Rates as Rates, Step as Step, TokenLogprob as TokenLogprob, Usage as Usage
    from .decoder.stream import Answer as Answer, Stream as Stream, Token as Token
    from .telemetry import TelemetryWarning as TelemetryWarning
    from .text.tokenizer import LongTexts as LongTexts
    from .encoder.embedding_types import Metric as Metric, VectorType as VectorType, embedding_ranges as embedding_ranges, quantize_embeddings as quantize_embeddings, similarity as similarity

_MODULES = {
    "bundle": "Bundle",
    "chat": "Chat",
    "decoder": "Decoder DecoderPlan",
    "embedder": "Embedder",
    "encoder": "Plan TruncationWarning",
    "errors": (
        "AccessError BundleError CheckpointError OrtkitError InputError MissingPartError NetworkError "
        "NotFoundError NotSignedInError OutOfMemoryError OutputError ProviderError TextError TextTooLongError "
        "UnsupportedModelError WrongKindError"
    ),
    "generation_options": "GenerationOptions",
    "kv_cache": "KVCache",
    "loading": "load",
    "manifest": "CacheType Certificate Kind Manifest Pooling Precision Provider Scores",
    "messages": "Message Messages",
    "ranking": "Ranked Ranking",
    "reranker": "PairScores Reranker",
    "results": "Embeddings",
    "sampler": "Sampler Sampling",
    "steps": "FinishReason Rates Step TokenLogprob Usage",
    "stream": "Answer Stream Token",
    "telemetry": "TelemetryWarning",
    "tokenizer": "LongTexts",
    "vectors": "Metric VectorType embedding_ranges quantize_embeddings similarity",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}
"""The module of each public name."""
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    found: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    # The next time it is found without asking.
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
