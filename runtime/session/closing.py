"""Closing models and indexes frees what they hold; using a closed one is an error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import NoReturn, Self, cast

from ..bundle.folder import BundleFolder
from ..errors import InputError
from .session import Session


class Closable(ABC):
    """Something that is open until `close`, as a context manager."""

    _closed = False

    @abstractmethod
    def close(self) -> None:
        """Release what it holds; a second call does nothing."""

    @abstractmethod
    def _closed_error(self) -> InputError:
        """What using it raises once it is closed."""

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        """Raise InputError where it is closed."""
        if self._closed:
            raise self._closed_error()


class ClosableModel(Closable):
    """A model with a session.

    Weights are freed when all models of the same bundle are closed, and no stream and no KV cache uses them.
    """

    bundle: BundleFolder
    session: Session

    def close(self) -> None:
        """Release the weights; a second call does nothing. Calls that are running on other threads may fail."""
        self._closed = True
        self.session = cast("Session", _ClosedSession(self._closed_error()))

    def __reduce__(self) -> NoReturn:
        """A session is of its process: pickle and multiprocessing get an error that says what to do instead."""
        name = type(self).__name__
        raise TypeError(
            f"{name} cannot be pickled: open the bundle in each process, `{name}({str(self.bundle.path)!r})`"
        )

    def _closed_error(self) -> InputError:
        name = type(self).__name__
        return InputError(
            f"the {name} of `{self.bundle.path}` is closed", hint=f"open it again: `{name}({str(self.bundle.path)!r})`"
        )


class _ClosedSession:
    """Replaces the session of a closed model: every attribute raises InputError."""

    def __init__(self, error: InputError) -> None:
        self._error = error

    def __getattr__(self, name: str) -> NoReturn:
        raise InputError(self._error.message, hint=self._error.hint)
