"""A scatter plot and a plot of curves as SVG, so that no library is needed for two pictures."""

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
class Curve:
    """A named line through places in the plot."""

    name: str
    places: Sequence[tuple[float, float]]
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
    return "\n".join([*frame(title, x_label, y_label, across, up), *named(points, across, up), "</svg>", ""])


def curves(title: str, x_label: str, y_label: str, drawn: Sequence[Curve]) -> str:
    """A plot of lines as an SVG document, each named at its last place."""
    places = [place for curve in drawn for place in curve.places]
    # The names stand to the right of the lines' ends.
    room = 20 + LETTER * max(len(curve.name) for curve in drawn)
    across = axis_of(0, max(x for x, _ in places), LEFT, WIDTH - RIGHT - room)
    up = axis_of(0, max(y for _, y in places), HEIGHT - BOTTOM, TOP)
    parts = frame(title, x_label, y_label, across, up)
    for curve in drawn:
        path = " L".join(f"{across.place(x):.1f} {up.place(y):.1f}" for x, y in curve.places)
        parts.append(f'<path d="M{path}" stroke="{colour_of(curve)}" stroke-width="2" fill="none"/>')
    ends = [Point(curve.name, *curve.places[-1], ours=curve.ours) for curve in drawn]
    return "\n".join([*parts, *named(ends, across, up), "</svg>", ""])


def frame(title: str, x_label: str, y_label: str, across: Axis, up: Axis) -> list[str]:
    """The beginning of a document: title, axes and their marks."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(WIDTH / 2, 24, title, "middle"),
        text((across.first + across.last) / 2, HEIGHT - 14, x_label, "middle"),
        f'<g transform="rotate(-90 18 {HEIGHT / 2})">{text(18, HEIGHT / 2, y_label, "middle")}</g>',
    ]
    for mark in across.marks():
        x = across.place(mark)
        parts += [line(x, TOP, x, HEIGHT - BOTTOM), text(x, HEIGHT - BOTTOM + 18, f"{mark:g}", "middle")]
    for mark in up.marks():
        y = up.place(mark)
        parts += [line(LEFT, y, across.last, y), text(LEFT - 8, y + 4, f"{mark:.5g}", "end")]
    return parts


def named(points: Sequence[Point], across: Axis, up: Axis) -> list[str]:
    """The points with their names, none of which stands on another."""
    parts = []
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
        colour = colour_of(point)
        beside = x - 8 if to_left else x + 8
        parts += [
            f'<path d="M{x:.1f} {y:.1f} V{label - 4:.1f} H{beside:.1f}" stroke="{colour}" fill="none"/>',
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>',
            text(end if to_left else start, label, point.name, "end" if to_left else "start"),
        ]
    return parts


def colour_of(drawn: Point | Curve) -> str:
    return "#c0392b" if drawn.ours else "#2c5f8a"


def text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f} L{x2:.1f} {y2:.1f}" stroke="#ddd"/>'
