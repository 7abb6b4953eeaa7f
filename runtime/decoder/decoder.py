"""Text generation with a bundle of kind decoder."""

from __future__ import annotations

import os
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import SupportsIndex, Unpack

from ..bundle.bundle import GRAPH, TOKENIZER, Bundle
from ..bundle.folder import BundleFolder
from ..bundle.graph_io import decoder_inputs
from ..bundle.kinds import check_kind
from ..bundle.manifest import DecoderFacts, GenerationDefaults, Kind, Provider
from ..errors import BundleError, InputError, TextTooLongError
from ..session.closing import Closable
from ..session.cores import Cores, find_cores
from ..session.onnxruntime_import import check_requirements, onnxruntime_version
from ..session.open_sessions import shared_session
from ..session.session import SessionConfig
from ..text.chat_template import ChatTemplate
from ..text.detokenizer import Detokenizer, Vocabulary
from ..text.messages import EXAMPLE, Messages, messages_of
from ..text.safe_tokenizer import SafeTokenizer, open_tokenizer
from ..text.stop_strings import StopStrings
from ..text.tokenizer import checked_text
from . import prompt_cache as saved_cache
from .generation import Steps
from .generation_options import CheckedOptions, GenerationOptions, checked_options
from .kv_cache import KVCache
from .memory_estimate import run_tokens
from .model_runner import ModelRunner, check_interface
from .prompt_cache import identity_of
from .sampler import Sampling
from .stream import Answer, Stream

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


