"""Why an execution provider is not available, and the command that mends it."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ProviderError


@dataclass(frozen=True)
class Problem:
    """What is missing on this machine."""

    message: str
    hint: str

    def error(self) -> ProviderError:
        return ProviderError(self.message, hint=self.hint)
