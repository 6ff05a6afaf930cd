"""Values between places, against a calculation that looks at every pair of a cell and a place."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from geobind_core.data.geography import EARTH_RADIUS_KM, Places
from geobind_core.maps import points as module
from geobind_core.maps.extent import Extent
from geobind_core.maps.grid import Grid, Resolution, make_grid
from geobind_core.maps.points import METHODS, Points


def haversine_km(grid: Grid, places: Places) -> npt.NDArray[Any]:
    """`[cells, N]` by the textbook's formula, which the code does not use."""
    cells = grid.places(0, grid.height)
    first, second = np.radians(cells.latitude)[:, None], np.radians(places.latitude)[None]
    across = np.radians(cells.longitude)[:, None] - np.radians(places.longitude)[None]
    half = np.sin((first - second) / 2) ** 2 + np.cos(first) * np.cos(second) * np.sin(across / 2) ** 2
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.minimum(half, 1)))


def brute_force(grid: Grid, places: Places, values: Any, method: str, reach: float) -> npt.NDArray[Any]:
    distances = haversine_km(grid, places)
    if method == "nearest":
        nearest = distances.argmin(axis=1)
        found = np.where(distances.min(axis=1) <= reach, values[:, nearest], np.nan)
    else:
        weights = {
            "mean": lambda d: np.ones_like(d),
            "idw": lambda d: 1 / np.maximum(d, 1e-6) ** 2,
            "kernel": lambda d: np.exp(-0.5 * (d / (reach / 3)) ** 2),
        }[method](distances) * (distances <= reach)
        with np.errstate(invalid="ignore"):
            found = (values @ weights.T) / weights.sum(axis=1)
    return found.reshape(len(values), grid.height, grid.width)


def scattered(count: int, seed: int, extent: Extent | None = None) -> tuple[Places, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    if extent is None:
        longitude, latitude = rng.uniform(-180, 180, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
    else:
        longitude = rng.uniform(extent.west, extent.east, count)
        latitude = rng.uniform(extent.south, extent.north, count)
    return Places.of(longitude, latitude), rng.normal(size=(2, count)).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "extent",
    [Extent(-180, -90, 180, 90), Extent(170, -20, 195, 10), Extent(-180, 70, 180, 90), Extent(5, 40, 15, 50)],
    ids=str,
)
def test_values_are_those_of_every_pair(method: Any, extent: Extent) -> None:
    places, values = scattered(600, 1, None if extent.south == -90 else extent)
    grid = make_grid(extent, "EPSG:4326", Resolution((extent.east - extent.west) / 60))
    usual = Points(places, values, method)
    points = Points(places, values, method, max_distance_km=0.6 * usual.max_distance_km)
    found = points.rows(grid, 0, grid.height)
    expected = brute_force(grid, places, values, method, points.max_distance_km)
    assert (np.isnan(found) == np.isnan(expected)).all()
    assert 0.3 < (~np.isnan(found)).mean() < 1
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_rows_by_themselves_and_few_pairs_at_a_time_give_the_same(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    places, values = scattered(500, 2)
    grid = make_grid(Extent(-180, -90, 180, 90), "EPSG:4326", Resolution(5))
    points = Points(places, values, method, 2000)
    whole = points.rows(grid, 0, grid.height)
    monkeypatch.setattr(module, "_MOST_PAIRS", 100)
    parts = np.concatenate([points.rows(grid, row, row + 1) for row in range(grid.height)], axis=1)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)


def test_the_same_place_twice_has_its_mean() -> None:
    places = Places.of([10.0, 10.0, 10.0, 20.0], [5.0, 5.0, 5.0, 5.0])
    values = np.array([[1.0, 2.0, 6.0, -1.0]], dtype=np.float32)
    grid = make_grid(Extent(9.5, 4.5, 10.5, 5.5), "EPSG:4326", Resolution(1))
    for method in METHODS:
        assert Points(places, values, method, 100).rows(grid, 0, 1).item() == pytest.approx(3)
    # For all but the nearest, three observations weigh more than one.
    grid = make_grid(Extent(14.5, 4.5, 15.5, 5.5), "EPSG:4326", Resolution(1))
    assert Points(places, values, "mean", 1000).rows(grid, 0, 1).item() == pytest.approx(2)


def test_all_longitudes_of_a_pole_are_one_place() -> None:
    places, values = Places.of([0.0, 90.0, -170.0], [90.0, 90.0, 90.0]), np.array([[1.0, 2.0, 6.0]], dtype=np.float32)
    points = Points(places, values, "nearest", 50)
    grid = make_grid(Extent(-180, 89, 180, 90), "EPSG:4326", Resolution(1))
    assert points.places.latitude.tolist() == [90]
    grid = make_grid(Extent(-180, 89.9, 180, 90), "EPSG:4326", Resolution(0.1))
    np.testing.assert_allclose(points.rows(grid, 0, 1), 3)


def test_what_has_no_place_or_no_value_is_left_out() -> None:
    places = Places.of([0.0, np.nan, 1.0, 2.0], [0.0, 0.0, 95.0, 0.0])
    values = np.array([[1.0, 2.0, 3.0, np.nan], [1.0, 2.0, 3.0, 4.0]], dtype=np.float32)
    assert len(Points(places, values, "nearest").places) == 1


def test_the_usual_distance_is_that_to_the_next() -> None:
    """A lattice one degree apart at the equator; a place repeated is no neighbour of itself."""
    longitude, latitude = (axis.ravel() for axis in np.meshgrid(np.arange(10.0), np.arange(-5.0, 5.0)))
    places = Places.of(np.tile(longitude, 2), np.tile(latitude, 2))
    points = Points(places, np.zeros((1, 200), dtype=np.float32))
    degree = math.pi * EARTH_RADIUS_KM / 180
    assert points.spacing_km == pytest.approx(degree, rel=0.01)
    assert points.max_distance_km == pytest.approx(3 * degree, rel=0.01)


def test_nothing_reaches_further_than_it_may() -> None:
    """Cells just inside and just outside of 500 km, on a sphere of the Earth's mean radius."""
    places, values = Places.of([0.0], [0.0]), np.ones((1, 1), dtype=np.float32)
    degrees = 500 / (math.pi * EARTH_RADIUS_KM / 180)
    for method in METHODS:
        points = Points(places, values, method, 500)
        for off, there in ((-1e-5, True), (1e-5, False)):
            at = degrees + off
            grid = make_grid(Extent(-0.5, at - 0.5, 0.5, at + 0.5), "EPSG:4326", Resolution(1))
            assert bool(np.isfinite(points.rows(grid, 0, 1)).item()) == there
