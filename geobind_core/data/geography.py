"""Places on the Earth: longitudes and latitudes, great-circle distances, cells of equal area.

Coordinates are longitude and latitude in degrees, WGS 84, in that order. Distances are along great
circles of a sphere of the Earth's mean radius, which is right to half a percent everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

EARTH_RADIUS_KM = 6371.0088  # mean radius of WGS 84, as IUGG defines it
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Places:
    """Where rows are.

    Attributes:
        longitude: `[N]` degrees, -180 up to but not 180; NaN where a row has no usable coordinates.
        latitude: `[N]` degrees, -90 to 90; NaN at the same rows.
    """

    longitude: Numbers
    latitude: Numbers

    @classmethod
    def of(cls, longitude: npt.ArrayLike, latitude: npt.ArrayLike) -> Places:
        """Takes coordinates as tables have them: longitudes from 0 to 360 are understood.

        A row of which one is missing, not finite, or out of range has none.
        """
        lon, lat = (np.array(values, dtype=np.float64) for values in (longitude, latitude))
        with np.errstate(invalid="ignore"):
            usable = np.isfinite(lon) & np.isfinite(lat) & (np.abs(lat) <= 90) & (lon >= -180) & (lon <= 360)
            # What is in range stays as it is written, to the last digit.
            lon = np.where((lon >= -180) & (lon < 180), lon, (lon + 180) % 360 - 180)
            lon = np.where(usable, lon, np.nan)
        return cls(lon, np.where(usable, lat, np.nan))

    def __len__(self) -> int:
        return len(self.longitude)

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """`[N]`, true where a row has coordinates."""
        return ~np.isnan(self.longitude)

    def take(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Places:
        """Returns the places of some rows."""
        return Places(self.longitude[rows], self.latitude[rows])

    def unit_vectors(self) -> Numbers:
        """Returns `[N, 3]` points on a sphere of radius 1; NaN where there are no coordinates."""
        longitude, latitude = np.radians(self.longitude), np.radians(self.latitude)
        across = np.cos(latitude)
        return np.stack([across * np.cos(longitude), across * np.sin(longitude), np.sin(latitude)], axis=-1)


def great_circle_km(first: Places, second: Places) -> Numbers:
    """Returns `[N]` kilometres between the places of each row; NaN where either has no coordinates."""
    chords = np.linalg.norm(first.unit_vectors() - second.unit_vectors(), axis=-1)
    distances: Numbers = 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chords / 2, 1))
    return distances


def nearest_km(queries: Places, gallery: Places, within_km: float = math.inf) -> Numbers:
    """Returns how far each query is from the nearest place of a gallery.

    Straight lines through the Earth sort places as great circles do, so that the search is one in
    space, without a seam at the antimeridian or at the poles.

    Args:
        queries: `[N]` places.
        gallery: `[M]` places.
        within_km: Do not look further than this.

    Returns:
        `[N]` kilometres; infinite where nothing is within reach, or the query has no coordinates.
    """
    from scipy.spatial import cKDTree

    distances = np.full(len(queries), np.inf)
    known, there = queries.known, gallery.known
    if known.any() and there.any():
        tree = cKDTree(gallery.take(there).unit_vectors())
        reach = 2 * math.sin(min(within_km / (2 * EARTH_RADIUS_KM), math.pi / 2)) * (1 + 1e-9)
        chords, _ = tree.query(queries.take(known).unit_vectors(), distance_upper_bound=reach, workers=-1)
        found = np.isfinite(chords)
        kilometres = np.full(len(chords), np.inf)
        kilometres[found] = 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chords[found] / 2, 1))
        distances[known] = kilometres
    return distances


def equal_area_cells(places: Places, side_km: float) -> npt.NDArray[np.int64]:
    """Returns the cell that each place is in; all cells of the Earth have the same area.

    Belts of latitude are cut into as many cells as make them about square, and their borders are
    laid so that each cell has exactly its share of the sphere.

    Args:
        places: `[N]` places.
        side_km: Side of a square of a cell's area, in kilometres.

    Returns:
        `[N]` numbers of cells, counted from the north pole; -1 where there are no coordinates.
    """
    belts = max(1, round(math.pi * EARTH_RADIUS_KM / side_km))
    middles = (np.arange(belts) + 0.5) * math.pi / belts  # from the pole
    columns = np.maximum(1, np.rint(2 * math.pi * EARTH_RADIUS_KM * np.sin(middles) / side_km)).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(columns)])
    # Of a sphere, what lies between two heights has an area in proportion to their difference.
    heights = 1 - 2 * starts[1:-1] / starts[-1]
    cells = np.full(len(places), -1, dtype=np.int64)
    known = places.known
    longitude, latitude = places.longitude[known], places.latitude[known]
    belt = np.searchsorted(-heights, -np.sin(np.radians(latitude)), side="right")
    column = np.minimum((longitude + 180) / 360 * columns[belt], columns[belt] - 1).astype(np.int64)
    cells[known] = starts[belt] + column
    return cells
