"""ortkit: export Hugging Face models to quantized ONNX bundles, and run them offline. The public Python API."""

from importlib import import_module
from typing import TYPE_CHECKING

from .runtime.version import __version__ as __version__

# Type checkers and editors read the imports, Python the mapping below: each name is imported when it is first used. A
# process that decodes waits for nothing that embeds, and a command that runs no model not even for numpy. `X as X` says
# to type checkers that a name is public (PEP 484).
if TYPE_CHECKING:
    # ruff would write a statement for each name.
    # isort: off
    from .runtime.bundle.bundle import Bundle as Bundle
    from .runtime.bundle.manifest import (
        Certificate as Certificate,
        Kind as Kind,
        Manifest as Manifest,
        Pooling as Pooling,
        Precision as Precision,
        Provider as Provider,
        Scores as Scores,
    )
    from .runtime.decoder.batch.batch import Batch as Batch, BatchStats as BatchStats, BatchStream as BatchStream
    from .runtime.decoder.chat import Chat as Chat
    from .runtime.decoder.decoder import Decoder as Decoder, DecoderPlan as DecoderPlan
    from .runtime.decoder.generation import Rates as Rates, Usage as Usage
    from .runtime.decoder.generation_options import GenerationOptions as GenerationOptions
    from .runtime.decoder.grammar import Grammar as Grammar
    from .runtime.decoder.cache.kv_cache import KVCache as KVCache
    from .runtime.decoder.sampler import Sampler as Sampler, Sampling as Sampling
    from .runtime.decoder.stream import Answer as Answer, Stream as Stream, Token as Token
    from .runtime.decoder.token_choice import (
        FinishReason as FinishReason,
        Step as Step,
        TokenLogprob as TokenLogprob,
    )
    from .runtime.encoder.base import Plan as Plan, TruncationWarning as TruncationWarning
    from .runtime.encoder.embedder import Embedder as Embedder
    from .runtime.encoder.embedding_types import (
        Metric as Metric,
        VectorType as VectorType,
        embedding_ranges as embedding_ranges,
        quantize_embeddings as quantize_embeddings,
        similarity as similarity,
    )
    from .runtime.encoder.embeddings import Embeddings as Embeddings
    from .runtime.encoder.options import (
        EmbedOptions as EmbedOptions,
        PairOptions as PairOptions,
        RankOptions as RankOptions,
    )
    from .runtime.encoder.ranking import Ranked as Ranked, Ranking as Ranking
    from .runtime.encoder.reranker import Reranker as Reranker
    from .runtime.encoder.searches import PairScores as PairScores
    from .runtime.errors import (
        AccessError as AccessError,
        BundleError as BundleError,
        CheckpointError as CheckpointError,
        InputError as InputError,
        MissingPartError as MissingPartError,
        NetworkError as NetworkError,
        NotFoundError as NotFoundError,
        NotSignedInError as NotSignedInError,
        NotTrustedError as NotTrustedError,
        OrtkitError as OrtkitError,
        OutOfMemoryError as OutOfMemoryError,
        OutputError as OutputError,
        ProviderError as ProviderError,
        QueueFullError as QueueFullError,
        TextError as TextError,
        TextTooLongError as TextTooLongError,
        UnsupportedModelError as UnsupportedModelError,
        WrongKindError as WrongKindError,
    )
    from .runtime.loading import load as load
    from .runtime.telemetry import TelemetryWarning as TelemetryWarning
    from .runtime.text.messages import Message as Message, Messages as Messages
    from .runtime.text.tokenizer import LongTexts as LongTexts
    from .runtime.text.tools import ToolCall as ToolCall
    from .toolkit.search.chunks import ChunkSettings as ChunkSettings
    from .toolkit.search.documents.document import Place as Place
    from .toolkit.search.facts import (
        IndexFacts as IndexFacts,
        IndexProgress as IndexProgress,
        UpdateReport as UpdateReport,
    )
    from .toolkit.search.folder import FolderRules as FolderRules, SkippedFile as SkippedFile
    from .toolkit.search.hits import Hit as Hit, HitScores as HitScores, SearchMode as SearchMode
    from .toolkit.search.index import Index as Index

_RUNTIME = {
    "bundle.bundle": "Bundle",
    "bundle.manifest": "Certificate Kind Manifest Pooling Precision Provider Scores",
    "decoder.batch.batch": "Batch BatchStats BatchStream",
    "decoder.chat": "Chat",
    "decoder.decoder": "Decoder DecoderPlan",
    "decoder.generation": "Rates Usage",
    "decoder.generation_options": "GenerationOptions",
    "decoder.grammar": "Grammar",
    "decoder.cache.kv_cache": "KVCache",
    "decoder.sampler": "Sampler Sampling",
    "decoder.stream": "Answer Stream Token",
    "decoder.token_choice": "FinishReason Step TokenLogprob",
    "encoder.base": "Plan TruncationWarning",
    "encoder.embedder": "Embedder",
    "encoder.embedding_types": "Metric VectorType embedding_ranges quantize_embeddings similarity",
    "encoder.embeddings": "Embeddings",
    "encoder.options": "EmbedOptions PairOptions RankOptions",
    "encoder.ranking": "Ranked Ranking",
    "encoder.reranker": "Reranker",
    "encoder.searches": "PairScores",
    "errors": (
        "AccessError BundleError CheckpointError InputError MissingPartError "
        "NetworkError NotFoundError NotSignedInError NotTrustedError OrtkitError OutOfMemoryError OutputError "
        "ProviderError QueueFullError TextError TextTooLongError UnsupportedModelError WrongKindError"
    ),
    "loading": "load",
    "telemetry": "TelemetryWarning",
    "text.messages": "Message Messages",
    "text.tokenizer": "LongTexts",
    "text.tools": "ToolCall",
}
_SEARCH = {
    "chunks": "ChunkSettings",
    "documents.document": "Place",
    "facts": "IndexFacts IndexProgress UpdateReport",
    "folder": "FolderRules SkippedFile",
    "hits": "Hit HitScores SearchMode",
    "index": "Index",
}
_HOMES = {
    name: f"{folder}.{module}"
    for folder, modules in (("runtime", _RUNTIME), ("toolkit.search", _SEARCH))
    for module, names in modules.items()
    for name in names.split()
}
"""The module of each public name."""
__all__ = list(_HOMES)
__all__ += ["__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    found: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    # The next time it is found without asking.
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
