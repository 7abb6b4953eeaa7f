"""Texts continued, with a bundle of kind decoder."""

from __future__ import annotations

import os
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from itertools import count
from typing import SupportsIndex

from runtime.bundle import GRAPH, TOKENIZER, Bundle
from runtime.cores import Cores, find_cores
from runtime.detokenizer import Detokenizer, Vocabulary
from runtime.errors import BundleError, InputError, TextTooLongError
from runtime.footprint import run_tokens
from runtime.forward import ModelRunner, check_interface
from runtime.graph_io import decoder_inputs
from runtime.kinds import check_kind
from runtime.kv_cache import KVCache
from runtime.manifest import DecoderFacts, GenerationDefaults, Kind, Provider
from runtime.onnxruntime_import import check_requirements, onnxruntime_version
from runtime.open_sessions import shared_session
from runtime.safe_tokenizer import SafeTokenizer, open_tokenizer
from runtime.sampler import Sampling
from runtime.saved_cache import identity_of, load_cache, save_cache
from runtime.session import SessionConfig
from runtime.steps import Steps
from runtime.stops import StopStrings
from runtime.stream import Answer, Stream
from runtime.tokenizer import checked_text

SEVERAL = 4
"""Times the context up to which the tokens of a prompt that is too long are counted."""
MOST_THREADS = 1024
"""onnxruntime starts each of them at once, and would not end with a hundred thousand."""
Prompt = str | Sequence[int]
"""A text that is continued as it is, or the ids of its tokens."""


@dataclass(frozen=True)
class DecoderPlan:
    """What a decoder runs with on this machine."""

    threads: int
    """That work on each token."""
    cores: Cores
    context: int
    """The most tokens of a prompt and its answer."""
    fits: int
    """For how many of them there is memory now."""
    provider: Provider
    onnxruntime: str
    """Its version."""


