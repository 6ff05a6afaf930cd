"""The part of the Earth that a map shows, in degrees; it may reach across the antimeridian."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from geobind_core.data.geography import EARTH_RADIUS_KM, Numbers, Places
from geobind_core.errors import InputError

KM_PER_DEGREE = math.pi * EARTH_RADIUS_KM / 180
_NEARLY_ALL = 300.0  # degrees: what spans more is shown on a map of all longitudes


@dataclass(frozen=True)
class Extent:
    """Longitudes and latitudes in degrees, WGS 84.

    Attributes:
        west: From -180.
        south: From -90.
        east: More than `west`, by at most 360; beyond 180 where the antimeridian is inside.
        north: To 90.
    """

    west: float
    south: float
    east: float
    north: float

    def __str__(self) -> str:
        return f"{self.west:.6g},{self.south:.6g},{self.east:.6g},{self.north:.6g}"

    @property
    def crosses_antimeridian(self) -> bool:
        return self.west < 180 < self.east

    def grown(self, kilometres: float) -> Extent:
        """Returns the extent with a margin; all longitudes if a pole is within it."""
        degrees = kilometres / KM_PER_DEGREE
        south, north = max(-90.0, self.south - degrees), min(90.0, self.north + degrees)
        highest = max(abs(south), abs(north))
        aside = degrees / max(math.cos(math.radians(highest)), 1e-9)
        return _turned(self.west - aside, south, self.east + aside, north)

    def snapped(self, step: float) -> Extent:
        """Returns the extent grown to multiples of a step in degrees, so that maps lie cell on cell."""
        south, north = math.floor(self.south / step) * step, math.ceil(self.north / step) * step
        west, east = math.floor(self.west / step) * step, math.ceil(self.east / step) * step
        return _turned(west, max(-90.0, south), east, min(90.0, north))


def _turned(west: float, south: float, east: float, north: float) -> Extent:
    if east - west >= 360 - 1e-9:
        return Extent(-180.0, south, 180.0, north)
    turns = math.floor((west + 180) / 360) * 360
    return Extent(west - turns, south, east - turns, north)


def parse_extent(text: str) -> Extent:
    """Reads `W,S,E,N` in degrees; W > E reaches across the antimeridian.

    Raises:
        InputError: It is no such thing.
    """

    def wrong(what: str) -> InputError:
        return InputError(
            f"{what} Expected W,S,E,N in degrees, such as -10,35,30,70; W > E reaches across the antimeridian.",
            place=f"--bbox {text}",
        )

    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise wrong("these are not four numbers.") from None
    if not all(map(math.isfinite, (west, south, east, north))):
        raise wrong("not all of these are numbers.")
    if max(abs(south), abs(north)) > 90:
        raise wrong("a latitude is beyond 90 degrees.")
    if south >= north:
        raise wrong(f"the south ({south:g}) is not below the north ({north:g}).")
    if not (-180 <= west <= 360 and -180 <= east <= 360):
        raise wrong("a longitude is beyond -180 to 180 degrees.")
    if west == east or east - west > 360:
        raise wrong("the west and the east enclose nothing, or more than the whole Earth.")
    return _turned(west, south, east if east > west else east + 360, north)


def extent_of(west: Numbers, south: Numbers, east: Numbers, north: Numbers) -> Extent:
    """Returns the least extent that has all of some boxes inside.

    Args:
        west: `[N]` degrees from -180 up to but not 180.
        south: `[N]` degrees.
        east: `[N]` degrees, at least `west`.
        north: `[N]` degrees.
    """
    order = np.argsort(west)
    west, far = west[order], np.maximum.accumulate(np.concatenate([[east.max() - 360], east[order]]))[:-1]
    gaps = west - far  # before each box, going around the Earth
    widest = int(np.argmax(gaps))
    if gaps[widest] <= 360 - _NEARLY_ALL:
        return Extent(-180.0, float(south.min()), 180.0, float(north.max()))
    start = float(west[widest])
    return _turned(start, float(south.min()), start + 360 - float(gaps[widest]), float(north.max()))


def extent_of_places(places: Places) -> Extent:
    """Returns the least extent of those places that have coordinates, of which there is one at least."""
    known = places.take(places.known)
    return extent_of(known.longitude, known.latitude, known.longitude, known.latitude)
