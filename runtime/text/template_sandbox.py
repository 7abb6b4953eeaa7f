"""A jinja2 sandbox for chat templates, which are not trusted: limits steps, characters and CPU time.

Every operation that creates a value or iterates is charged to a budget before it runs: loops, operators, calls,
filters, lists and output. Only filters and methods of bounded cost are supported. Values consist of parts that were
charged, so a single operation is short, and CPU time is checked between operations.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

STEPS = 1 << 18
"""Largest number of iterations, calls and items of a rendering, beside those for the messages."""
CHARACTERS = 1 << 24
"""Largest number of characters of all values that a rendering creates."""
_SHARE = 256
"""Additional characters for each character of the messages: templates copy them a few times."""
SECONDS = 10.0
"""CPU time. Published templates take some milliseconds."""
_BITS = 1 << 16
"""Largest size of an integer."""
_WIDTH = 10_000
"""Largest width in a format, and largest number that is passed to a filter."""


class TemplateLimitError(Exception):
    """A template exceeds a limit of the sandbox."""


class Budget:
    """What is left of the limits of one rendering."""

    def __init__(self, size: int = 0, items: int = 0) -> None:
        """`size`: characters of the messages; `items`: number of their values."""
        # Some templates loop over all messages for each message.
        self.most_steps = STEPS + size + _SHARE * items + items * items
        self.most_characters = CHARACTERS + _SHARE * size
        self.steps = self.most_steps
        self.characters = self.most_characters
        self.deadline = time.thread_time() + SECONDS

    def step(self, count: int = 1) -> None:
        """Charge `count` iterations or items."""
        self.steps -= count
        if self.steps < 0:
            raise TemplateLimitError(f"takes more than {self.most_steps} steps")
        if time.thread_time() > self.deadline:
            raise TemplateLimitError(f"takes more than {SECONDS:g} s")

    def afford(self, count: int) -> None:
        """Raise TemplateLimitError where `count` more characters exceed the limit."""
        if count > self.characters:
            raise TemplateLimitError(f"makes more than {self.most_characters} characters")

    def made(self, value: Any) -> Any:
        """Charge a new value, and return it; a list may contain the same value many times."""
        size = self.weight(value)
        if isinstance(value, (str, bytes)):
            self.characters -= size
        return value

    def weight(self, value: Any) -> int:
        """Approximate length of a value as text, with every occurrence of an item counted."""
        size = 0
        pending = [value]
        while pending:
            found = pending.pop()
            if isinstance(found, (str, bytes)):
                size += len(found)
            elif isinstance(found, Mapping):
                self.step(len(found))
                pending += [*found.keys(), *found.values()]
            elif isinstance(found, (list, tuple, set, frozenset)):
                self.step(len(found))
                pending += found
            elif isinstance(found, int):
                size += found.bit_length() >> 2
            size += 1
            self.afford(size)
        return size

    def items(self, value: Iterable[Any]) -> Iterator[Any]:
        """Iterate over a value, a step for each item."""
        for item in value:
            self.step()
            yield item

    def listed(self, value: Any) -> Any:
        """Convert an iterator to a list, so that its size is known."""
        if not isinstance(value, Iterator):
            return value
        found = []
        size = 0
        for item in self.items(value):
            size += self.weight(item)
            self.afford(size)
            found.append(item)
        return found


class _Counted:
    """The iterable of a loop, which charges a step for each item."""

    def __init__(self, value: Any, budget: Budget) -> None:
        self.value = value
        self.budget = budget

    def __iter__(self) -> Iterator[Any]:
        return self.budget.items(self.value)

    def __len__(self) -> int:
        return len(self.value)


_Sizer = Callable[[Budget, Any, tuple[Any, ...], Mapping[str, Any]], None]
"""Raises TemplateLimitError where a filter or method with these arguments would exceed the limit."""


def _grows_little(_budget: Budget, _value: Any, _arguments: tuple[Any, ...], _named: Mapping[str, Any]) -> None:
    """For results of at most a few times the size of value and arguments, which are charged already."""


def _grows_by_numbers(budget: Budget, value: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """For results whose size is a numeric argument, or that times the size of the value."""
    given = [*arguments, *named.values()]
    numbers = [number for number in given if isinstance(number, (int, float))]
    if any(abs(number) > _WIDTH for number in numbers):
        raise TemplateLimitError(f"has a width or a number of more than {_WIDTH}")
    texts = max((len(text) for text in given if isinstance(text, str)), default=1)
    budget.afford(budget.weight(value) * max(1, texts, *map(abs, map(int, numbers))))


def _grows_by_replacing(budget: Budget, value: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    old, new = [str(argument) for argument in (*arguments, *(named[name] for name in ("old", "new") if name in named))][
        :2
    ]
    text = str(value)
    budget.afford(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def _grows_by_joining(budget: Budget, value: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    separators = [len(text) for text in (*arguments, *named.values()) if isinstance(text, str)]
    count = len(value) if isinstance(value, Sized) else 1
    budget.afford(budget.weight(value) + count * max(separators, default=0))


def _grows_by_formatting(budget: Budget, value: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    _check_percents(budget, str(value), arguments or named)


def _adds_numbers(_budget: Budget, _value: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Refuse sums of lists, which take quadratic time."""
    if not isinstance((arguments[1:2] or (named.get("start", 0),))[0], (int, float)):
        raise SecurityError("`sum` of anything but numbers")


