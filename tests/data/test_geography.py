"""Coordinates, distances and cells, where maps have their seams."""

import numpy as np
import pytest

from geobind_core.data.geography import EARTH_RADIUS_KM, Places, equal_area_cells, nearest_km

KM_PER_DEGREE = 2 * np.pi * EARTH_RADIUS_KM / 360


def everywhere(count: int, seed: int = 0) -> Places:
    rng = np.random.default_rng(seed)
    return Places.of(rng.uniform(-180, 180, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count))))


def haversine_km(first: Places, second: Places) -> np.ndarray:
    lon, lat = np.radians(first.longitude[:, None]), np.radians(first.latitude[:, None])
    lon2, lat2 = np.radians(second.longitude[None]), np.radians(second.latitude[None])
    half = np.sin((lat2 - lat) / 2) ** 2 + np.cos(lat) * np.cos(lat2) * np.sin((lon2 - lon) / 2) ** 2
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(half))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0, 0), (0, 0)),
        ((190, 10), (-170, 10)),
        ((360, -90), (0, -90)),
        ((180, 90), (-180, 90)),
        ((-180, 5), (-180, 5)),
        ((8.39729, 47.1), (8.39729, 47.1)),
    ],
)
def test_coordinates_that_are_understood(given: tuple[float, float], expected: tuple[float, float]) -> None:
    places = Places.of([given[0]], [given[1]])
    assert (places.longitude[0], places.latitude[0]) == expected


@pytest.mark.parametrize(
    "given", [(np.nan, 0), (0, np.nan), (np.inf, 0), (0, 90.001), (361, 0), (-180.5, 0), (52_000, 13_000)]
)
def test_coordinates_that_are_none(given: tuple[float, float]) -> None:
    places = Places.of([given[0]], [given[1]])
    assert not places.known.any()
    assert np.isnan(places.longitude[0])
    assert np.isnan(places.latitude[0])


def test_nearest_place_as_by_brute_force() -> None:
    queries, gallery = everywhere(200), everywhere(300, seed=1)
    expected = haversine_km(queries, gallery).min(axis=1)
    np.testing.assert_allclose(nearest_km(queries, gallery), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("query", "place", "km"),
    [
        ((179.9999, 10), (-179.9999, 10), 0.0002 * KM_PER_DEGREE * np.cos(np.radians(10))),  # across the antimeridian
        ((0, 89.9999), (180, 89.9999), 0.0002 * KM_PER_DEGREE),  # across a pole
        ((10, 50), (10, 50.00045), 0.00045 * KM_PER_DEGREE),  # 50 m
        ((0, 0), (180, 0), np.pi * EARTH_RADIUS_KM),
        ((7, 7), (7, 7), 0),
    ],
)
def test_distances_at_the_seams(query: tuple[float, float], place: tuple[float, float], km: float) -> None:
    found = nearest_km(Places.of([query[0]], [query[1]]), Places.of([place[0]], [place[1]]))
    assert found[0] == pytest.approx(km, rel=1e-6, abs=1e-9)


def test_what_has_no_coordinates_is_near_nothing() -> None:
    some, none = Places.of([0, np.nan], [0, 0]), Places.of([np.nan], [np.nan])
    assert nearest_km(some, none).tolist() == [np.inf, np.inf]
    assert nearest_km(none, some).tolist() == [np.inf]
    assert nearest_km(some, some).tolist() == [0, np.inf]


@pytest.mark.parametrize("side_km", [900.0, 2000.0, 5000.0])
def test_cells_have_equal_areas(side_km: float) -> None:
    count = 400_000
    _, inside = np.unique(equal_area_cells(everywhere(count), side_km), return_counts=True)
    sphere = 4 * np.pi * EARTH_RADIUS_KM**2
    assert len(inside) == pytest.approx(sphere / side_km**2, rel=0.1)
    # As many points as chance allows: five standard deviations of a Poisson count.
    mean = count / len(inside)
    assert np.abs(inside - mean).max() <= 5 * mean**0.5


def test_cells_are_compact_and_have_no_seam() -> None:
    cells = equal_area_cells(everywhere(100_000), 1000.0)
    places = everywhere(100_000)
    for cell in np.unique(cells)[::17]:
        members = places.take(cells == cell)
        assert haversine_km(members, members).max() < 2500
    edges = Places.of([180, -180, np.nextafter(180, 0), 0, 77], [0, 0, 0, 90, 90])
    numbers = equal_area_cells(edges, 1000.0)
    assert numbers[0] == numbers[1]
    assert numbers.max() < len(np.unique(cells))
    assert equal_area_cells(Places.of([np.nan], [0]), 10.0).tolist() == [-1]