class Decoder(Closable):
    """A text generation model: continues texts and answers conversations.

    Opened once, used from one thread or many; decoders of the same bundle share its weights. The same prompt and seed
    give the same text on the same machine. `generate` and `chat` return a whole answer, `stream` and `stream_chat` its
    tokens as they come, and `steps` ids without text. Their keywords are those of `GenerationOptions`, and `cache`:

    - `max_tokens` is the most tokens of the answer; by default as many as the context, or the memory, has room for.
    - `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `presence_penalty`, `frequency_penalty`,
      `logit_bias` and `seed` are the fields of `Sampling`, which can be passed as a whole with `sampling`. What is not
      given is what the model's publisher recommends (`decoder.sampling`), and greedy decoding where that is nothing.
    - `sampler` is a function of your own from logits, float32 (vocabulary,), to a token id. It gets a copy, after
      penalties and bias; `temperature`, `top_k`, `top_p`, `min_p` and `seed` have no meaning then and are refused.
    - `stop` is a text, or several, before which the answer ends.
    - `top_logprobs` is how many of the most probable tokens are reported at each place, with their log-probability.
    - `cache` is a KV cache: the prefix of the prompt that it holds is not computed again, and it holds the prompt and
      the answer afterwards. One answer at a time may use it. A cached prompt changes no bit of an answer. Tokens of an
      earlier answer, which were computed one at a time, may in 4 bits: kernels for several tokens, which prefill uses,
      sum in another order.
    - `lookup` is prompt lookup: speculation with n-grams of the text so far wherever that pays, up to twice as fast
      where the answer quotes it, as summaries and edited code do, and no slower where it does not. Which tokens are
      drafted follows from the text alone, and no draft changes a bit of an answer. But kernels for several tokens sum
      in another order than those for one, so that in 4 bits an answer with `lookup` may differ from one without,
      between tokens of about equal probability. `lookup=False` computes one token at a time.

    An unknown keyword is a TypeError. InputError is raised for a prompt or an option that cannot be used, and
    OutOfMemoryError where the KV cache would not fit, before anything is computed.
    """

    def __init__(
        self, bundle: BundleFolder | str | os.PathLike[str], *, threads: int | None = None, context: int | None = None
    ) -> None:
        """Open a bundle.

        `threads` work on each token, by default one for each usable core. `context` is the most tokens of a prompt and
        its answer, by default as many as the model has; the KV cache grows with what is used. Raises NotFoundError,
        BundleError for a bundle that is damaged or of another kind, InputError, and OutOfMemoryError.
        """
        self.bundle = bundle if isinstance(bundle, BundleFolder) else Bundle.open(bundle)
        check_kind(self.bundle, Kind.DECODER)
        manifest = self.bundle.manifest
        if manifest.decoder is None:
            raise BundleError(f"the manifest of `{self.bundle.path}` does not say how its graph continues a text")
        self.facts = manifest.decoder
        self._identity = identity_of(self.bundle)
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
                f"`{self.bundle.path}` expects inputs {list(manifest.inputs)}; supported: those of a decoder with "
                f"{self.facts.layers} layers"
            )
        self.context = self.facts.context_length if context is None else context
        self.cores = find_cores()
        self.threads = threads or self.cores.usable
        check_requirements(self.bundle)
        # In this order: a tokenizer takes the most memory while it is read, a session when it is open.
        self._safe_tokenizer = open_tokenizer(self.bundle.file(TOKENIZER))
        self.session = shared_session(self.bundle.file(GRAPH), SessionConfig.of(manifest, threads=self.threads))
        check_interface(self.session, self.facts)
        self.tokenizer = self._safe_tokenizer.tokenizer
        self.vocabulary = Vocabulary(self.tokenizer)
        self.sampling = stated(self.facts.generation)
        self.run_tokens = run_tokens(manifest, self.facts)

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        facts = f"{self.bundle.manifest.precision.value}, context {self.context}, {self.threads} threads"
        return f"<Decoder {str(self.bundle.path)!r}: {facts}{state}>"

    @property
    def plan(self) -> DecoderPlan:
        """What runs here, and with how much of the machine."""
        fits = self.new_cache().largest_that_fits()
        return DecoderPlan(self.threads, self.cores, self.context, fits, self.session.provider, onnxruntime_version())

    def generate(self, prompt: Prompt, *, cache: KVCache | None = None, **options: Unpack[GenerationOptions]) -> Answer:
        """Continue a text or token ids as they are, and return the whole answer.

        The chat template is not used: `chat` does that. The answer has `text`, `finish_reason`, `usage` and `tokens`.

            >>> answer = decoder.generate("The quick brown fox", max_tokens=8, temperature=0.7, seed=1)
            >>> answer.finish_reason, answer.usage.completion_tokens
            (<FinishReason.LENGTH: 'length'>, 8)
        """
        return self.stream(prompt, cache=cache, **options).answer()

    def stream(self, prompt: Prompt, *, cache: KVCache | None = None, **options: Unpack[GenerationOptions]) -> Stream:
        """Continue a text or token ids as they are, token by token; nothing is computed before the first is asked for.

        >>> text = ""
        >>> for token in decoder.stream("The quick brown fox", max_tokens=8):
        ...     text += token.text
        """
        chosen = checked_options(options, self.sampling)
        stops = StopStrings(chosen.stop)
        steps = self._steps(prompt, cache, chosen)
        return Stream(steps, Detokenizer(self.vocabulary, steps.prompt), stops)

    def chat(self, messages: Messages, *, cache: KVCache | None = None, **options: Unpack[GenerationOptions]) -> Answer:
        """Answer a conversation, given as in OpenAI's API, and return the whole answer.

        `messages` are `Message` objects or mappings with `role` and `content`, a string or a list of parts of type
        `text`. They are rendered with the model's chat template. For a conversation of several turns, `Chat` keeps what
        was computed. Raises InputError for a model without a chat template, and for messages that it refuses.

            >>> answer = decoder.chat([{"role": "user", "content": "Why is the sky blue?"}], max_tokens=8)
            >>> answer.usage.completion_tokens <= 8
            True
        """
        return self.stream_chat(messages, cache=cache, **options).answer()

    def stream_chat(
        self, messages: Messages, *, cache: KVCache | None = None, **options: Unpack[GenerationOptions]
    ) -> Stream:
        """Answer a conversation as `chat` does, token by token.

        >>> with decoder.stream_chat([{"role": "user", "content": "Hello"}], max_tokens=8) as stream:
        ...     pieces = [token.text for token in stream]
        >>> "".join(pieces) == stream.text
        True
        """
        return self.stream(self.encode_exactly(self.apply_chat_template(messages)), cache=cache, **options)

    def apply_chat_template(self, messages: Messages, *, add_generation_prompt: bool = True) -> str:
        r"""Render messages as a prompt, with the model's chat template; `encode_exactly` gives its ids.

        With `add_generation_prompt` it ends where the assistant's next message begins. Raises InputError for a model
        without a chat template, and for messages that it refuses.

            >>> decoder.apply_chat_template([{"role": "user", "content": "Hello"}])
            '<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n'
        """
        template, checked = self._chat_template, messages_of(messages)
        if not checked:
            raise InputError("`messages` must not be empty", hint=EXAMPLE)
        return template.render(checked, for_answer=add_generation_prompt)

    def check_chat_template(self) -> None:
        """Raise InputError for a model without a chat template, and BundleError for one that cannot be read."""
        _ = self._chat_template

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        if self.facts.chat is None:
            raise InputError(
                f"`{self.bundle.path}` has no chat template, so it cannot answer messages",
                hint="have it continue a text with `generate`, or use a model that was trained for conversations",
            )
        return ChatTemplate(self.facts.chat)

    def steps(self, prompt: Prompt, *, cache: KVCache | None = None, **options: Unpack[GenerationOptions]) -> Steps:
        """Continue a prompt, id by id, without text; `stop` is not possible.

        >>> [type(step.id) for step in decoder.steps("The quick brown fox", max_tokens=2)]
        [<class 'int'>, <class 'int'>]
        """
        chosen = checked_options(options, self.sampling)
        if chosen.stop:
            raise InputError("`stop` needs the text of the answer", hint="use `stream` or `generate`")
        return self._steps(prompt, cache, chosen)

    def _steps(self, prompt: Prompt, cache: KVCache | None, chosen: CheckedOptions) -> Steps:
        self._check_open()
        ids = self._ids_of(prompt)
        cache = self.new_cache() if cache is None else self._checked_cache(cache)
        top = chosen.top_logprobs
        if not isinstance(top, SupportsIndex) or not 0 <= top <= self.facts.vocabulary:
            raise InputError(
                f"`top_logprobs` must be from 0 to {self.facts.vocabulary}, the size of the vocabulary, not {top}"
            )
        return Steps(
            ModelRunner(self.session, cache),
            ids,
            max_tokens=self._checked_max_tokens(chosen.max_tokens, len(ids), cache),
            eos_ids=self.facts.eos_ids,
            sampling=chosen.sampling,
            sampler=chosen.sampler,
            run_tokens=self.run_tokens,
            top_logprobs=top,
            lookup=chosen.lookup,
        )

    def new_cache(self) -> KVCache:
        """An empty KV cache, for prompts that begin alike: what they have in common is computed once."""
        return KVCache(self.facts, identity=self._identity, limit=self.context)

    def prefill(self, prompt: Prompt) -> KVCache:
        """Compute the KV cache of a prompt.

        >>> decoder.prefill("The quick brown fox").length == decoder.count_tokens("The quick brown fox")
        True
        """
        self._check_open()
        ids = self._ids_of(prompt)
        cache = self.new_cache()
        # One more than it holds: see `ModelRunner.prefill`.
        cache.check(len(ids) + 1, prompt=len(ids))
        forward = ModelRunner(self.session, cache)
        Steps(forward, ids, max_tokens=1, eos_ids=(), sampling=Sampling(), run_tokens=self.run_tokens).read_prompt()
        return cache

    def save_cache(self, path: str | os.PathLike[str], cache: KVCache) -> None:
        """Write a KV cache to a file, for `load_cache`; raises OutputError."""
        saved_cache.save_cache(path, self._checked_cache(cache), bundle=self.bundle)

    def load_cache(self, path: str | os.PathLike[str]) -> KVCache:
        """Read a KV cache that was saved with the same bundle.

        Raises NotFoundError, InputError for a file of another bundle or one that was changed, and OutOfMemoryError
        where it would not fit.
        """
        cache = self.new_cache()
        saved_cache.load_cache(path, cache, bundle=self.bundle)
        return cache

    def count_tokens(self, prompt: Prompt) -> int:
        """How many tokens a prompt has, a beginning-of-sequence token included where the model has one."""
        return len(self._ids_of(prompt))

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, after the beginning-of-sequence token where the model has one."""
        return begun(self.encode_exactly(checked_text(text, "the prompt")), self.facts)

    def encode_exactly(self, text: str) -> list[int]:
        """The token ids of a text that has its special tokens already, as chat templates write them.

        Raises TextTooLongError for a text of more than several times the context, of which no more is read, and
        InputError for one that the tokenizer cannot read.
        """
        ids = self._safe_tokenizer.encode(text, enough=SEVERAL * self.context)
        if len(ids) > SEVERAL * self.context:
            raise self._too_long(len(ids), "at least ")
        return ids

    def _ids_of(self, prompt: Prompt) -> list[int]:
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
            raise self._too_long(len(ids))
        return ids

    def _too_long(self, tokens: int, bound: str = "") -> TextTooLongError:
        return TextTooLongError(
            f"the prompt has {bound}{tokens} tokens, {tokens - self.context + 1} more than the context of "
            f"{self.context} has room for with an answer",
            hint="shorten it" if self.context == self.facts.context_length else "shorten it, or raise `context`",
            texts=(0,),
        )

    def _checked_max_tokens(self, max_tokens: int | None, prompt: int, cache: KVCache) -> int:
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

    def _checked_cache(self, cache: KVCache) -> KVCache:
        if not isinstance(cache, KVCache):
            raise InputError(
                f"`cache` must be a KVCache, not {type(cache).__name__}", hint="make one with `decoder.new_cache()`"
            )
        # Models that were trained on from the same one have the same facts.
        if cache.facts != self.facts or cache.identity != self._identity:
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
        raise InputError(f"token {place} of the prompt must be an integer, not {type(id_).__name__}")
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