_PLAIN_FILTERS = (
    "abs attr capitalize count d default dictsort e escape filesizeformat first float forceescape groupby int items "
    "last length list lower map max min random reject rejectattr reverse safe select selectattr sort string title "
    "tojson trim unique upper urlencode wordcount"
)
_FILTERS: Mapping[str, _Sizer] = dict.fromkeys(_PLAIN_FILTERS.split(), _grows_little) | {
    "batch": _grows_by_numbers,
    "center": _grows_by_numbers,
    "format": _grows_by_formatting,
    "indent": _grows_by_numbers,
    "join": _grows_by_joining,
    "replace": _grows_by_replacing,
    "round": _grows_by_numbers,
    "slice": _grows_by_numbers,
    "sum": _adds_numbers,
    "truncate": _grows_by_numbers,
}
"""The supported filters. jinja2 has a few more, which produce HTML or take long."""
_CONSUMING = frozenset(
    {"batch", "groupby", "join", "last", "list", "max", "min", "reverse", "slice", "sort", "sum", "unique"}
)
"""Filters that consume all items of their value."""
_PLAIN_METHODS = (
    "capitalize casefold count encode decode endswith find index isalnum isalpha isascii isdecimal isdigit "
    "isidentifier islower isnumeric isprintable isspace istitle isupper lower lstrip partition removeprefix "
    "removesuffix rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper"
)
_TEXT_METHODS: Mapping[str, _Sizer] = dict.fromkeys(_PLAIN_METHODS.split(), _grows_little) | {
    "center": _grows_by_numbers,
    "expandtabs": _grows_by_numbers,
    "join": _grows_by_joining,
    "ljust": _grows_by_numbers,
    "replace": _grows_by_replacing,
    "rjust": _grows_by_numbers,
    "zfill": _grows_by_numbers,
}
"""The supported methods of strings; `format` has its own formatter."""
_NUMBER_METHODS = ("bit_length", "is_integer")
_ENCODINGS = frozenset({"utf-8", "utf8", "ascii", "us-ascii", "latin-1", "latin1", "iso-8859-1"})
_LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
_PERCENT = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d+)?(?:\.(\*|\d*))?")
_COUNTED, _MADE, _JOINED = "counted ", "made ", "joined "
"""Filters that the compiler inserts; no template can contain such a name."""


def _check_percents(budget: Budget, form: str, values: Any) -> None:
    """Check a %-format before it is applied."""
    widest = count = 0
    for match in _PERCENT.finditer(form):
        count += 1
        if "*" in match.groups():
            raise SecurityError("a format with its width as an argument")
        widest = max([widest, *(int(digits[:9]) for digits in match.groups() if digits)])
    if widest > _WIDTH:
        raise TemplateLimitError(f"has a width or a number of more than {_WIDTH}")
    # A named value may be inserted many times.
    budget.afford(len(form) + (count * (budget.weight(values) + widest)))


