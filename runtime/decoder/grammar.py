"""Structured output: JSON schemas, regular expressions and Lark grammars compiled to constraints, by `llguidance`."""

from __future__ import annotations

import json
import platform
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, MissingPartError
from ..text.safe_tokenizer import raise_unless_of_tokenizers
from ..text.tokenizer import checked_text
from .date_formats import with_exact_dates
from .schema_limits import check_limits, literals_of
from .token_choice import Constraint

if TYPE_CHECKING:
    from types import ModuleType

    import llguidance
    import tokenizers

ANY_OBJECT: Mapping[str, object] = {"type": "object"}
"""The schema of any JSON object: OpenAI's `json_object`."""
JSON_OPTIONS = {
    # One line, as Python's `json.dumps` writes it: what models have read most. Whitespace of any length lets small
    # models write nothing else.
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    # Never ignore what cannot be enforced.
    "lenient": False,
    "coerce_one_of": False,
}
_LONGEST = 1 << 18
"""Characters of a schema, an expression or a grammar."""
_FUEL = 200_000
"""Cost of the regular expressions of a grammar, and of one mask; llguidance's own limit for the former is five times
this, with which `(a{1000}){1000}` takes 2 s and 180 MB."""
_COMPILED = 32
"""Grammars that a compiler keeps, those used last."""
_SHOWN = 200
"""Characters of a text or of llguidance's reason in a message."""
_REFUSED = "it is not valid, too large, or has something that is not supported"
_NO_START = "it allows no answer that ends (a reference to itself, for example), or is too large"
_GLIBC = (2, 31)
_FORMS = ("json_schema", "regex", "lark", "choice")


class GrammarConstraint(Constraint):
    """What the next tokens of one answer may be; made by `Grammar.start`, for one answer."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        # One bit a token, in whole words.
        self._bits = np.empty((1, (vocabulary + 31) // 32), np.int32)

    @property
    def may_end(self) -> bool:
        """Whether the answer so far is complete; more may follow."""
        return bool(self._matcher.is_accepting())

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete and nothing may follow."""
        return bool(self._matcher.is_stopped())

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Set the logits (vocabulary,) of the tokens that may not be next to minus infinity, in place.

        Raises InputError where no token may be next: a limit on time and memory, or a tokenizer without the characters.
        """
        from llguidance.numpy import fill_next_token_bitmask  # noqa: PLC0415 - optional

        fill_next_token_bitmask(self._matcher, self._bits)
        self._check()
        if not self._bits.any():
            raise InputError(
                "no token of the vocabulary can continue the answer as the grammar asks",
                hint="the model's tokenizer lacks the characters, or the grammar has no end",
            )
        np.invert(self._bits, out=self._bits)
        excluded = np.unpackbits(self._bits[0].view(np.uint8), count=self._vocabulary, bitorder="little")
        np.copyto(logits, np.float32(-np.inf), where=excluded.view(np.bool_))

    def accept(self, token: int) -> None:
        """Advance by the next token of the answer; raises InputError for one that may not be next."""
        if not self._matcher.consume_token(token):
            self._check()
            raise InputError(f"the grammar does not allow token {token} here")
        self._check()

    def _check(self) -> None:
        """Raise InputError where the matcher has failed: it never leaves that state."""
        if self._matcher.is_error():
            raise InputError(
                f"the answer cannot follow the grammar any further {_reason(self._matcher.get_error())}",
                hint="simplify the grammar: shorter patterns, fewer alternatives",
            )


class Grammar:
    """A compiled grammar, for any number of answers of one model, also at once: `decoder.grammar(...)`."""

    def __init__(self, compiler: GrammarCompiler, matcher: llguidance.LLMatcher, form: str) -> None:
        self.compiler = compiler
        self.form = form
        """`json_schema`, `regex`, `lark` or `choice`."""
        self._matcher = matcher
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Grammar of a {self.form}>"

    def start(self) -> GrammarConstraint:
        """The constraint of one answer; thread-safe."""
        # Two threads must not borrow the same matcher.
        with self._lock:
            matcher = self._matcher.deep_copy()
        return GrammarConstraint(matcher, self.compiler.vocabulary)


@dataclass(frozen=True)
class _Source:
    """A grammar in llguidance's format, and what it was made from."""

    form: str
    text: str