class Decoder:
    """Continues texts; opened once, used from one thread or many. Decoders of the same bundle share its weights.

    The same prompt and seed give the same text on the same machine. Answers come in three ways, each built on the one
    before: `steps` gives ids, `stream` text with them, and `generate` all of it at once. These keywords are the same in
    each of them:

    - `max_tokens` bounds the tokens of the answer; without it, the context does, or the memory where that is less.
    - `sampling` is how the next token is chosen; without it, as the publisher says, which is `decoder.sampling`.
    - `stop` are texts before which the answer ends.
    - `top_logprobs` is for how many of the most probable tokens their logarithm of the probability is told.
    - `cache` holds what was read already: the part of the prompt that it begins with is not read again, and it holds
      the prompt and the answer afterwards. One answer at a time may use it. What was read as a prompt changes no bit of
      an answer. Tokens of an earlier answer, which were read one at a time, may in 4 bits: kernels for several tokens,
      with which a prompt is read, add up in another order.
    - `lookup` drafts tokens from the text so far wherever that pays: up to twice as fast where the answer quotes it, as
      summaries and edited code do, and no slower where it does not. Which tokens are drafted follows from the text
      alone, and no draft changes a bit of an answer. But kernels for several tokens add up in another order than those
      for one, so that in 4 bits an answer with `lookup` may take another turn than one without, between tokens of about
      equal probability. `lookup=False` reads one token at a time.
    """

    def __init__(
        self, bundle: Bundle | str | os.PathLike[str], *, threads: int | None = None, context: int | None = None
    ) -> None:
        """Open a bundle; `threads` work on each token, by default one for each usable core.

        `context` bounds the tokens of a prompt and its answer, by default as the model does.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        check_kind(self.bundle, Kind.DECODER)
        manifest = self.bundle.manifest
        if manifest.decoder is None:
            raise BundleError(f"the manifest of `{self.bundle.path}` does not say how its graph continues a text")
        self.facts = manifest.decoder
        self.identity = identity_of(self.bundle)
        if threads is not None and threads < 1:
            raise InputError(f"`threads` must be at least 1, not {threads}")
        if threads is not None and threads > MOST_THREADS:
            raise InputError(
                f"`threads` must be at most {MOST_THREADS}, not {threads}", hint="leave it out for all cores"
            )
        if context is not None and not 2 <= context <= self.facts.context_length:
            raise InputError(
                f"`context` must be from 2 to {self.facts.context_length}, which the model has, not {context}"
            )
        bos_id = self.facts.bos_id
        if self.facts.add_bos and bos_id is not None and not 0 <= bos_id < self.facts.vocabulary:
            raise BundleError(
                f"the manifest of `{self.bundle.path}` begins texts with token {bos_id}, and the vocabulary has "
                f"{self.facts.vocabulary} tokens"
            )
        if manifest.inputs != decoder_inputs(self.facts.layers):
            raise BundleError(
                f"`{self.bundle.path}` wants the inputs {list(manifest.inputs)}, and those of a decoder with "
                f"{self.facts.layers} layers are known"
            )
        self.context = self.facts.context_length if context is None else context
        self.cores = find_cores()
        self.threads = threads or self.cores.usable
        check_requirements(self.bundle)
        # In this order: a tokenizer takes the most memory while it is read, a session when it is open.
        self.safe_tokenizer = open_tokenizer(self.bundle.file(TOKENIZER))
        self.session = shared_session(self.bundle.file(GRAPH), SessionConfig.of(manifest, threads=self.threads))
        check_interface(self.session, self.facts)
        self.tokenizer = self.safe_tokenizer.tokenizer
        self.vocabulary = Vocabulary(self.tokenizer)
        self.sampling = stated(self.facts.generation)
        self.run_tokens = run_tokens(manifest, self.facts)

    @property
    def plan(self) -> DecoderPlan:
        """What runs here, and with how much of the machine."""
        fits = self.new_cache().largest_that_fits()
        return DecoderPlan(self.threads, self.cores, self.context, fits, self.session.provider, onnxruntime_version())

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        top_logprobs: int = 0,
        cache: KVCache | None = None,
        lookup: bool = True,
    ) -> Answer:
        """Continue a prompt, and return the whole answer."""
        return self.stream(
            prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            top_logprobs=top_logprobs,
            cache=cache,
            lookup=lookup,
        ).answer()

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        top_logprobs: int = 0,
        cache: KVCache | None = None,
        lookup: bool = True,
    ) -> Stream:
        """Continue a prompt, token by token, with the text that each makes certain.

        Raises InputError for a prompt or an option that cannot be used, and OutOfMemoryError where the keys and values
        would not fit, before anything is computed.
        """
        stops = StopStrings(stop)
        steps = self.steps(
            prompt, max_tokens=max_tokens, sampling=sampling, top_logprobs=top_logprobs, cache=cache, lookup=lookup
        )
        return Stream(steps, Detokenizer(self.vocabulary, steps.prompt), stops)

    def steps(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        top_logprobs: int = 0,
        cache: KVCache | None = None,
        lookup: bool = True,
    ) -> Steps:
        """Continue a prompt, id by id."""
        ids = self.ids_of(prompt)
        cache = self.new_cache() if cache is None else self.checked_cache(cache)
        if not 0 <= top_logprobs <= self.facts.vocabulary:
            raise InputError(
                f"`top_logprobs` must be from 0 to {self.facts.vocabulary}, the size of the vocabulary, "
                f"not {top_logprobs}"
            )
        return Steps(
            ModelRunner(self.session, cache),
            ids,
            max_tokens=self.checked_max_tokens(max_tokens, len(ids), cache),
            eos_ids=self.facts.eos_ids,
            sampling=self.sampling if sampling is None else sampling,
            run_tokens=self.run_tokens,
            top_logprobs=top_logprobs,
            lookup=lookup,
        )

    def new_cache(self) -> KVCache:
        """An empty cache for one answer after another that begin alike."""
        return KVCache(self.facts, identity=self.identity, limit=self.context)

    def prefill(self, prompt: Prompt) -> KVCache:
        """Read a prompt, and return the cache that holds it."""
        ids = self.ids_of(prompt)
        cache = self.new_cache()
        # One more than it holds: see `ModelRunner.prefill`.
        cache.check(len(ids) + 1, prompt=len(ids))
        forward = ModelRunner(self.session, cache)
        Steps(forward, ids, max_tokens=1, eos_ids=(), sampling=Sampling(), run_tokens=self.run_tokens).read_prompt()
        return cache

    def save(self, path: str | os.PathLike[str], cache: KVCache) -> None:
        """Write what a cache holds to a file, for `load`; raises OutputError."""
        save_cache(path, self.checked_cache(cache), bundle=self.bundle)

    def load(self, path: str | os.PathLike[str]) -> KVCache:
        """A cache that was saved with the same bundle.

        Raises NotFoundError, InputError for a file of another bundle or one that was changed, and OutOfMemoryError
        where it would not fit.
        """
        cache = self.new_cache()
        load_cache(path, cache, bundle=self.bundle)
        return cache

    def count_tokens(self, prompt: Prompt) -> int:
        """How many tokens a prompt has, the one before a raw text included."""
        return len(self.ids_of(prompt))

    def encode(self, text: str) -> list[int]:
        """The ids of a raw text, after the token that begins one where the model wants that."""
        return begun(self.encode_exactly(checked_text(text, "the prompt")), self.facts)

    def encode_exactly(self, text: str) -> list[int]:
        """The ids of a text that writes its special tokens itself, as chat templates do.

        Raises TextTooLongError for a text of more than several times the context, of which no more is read, and
        InputError for one that the tokenizer cannot read.
        """
        ids = self.safe_tokenizer.encode(text, enough=SEVERAL * self.context)
        if len(ids) > SEVERAL * self.context:
            raise self.too_long(len(ids), "at least ")
        return ids

    def ids_of(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt; raises InputError for one that is empty, holds no ids or fills the context."""
        if not isinstance(prompt, Sized) or getattr(prompt, "ndim", 1) != 1:
            raise InputError("the prompt must be a text or a list of token ids")
        if len(prompt) == 0:
            raise InputError("the prompt is empty", hint="give it at least a word to continue")
        ids = self.encode(prompt) if isinstance(prompt, str) else list(map(checked_id, prompt, count()))
        if not ids:
            raise InputError("the prompt has no tokens", hint="give it at least a word to continue")
        for place, id_ in enumerate(ids):
            if not 0 <= id_ < self.facts.vocabulary:
                raise InputError(
                    f"token {place} of the prompt is {id_}, and the vocabulary has {self.facts.vocabulary} tokens"
                )
        if len(ids) >= self.context:
            raise self.too_long(len(ids))
        return ids

    def too_long(self, tokens: int, bound: str = "") -> TextTooLongError:
        return TextTooLongError(
            f"the prompt has {bound}{tokens} tokens, {tokens - self.context + 1} more than the context of "
            f"{self.context} has room for with an answer",
            hint="shorten it" if self.context == self.facts.context_length else "shorten it, or raise `context`",
            texts=(0,),
        )

    def checked_max_tokens(self, max_tokens: int | None, prompt: int, cache: KVCache) -> int:
        """How many tokens an answer may have after a prompt of so many."""
        context = min(self.context, cache.limit)
        room = max(0, context - prompt)
        if max_tokens is None:
            cache.check(prompt + 1, prompt=prompt)
            return min(room, cache.largest_that_fits() - prompt)
        if not isinstance(max_tokens, SupportsIndex):
            raise InputError(f"`max_tokens` must be an integer, not {type(max_tokens).__name__}")
        if max_tokens < 1:
            raise InputError(f"`max_tokens` must be at least 1, not {max_tokens}")
        if max_tokens > room:
            raise InputError(
                f"`max_tokens` is {max_tokens}, and a prompt of {prompt} tokens leaves {room} in the "
                f"context of {context}"
            )
        # The last token is never read, but as a draft.
        cache.check(prompt + max_tokens, prompt=prompt)
        return max_tokens

    def checked_cache(self, cache: KVCache) -> KVCache:
        if not isinstance(cache, KVCache):
            raise InputError(
                f"`cache` must be a KVCache, not {type(cache).__name__}", hint="make one with `decoder.new_cache()`"
            )
        # Models that were trained on from the same one have the same facts.
        if cache.facts != self.facts or cache.identity != self.identity:
            raise InputError("the cache was made for another model", hint="make one with `decoder.new_cache()`")
        return cache