def _check_format(budget: Budget, specification: str, value: Any) -> None:
    """Check a field of `str.format` before it is applied."""
    if any(len(digits) > 9 or int(digits) > _WIDTH for digits in re.findall(r"\d+", specification)):
        raise TemplateLimitError(f"has a width or a number of more than {_WIDTH}")
    budget.step()
    budget.afford(budget.weight(value))


class _Formatter(SandboxedFormatter):
    """`str.format` for templates."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        budget = _current()
        _check_format(budget, format_spec, value)
        return budget.made(super().format_field(value, format_spec))


class _EscapeFormatter(SandboxedEscapeFormatter):
    """`str.format` for templates, with text escaped for HTML."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        budget = _current()
        _check_format(budget, format_spec, value)
        return budget.made(super().format_field(value, format_spec))


_LOCAL = threading.local()


def _current() -> Budget:
    """The budget of the rendering on this thread; an own one while a template is compiled."""
    budget: Budget | None = getattr(_LOCAL, "budget", None)
    return Budget() if budget is None else budget


@contextmanager
def spending(budget: Budget) -> Iterator[None]:
    """Charge renderings on this thread to a budget."""
    before = getattr(_LOCAL, "budget", None)
    _LOCAL.budget = budget
    try:
        yield
    finally:
        _LOCAL.budget = before


class _Generation(Extension):
    """The tag around assistant messages, which matters for training only."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's interface

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("content"), [], [], body).set_lineno(line)

    def content(self, caller: Macro) -> str:
        return str(caller())


class _PlainNamespace(Namespace):
    """A namespace whose text does not contain its values, which may be recursive."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Spending(NodeTransformer):
    """Inserts charges for loops, slices, lists and concatenations."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2's names
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _COUNTED)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _JOINED)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        # jinja2 compiles a slice to a plain Python slice, which nothing else charges.
        return _filtered(node, _MADE) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        constant = all(isinstance(item, nodes.Const) for item in node.items)
        self.generic_visit(node)
        return node if constant else _filtered(node, _MADE)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return _filtered(self.generic_visit(node), _MADE)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        # The target of a loop or an assignment is not a value.
        constant = node.ctx != "load" or all(isinstance(item, nodes.Const) for item in node.items)
        self.generic_visit(node)
        return node if constant else _filtered(node, _MADE)


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    found = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    found.environment = node.environment
    return found


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The jinja2 environment of transformers, with every operation charged to the current budget."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], **options)
        self.filters["tojson"] = _to_json
        self.filters = {name: _paying(name, self.filters[name], sizer) for name, sizer in _FILTERS.items()}
        self.filters |= {_COUNTED: _counted, _MADE: _made, _JOINED: _joined}
        del self.globals["lipsum"]
        self.globals["namespace"] = _PlainNamespace

    def _generate(self, source: nodes.Template, *arguments: Any, **options: Any) -> str:
        return super()._generate(_Spending().visit(source), *arguments, **options)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        # `dict.update(...)` would change values that were charged.
        return not isinstance(obj, type) and super().is_safe_attribute(obj, attr, value)

    def concat(self, parts: Iterable[str]) -> str:
        """Join the output."""
        budget = _current()
        found = []
        for part in parts:
            budget.afford(len(part))
            budget.characters -= len(part)
            found.append(part)
        budget.step()
        return "".join(found)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _current()
        budget.step()
        if operator == "*":
            _check_product(budget, left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, (str, bytes)):
            _check_percents(budget, str(left), right)
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            budget.afford(len(left) + len(right))
        return budget.made(super().call_binop(context, operator, left, right))

    def call(self, context: Context, called: Any, /, *arguments: Any, **named: Any) -> Any:
        budget = _current()
        budget.step()
        budget.afford(budget.weight((arguments, named)))
        owner = getattr(called, "__self__", None)
        if isinstance(owner, (str, bytes, int, float)):
            arguments = _pay_for_method(budget, owner, called.__name__, arguments, named)
        elif isinstance(called, LoopContext):
            arguments = tuple(_Counted(argument, budget) for argument in arguments)
        found = super().call(context, called, *arguments, **named)
        return budget.made(found)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Replace `str.format` and `str.format_map` with a formatter that charges the budget."""
        if super().wrap_str_format(value) is None:
            return None
        form = value.__self__
        formatter = _EscapeFormatter(self, escape=form.escape) if isinstance(form, Markup) else _Formatter(self)

        def formatted(*arguments: Any, **named: Any) -> str:
            if value.__name__ == "format_map":
                (named,), arguments = arguments, ()
            text: str = type(form)(formatter.vformat(form, arguments, named))
            return text

        return formatted


