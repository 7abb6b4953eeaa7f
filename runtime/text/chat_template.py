"""Chat templates: render a conversation as a prompt with the publisher's jinja2 template, in a sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache, cached_property
from typing import TYPE_CHECKING

from ..bundle.manifest import ChatFacts
from ..errors import BundleError, InputError
from .messages import ASSISTANT, SYSTEM, USER, Message
from .tokenizer import checked_text
from .tools import Tool

if TYPE_CHECKING:
    import jinja2

_USUAL_ROLES = (SYSTEM, USER, ASSISTANT)
"""Roles that are passed to a template even where it does not name them."""
_LARGEST = 1 << 17
"""Characters of a template; the longest published ones have some 20,000."""
_DATE_FORM = 256
"""Characters of a date format."""


_RENDERING_ERRORS = (
    *(TypeError, ValueError, LookupError, ArithmeticError, AttributeError),
    *(RuntimeError, StopIteration, AssertionError, BufferError, OSError),
)
"""What Python raises where a template gets values that it does not expect."""
_SHOWN = 1000
"""Characters of a template's message in ours."""


class ChatTemplate:
    """A chat template, rendered as transformers' `apply_chat_template` does."""

    def __init__(self, facts: ChatFacts) -> None:
        """Raises BundleError for a template that jinja2 cannot compile."""
        from jinja2 import TemplateSyntaxError  # noqa: PLC0415 - imported for chat only

        self.facts = facts
        if len(facts.template) > _LARGEST:
            raise BundleError(f"the chat template has {len(facts.template)} characters; the limit is {_LARGEST}")
        try:
            self.template = _environment().from_string(facts.template)
        except TemplateSyntaxError as error:
            raise BundleError(f"the chat template is not valid: {error.message} in line {error.lineno}") from error
        # The Python code that jinja2 generates exceeds a limit of Python's parser.
        except SyntaxError as error:
            raise BundleError(f"the chat template is not valid: {error.msg}") from error
        # An integer literal with thousands of digits.
        except ValueError as error:
            raise BundleError(f"the chat template is not valid: {error}") from error
        except (RecursionError, MemoryError) as error:
            raise BundleError("the chat template is not valid: it is nested too deeply, or too large") from error

    @cached_property
    def uses_tools(self) -> bool:
        """Whether the template renders tools."""
        from jinja2 import TemplateError, meta  # noqa: PLC0415

        try:
            return "tools" in meta.find_undeclared_variables(_environment().parse(self.facts.template))
        except TemplateError:
            return False

    def render(
        self, messages: Sequence[Message], *, for_answer: bool = True, tools: Sequence[Tool] | None = None
    ) -> str:
        """Render a conversation; with `for_answer` it ends where the assistant's next message begins.

        `tools` are rendered as the template describes them to the model. Raises InputError, with the template's own
        message, for messages that it refuses, and for a role or tools that it does not support; BundleError for a
        template that uses a forbidden operation or exceeds a limit.
        """
        from jinja2 import TemplateError  # noqa: PLC0415
        from jinja2.exceptions import SecurityError  # noqa: PLC0415

        from .template_sandbox import Budget, TemplateLimitError, spending  # noqa: PLC0415

        for index, message in enumerate(messages):
            self.check(message, index)
        if tools:
            self.check_tools()
        records = [message.as_record() for message in messages]
        tool_records = [tool.record for tool in tools] if tools else None
        size = sum(message.size for message in messages) + (0 if tool_records is None else len(repr(tool_records)))
        calls = sum(len(message.tool_calls) for message in messages)
        try:
            with spending(Budget(size, items=3 * (len(messages) + calls) + len(tools or ()))):
                text = self.template.render(
                    self.facts.tokens,
                    messages=records,
                    tools=tool_records,
                    documents=None,
                    add_generation_prompt=for_answer,
                )
        except TemplateLimitError as error:
            raise BundleError(f"the chat template {error}") from error
        except SecurityError as error:
            raise BundleError(f"the chat template uses a forbidden operation: {error}") from error
        except _RefusedError as error:
            raise InputError(
                f"the model's chat template refuses these messages: {_shortened(error)}",
                hint=f"their roles are {_shortened(', '.join(f'`{message.role}`' for message in messages))}",
            ) from error
        except (RecursionError, MemoryError) as error:
            raise BundleError("the chat template recurses without end, or takes all memory") from error
        except (*_RENDERING_ERRORS, TemplateError) as error:
            raise InputError(f"the model's chat template cannot render these messages: {_shortened(error)}") from error
        try:
            return checked_text(text, "the output of the chat template")
        # The messages are valid, so the template is at fault.
        except InputError as error:
            raise BundleError(error.message) from error

    def check_tools(self) -> None:
        """Raise InputError for a template that does not use tools."""
        if not self.uses_tools:
            raise InputError(
                "the model's chat template does not use tools", hint="use a model that was trained to call functions"
            )

    def check(self, message: Message, index: int) -> None:
        checked_text(message.content, f"the content of message {index}")
        if message.tool_calls and "tool_calls" not in self.facts.template:
            raise InputError(f"message {index} has `tool_calls`, which the model's chat template does not use")
        # Many templates render any role, and the model was trained on few.
        named = f"'{message.role}'" in self.facts.template or f'"{message.role}"' in self.facts.template
        if message.role not in _USUAL_ROLES and not named:
            raise InputError(
                f"message {index} has the role `{message.role}`, which the model's chat template does not name",
                hint=f"the usual roles are {', '.join(f'`{role}`' for role in _USUAL_ROLES)}",
            )


class _RefusedError(Exception):
    """Raised by a template with `raise_exception`."""


def _refuse(message: object) -> None:
    # Convert to text here: a nested list can exceed the recursion limit later.
    raise _RefusedError(str(message))


def _shortened(what: object) -> str:
    text = str(what)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _strftime_now(form: str) -> str:
    """The local time, for templates that include the date."""
    # The system's strftime expands a character to up to 256.
    if len(form) > _DATE_FORM:
        raise ValueError(f"a date format of {len(form)} characters")
    return datetime.now().strftime(form)  # noqa: DTZ005 - the date where the user is


@cache
def _environment() -> jinja2.Environment:
    """The functions that transformers offers to templates, in a sandbox: templates are not trusted."""
    # jinja2 is imported for chat only.
    from .template_sandbox import BoundedEnvironment  # noqa: PLC0415

    found = BoundedEnvironment()
    found.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now}
    return found
