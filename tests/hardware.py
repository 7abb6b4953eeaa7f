"""Tests that need a GPU or a Mac: skipped elsewhere with what they would check, and counted in the summary.

Marks `gpu` and `coreml`; the first line of a test's docstring says what it checks. `conftest.py`
calls and imports the hooks.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from ortkit import Provider

MARKS = {"gpu": Provider.CUDA, "coreml": Provider.COREML}
WEBGPU = "webgpu"
"""The mark of tests that skip themselves without onnxruntime's plugin."""


@cache
def what_is_missing(provider: Provider) -> str | None:
    """Why this machine cannot run such tests; None where it can."""
    import onnxruntime

    from ortkit.runtime.session.providers import PROVIDERS

    problem = PROVIDERS[provider].problem(onnxruntime)
    return None if problem is None else problem.message


def skip_without_hardware(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what needs hardware that is not here; `pytest_collection_modifyitems` calls it."""
    for item in items:
        for mark, provider in MARKS.items():
            if item.get_closest_marker(mark) is None:
                continue
            lines = (getattr(item, "obj", None).__doc__ or "").strip().splitlines()
            if not lines:
                raise pytest.UsageError(f"{item.nodeid}: the docstring must say what it checks on the hardware")
            missing = what_is_missing(provider)
            if missing is not None:
                item.add_marker(pytest.mark.skip(reason=f"{mark}: would check: {lines[0]} ({missing})"))


def not_run(skipped: list[pytest.TestReport]) -> str | None:
    """`not run here: 5 gpu, 4 coreml`, from the reports of skipped tests; None without any."""
    counts = Counter(
        mark
        for report in skipped
        for mark in (*MARKS, WEBGPU)
        # A test with the mark may be skipped for another reason where the hardware is there.
        if mark in report.keywords and f"{mark}: " in str(report.longrepr)
    )
    return (
        f"not run here: {', '.join(f'{counts[mark]} {mark}' for mark in (*MARKS, WEBGPU) if counts[mark])}"
        if counts
        else None
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    line = not_run(terminalreporter.stats.get("skipped", []))
    if line is not None:
        terminalreporter.write_line(line, yellow=True)
