"""Findings as text for people, and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ...runtime.version import __version__
from .finding import Finding, Severity, exit_code_of, worst_of

SCHEMA = 1
"""Of the JSON. Increased when a field is removed or changes its meaning; new fields and checks may come without it."""
_LABEL = 8


def lines_of(finding: Finding, *, brief: bool = False) -> Iterator[str]:
    """A finding in lines: severity, check and text, then why it matters, and what to do."""
    yield f"{finding.severity.value:<{_LABEL}} {finding.check}: {finding.what}"
    if brief:
        return
    if finding.why is not None:
        yield f"{'':<{_LABEL}}   why: {finding.why}"
    if finding.action is not None:
        yield f"{'':<{_LABEL}}   do:  {finding.action}"


def summary_of(findings: Sequence[Finding]) -> str:
    """The last line: `2 warnings, 1 note, 18 ok`."""
    counts = Counter(found.severity for found in findings)
    return ", ".join(_counted(counts[severity], severity) for severity in reversed(Severity) if counts[severity])


def _counted(count: int, severity: Severity) -> str:
    plural = "" if severity is Severity.OK or count == 1 else "s"
    return f"{count} {severity.value}{plural}"


def report_of(findings: Sequence[Finding]) -> dict[str, Any]:
    """The JSON object: see `docs/doctor.md`."""
    return {
        "schema": SCHEMA,
        "ortkit": __version__,
        "worst": worst_of(findings).value,
        "exit_code": exit_code_of(findings),
        "findings": [
            {
                "check": found.check,
                "severity": found.severity.value,
                "bundle": found.bundle,
                "what": found.what,
                "why": found.why,
                "do": found.action,
                "exit_code": found.exit_code,
                "facts": dict(found.facts),
            }
            for found in findings
        ],
    }