def _check_product(budget: Budget, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    for value, count in ((left, right), (right, left)):
        if isinstance(value, (str, bytes, list, tuple)) and isinstance(count, int):
            budget.afford(budget.weight(value) * max(0, count))


def _check_bits(bits: int) -> None:
    if bits > _BITS:
        raise TemplateLimitError(f"computes a number of more than {_BITS} bits")


def _pay_for_method(
    budget: Budget, owner: Any, name: str, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Charge a method of a string or a number before its call; returns the arguments to call it with."""
    known = _TEXT_METHODS if isinstance(owner, (str, bytes)) else dict.fromkeys(_NUMBER_METHODS, _grows_little)
    if name not in known:
        raise SecurityError(f"the method `{name}` is not supported")
    if name == "join" and arguments:
        items = budget.listed(arguments[0])
        _grows_by_joining(budget, items, (owner,), {})
        return (items,)
    if name in {"encode", "decode"}:
        _check_encoding(arguments, named)
    if name in {"split", "rsplit"}:
        separator = next((text for text in (*arguments, *named.values()) if isinstance(text, str)), None)
        budget.step(owner.count(separator) if separator else len(owner) // 2)
    elif name == "splitlines":
        budget.step(sum(map(owner.count, _LINE_ENDS)))
    known[name](budget, owner, arguments, named)
    return arguments


def _check_encoding(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Refuse unusual encodings: some of Python's take quadratic time."""
    encoding = str(arguments[0] if arguments else named.get("encoding", "utf-8"))
    if encoding.lower().replace("_", "-") not in _ENCODINGS:
        raise SecurityError("an encoding that is not supported")


def _paying(name: str, function: Callable[..., Any], sizer: _Sizer) -> Callable[..., Any]:
    """Wrap a filter to charge its result."""
    wants = getattr(function, "jinja_pass_arg", None)

    # The context keeps jinja2 from constant folding at compile time.
    @jinja2.pass_context
    def filtering(context: Context, value: Any, *arguments: Any, **named: Any) -> Any:
        budget = _current()
        budget.step()
        budget.afford(budget.weight((arguments, named)))
        if name in _CONSUMING:
            if isinstance(value, (str, bytes)):
                # Each character is an item.
                budget.step(len(value))
            value = budget.listed(value)
        sizer(budget, value, arguments, named)
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        passed = [first[wants.name]] if wants is not None else []
        found = function(*passed, value, *arguments, **named)
        return budget.made(found)

    return filtering


@jinja2.pass_context
def _counted(_context: Context, value: Any) -> Any:
    return _Counted(value, _current())


@jinja2.pass_context
def _made(_context: Context, value: Any) -> Any:
    return _current().made(value)


@jinja2.pass_context
def _joined(_context: Context, values: list[Any]) -> str:
    """The operator `~`, for all its operands."""
    budget = _current()
    texts = []
    size = 0
    for value in values:
        # In the text of a list, a character is escaped to at most ten.
        budget.weight(value)
        texts.append(value if isinstance(value, str) else str(value))
        size += len(texts[-1])
        budget.afford(size)
    text: str = budget.made("".join(texts))
    return text


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - the parameters that templates use
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """The filter `tojson`, without jinja2's escapes for HTML."""
    budget = _current()
    if indent is None:
        longest = max(map(len, separators), default=0) if separators is not None else 2
        # A character is escaped to at most six.
        budget.afford(budget.weight(value) * max(1, longest))
        return json.dumps(value, ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys)
    if isinstance(indent, int) and indent > _WIDTH:
        raise TemplateLimitError(f"has a width or a number of more than {_WIDTH}")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    found, size = [], 0
    for part in encoder.iterencode(value):
        budget.step()
        size += len(part)
        budget.afford(size)
        found.append(part)
    return "".join(found)
