"""Values at places, spread over the cells of a map."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from geobind_core.data.geography import EARTH_RADIUS_KM, Numbers, Places
from geobind_core.maps.grid import Grid

Method = Literal["nearest", "mean", "idw", "kernel"]
METHODS: tuple[str, ...] = get_args(Method)
Values = npt.NDArray[np.float32]

_MOST_PAIRS = 2_000_000  # of a cell and a place, in memory at a time: 24 bytes each, and as much again for weights
_SPACING_SAMPLE = 20_000
_LONE_PLACE_KM = 100.0  # what a single place stands for, if nothing else says so


class Points:
    """Values at places, with what finds those that are near.

    Observations of the very same place count as one with their mean for `nearest`, and each on its own for the
    other methods.

    Args:
        places: `[N]` places; those without coordinates are left out.
        values: `[B, N]`; a place of which any value is not finite is left out.
        method: How a cell gets its value from the places within `max_distance_km` of its centre. `nearest`: that of
            the nearest. `mean`: their mean. `idw`: their mean, weighted by the inverse of the squared distance.
            `kernel`: their mean, weighted by a Gaussian whose standard deviation is a third of that distance.
        max_distance_km: A cell that is farther than this from all places has no value. Default: three times the
            usual distance from a place to the next.
    """

    def __init__(
        self, places: Places, values: Values, method: Method = "nearest", max_distance_km: float | None = None
    ) -> None:
        from scipy.spatial import cKDTree

        usable = places.known & np.isfinite(values).all(axis=0)
        places, values = places.take(usable), values[:, usable]
        coordinates = np.stack([places.longitude, places.latitude], axis=-1)
        coordinates[np.abs(coordinates[:, 1]) == 90, 0] = 0  # a pole is one place
        where, group, counts = np.unique(coordinates, axis=0, return_inverse=True, return_counts=True)
        self.places = Places(where[:, 0], where[:, 1])
        self.bands = len(values)
        # [B + 1, U]: sums of the values, and how many observations they are of.
        self._sums = np.stack(
            [*(np.bincount(group.ravel(), weights=band, minlength=len(where)) for band in values), counts]
        )
        self._method = method
        self._tree = cKDTree(self.places.unit_vectors())
        self.spacing_km = self._usual_distance()
        self.max_distance_km = 3 * self.spacing_km if max_distance_km is None else max_distance_km

    def _usual_distance(self) -> float:
        """Returns the median distance from a place to the next."""
        if len(self.places) < 2:
            return _LONE_PLACE_KM
        every = math.ceil(len(self.places) / _SPACING_SAMPLE)
        chords, _ = self._tree.query(self.places.unit_vectors()[::every], k=2, workers=-1)
        return float(np.median(_kilometres(chords[:, 1])))

    def rows(self, grid: Grid, first: int, end: int) -> Values:
        """Returns `[B, rows, width]` values of the cells of some rows; NaN where there is none."""
        cells = grid.places(first, end)
        values = np.full((self.bands, len(cells)), np.nan, dtype=np.float32)
        on_earth = np.flatnonzero(cells.known)
        vectors = cells.take(on_earth).unit_vectors()
        if len(vectors) and len(self.places):
            find = self._nearest if self._method == "nearest" else self._weighted
            values[:, on_earth] = find(vectors)
        return values.reshape(self.bands, end - first, grid.width)

    def _nearest(self, cells: Numbers) -> Numbers:
        reach = _chord(self.max_distance_km)
        chords, nearest = self._tree.query(cells, distance_upper_bound=reach, workers=-1)
        found = np.isfinite(chords)
        values = np.full((self.bands, len(cells)), np.nan)
        sums = self._sums[:, nearest[found]]
        values[:, found] = sums[:-1] / sums[-1]
        return values

    def _weighted(self, cells: Numbers) -> Numbers:
        from scipy.sparse import csr_array
        from scipy.spatial import cKDTree

        reach = _chord(self.max_distance_km)
        # The order of the cells is that of space already: a balanced tree would cost more than it gains.
        tree = cKDTree(cells, balanced_tree=False, compact_nodes=False)
        if len(cells) > 1 and tree.count_neighbors(self._tree, reach) > _MOST_PAIRS:
            half = len(cells) // 2
            return np.concatenate([self._weighted(cells[:half]), self._weighted(cells[half:])], axis=1)
        pairs: Any = tree.sparse_distance_matrix(self._tree, reach, output_type="ndarray")
        weights = self._weights(_kilometres(pairs["v"]))
        matrix = csr_array((weights, (pairs["i"], pairs["j"])), shape=(len(cells), len(self.places)))
        sums = (matrix @ self._sums.T).T
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(sums[:-1] / sums[-1])

    def _weights(self, kilometres: Numbers) -> Numbers:
        if self._method == "mean":
            return np.ones_like(kilometres)
        if self._method == "idw":
            return 1 / np.maximum(kilometres, 1e-6) ** 2  # within a millimetre of a place, only that place counts
        return np.exp(-4.5 * (kilometres / self.max_distance_km) ** 2)


def _chord(kilometres: float) -> float:
    """Returns the length of the straight line, on a sphere of radius 1, of a way along its surface."""
    return 2 * math.sin(min(kilometres / (2 * EARTH_RADIUS_KM), math.pi / 2)) * (1 + 1e-9)


def _kilometres(chords: Numbers) -> Numbers:
    return np.asarray(2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chords / 2, 1)))