class GrammarCompiler:
    """Compiles grammars for the tokens of one model; thread-safe, and keeps the last ones."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, vocabulary: int, eos_ids: Sequence[int]) -> None:
        """`vocabulary` is the width of the logits. Raises MissingPartError without `llguidance`.

        Raises InputError for a tokenizer that `llguidance` cannot use, and for a model without an end-of-sequence
        token.
        """
        library = _import_llguidance()
        self.vocabulary = vocabulary
        if not eos_ids:
            raise InputError("the model has no end-of-sequence token, so its answers cannot follow a grammar")
        try:
            # A text other than a JSON object would be taken for the name of a file.
            self._tokens = library.LLTokenizer(tokenizer.to_str(), n_vocab=vocabulary, eos_token=list(eos_ids))
        except BaseException as error:
            raise_unless_of_tokenizers(error)
            raise InputError(
                f"answers of this model cannot follow a grammar: its tokenizer is not supported {_reason(str(error))}"
            ) from error
        self._lock = threading.Lock()
        self._compiled: OrderedDict[_Source, Grammar] = OrderedDict()

    def compile(
        self,
        *,
        json_schema: Mapping[str, object] | bool | str | None = None,
        regex: str | None = None,
        lark: str | None = None,
        choice: Sequence[str] | None = None,
    ) -> Grammar:
        """Compile one of them; raises InputError, with the reason, for anything that cannot be enforced."""
        given = {
            name: value
            for name, value in zip(_FORMS, (json_schema, regex, lark, choice), strict=True)
            if value is not None
        }
        if len(given) != 1:
            names = ", ".join(f"`{name}`" for name in (given or _FORMS))
            raise InputError(
                f"a grammar is {'one' if given else 'made from one'} of {names}",
                hint='for example `decoder.grammar(json_schema={"type": "object"})`',
            )
        ((form, value),) = given.items()
        makers = {"json_schema": _from_schema, "regex": _from_regex, "lark": _from_lark, "choice": _from_choice}
        text = makers[form](value)
        if form in ("json_schema", "choice"):
            self._refuse_special(json.loads(value) if isinstance(value, str) else value)
        return self.from_source(form, text)

    def _refuse_special(self, value: object) -> None:
        """Raise InputError for a text that answers must have, and that contains the text of a special token.

        Models write special tokens, which an answer has no text of, where they mean the same characters.
        """
        for text in literals_of(value):
            special = [token for token in self._tokens.tokenize_str(text) if self.is_special(token)]
            if special:
                raise InputError(
                    f"answers cannot have the text {text[:_SHOWN]!r}: a part of it is a special token of the model"
                )

    def is_special(self, token: int) -> bool:
        """Whether a grammar names this token by its id instead of its text: added tokens such as `<tool_call>`, too."""
        return bool(self._tokens.is_special_token(token))

    def from_source(self, form: str, text: str) -> Grammar:
        """Compile a grammar in llguidance's own format."""
        source = _Source(form, text)
        with self._lock:
            found = self._compiled.get(source)
            if found is not None:
                self._compiled.move_to_end(source)
                return found
        grammar = Grammar(self, self._matcher_of(source), form)
        with self._lock:
            self._compiled[source] = grammar
            while len(self._compiled) > _COMPILED:
                self._compiled.popitem(last=False)
        return grammar

    def _matcher_of(self, source: _Source) -> llguidance.LLMatcher:
        import llguidance  # noqa: PLC0415 - optional

        problem = _REFUSED
        limits = llguidance.LLParserLimits(initial_lexer_fuel=_FUEL, step_lexer_fuel=_FUEL, verbose_errors=False)
        try:
            matcher = llguidance.LLMatcher(self._tokens, source.text, log_level=0, limits=limits)
            reason = matcher.get_error()
            if not reason:
                # The first mask is the slowest: it is the same for all answers.
                matcher.compute_bitmask()
                reason, problem = matcher.get_error(), _NO_START
        except BaseException as error:  # noqa: BLE001 - a panic is one
            raise_unless_of_tokenizers(error)
            reason = str(error) or type(error).__name__
        if reason:
            raise InputError(f"the {_NAMES[source.form]} cannot be compiled: {problem} {_reason(reason)}")
        return matcher


_NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "Lark grammar", "choice": "choice"}


def _import_llguidance() -> ModuleType:
    """The package; raises MissingPartError without it, and where its library cannot be loaded."""
    try:
        import llguidance  # noqa: PLC0415 - optional
    except ImportError as error:
        raise MissingPartError(
            f"answers cannot follow a grammar: the Python package `llguidance` cannot be imported: {error}",
            hint=_hint(platform.libc_ver()),
        ) from error
    return llguidance


def _hint(libc: tuple[str, str]) -> str:
    """What to do without llguidance on this machine."""
    name, version = libc
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if name == "glibc" and numbers < _GLIBC:
        return f"the extra `grammar` needs glibc {'.'.join(map(str, _GLIBC))} or newer, and this machine has {version}"
    return "install the extra `grammar`: `pip install 'ortkit[grammar]'`"


