"""Every way in which ortkit fails, and the exit code that the command line ends with.

    OrtkitError                 1   anything that has no code of its own
    ├── OutputError              1   the result cannot be written: no space, no such folder, no permission
    ├── MissingPartError         1   a part of ortkit that the command needs is not installed
    ├── InputError               2   a text, an option or a file of texts that cannot be used
    │   └── TextError            2   texts of a call that cannot be used: one has no tokens, for example
    │       └── TextTooLongError 2   a text is longer than the model reads, and cutting it was forbidden
    ├── NotSignedInError         3   a Hub token is needed, and there is none, or it is not valid
    ├── AccessError              4   the Hub knows the token's user and does not give them access
    ├── NotFoundError            5   no such bundle, file or model
    ├── NetworkError             6   a download was needed and did not happen
    ├── BundleError              7   a bundle that is damaged, unsafe or not what its manifest says
    │   └── WrongKindError       7   a bundle of another kind: an embedder where a decoder is needed, for example
    ├── CheckpointError          7   a checkpoint that is damaged, unsafe or incomplete
    ├── ProviderError            8   the hardware that was asked for is not available
    ├── OutOfMemoryError         9   what would not fit in this machine's memory, told before it is taken
    └── UnsupportedModelError   10   a model that ortkit does not know how to export

A message says what happened and with which value, a hint what to do about it. Both are plain text without a final
period; literals stand in backticks.
"""

from __future__ import annotations

from typing import ClassVar


class OrtkitError(Exception):
    """Base of all errors that ortkit raises on purpose."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n\nhint: {self.hint}"


class OutputError(OrtkitError, OSError):
    """The result cannot be written where it should go."""


class MissingPartError(OrtkitError, ImportError):
    """A part of ortkit that is needed here is not installed."""


class InputError(OrtkitError, ValueError):
    """A text, an option or a file of texts cannot be used."""

    exit_code = 2


class TextError(InputError):
    """Texts of a call cannot be used; all others can."""

    def __init__(
        self, message: str, *, hint: str | None = None, texts: tuple[int, ...] = (), fault: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.texts = texts
        """The indices of all texts with this fault in the call, or in a stream's chunk, counted from its first."""
        self.fault = message if fault is None else fault
        """The message without its subject, for callers that know where a text came from: `has no tokens`."""


class TextTooLongError(TextError):
    """A text is longer than the model reads, and cutting it was forbidden."""


class NotSignedInError(OrtkitError):
    """A Hub token is needed, and there is none, or it is not valid."""

    exit_code = 3


class AccessError(OrtkitError, PermissionError):
    """The Hub knows the token's user and does not give them access."""

    exit_code = 4


class NotFoundError(OrtkitError, FileNotFoundError):
    """There is no such bundle, file or model."""

    exit_code = 5


class NetworkError(OrtkitError, ConnectionError):
    """A download was needed and did not happen."""

    exit_code = 6


class BundleError(OrtkitError):
    """A bundle is damaged, unsafe or not what its manifest says."""

    exit_code = 7


class WrongKindError(BundleError):
    """A bundle is of another kind than what opens it."""

    def __init__(self, message: str, *, hint: str | None = None, command: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.command = command
        """The command line that the bundle is for, which the command line tells instead of the hint."""


class CheckpointError(OrtkitError):
    """A checkpoint is damaged, unsafe or incomplete."""

    exit_code = 7


class ProviderError(OrtkitError):
    """The hardware that was asked for is not available."""

    exit_code = 8


class OutOfMemoryError(OrtkitError, MemoryError):
    """Something would not fit in this machine's memory."""

    exit_code = 9


class UnsupportedModelError(OrtkitError):
    """ortkit does not know how to export this model."""

    exit_code = 10
