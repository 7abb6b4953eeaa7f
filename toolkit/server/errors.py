"""Errors of the HTTP APIs: the status for each error of ortkit, in the shape of OpenAI's API or of TEI's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, ClassVar

from ...runtime.errors import (
    BundleError,
    InputError,
    MissingPartError,
    OrtkitError,
    OutOfMemoryError,
    QueueFullError,
    TextError,
    TextTooLongError,
)

_logger = logging.getLogger("ortkit.server")
CLIENT_CLOSED = 499
"""nginx's status for a request whose client has gone before an answer began; nobody reads it."""
RETRY_SECONDS = 1
"""`Retry-After` of an answer 429: requests are short, and clients wait longer each time."""


class Api(Enum):
    """Whose API an endpoint follows, and so the shape of its errors."""

    OPENAI = "openai"
    TEI = "tei"
    """Hugging Face's text-embeddings-inference."""


class RequestError(InputError):
    """A request that is refused; its status, and the field at fault as a path such as `messages[0].content`."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "invalid_value"

    def __init__(self, message: str, *, param: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.param = param


class MissingFieldError(RequestError):
    """A required field is missing."""

    code = "missing_required_parameter"


class UnknownFieldError(RequestError):
    """A field that the endpoint does not know, and that may change the answer."""

    code = "unknown_parameter"


class UnsupportedFieldError(RequestError):
    """A field that other servers have, and that would change the answer."""

    code = "unsupported_parameter"


class InvalidJsonError(RequestError):
    """A body that is not valid JSON."""

    code = "invalid_json"


class ContextLengthError(RequestError):
    """A prompt or a text with more tokens than the model takes."""

    code = "context_length_exceeded"


class UnknownModelError(RequestError):
    """No bundle is served under this name."""

    status = 404
    code = "model_not_found"


class UnknownIndexError(RequestError):
    """No search index is served under this name."""

    status = 404
    code = "vector_store_not_found"


class WrongModelError(RequestError):
    """The model is of another kind than the endpoint is for."""

    code = "wrong_model_kind"


class MediaTypeError(RequestError):
    """A body that is not JSON by its Content-Type; a page of another site can send others without asking."""

    status = 415
    code = "unsupported_media_type"


class ClosingError(OrtkitError):
    """An answer that the server ended, because it closes or replaces the model."""

    def __init__(self) -> None:
        super().__init__("the server is closing, or the model was replaced", hint="send the request again")


def status_of(error: Exception) -> int:
    """The HTTP status for an error."""
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, QueueFullError):
        return 429
    if isinstance(error, InputError):
        return 400
    if isinstance(error, ClosingError):
        return 503
    # What a request needs does not fit; another request may.
    return 413 if isinstance(error, OutOfMemoryError) else 500


def error_body(error: Exception, api: Api) -> dict[str, Any]:
    """The JSON of an error; nothing of an unexpected one."""
    message, status = _message_of(error), status_of(error)
    if api is Api.TEI:
        return {"error": message, "error_type": _TEI_TYPES.get(tei_status_of(error), "Backend")}
    return openai_error(message, status, param=getattr(error, "param", None), code=_code_of(error))


def openai_error(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in the shape of OpenAI's API."""
    kind = _OPENAI_TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: Exception, api: Api = Api.OPENAI) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, JSON and headers for an error; logs an unexpected one."""
    status = tei_status_of(error) if api is Api.TEI else status_of(error)
    if status == 500:
        _logger.error("a request failed: %s", error, exc_info=error)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == 429 else {}
    return status, error_body(error, api), headers


def tei_status_of(error: Exception) -> int:
    """TEI's status for an error: 424 for a model of another kind, 413 for a text that is too long, 422 for others."""
    if isinstance(error, WrongModelError):
        return 424
    if isinstance(error, (TextTooLongError, ContextLengthError)):
        return 413
    status = status_of(error)
    return 422 if status == 400 else status


_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}
_TEI_TYPES = {404: "Validation", 413: "Validation", 415: "Validation", 422: "Validation", 429: "Overloaded"}


def _code_of(error: Exception) -> str | None:
    if isinstance(error, RequestError):
        return error.code
    if isinstance(error, TextTooLongError):
        return ContextLengthError.code
    if isinstance(error, QueueFullError):
        return "queue_full"
    return "out_of_memory" if isinstance(error, OutOfMemoryError) else None


def _message_of(error: Exception) -> str:
    """Message and hint of an error of ortkit; only that there was one for others, which may quote anything."""
    if isinstance(error, BundleError) or not isinstance(error, OrtkitError):
        return "the server failed; its log says why"
    return error.message if error.hint is None else f"{error.message} ({error.hint})"


@contextmanager
def blaming(param: str) -> Iterator[None]:
    """Name the field that what the block raises for invalid input is about."""
    try:
        yield
    except (RequestError, QueueFullError):
        raise
    except TextTooLongError as error:
        raise ContextLengthError(error.message, param=param, hint=error.hint) from error
    except InputError as error:
        raise RequestError(error.message, param=param, hint=error.hint) from error
    except MissingPartError as error:
        raise UnsupportedFieldError(error.message, param=param, hint=error.hint) from error


@contextmanager
def blaming_text(path_of: Callable[[int], str], field: str, *, too_long: str) -> Iterator[None]:
    """Name the text that what the block raises is about, `field` where it is about no single one.

    `too_long` says what to do about a text over the model's limit.
    """
    try:
        yield
    except TextError as error:
        param = path_of(error.texts[0]) if error.texts else field
        if isinstance(error, TextTooLongError):
            raise ContextLengthError(error.message, param=param, hint=too_long) from error
        raise RequestError(error.message, param=param, hint=error.hint) from error
    except (RequestError, QueueFullError):
        raise
    except InputError as error:
        raise RequestError(error.message, param=field, hint=error.hint) from error


def listed(names: Sequence[str] | Mapping[str, object]) -> str:
    """Names in backticks for a message; `none` where there are none."""
    return ", ".join(f"`{name}`" for name in names) or "none"


def printable(name: str) -> str:
    """A client's string for a message: short, and without control characters."""
    return "".join(character if character.isprintable() else "\ufffd" for character in name[:80])
