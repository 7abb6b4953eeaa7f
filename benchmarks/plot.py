"""A scatter plot and a line plot as SVG, each system named beside its point or the end of its line."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox, IdentityTransform

WIDTH, HEIGHT = 9.0, 5.0
"""In inches."""
SVG_DPI = 72
"""What SVG has, so that places are in pixels of the document."""
OURS, OTHERS, GRID = "#c0392b", "#2c5f8a", "#dddddd"
BESIDE = 9
"""Pixels between a place and its name."""
# The same figures give the same bytes, and text stays text, in a font that the reader has.
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "benchmarks",
    "svg.fonttype": "none",
    "font.size": 10,
    "font.family": "sans-serif",
}
ROOM = 0.22
"""Of the width, for the names beside the ends of lines."""


@dataclass(frozen=True)
class Point:
    """A named place in the plot."""

    name: str
    x: float
    y: float
    ours: bool = False
    """Shown in the other color."""


@dataclass(frozen=True)
class Curve:
    """A named line through places in the plot."""

    name: str
    places: Sequence[tuple[float, float]]
    ours: bool = False
    """Shown in the other color."""


def scatter(title: str, x_label: str, y_label: str, points: Sequence[Point]) -> str:
    """The plot as an SVG document; x begins at 0."""
    with mpl.rc_context(STYLE):
        figure, axes = empty(title, x_label, y_label)
        for point in points:
            axes.plot(point.x, point.y, "o", color=color_of(point), markersize=8, zorder=3)
        axes.set_xlim(left=0)
        axes.margins(0.06)
        name_places(figure, axes, points)
        return svg_of(figure)


def curves(title: str, x_label: str, y_label: str, drawn: Sequence[Curve]) -> str:
    """A plot of lines as an SVG document, each named at its last place; both axes begin at 0."""
    with mpl.rc_context(STYLE):
        figure, axes = empty(title, x_label, y_label, room=ROOM)
        for curve in drawn:
            xs, ys = zip(*curve.places, strict=True)
            axes.plot(xs, ys, "o-", color=color_of(curve), linewidth=2, markersize=4, zorder=3)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        name_places(figure, axes, [Point(curve.name, *curve.places[-1], ours=curve.ours) for curve in drawn])
        return svg_of(figure)


def empty(title: str, x_label: str, y_label: str, *, room: float = 0) -> tuple[Figure, Axes]:
    """A figure whose axes leave `room` at its right side, as a part of its width."""
    # Not by pyplot, which would keep the figure and look for a screen.
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=SVG_DPI, layout=ConstrainedLayoutEngine(rect=(0, 0, 1 - room, 1)))
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.ticklabel_format(useOffset=False)
    axes.grid(color=GRID)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def name_places(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Write each name beside its point, lower where another name or point is in the way, with a line to its point."""
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    # The axes stay where they are now: to make room for a name is to move it.
    figure.set_layout_engine("none")
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    places = {point: axes.transData.transform((point.x, point.y)) for point in points}
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in places.values()]
    in_pixels = IdentityTransform()
    for point in sorted(points, key=lambda point: (-point.y, point.x)):
        x, y = places[point]
        name = figure.text(x, y, point.name, transform=in_pixels, color=color_of(point), verticalalignment="center")
        fits = x + BESIDE + name.get_window_extent(renderer).width < figure.bbox.width
        end = x + BESIDE if fits else x - BESIDE
        name.set(x=end, horizontalalignment="left" if fits else "right")
        while any(name.get_window_extent(renderer).overlaps(box) for box in taken):
            y -= 1
            name.set_y(y)
        taken.append(name.get_window_extent(renderer).padded(1))
        line = Line2D([x, end], [places[point][1], y], transform=in_pixels, color=color_of(point), linewidth=0.7)
        figure.add_artist(line)


def color_of(drawn: Point | Curve) -> str:
    return OURS if drawn.ours else OTHERS


def svg_of(figure: Figure) -> str:
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return written.getvalue()
