"""Lines of equal longitude and latitude on a map, and where they meet its edges."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyproj

from geobind_core.data.geography import Numbers
from geobind_core.maps.grid import LONGITUDE_LATITUDE, Grid

_STEPS = (90.0, 60.0, 45.0, 30.0, 20.0, 15.0, 10.0, 5.0, 2.0, 1.0)
_ALONG = 361  # points of a line
_APART = 0.04  # of an edge


@dataclass(frozen=True)
class Tick:
    """A line of the graticule.

    Attributes:
        label: Such as `20° E`.
        line: `x` and `y` of points along it, NaN where it leaves the map.
        edge: Where it meets the lower edge (longitudes) or the left one (latitudes); None where it does not, or
            where others meet it as well, as at a pole.
        inside: The middle of what is to be seen of it; None where nothing is.
    """

    label: str
    line: tuple[Numbers, Numbers]
    edge: float | None
    inside: tuple[float, float] | None


def ticks(grid: Grid, most: int) -> tuple[list[Tick], list[Tick]]:
    """Returns some lines of equal longitude and some of equal latitude.

    Args:
        grid: The map.
        most: About how many of each.
    """
    if grid.is_geographic:
        west, east, south, north = grid.left, grid.right, grid.bottom, grid.top
    else:
        west, east, south, north = _seen(grid)
    meridians = _round_values(west, east, most)
    parallels = _round_values(south, north, most)
    along_x, along_y = np.linspace(west, east, _ALONG), np.linspace(south, north, _ALONG)
    upright = [_drawn(grid, np.full(_ALONG, value), along_y) for value in meridians]
    level = [_drawn(grid, along_x, np.full(_ALONG, value)) for value in parallels]
    below = _apart([_crossing(y, x, grid.bottom, grid.left, grid.right) for x, y in upright], grid.right - grid.left)
    aside = _apart([_crossing(x, y, grid.left, grid.bottom, grid.top) for x, y in level], grid.top - grid.bottom)
    return (
        [
            Tick(_label((value + 180) % 360 - 180, "E", "W", meridians), line, edge, _middle(line, grid))
            for value, line, edge in zip(meridians, upright, below, strict=True)
        ],
        [
            Tick(_label(value, "N", "S", parallels), line, edge, _middle(line, grid))
            for value, line, edge in zip(parallels, level, aside, strict=True)
        ],
    )


def _apart(edges: list[float | None], length: float) -> list[float | None]:
    """Returns the places at an edge, without those that are so near others that labels would overlap."""
    return [
        edge
        if edge is not None
        and all(o is None or n == number or abs(edge - o) > _APART * length for n, o in enumerate(edges))
        else None
        for number, edge in enumerate(edges)
    ]


def _middle(line: tuple[Numbers, Numbers], grid: Grid) -> tuple[float, float] | None:
    x, y = line
    with np.errstate(invalid="ignore"):
        seen = np.flatnonzero((x > grid.left) & (x < grid.right) & (y > grid.bottom) & (y < grid.top))
    if not len(seen):
        return None
    at = seen[len(seen) // 2]
    return float(x[at]), float(y[at])


def _seen(grid: Grid) -> tuple[float, float, float, float]:
    """Returns what a projected map shows: west, east, south, north."""
    sparse = Grid(grid.crs, grid.left, grid.bottom, grid.right, grid.top, min(60, grid.width), min(60, grid.height))
    places = sparse.places(0, sparse.height)
    places = places.take(places.known)
    if not len(places):
        return 0.0, 0.0, 0.0, 0.0
    # The longitudes begin behind their widest gap, so that the antimeridian is nothing special.
    longitude = np.sort(places.longitude)
    gaps = np.diff(longitude, append=longitude[0] + 360)
    last = int(np.argmax(gaps))
    if gaps[last] < 20:
        west, east = -180.0, 180.0
    else:
        west, east = longitude[(last + 1) % len(longitude)], longitude[last]
        east += 360 if east < west else 0
    margin_x, margin_y = 0.05 * (east - west), 0.05 * float(np.ptp(places.latitude))
    if east - west < 360:
        west, east = west - margin_x, min(east + margin_x, west - margin_x + 360)
    return west, east, max(-90, places.latitude.min() - margin_y), min(90, places.latitude.max() + margin_y)


def _round_values(low: float, high: float, most: int) -> list[float]:
    span = high - low
    if span <= 0:
        return []
    steps = [*_STEPS, *(step * 10.0**-power for power in range(1, 8) for step in (5.0, 2.0, 1.0))]
    step = min((s for s in steps if span / s <= most + 0.5), default=steps[0])
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _drawn(grid: Grid, longitude: Numbers, latitude: Numbers) -> tuple[Numbers, Numbers]:
    if grid.is_geographic:
        return longitude, latitude
    x, y = pyproj.Transformer.from_crs(LONGITUDE_LATITUDE, grid.crs, always_xy=True).transform(longitude, latitude)
    width, height = grid.right - grid.left, grid.top - grid.bottom
    with np.errstate(invalid="ignore"):
        far = (np.abs(x - (grid.left + grid.right) / 2) > width) | (np.abs(y - (grid.bottom + grid.top) / 2) > height)
    lost = far | ~np.isfinite(x) | ~np.isfinite(y)
    # Where the system is cut, a line would run across the whole map.
    jumps = np.flatnonzero(np.hypot(np.diff(x), np.diff(y)) > 0.25 * math.hypot(width, height))
    lost[jumps] = True
    return np.where(lost, np.nan, x), np.where(lost, np.nan, y)


def _crossing(across: Numbers, along: Numbers, edge: float, low: float, high: float) -> float | None:
    """Returns where a line meets an edge, between its ends."""
    over = across - edge
    with np.errstate(invalid="ignore"):
        meets = np.flatnonzero((over[:-1] <= 0) & (over[1:] >= 0) | (over[:-1] >= 0) & (over[1:] <= 0))
    for i in meets:
        share = over[i] / (over[i] - over[i + 1]) if over[i] != over[i + 1] else 0.0
        at = float(along[i] + share * (along[i + 1] - along[i]))
        if low <= at <= high:
            return at
    return None


def _label(value: float, positive: str, negative: str, among: list[float]) -> str:
    step = abs(among[1] - among[0]) if len(among) > 1 else 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step < 1 else 0
    if abs(value) < 1e-9 or (positive == "E" and abs(value) == 180):
        return f"{abs(value):.{decimals}f}°"
    return f"{abs(value):.{decimals}f}° {positive if value > 0 else negative}"
