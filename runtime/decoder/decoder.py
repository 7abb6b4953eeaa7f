"""Text generation with a bundle of kind decoder (an LLM)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from threading import Lock
from typing import Unpack

from ..arguments import checked_integer, takes_keywords
from ..bundle.bundle import GRAPH, PREFILL_GRAPH, TOKENIZER, Bundle
from ..bundle.folder import BundleFolder
from ..bundle.graph_io import decoder_inputs
from ..bundle.kinds import check_kind
from ..bundle.manifest import DecoderFacts, GenerationDefaults, Kind, PrefillChoice, Provider
from ..bundle.records import choice
from ..errors import BundleError, InputError, MissingPartError, TextTooLongError
from ..session.closing import ClosableModel
from ..session.config import SessionConfig
from ..session.cores import Cores, find_cores
from ..session.cpu import decoder_threads
from ..session.cpu_class import CpuClass, this_cpu_class
from ..session.first_use import check_first_use
from ..session.memory_limit import MemoryLimit, max_memory_of
from ..session.onnxruntime_import import check_requirements, onnxruntime_version
from ..session.open_sessions import shared_session
from ..session.opening import check_opening
from ..session.parallel_opening import open_in_parallel
from ..session.session import Session
from ..text.chat_template import ChatTemplate
from ..text.control_tokens import ControlTokens
from ..text.detokenizer import Detokenizer, Vocabulary
from ..text.messages import EXAMPLE, Messages, messages_of
from ..text.safe_tokenizer import open_tokenizer
from ..text.stop_strings import StopStrings
from ..text.tokenizer import checked_text
from ..text.tool_calls import ToolForm, form_of, markers_of
from ..text.tools import Calls, ToolChoice, chosen_tools, tools_of
from .cache import prompt_cache as saved_cache
from .cache.cache_memory import memory_of
from .cache.kv_cache import KVCache
from .cache.prompt_cache import identity_of, other_prefill
from .cache_room import CacheRoom
from .generation import Steps
from .generation_options import CheckedOptions, GenerationOptions, checked_options
from .golden import compare_answers, golden_answers
from .grammar import Grammar, GrammarCompiler
from .memory_estimate import run_tokens
from .model_runner import ModelRunner, check_interface
from .prefill_choice import takes_int8_prefill
from .prompt import Prompt, begun, checked_id, checked_max_tokens
from .sampler import Sampling
from .stream import Answer, Stream
from .token_choice import TokenChoice
from .tool_use import ToolUse, tool_grammar, with_calls

_SEVERAL = 4
"""Tokens of a prompt that is too long are counted up to this many times the context."""
_SLOTS = 8
"""Sequences that `generate_many` and `chat_many` run at once."""
_MOST_THREADS = 1024
"""onnxruntime starts all of them when it opens a graph, and hangs with a hundred thousand."""


@dataclass(frozen=True)
class DecoderPlan:
    """How a decoder runs on this machine: `decoder.plan`."""

    threads: int
    """Threads of each matmul."""
    cores: Cores
    """CPU cores of the machine, and how many of them are usable."""
    context: int
    """Limit of prompt and answer together, in tokens."""
    fits: int
    """Number of tokens that there is memory for now, at most `context`."""
    max_memory: int | None
    """Limit on the memory, in bytes; None without one."""
    provider: Provider
    onnxruntime: str
    """Its version."""
    cpu_class: CpuClass
    """The class of this machine's CPU, on which speed depends."""
    prefill: PrefillChoice
    """`int8`: prompts go through the bundle's 8-bit graph; `none`: through the one that decodes."""


