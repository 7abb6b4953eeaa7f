"""The exceptions that ortkit raises, and the exit code of the command line for each.

    OrtkitError                 1   base class; errors without a code of their own
    ├── OutputError              1   the output cannot be written: no space, no such folder, no permission
    ├── MissingPartError         1   an optional dependency is not installed
    ├── InputError               2   an invalid text, option or input file
    │   └── TextError            2   texts of a call that cannot be processed: one without tokens, for example
    │       └── TextTooLongError 2   a text is longer than the model's limit, and truncation is off
    ├── NotSignedInError         3   a Hub token is needed, and it is missing or not valid
    ├── AccessError              4   the token's user has no access to the model
    ├── NotFoundError            5   no such bundle, file or model
    ├── NetworkError             6   a download failed
    ├── BundleError              7   a bundle is damaged, unsafe or differs from its manifest
    │   ├── NotTrustedError      7   a signature is missing, wrong or not by a trusted key; or an older release
    │   └── WrongKindError       7   a bundle of another kind: an embedder instead of a decoder, for example
    ├── CheckpointError          7   a checkpoint is damaged, unsafe or incomplete
    ├── ProviderError            8   the requested execution provider is not available
    ├── OutOfMemoryError         9   too little memory; raised before the memory is allocated
    ├── QueueFullError           9   as many requests wait as may wait; a later one is taken again
    └── UnsupportedModelError   10   ortkit cannot export the model

A message says what happened and with which value; a hint says what to do about it. Both are plain text without a
final period, with literals in backticks.
"""

from __future__ import annotations

from typing import ClassVar


class OrtkitError(Exception):
    """Base class of all errors that ortkit raises.

    `message` says what happened, `hint` what to do about it (or None), and `exit_code` is that of the command line.

        >>> try:
        ...     load("no/such/bundle")
        ... except OrtkitError as error:
        ...     print(error.exit_code, error.message)
        5 there is no bundle at `no/such/bundle`
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n\nhint: {self.hint}"


class OutputError(OrtkitError, OSError):
    """The output cannot be written."""


class MissingPartError(OrtkitError, ImportError):
    """An optional dependency is not installed."""


class InputError(OrtkitError, ValueError):
    """A text, an option or an input file is not valid."""

    exit_code = 2


class TextError(InputError):
    """Some texts of a call cannot be processed; without them the call succeeds."""

    def __init__(
        self, message: str, *, hint: str | None = None, texts: tuple[int, ...] = (), fault: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.texts = texts
        """Indices, in the call or in the chunk of a stream, of all texts with this fault."""
        self.fault = message if fault is None else fault
        """The message without its subject, such as `has no tokens`, for callers that can name the text better."""


class TextTooLongError(TextError):
    """A text is longer than the model's limit, and truncation is off."""


class NotSignedInError(OrtkitError):
    """A Hub token is needed, and it is missing or not valid."""

    exit_code = 3


class AccessError(OrtkitError, PermissionError):
    """The token's user has no access to the model."""

    exit_code = 4


class NotFoundError(OrtkitError, FileNotFoundError):
    """A bundle, file or model does not exist."""

    exit_code = 5


class NetworkError(OrtkitError, ConnectionError):
    """A download failed."""

    exit_code = 6


class BundleError(OrtkitError):
    """A bundle is damaged, unsafe or differs from its manifest."""

    exit_code = 7


class NotTrustedError(BundleError):
    """A required signature is missing, not valid or not by a trusted key, or a release is older than a trusted one."""


class WrongKindError(BundleError):
    """A bundle is of another kind than the class that opens it."""

    def __init__(self, message: str, *, hint: str | None = None, command: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.command = command
        """The command for this kind of bundle; the command line prints it instead of the hint."""


class CheckpointError(OrtkitError):
    """A checkpoint is damaged, unsafe or incomplete."""

    exit_code = 7


class ProviderError(OrtkitError):
    """The requested execution provider is not available."""

    exit_code = 8


class OutOfMemoryError(OrtkitError, MemoryError):
    """There is too little memory; raised before the memory is allocated."""

    exit_code = 9
    answer: object = None
    """From `generate` and `chat`: the `Answer` so far, where memory ran out in the middle of it; None otherwise."""


class QueueFullError(OrtkitError):
    """As many requests wait already as may wait."""

    exit_code = 9


class UnsupportedModelError(OrtkitError):
    """ortkit cannot export the model."""

    exit_code = 10
