"""What a check found: what is the case, why it matters, and what to type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ...runtime.errors import OrtkitError


class Severity(StrEnum):
    """How much a finding matters: only an error changes the exit code."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing."""
    WARNING = "warning"
    """Models run, but slower, with less memory than they want, or on something that will fail later."""
    ERROR = "error"
    """Something does not work."""


RANKS = tuple(Severity)
"""From the best to the worst."""
WORST_CODES = (7, 8, 9, 1, 2, 5)
"""Exit codes of errors, from the worst on; any other comes after them.

7: something is not what was signed or certified, and may give wrong answers. 8: no model runs. 9: a process that runs
one is killed. 1: a package is missing or broken. 2: a setting cannot be used. 5: something is not there.
"""


@dataclass(frozen=True)
class Finding:
    """The result of a check. Texts are plain, with literals in backticks and without a final period."""

    check: str
    """The name of the check, which stays the same between versions: `libc`, `bundle-memory`."""
    severity: Severity
    what: str
    why: str | None = None
    """Why it matters; None where nothing is wrong."""
    action: str | None = None
    """What to do, with commands in backticks; None where nothing is wrong."""
    exit_code: int = 0
    """Exit code of an error (`runtime/errors.py`); 0 for anything else."""
    bundle: str | None = None
    """The bundle that it is about; None for the machine."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Figures and names, for programs."""


def ok(check: str, what: str, **facts: Any) -> Finding:
    """Nothing is wrong."""
    return Finding(check, Severity.OK, what, facts=facts)


def note(check: str, what: str, why: str, action: str | None = None, **facts: Any) -> Finding:
    """Something to know of."""
    return Finding(check, Severity.NOTE, what, why, action, facts=facts)


def warning(check: str, what: str, why: str, action: str, **facts: Any) -> Finding:
    """Something that costs speed or memory, or fails later."""
    return Finding(check, Severity.WARNING, what, why, action, facts=facts)


def error(check: str, what: str, why: str, action: str, code: int, **facts: Any) -> Finding:
    """Something that does not work; `code` is the exit code."""
    return Finding(check, Severity.ERROR, what, why, action, code, facts=facts)


def failed(check: str, found: OrtkitError, why: str, action: str | None = None, **facts: Any) -> Finding:
    """The finding for an error of the runtime, whose hint is the action by default."""
    return Finding(check, Severity.ERROR, found.message, why, found.hint or action, found.exit_code, facts=facts)


def worst_of(findings: Sequence[Finding]) -> Severity:
    return max((found.severity for found in findings), key=RANKS.index, default=Severity.OK)


def exit_code_of(findings: Sequence[Finding]) -> int:
    """The code of the worst error; 0 without one."""
    codes = [found.exit_code for found in findings if found.severity is Severity.ERROR]
    return min(codes, key=_rank, default=0)


def _rank(code: int) -> int:
    return WORST_CODES.index(code) if code in WORST_CODES else len(WORST_CODES)