class Decoder(ClosableModel):
    """An LLM: continues texts and answers conversations. Thread-safe; decoders of the same bundle share its weights.

    On the CPU, the same prompt and seed give the same text on the same machine. `generate` and `chat` return a complete
    answer, `stream` and `stream_chat` its tokens as they come, and `steps` token ids without text.

        >>> decoder.chat([{"role": "user", "content": "Hello"}], max_tokens=8, temperature=0.7, seed=1).finish_reason
        <FinishReason.LENGTH: 'length'>

    Keywords are those of `GenerationOptions`, and `cache`:

    - `max_tokens`: largest number of tokens of the answer; default: as many as fit in the context and the memory.
    - `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `presence_penalty`, `frequency_penalty`,
      `logit_bias`, `seed`: the fields of `Sampling`, which can be passed as one object with `sampling`. Defaults: the
      publisher's recommendation (`decoder.sampling`), or greedy decoding.
    - `sampler`: a custom function from logits, float32 (vocabulary,), to a token id. It gets a copy, after penalties
      and bias; `temperature`, `top_k`, `top_p`, `min_p` and `seed` are refused with it.
    - `stop`: a string or strings; the answer ends before them.
    - `top_logprobs`: number of most probable tokens to report at each position, with log-probabilities. They are the
      model's, before penalties, temperature and grammar.
    - `grammar`: a grammar of `decoder.grammar` that the answer follows: a JSON schema, for example. `response_format`
      is the same in the format of OpenAI's API. They work together with all other options.
    - `cache`: a KV cache. The cached prefix of the prompt is not computed again; afterwards the cache holds prompt and
      answer. One answer at a time may use it. On the CPU, cached tokens of a prompt do not change the answer, bit for
      bit. Cached tokens of an earlier answer may, with 4-bit weights: they ran one at a time, and the kernels of the
      prefill sum in another order.
    - `lookup`: prompt lookup, speculation with n-grams of the text so far. Up to twice as fast where the answer quotes
      the text (summaries, code edits), and no slower elsewhere. Drafts do not change the answer. Kernels for several
      tokens sum in another order than those for one, so with 4-bit weights an answer may differ from the one with
      `lookup=False` where tokens are about equally probable.

    A GPU has other kernels for each number of tokens that are computed at once, so all of this holds on the CPU only:
    on a GPU drafts and cached tokens change an answer's last bits.

    Raises TypeError for an unknown keyword, InputError for an invalid prompt or option, TextTooLongError for a prompt
    over the context, and OutOfMemoryError where the KV cache does not fit; all before anything is computed. A GPU may
    run out of memory in the middle of an answer: OutOfMemoryError says so and has the `answer` so far, and a stream
    keeps its text and continues the answer when its next token is taken.
    """

    def __init__(
        self,
        bundle: BundleFolder | str | os.PathLike[str],
        *,
        threads: int | None = None,
        context: int | None = None,
        max_memory: int | None = None,
        prefill: PrefillChoice | str = PrefillChoice.AUTO,
    ) -> None:
        """Open a bundle.

        `threads` is the number of threads of each matmul, by default one for each usable CPU core. `context` limits
        prompt and answer together, in tokens, by default to the model's context length; the KV cache grows as needed.
        `max_memory` limits the memory of this process, in bytes, or the GPU memory of a bundle for CUDA; default: the
        environment variable ORTKIT_MAX_MEMORY, or none. `plan.fits` says how many tokens fit; answers do not change.
        `prefill` is for bundles with an 8-bit graph for prompts: `auto` uses it where it is faster on this
        class of CPU, as `plan.prefill` says, `int8` always and `none` never. Answers may differ by it, not by memory.
        Raises NotFoundError, BundleError for a damaged bundle, WrongKindError, InputError, ProviderError and
        OutOfMemoryError.
        """
        self.bundle = bundle if isinstance(bundle, BundleFolder) else Bundle.open(bundle)
        check_kind(self.bundle, Kind.DECODER)
        manifest = self.bundle.manifest
        if manifest.decoder is None:
            raise BundleError(f"the manifest of `{self.bundle.path}` has no section `decoder`")
        self.facts = manifest.decoder
        """Architecture, special tokens and chat template, from the manifest."""
        asked = choice(PrefillChoice, prefill, "prefill")
        if threads is not None and checked_integer(threads, "threads") > _MOST_THREADS:
            raise InputError(
                f"`threads` must be at most {_MOST_THREADS}, not {threads}", hint="leave it out to use all CPU cores"
            )
        most = self.facts.context_length
        if context is not None and not 2 <= checked_integer(context, "context", least=None) <= most:
            raise InputError(f"`context` must be from 2 to {most}, the model's context length, not {context}")
        _check_manifest(self.bundle, self.facts)
        self.context = self.facts.context_length if context is None else context
        """Limit of prompt and answer together, in tokens."""
        self._cores = find_cores()
        self.threads = threads or decoder_threads(self._cores)
        """Number of threads of each matmul."""
        check_requirements(self.bundle)
        self.max_memory = max_memory_of(max_memory)
        """Limit on the memory, in bytes: of the process on the CPU, of the model on a GPU; None without one."""
        on_cpu = self.bundle.provider is Provider.CPU
        limit = MemoryLimit(self.max_memory) if on_cpu and self.max_memory is not None else None
        config = SessionConfig.of(self.bundle, threads=self.threads, max_memory=None if on_cpu else self.max_memory)
        prompts = config.for_prefill() if takes_int8_prefill(self.bundle, asked) else None
        self._identity = identity_of(self.bundle, int8_prefill=prompts is not None)
        if limit is not None:
            check_opening(limit, self.bundle, config, prefill=prompts)
        # Within a limit one after the other: a tokenizer needs the most memory while it is parsed, a session while it
        # is open.
        self.session = open_in_parallel(
            lambda begins: _opened(self.bundle, GRAPH, config, self.facts, begins=begins),
            self._open_tokenizer,
            parallel=limit is None and self._cores.usable > 1,
        )
        self.prefill_session = None if prompts is None else _opened(self.bundle, PREFILL_GRAPH, prompts, self.facts)
        """The session of the 8-bit graph that prompts go through; None where they go through `session`."""
        self.tokenizer = self._safe_tokenizer.tokenizer
        self.vocabulary = Vocabulary(self.tokenizer)
        self.sampling = _default_sampling(self.facts.generation)
        """Default sampling parameters: the publisher's recommendation, or greedy decoding."""
        self.run_tokens = run_tokens(manifest, self.facts)
        """Largest number of tokens in one run of the prefill."""
        self._grammar_lock = Lock()
        self._made_grammar_compiler: GrammarCompiler | None = None
        # What `max_memory` leaves for KV caches.
        self.room: CacheRoom | None = None
        if limit is not None:
            self.room = CacheRoom(limit, self.bundle, self.facts, self._safe_tokenizer, self.run_tokens)
            self.run_tokens = self.room.run_tokens
            if context is not None:
                self.room.check_context(context)
        check_first_use(self.bundle, self._compare_golden)

    def close(self) -> None:
        """Release the weights, of both graphs; a second call does nothing. Calls on other threads may fail."""
        super().close()
        self.prefill_session = None

    def _open_tokenizer(self) -> None:
        self._safe_tokenizer = open_tokenizer(self.bundle.file(TOKENIZER))

    def _compare_golden(self) -> None:
        """Run a golden answer; raises DisagreementError where its log-probabilities are not the certified ones."""
        certificate = self.bundle.manifest.certificate
        answers = [] if certificate is None else golden_answers(certificate)
        if answers:
            compare_answers(self, answers[:1])

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        facts = f"{self.bundle.manifest.precision.value}, context {self.context}, {self.threads} threads"
        return f"<Decoder {str(self.bundle.path)!r}: {facts}{state}>"

    @property
    def plan(self) -> DecoderPlan:
        """How this model runs on this machine."""
        fits = self.new_cache().largest_that_fits()
        return DecoderPlan(
            threads=self.threads,
            cores=self._cores,
            context=self.context,
            fits=fits,
            max_memory=self.max_memory,
            provider=self.session.provider,
            onnxruntime=onnxruntime_version(),
            cpu_class=this_cpu_class(),
            prefill=PrefillChoice.NONE if self.prefill_session is None else PrefillChoice.INT8,
        )

    @takes_keywords(GenerationOptions)
    def generate(self, prompt: Prompt, *, cache: KVCache | None = None, **options: Unpack[GenerationOptions]) -> Answer:
        """Continue a raw text or token ids, and return the complete answer.

        Does not use the chat template; `chat` does. The answer has `text`, `finish_reason`, `usage` and `tokens`.

            >>> answer = decoder.generate("The quick brown fox", max_tokens=8, temperature=0.7, seed=1)
            >>> answer.finish_reason, answer.usage.completion_tokens
            (<FinishReason.LENGTH: 'length'>, 8)
        """
        return self.stream(prompt, cache=cache, **options).answer()

    @takes_keywords(GenerationOptions)
    def stream(self, prompt: Prompt, *, cache: KVCache | None = None, **options: Unpack[GenerationOptions]) -> Stream:
        """Continue a raw text or token ids, token by token; computed lazily.

        >>> text = ""
        >>> for token in decoder.stream("The quick brown fox", max_tokens=8):
        ...     text += token.text
        """
        chosen = checked_options(options, self.sampling)
        stops = StopStrings(chosen.stop)
        steps = self._steps(prompt, cache, chosen)
        return Stream(steps, Detokenizer(self.vocabulary, steps.prompt), stops)

    @takes_keywords(GenerationOptions)
    def chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        tool_choice: ToolChoice | None = None,
        cache: KVCache | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Answer:
        """Answer a conversation, given in the format of OpenAI's API, and return the complete answer.

        `messages` are `Message` objects or mappings with `role` and `content`, a string or a list of parts of type
        `text`; the model's chat template renders them. For several turns, `Chat` keeps the KV cache. Raises InputError
        for a model without a chat template, and for messages that the template refuses.

        `tools` are functions that the model may call, in the format of OpenAI's API. The answer has the calls in
        `tool_calls`, and `text` is what stands beside them. `tool_choice` is `auto` (default), `none`, `required`, or a
        function by its name. With the extra `grammar`, the arguments of calls follow the functions' JSON schemas; what
        of a schema cannot be enforced is an error for a function with `strict`, and ignored otherwise. Raises
        InputError for a model whose template does not use tools, or describes calls in a form that is not supported.

            >>> answer = decoder.chat([{"role": "user", "content": "Why is the sky blue?"}], max_tokens=8)
            >>> answer.usage.completion_tokens <= 8
            True
        """
        stream = self.stream_chat(messages, tools=tools, tool_choice=tool_choice, cache=cache, **options)
        answer = stream.answer()
        use = self.tool_use(tools, tool_choice=tool_choice)
        return answer if use is None else with_calls(answer, use)

    @takes_keywords(GenerationOptions)
    def stream_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        tool_choice: ToolChoice | None = None,
        cache: KVCache | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Stream:
        """Answer a conversation as `chat` does, token by token.

        With `tools`, push the tokens into `decoder.tool_use(tools).parser()`, which divides them into text and calls.

        >>> with decoder.stream_chat([{"role": "user", "content": "Hello"}], max_tokens=8) as stream:
        ...     pieces = [token.text for token in stream]
        >>> "".join(pieces) == stream.text
        True
        """
        use = self.tool_use(tools, tool_choice=tool_choice)
        prompt, options = self.chat_prompt(messages, use, tools, options)
        return self.stream(prompt, cache=cache, **options)

    def chat_prompt(
        self,
        messages: Messages,
        use: ToolUse | None,
        tools: Sequence[Mapping[str, object]] | None,
        options: GenerationOptions,
    ) -> tuple[list[int], GenerationOptions]:
        """The token ids of a conversation, and the options of its answer, which may call the `tools` as in `use`."""
        if use is not None:
            if options.get("grammar") is not None or options.get("response_format") is not None:
                raise InputError(
                    "`tools` cannot be used with `grammar` or `response_format`",
                    hint='leave one of them out, or pass `tool_choice="none"`',
                )
            options = {**options, "grammar": use.grammar}
        prompt = self.apply_chat_template(messages, tools=None if use is None else tools)
        return self.encode_exactly(prompt), options

    @takes_keywords(GenerationOptions)
    def generate_many(
        self, prompts: Iterable[Prompt], *, slots: int = _SLOTS, **options: Unpack[GenerationOptions]
    ) -> list[Answer]:
        """Continue several raw texts or lists of token ids at once, with the same options: the answers in their order.

        Much faster than one after another; a `Batch` with up to `slots` sequences at a time computes them. Each answer
        is what its prompt would get alone; `Batch` says how it may differ from that of `generate`. CPU only. Raises
        what `generate` raises, before anything is computed where a prompt is the cause; the message says which.

            >>> answers = decoder.generate_many(["The quick brown fox", "The lazy dog"], max_tokens=8)
            >>> [answer.usage.completion_tokens for answer in answers]
            [8, 8]
        """
        # An answer alone needs none of it.
        from .batch.many_answers import answer_all, listed  # noqa: PLC0415

        return answer_all(self, listed(prompts, "prompts"), slots=slots, options=options)

    @takes_keywords(GenerationOptions)
    def chat_many(
        self,
        conversations: Iterable[Messages],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        tool_choice: ToolChoice | None = None,
        slots: int = _SLOTS,
        **options: Unpack[GenerationOptions],
    ) -> list[Answer]:
        """Answer several conversations at once, as `generate_many` does texts: the answers in their order.

        >>> questions = [[{"role": "user", "content": text}] for text in ("Why is the sky blue?", "Hello")]
        >>> [answer.usage.completion_tokens for answer in decoder.chat_many(questions, max_tokens=8)]
        [8, 8]
        """
        from .batch.many_answers import listed, numbered  # noqa: PLC0415

        use = self.tool_use(tools, tool_choice=tool_choice)
        prompts = [
            numbered(self.chat_prompt, index)(messages, use, tools, options)
            for index, messages in enumerate(listed(conversations, "conversations"))
        ]
        # The options of all are the same.
        options = prompts[0][1] if prompts else options
        answers = self.generate_many([prompt for prompt, _ in prompts], slots=slots, **options)
        return answers if use is None else [with_calls(answer, use) for answer in answers]

    def tool_use(
        self, tools: Sequence[Mapping[str, object]] | None, *, tool_choice: ToolChoice | None = None
    ) -> ToolUse | None:
        """How an answer uses tools: the grammar that it follows, and the parser of its calls; None without tools.

        Raises InputError for tools and choices that are not valid, and for a model that does not call functions in a
        supported form; MissingPartError where a call must be made, and the extra `grammar` is not installed.

            >>> decoder.tool_use([], tool_choice="none") is None
            True
        """
        checked = [] if tools is None else tools_of(tools)
        callable_tools, calls = chosen_tools(checked, tool_choice)
        if not callable_tools:
            return None
        template = self._chat_template
        template.check_tools()
        form = form_of(template.facts.template)
        must = calls is not Calls.ANY
        if form is None or (must and form is ToolForm.PYTHONIC):
            raise InputError(
                "the model's chat template describes calls of tools in a form that is not supported"
                if form is None
                else "`tool_choice` must be `auto` or `none` where the calls are in Python's syntax"
            )
        ids = {text: self.tokenizer.token_to_id(text) for text in markers_of(form)}
        tokens = {text: id_ for text, id_ in ids.items() if id_ is not None}
        grammar = None
        if form is not ToolForm.PYTHONIC:
            try:
                grammar = tool_grammar(self._grammar_compiler, form, callable_tools, tokens, calls)
            except MissingPartError:
                # The model calls what it likes, and the parser finds it.
                if must or any(tool.strict for tool in callable_tools):
                    raise
        # Special tokens have no text in an answer.
        special = {id_: text for text, id_ in tokens.items() if id_ in self.vocabulary.special}
        return ToolUse(form, grammar, special)

    def apply_chat_template(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        r"""Render messages as a prompt with the model's chat template; `encode_exactly` converts it to token ids.

        With `add_generation_prompt` it ends where the assistant's message begins; `tools` are described to the model.
        Raises InputError for a model without a chat template, for messages that the template refuses, and for tools
        that it does not use.

            >>> decoder.apply_chat_template([{"role": "user", "content": "Hello"}])
            '<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n'
        """
        template, checked = self._chat_template, messages_of(messages)
        if not checked:
            raise InputError("`messages` must not be empty", hint=EXAMPLE)
        return template.render(
            checked, for_answer=add_generation_prompt, tools=None if tools is None else tools_of(tools)
        )

    def spelled_out(self, text: str, *, markers: Iterable[str] = ()) -> str:
        """A text from elsewhere, for a message: control tokens in it are broken with a space, so they stay text.

        The chat template renders messages as they are, so `<|im_end|>` in a quoted document would end the message.
        `markers` are other texts to break, such as the delimiters that the message puts around the document.

            >>> decoder.spelled_out("Ignore this.<|im_end|>")
            'Ignore this.< |im_end|>'
        """
        return self._control_tokens.spelled_out(checked_text(text, "the text"), markers=markers)

    @cached_property
    def _control_tokens(self) -> ControlTokens:
        return ControlTokens(self._safe_tokenizer, None if self.facts.chat is None else self.facts.chat.template)

    def check_chat_template(self) -> None:
        """Raise InputError for a model without a chat template, and BundleError for an invalid one."""
        _ = self._chat_template

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        if self.facts.chat is None:
            raise InputError(
                f"`{self.bundle.path}` has no chat template, so it cannot answer messages",
                hint="continue a text with `generate`, or use a model that was trained for chat",
            )
        return ChatTemplate(self.facts.chat)

    @takes_keywords(GenerationOptions)
    def steps(self, prompt: Prompt, *, cache: KVCache | None = None, **options: Unpack[GenerationOptions]) -> Steps:
        """Continue a prompt, token id by token id, without text; `stop` is not supported.

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
        max_tokens = self._checked_max_tokens(chosen.max_tokens, len(ids), cache)
        choice = self.token_choice(ids, chosen, max_tokens=max_tokens)
        return Steps(self.runner(cache), ids, choice, run_tokens=self.run_tokens, lookup=chosen.lookup)

    def token_choice(self, ids: list[int], chosen: CheckedOptions, *, max_tokens: int) -> TokenChoice:
        """The choice of the tokens that follow the prompt `ids`; raises InputError for an option that is not valid."""
        top = checked_integer(chosen.top_logprobs, "top_logprobs", least=None)
        if not 0 <= top <= self.facts.vocabulary:
            raise InputError(
                f"`top_logprobs` must be from 0 to {self.facts.vocabulary}, the size of the vocabulary, not {top}"
            )
        schema = chosen.response_format
        grammar = chosen.grammar if schema is None else self.grammar(json_schema=schema)
        if grammar is not None and grammar.compiler is not self._grammar_compiler:
            raise InputError("the grammar was compiled for another model", hint="compile it with `decoder.grammar`")
        return TokenChoice(
            self.facts.vocabulary,
            max_tokens=max_tokens,
            prompt=ids,
            eos_ids=self.facts.eos_ids,
            sampling=chosen.sampling,
            sampler=chosen.sampler,
            top_logprobs=top,
            constraint=None if grammar is None else grammar.start(),
            graph=self.session.path,
        )

    def grammar(
        self,
        *,
        json_schema: Mapping[str, object] | bool | str | None = None,
        regex: str | None = None,
        lark: str | None = None,
        choice: Sequence[str] | None = None,
    ) -> Grammar:
        """Compile a grammar for answers of this model; it can be used for any number of them, also at once.

        One of: a JSON schema, as a mapping or as text; a regular expression in Rust's syntax, without look-around; a
        grammar in llguidance's dialect of Lark; or a list of texts to choose from. JSON is written on one line, as
        Python's `json.dumps` does. An answer of finish reason `stop` matches the grammar as a whole, unless a stop
        string ended it. Raises InputError, with the reason, for what cannot be compiled or enforced, and
        MissingPartError without the extra `grammar`.

            >>> answer = decoder.generate("The fox is", grammar=decoder.grammar(choice=["red", "brown"]))
            >>> answer.text in ("red", "brown")
            True
        """
        return self._grammar_compiler.compile(json_schema=json_schema, regex=regex, lark=lark, choice=choice)

    @property
    def _grammar_compiler(self) -> GrammarCompiler:
        """Made when it is first used; raises as `GrammarCompiler` does."""
        with self._grammar_lock:
            if self._made_grammar_compiler is None:
                self._made_grammar_compiler = GrammarCompiler(
                    self.tokenizer, vocabulary=self.facts.vocabulary, eos_ids=self.facts.eos_ids
                )
            return self._made_grammar_compiler

    def new_cache(self) -> KVCache:
        """An empty KV cache, for prompts with a common prefix: it is computed once."""
        if self.room is not None:
            return self.room.new_cache(self._identity, self.context)
        memory = memory_of(self.session)
        return KVCache(self.facts, identity=self._identity, limit=self.context, memory=memory)

    def runner(self, cache: KVCache) -> ModelRunner:
        """What runs this model's graphs on a KV cache, for one answer."""
        return ModelRunner(self.session, cache, self.prefill_session)

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
        choice = TokenChoice(self.facts.vocabulary, max_tokens=1)
        Steps(self.runner(cache), ids, choice, run_tokens=self.run_tokens).prefill()
        return cache

    def save_cache(self, path: str | os.PathLike[str], cache: KVCache) -> None:
        """Save a KV cache as a prompt cache, for `load_cache`; raises OutputError."""
        saved_cache.save_cache(path, self._checked_cache(cache), bundle=self.bundle)

    def load_cache(self, path: str | os.PathLike[str]) -> KVCache:
        """Load a prompt cache that was saved with the same bundle.

        Raises NotFoundError, InputError for a damaged file or one of another bundle, and OutOfMemoryError where it does
        not fit.
        """
        cache = self.new_cache()
        saved_cache.load_cache(path, cache, bundle=self.bundle)
        return cache

    def count_tokens(self, prompt: Prompt) -> int:
        """Count the tokens of a prompt, including a beginning-of-sequence token where the model has one."""
        return len(self._ids_of(prompt))

    def encode(self, text: str) -> list[int]:
        """Convert a raw text to token ids, with a beginning-of-sequence token where the model has one."""
        return begun(self.encode_exactly(checked_text(text, "the prompt")), self.facts)

    def encode_exactly(self, text: str) -> list[int]:
        """Convert a text to token ids without adding special tokens: chat templates write them.

        Raises TextTooLongError for a text of more than several times the context, before all of it is tokenized, and
        InputError for one that cannot be tokenized.
        """
        ids = self._safe_tokenizer.encode(text, enough=_SEVERAL * self.context)
        if len(ids) > _SEVERAL * self.context:
            raise self._too_long(len(ids), self.context, "at least ")
        return ids

    def _ids_of(self, prompt: Prompt) -> list[int]:
        return self.prompt_ids(prompt, self.context)

    def prompt_ids(self, prompt: Prompt, context: int) -> list[int]:
        """The token ids of a prompt; raises InputError for one that is empty or not valid, or fills the context."""
        ids_given = isinstance(prompt, (list, tuple, range)) or getattr(prompt, "ndim", 0) == 1
        if not (isinstance(prompt, str) or ids_given):
            raise InputError(f"the prompt must be a string or a list of token ids, not {type(prompt).__name__}")
        if len(prompt) == 0:
            raise InputError("the prompt is empty", hint="pass at least one word")
        ids = self.encode(prompt) if isinstance(prompt, str) else list(map(checked_id, prompt, count()))
        if not ids:
            raise InputError("the prompt has no tokens", hint="pass at least one word")
        for place, id_ in enumerate(ids):
            if not 0 <= id_ < self.facts.vocabulary:
                raise InputError(
                    f"token {place} of the prompt is {id_}, and the vocabulary has {self.facts.vocabulary} tokens"
                )
        if len(ids) >= context:
            raise self._too_long(len(ids), context)
        return ids

    def _too_long(self, tokens: int, context: int, bound: str = "") -> TextTooLongError:
        return TextTooLongError(
            f"the prompt has {bound}{tokens} tokens, {tokens - context + 1} more than the context of {context} has "
            "room for with an answer",
            hint="shorten it" if context == self.facts.context_length else "shorten it, or raise `context`",
            texts=(0,),
        )

    def _checked_max_tokens(self, max_tokens: int | None, prompt: int, cache: KVCache) -> int:
        """The number of tokens that an answer may have after `prompt` tokens."""
        context = min(self.context, cache.limit)
        if max_tokens is None:
            cache.check(prompt + 1, prompt=prompt)
            return min(max(0, context - prompt), cache.largest_that_fits() - prompt)
        max_tokens = checked_max_tokens(max_tokens, prompt, context)
        # The last token of an answer runs only as part of a draft.
        cache.check(prompt + max_tokens, prompt=prompt)
        return max_tokens

    def _checked_cache(self, cache: KVCache) -> KVCache:
        if not isinstance(cache, KVCache):
            raise InputError(
                f"`cache` must be a KVCache, not {type(cache).__name__}", hint="make one with `decoder.new_cache()`"
            )
        # Fine-tuned models have the facts of their base model.
        if cache.facts != self.facts or cache.identity != self._identity:
            int8 = self.prefill_session is not None
            if cache.identity == identity_of(self.bundle, int8_prefill=not int8):
                otherwise = "make a cache with `decoder.new_cache()`"
                raise other_prefill("the cache was made", self.bundle, int8=int8, otherwise=otherwise)
            raise InputError("the cache was made for another model", hint="make one with `decoder.new_cache()`")
        return cache


def _check_manifest(bundle: BundleFolder, facts: DecoderFacts) -> None:
    """Raise BundleError where a manifest contradicts itself."""
    bos_id = facts.bos_id
    if facts.add_bos and bos_id is not None and not 0 <= bos_id < facts.vocabulary:
        raise BundleError(
            f"the manifest of `{bundle.path}` has the beginning-of-sequence token {bos_id}, and the "
            f"vocabulary has {facts.vocabulary} tokens"
        )
    if bundle.manifest.inputs != decoder_inputs(facts.layers):
        raise BundleError(
            f"`{bundle.path}` expects inputs {list(bundle.manifest.inputs)}; supported: the inputs of a decoder with "
            f"{facts.layers} layers"
        )


def _opened(
    bundle: BundleFolder,
    graph: str,
    config: SessionConfig,
    facts: DecoderFacts,
    *,
    begins: Callable[[], None] | None = None,
) -> Session:
    """The session of one of a bundle's graphs; raises BundleError where it is not that of its manifest."""
    session = shared_session(bundle.file(graph), config, begins=begins)
    check_interface(session, facts)
    return session


def _default_sampling(defaults: GenerationDefaults) -> Sampling:
    """The publisher's recommendation, or greedy decoding; raises BundleError for invalid values."""
    try:
        return Sampling(
            temperature=0.0 if defaults.temperature is None else defaults.temperature,
            top_k=0 if defaults.top_k is None else defaults.top_k,
            top_p=1.0 if defaults.top_p is None else defaults.top_p,
            min_p=0.0 if defaults.min_p is None else defaults.min_p,
            repetition_penalty=1.0 if defaults.repetition_penalty is None else defaults.repetition_penalty,
        )
    except InputError as error:
        raise BundleError(f"`decoder.generation` in the manifest is not valid: {error.message}") from error