def _from_schema(schema: object) -> str:
    from llguidance import LLMatcher  # noqa: PLC0415 - optional

    if isinstance(schema, str):
        _check_length(checked_text(schema, "`json_schema`"), "`json_schema`")
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise InputError(f"`json_schema` is not valid JSON: {error}") from error
        except RecursionError as error:
            raise InputError("`json_schema` is nested too deeply") from error
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        if schema is False:
            raise InputError("the JSON schema `false` allows no answer")
        raise InputError(f"`json_schema` must be an object, not {type(schema).__name__}")
    check_limits(schema)
    try:
        text = json.dumps(with_exact_dates(schema), allow_nan=False, ensure_ascii=False, default=_as_mapping)
    except (TypeError, ValueError) as error:
        raise InputError(f"`json_schema` is not a JSON value: {error}") from error
    _check_length(text, "`json_schema`")
    # Lone surrogates, which JSON can spell.
    checked_text(text, "`json_schema`")
    try:
        return LLMatcher.grammar_from_json_schema(text, overrides=dict(JSON_OPTIONS))  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(f"the JSON schema cannot be compiled: {_REFUSED} {_reason(str(error))}") from error


def _as_mapping(value: object) -> object:
    """A mapping of another type, for `json.dumps`."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"it has a value of type {type(value).__name__}")


def _from_regex(regex: object) -> str:
    from llguidance import LLMatcher  # noqa: PLC0415 - optional

    text = checked_text(regex, "`regex`")
    _check_length(text, "`regex`")
    return LLMatcher.grammar_from_regex(text)


def _from_lark(lark: object) -> str:
    from llguidance import LLMatcher  # noqa: PLC0415 - optional

    text = checked_text(lark, "`lark`")
    _check_length(text, "`lark`")
    for match in re.finditer(r"%json\s*", text):
        try:
            schema, _ = json.JSONDecoder().raw_decode(text, match.end())
        # Inside a string or a comment; a schema that is not valid fails later.
        except (ValueError, RecursionError):
            continue
        check_limits(schema)
    return LLMatcher.grammar_from_lark(text)


def _from_choice(choice: object) -> str:
    from llguidance import LLMatcher  # noqa: PLC0415 - optional

    if not isinstance(choice, Sequence) or isinstance(choice, (str, bytes)):
        raise InputError(f"`choice` must be a list of strings, not {type(choice).__name__}")
    texts = [checked_text(text, f"choice {index}") for index, text in enumerate(choice)]
    if not texts or not all(texts):
        raise InputError("`choice` needs at least one string, and none may be empty")
    # JSON strings are strings of Lark too.
    text = "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
    _check_length(text, "`choice`")
    return LLMatcher.grammar_from_lark(text)


def _check_length(text: str, name: str) -> None:
    if len(text) > _LONGEST:
        raise InputError(f"{name} has {len(text)} characters; the limit is {_LONGEST}")


def _reason(text: str) -> str:
    """A reason of llguidance on one line, after ours; it draws a line with a mark below a grammar."""
    # What it writes in the place of details that `verbose_errors` would give.
    line = " ".join(text.replace("<non-verbose/>", "").split())
    return f"(llguidance: {line if len(line) <= _SHOWN else f'{line[:_SHOWN]}...'})"


def schema_of(response_format: object) -> Mapping[str, object] | None:
    """The JSON schema of OpenAI's `response_format`; None for text. Raises InputError for one that is not valid."""
    if not isinstance(response_format, Mapping):
        raise InputError(f"`response_format` must be a mapping, not {type(response_format).__name__}", hint=_EXAMPLE)
    kind = response_format.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise InputError(
            f"`response_format.type` must be `text`, `json_object` or `json_schema`, not {kind!r}", hint=_EXAMPLE
        )
    allowed = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    _refuse_others(response_format, allowed, "response_format")
    if kind != "json_schema":
        return ANY_OBJECT if kind == "json_object" else None
    described = response_format.get("json_schema")
    if not isinstance(described, Mapping):
        raise InputError("`response_format.json_schema` must be an object with `name` and `schema`", hint=_EXAMPLE)
    _refuse_others(described, {"name", "description", "schema", "strict"}, "response_format.json_schema")
    # `strict` or not: the answer always follows the schema.
    for name, types in (("name", str), ("description", str), ("strict", bool)):
        value = described.get(name)
        if value is not None and not isinstance(value, types):
            raise InputError(f"`response_format.json_schema.{name}` must be a {types.__name__}")
    schema = described.get("schema")
    if not isinstance(schema, Mapping):
        raise InputError("`response_format.json_schema.schema` must be a JSON schema, as an object", hint=_EXAMPLE)
    return schema


_EXAMPLE = '{"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}'


def _refuse_others(mapping: Mapping[Any, object], allowed: set[str], name: str) -> None:
    others = [str(key) for key, value in mapping.items() if key not in allowed and value is not None]
    if others:
        raise InputError(
            f"`{name}` has the field `{others[0]}`; supported: {', '.join(f'`{one}`' for one in sorted(allowed))}"
        )