def encode_text(tokenizer: SafeTokenizer, facts: DecoderFacts, text: str) -> list[int]:
    """The ids of a raw text, after the token that begins one where the model wants that."""
    return begun(encode_exactly(tokenizer, text), facts)


def begun(ids: list[int], facts: DecoderFacts) -> list[int]:
    """Ids after the token that begins a text where the model wants that, unless they begin with it."""
    begins = [facts.bos_id] if facts.add_bos and facts.bos_id is not None else []
    return ids if ids[:1] == begins else [*begins, *ids]


def encode_exactly(tokenizer: SafeTokenizer, text: str) -> list[int]:
    """The ids of a text that writes its special tokens itself."""
    return tokenizer.encode(text)


def checked_id(id_: object, place: int) -> int:
    """An id as Python's integer, whichever integer it is; raises InputError for what is none."""
    if not isinstance(id_, SupportsIndex):
        raise InputError(f"token {place} of the prompt is no integer but {type(id_).__name__}")
    return id_.__index__()


def stated(defaults: GenerationDefaults) -> Sampling:
    """What the publisher says, and greedy where nothing is said; raises BundleError for what nothing could follow."""
    try:
        return Sampling(
            temperature=0.0 if defaults.temperature is None else defaults.temperature,
            top_k=0 if defaults.top_k is None else defaults.top_k,
            top_p=1.0 if defaults.top_p is None else defaults.top_p,
            min_p=0.0 if defaults.min_p is None else defaults.min_p,
            repetition_penalty=1.0 if defaults.repetition_penalty is None else defaults.repetition_penalty,
        )
    except InputError as error:
        raise BundleError(f"the manifest's `decoder.generation` cannot be used: {error.message}") from error
