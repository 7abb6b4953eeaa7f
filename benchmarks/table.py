"""Print results as a table, and compute the ratios."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header: names to the left, figures to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    print(f"\n{title}\n")
    for line in lines:
        figures = (figure.rjust(width) for figure, width in zip(line[1:], widths[1:], strict=True))
        print("  ".join([line[0].ljust(widths[0]), *figures]))


def ratio(these: Sequence[float], those: Sequence[float]) -> str:
    """The median over rounds of these / those, and the range: a slow spell hits both figures of a round."""
    if these is those:
        return "1"
    rounds = [this / that for this, that in zip(these, those, strict=True)]
    return f"{median(rounds):.2f} ({min(rounds):.2f} to {max(rounds):.2f})"
