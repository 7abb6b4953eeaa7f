"""A scatter plot as SVG, so that no library is needed for one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 860, 480
LEFT, RIGHT, TOP, BOTTOM = 80, 30, 50, 60
FONT = 'font-family="sans-serif" font-size="13" fill="#222"'
LINE = 17
"""The height of a line of text, in pixels."""
LETTER = 6.6
"""About the width of a letter."""


@dataclass(frozen=True)
class Point:
    """A named place in the plot."""

    name: str
    x: float
    y: float
    ours: bool = False
    """Shown in the other colour."""


@dataclass(frozen=True)
class Axis:
    """From values to pixels, with round numbers marked."""

    low: float
    high: float
    first: float
    last: float
    step: float

    def place(self, value: float) -> float:
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)

    def marks(self) -> list[float]:
        return [self.low + self.step * number for number in range(round((self.high - self.low) / self.step) + 1)]


def axis_of(low: float, high: float, first: float, last: float) -> Axis:
    """An axis over these values that begins and ends at a round number."""
    rough = (high - low or 1.0) / 6
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    # Rounded first, so that 1.0 / 0.002 is 500 and not a little more.
    begin, end = floor(round(low / step, 6)), ceil(round(high / step, 6))
    return Axis(begin * step, max(end, begin + 1) * step, first, last, step)


def scatter(title: str, x_label: str, y_label: str, points: Sequence[Point]) -> str:
    """The plot as an SVG document."""
    across = axis_of(0, max(point.x for point in points), LEFT, WIDTH - RIGHT)
    up = axis_of(min(point.y for point in points), max(point.y for point in points), HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(WIDTH / 2, 24, title, "middle"),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_label, "middle"),
        f'<g transform="rotate(-90 18 {HEIGHT / 2})">{text(18, HEIGHT / 2, y_label, "middle")}</g>',
    ]
    for mark in across.marks():
        x = across.place(mark)
        parts += [line(x, TOP, x, HEIGHT - BOTTOM), text(x, HEIGHT - BOTTOM + 18, f"{mark:g}", "middle")]
    for mark in up.marks():
        y = up.place(mark)
        parts += [line(LEFT, y, WIDTH - RIGHT, y), text(LEFT - 8, y + 4, f"{mark:.5g}", "end")]
    # Where no label may stand: a line of text, from here to there. At first only the points themselves.
    taken = [(up.place(point.y) + 4, across.place(point.x) - 6, across.place(point.x) + 6) for point in points]
    for point in sorted(points, key=lambda point: -point.x):
        x, y = across.place(point.x), up.place(point.y)
        to_left = x + 10 + LETTER * len(point.name) > WIDTH - RIGHT
        start = x - 10 - LETTER * len(point.name) if to_left else x + 10
        end = start + LETTER * len(point.name)
        label = y + 4
        while any(label - LINE < other < label + LINE and start < stop and begin < end for other, begin, stop in taken):
            label += LINE
        taken.append((label, start, end))
        colour = "#c0392b" if point.ours else "#2c5f8a"
        beside = x - 8 if to_left else x + 8
        parts += [
            f'<path d="M{x:.1f} {y:.1f} V{label - 4:.1f} H{beside:.1f}" stroke="{colour}" fill="none"/>',
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>',
            text(end if to_left else start, label, point.name, "end" if to_left else "start"),
        ]
    return "\n".join([*parts, "</svg>", ""])


def text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f} L{x2:.1f} {y2:.1f}" stroke="#ddd"/>'
