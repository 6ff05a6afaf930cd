"""Line charts: where lines, ticks and labels go. The template draws them, in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 26, 34
"""Room around the plot, in the units of the drawing, for labels."""

_MOST_POINTS = 400  # of a line; more could not be told apart
_TICKS_ACROSS, _TICKS_UP = 5, 4


@dataclass(frozen=True)
class Tick:
    """A mark at an axis: where it is in the drawing, and what is written there."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        name: What it shows; empty where there is one line only.
        path: The `d` of an SVG path.
        end: Where its last point is.
        last: Its last value, written.
        number: Which of the colours it has, from 0.
    """

    name: str
    path: str
    end: tuple[float, float]
    last: str
    number: int


@dataclass(frozen=True)
class Chart:
    """A chart, ready to be drawn.

    Attributes:
        title: What goes up, with its unit.
        across: What goes to the right, with its unit.
        lines: One or several.
        x_ticks: Marks of the horizontal axis.
        y_ticks: Marks of the vertical axis.
        x_range: The values at the left and the right end.
        y_range: The values at the lower and the upper end.
    """

    title: str
    across: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_range: tuple[float, float]
    y_range: tuple[float, float]


def line_chart(
    title: str, across: str, x: Sequence[float], series: Mapping[str, Sequence[float]], *, from_zero: bool = False
) -> Chart | None:
    """Lays out a chart; None where there is nothing to draw.

    Args:
        title: What goes up, with its unit.
        across: What goes to the right, with its unit.
        x: `[N]`, ascending.
        series: Name of a line -> its `[N]` values; what is not finite leaves a gap.
        from_zero: Whether the vertical axis starts at 0.
    """
    finite = [value for values in series.values() for value in values if math.isfinite(value)]
    if not finite or not x:
        return None
    ups = nice_ticks(min(0.0, *finite) if from_zero else min(finite), max(finite), _TICKS_UP)
    low, high = min(ups[0], min(finite)), max(ups[-1], max(finite))
    first, last = min(x), max(x)
    acrosses = [tick for tick in nice_ticks(first, last, _TICKS_ACROSS, whole=True) if first <= tick <= last]

    def place_x(value: float) -> float:
        share = (value - first) / (last - first) if last > first else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def place_y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    lines = []
    for number, (name, values) in enumerate(series.items()):
        points = [(place_x(a), place_y(b)) if math.isfinite(b) else None for a, b in zip(x, values, strict=True)]
        known = [i for i, point in enumerate(points) if point is not None]
        if known and (end := points[known[-1]]) is not None:
            lines.append(Line(name, _path(_thinned(points)), end, short(values[known[-1]]), number))
    return Chart(
        title,
        across,
        tuple(lines),
        _marks(acrosses, place_x),
        _marks([value for value in ups if low <= value <= high], place_y),
        (first, last),
        (low, high),
    )


def nice_ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Returns round numbers, or whole ones, that reach from `low` or below to `high` or above."""
    from matplotlib.ticker import MaxNLocator

    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    return [
        float(tick) for tick in MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low, high)
    ]


def short(value: float, digits: int = 3) -> str:
    """Returns a number in few letters: 1,200, 0.003, 1.5e-05."""
    if value == 0:
        return "0"
    if abs(value) >= 0.5 * 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def _marks(values: Sequence[float], place: Callable[[float], float]) -> tuple[Tick, ...]:
    """Returns marks with as many digits as tell them apart."""
    written = [[short(value, digits) for value in values] for digits in range(3, 12)]
    labels = next((found for found in written if len(set(found)) == len(found)), written[-1])
    return tuple(Tick(place(value), label) for value, label in zip(values, labels, strict=True))


def _thinned(points: list[tuple[float, float] | None]) -> list[tuple[float, float] | None]:
    """Keeps of each stretch of a long line its lowest and its highest point, so that no peak is lost."""
    if len(points) <= _MOST_POINTS:
        return points
    width = math.ceil(2 * len(points) / _MOST_POINTS)
    kept: list[tuple[float, float] | None] = []
    for start in range(0, len(points), width):
        part = [point for point in points[start : start + width] if point is not None]
        chosen = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])} if part else {None}
        kept += sorted(chosen, key=lambda p: p[0] if p else 0.0)
    return [*kept, points[-1]]


def _path(points: list[tuple[float, float] | None]) -> str:
    parts, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        parts.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
        pen = "L"
    # A line of one point has no length; with round ends it is seen all the same.
    return "".join(parts) + ("h0" if len(parts) == 1 else "")
