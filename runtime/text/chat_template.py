"""Conversations to prompts, by the template that a model's publisher wrote for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING

from ..errors import BundleError, InputError
from ..bundle.manifest import ChatFacts
from .messages import ASSISTANT, SYSTEM, USER, Message
from .tokenizer import checked_text

if TYPE_CHECKING:
    import jinja2

USUAL_ROLES = (SYSTEM, USER, ASSISTANT)
"""Roles about which a template is asked, whether it names them or not."""
LARGEST = 1 << 17
"""Characters of a template; the longest published ones have some 20,000."""
DATE_FORM = 256
"""Characters of a template's form for dates."""


RENDERING_ERRORS = (
    *(TypeError, ValueError, LookupError, ArithmeticError, AttributeError),
    *(RuntimeError, StopIteration, AssertionError, BufferError, OSError),
)
"""What Python raises where a template does something with values that it did not expect."""
SHOWN = 1000
"""Characters of a template's own words in a message."""


class ChatTemplate:
    """A template, rendered as transformers' `apply_chat_template` renders it."""

    def __init__(self, facts: ChatFacts) -> None:
        """Raises BundleError for a template that jinja2 cannot read."""
        from jinja2 import TemplateSyntaxError  # noqa: PLC0415 - only what chats pays for it

        self.facts = facts
        if len(facts.template) > LARGEST:
            raise BundleError(f"the chat template has {len(facts.template)} characters, and {LARGEST} are allowed")
        try:
            self.template = environment().from_string(facts.template)
        except TemplateSyntaxError as error:
            raise BundleError(f"the chat template cannot be read: {error.message} in line {error.lineno}") from error
        # What jinja2 makes of it is more than Python's own parser takes.
        except SyntaxError as error:
            raise BundleError(f"the chat template cannot be read: {error.msg}") from error
        # A number of thousands of digits.
        except ValueError as error:
            raise BundleError(f"the chat template cannot be read: {error}") from error
        except (RecursionError, MemoryError) as error:
            raise BundleError("the chat template cannot be read: it nests too deep, or is too large") from error

    def render(self, messages: Sequence[Message], *, for_answer: bool = True) -> str:
        """The text of a conversation; with `for_answer` it ends where the assistant's next message begins.

        Raises InputError with the template's own words for what it refuses, and for a role that it does not know, and
        BundleError for a template that does no template's work, or more than a template may.
        """
        from jinja2 import TemplateError  # noqa: PLC0415
        from jinja2.exceptions import SecurityError  # noqa: PLC0415

        from .template_sandbox import Budget, TemplateLimitError, spending  # noqa: PLC0415

        for index, message in enumerate(messages):
            self.check(message, index)
        records = [{"role": message.role, "content": message.content} for message in messages]
        size = sum(len(message.content) for message in messages)
        try:
            with spending(Budget(size, items=3 * len(messages))):
                text = self.template.render(
                    self.facts.tokens, messages=records, tools=None, documents=None, add_generation_prompt=for_answer
                )
        except TemplateLimitError as error:
            raise BundleError(f"the chat template {error}") from error
        except SecurityError as error:
            raise BundleError(f"the chat template does what is not allowed: {error}") from error
        except RefusedError as error:
            raise InputError(
                f"the model's chat template refuses these messages: {shortened(error)}",
                hint=f"their roles are {shortened(', '.join(f'`{message.role}`' for message in messages))}",
            ) from error
        except (RecursionError, MemoryError) as error:
            raise BundleError("the chat template calls itself without an end, or takes all memory") from error
        except (*RENDERING_ERRORS, TemplateError) as error:
            raise InputError(f"the model's chat template cannot render these messages: {shortened(error)}") from error
        try:
            return checked_text(text, "what the chat template writes")
        # The messages are valid, so the template is to blame.
        except InputError as error:
            raise BundleError(error.message) from error

    def check(self, message: Message, index: int) -> None:
        checked_text(message.content, f"the content of message {index}")
        # Many templates write whatever role they are given, and the model has seen few of them.
        named = f"'{message.role}'" in self.facts.template or f'"{message.role}"' in self.facts.template
        if message.role not in USUAL_ROLES and not named:
            raise InputError(
                f"message {index} has the role `{message.role}`, which the model's chat template does not name",
                hint=f"the usual roles are {', '.join(f'`{role}`' for role in USUAL_ROLES)}",
            )


class RefusedError(Exception):
    """What a template says with `raise_exception`."""


def refuse(message: object) -> None:
    # Text at once: what a list holds may nest too deep to be written.
    raise RefusedError(str(message))


def shortened(what: object) -> str:
    text = str(what)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def strftime_now(form: str) -> str:
    """The local time, for templates that tell the model the date."""
    # The system's strftime makes up to 256 characters of each.
    if len(form) > DATE_FORM:
        raise ValueError(f"a form for dates of {len(form)} characters")
    return datetime.now().strftime(form)  # noqa: DTZ005 - the date where the user is


@cache
def environment() -> jinja2.Environment:
    """What transformers offers to templates, and nothing else: they come with models and may not touch this process."""
    # Only what chats pays for jinja2.
    from .template_sandbox import BoundedEnvironment  # noqa: PLC0415

    found = BoundedEnvironment()
    found.globals |= {"raise_exception": refuse, "strftime_now": strftime_now}
    return found
