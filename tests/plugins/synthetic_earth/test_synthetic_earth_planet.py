"""The planet: smooth, without seams, varied, and the same for all views."""

import dataclasses

import numpy as np
import pytest
from geobind_plugin_synthetic_earth.fields import (
    fibonacci_sphere,
    sphere_field,
    to_degrees,
    to_unit_vectors,
    uncorrelated,
)
from geobind_plugin_synthetic_earth.planet import REGIONAL_FIELDS, make_planet, observe, scatter_places
from geobind_plugin_synthetic_earth.scene import COVERS, FACTORS, Scene, amount


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    planet = make_planet(0)
    return observe(planet, scatter_places(planet, 2000))


def test_field_has_no_seam_at_the_antimeridian() -> None:
    field = sphere_field(np.random.default_rng(0), (1.0, 0.3))
    latitude = np.linspace(-89.0, 89.0, 50)
    west = field(to_unit_vectors(np.full(50, -180.0), latitude))
    east = field(to_unit_vectors(np.full(50, 180.0), latitude))
    np.testing.assert_allclose(west, east, atol=1e-9)


def test_field_has_one_value_at_a_pole() -> None:
    field = sphere_field(np.random.default_rng(0), (1.0, 0.3))
    for pole in (-90.0, 90.0):
        values = field(to_unit_vectors(np.linspace(-180.0, 180.0, 20), np.full(20, pole)))
        assert np.ptp(values) < 1e-9


def test_field_is_smooth_and_of_unit_variance() -> None:
    field = sphere_field(np.random.default_rng(3), (0.4,), waves_per_octave=60)
    points = fibonacci_sphere(4000)
    values = field(points)
    assert abs(values.mean()) < 0.15
    assert 0.7 < values.std() < 1.3
    step = field(to_unit_vectors(*(angle + 0.01 for angle in to_degrees(points)))) - values
    assert np.abs(step).max() < 0.03


def test_value_at_a_place_does_not_depend_on_its_company() -> None:
    field = sphere_field(np.random.default_rng(0), (1.0, 0.01))
    points = fibonacci_sphere(101)
    assert np.array_equal(field(points)[17:20], field(points[17:20]))


def test_long_fields_are_made_uncorrelated() -> None:
    generator = np.random.default_rng(2)
    fields = uncorrelated([sphere_field(generator, (3.0,)) for _ in range(4)])
    values = np.stack([field(fibonacci_sphere(5000)) for field in fields])
    np.testing.assert_allclose(values.mean(axis=1), 0.0, atol=0.01)
    np.testing.assert_allclose(np.cov(values), np.eye(4), atol=0.01)
    latitude = np.linspace(-90.0, 90.0, 50)
    for field in fields:
        west, east = (field(to_unit_vectors(np.full(50, side), latitude)) for side in (-180.0, 180.0))
        np.testing.assert_allclose(west, east, atol=1e-9)


def test_degrees_and_vectors_are_inverse() -> None:
    longitude, latitude = np.array([-179.0, 0.0, 12.5, 90.0]), np.array([-80.0, 0.0, 41.0, 89.0])
    back = to_degrees(to_unit_vectors(longitude, latitude))
    np.testing.assert_allclose(back, (longitude, latitude), atol=1e-9)


def test_places_are_uniform_in_area(scenes: list[Scene]) -> None:
    # Were latitudes drawn uniformly, a third of the places would lie beyond 60 degrees.
    polar = np.mean([abs(scene.latitude) > 60.0 for scene in scenes])
    assert 0.06 < polar < 0.22


def test_sea_is_rare_and_every_cover_is_common_somewhere(scenes: list[Scene]) -> None:
    covers = np.array([scene.covers for scene in scenes])
    assert 0.04 < np.mean(covers[:, COVERS.index("water")] > 0.7) < 0.16
    for number, name in enumerate(COVERS):
        assert covers[:, number].max() > 0.5, name
        assert np.mean(covers[:, number] > 0.05) > 0.1, name


def test_factors_are_within_their_range(scenes: list[Scene]) -> None:
    for name in FACTORS:
        values = np.array([getattr(scene, name) for scene in scenes])
        assert np.isfinite(values).all()
        assert values.std() > 0.0
        if name not in ("elevation", "temperature", "population"):
            assert values.min() >= 0.0, name
            assert values.max() <= 1.0, name


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_parts_of_the_planet_differ(seed: int) -> None:
    """Who reads colours with some error still knows the part of the planet; a guess is 90 degrees off."""
    planet = make_planet(seed)
    points = scatter_places(planet, 2000)
    scenes = observe(planet, points)
    factors = np.array([[getattr(scene, name) for name in REGIONAL_FIELDS] for scene in scenes])
    factors = (factors - factors.mean(axis=0)) / factors.std(axis=0)
    read = factors[:500] + 0.3 * np.random.default_rng(0).normal(size=(500, len(REGIONAL_FIELDS)))
    nearest = ((read[:, None] - factors[None, 500:]) ** 2).sum(axis=2).argmin(axis=1)
    angles = np.degrees(np.arccos(np.clip((points[:500] * points[500 + nearest]).sum(axis=1), -1.0, 1.0)))
    assert np.median(angles) < 30.0


def test_neighbours_have_the_same_colours() -> None:
    planet = make_planet(0)
    points = scatter_places(planet, 400)
    shifted = points + 0.05 * np.random.default_rng(0).normal(size=points.shape)  # some 400 km
    shifted /= np.linalg.norm(shifted, axis=1, keepdims=True)
    for name in REGIONAL_FIELDS:
        here, there = ([getattr(scene, name) for scene in observe(planet, place)] for place in (points, shifted))
        assert np.corrcoef(here, there)[0, 1] > 0.75, name


def test_the_sun_is_low_where_it_is_on_earth(scenes: list[Scene]) -> None:
    tropics = [scene.sun for scene in scenes if abs(scene.latitude) < 15]
    arctic = [scene.sun for scene in scenes if abs(scene.latitude) > 65]
    assert np.mean(tropics) > np.mean(arctic) + 0.3
    june = [s.sun for s in scenes if s.latitude > 50 and s.time.month in (5, 6, 7)]
    december = [s.sun for s in scenes if s.latitude > 50 and s.time.month in (11, 12, 1)]
    assert np.mean(june) > np.mean(december) + 0.3


def test_there_is_no_beach_without_water(scenes: list[Scene]) -> None:
    assert all(scene.cover("water") > 0.0 for scene in scenes if scene.cover("beach") > 0.0)


def test_no_two_places_are_alike(scenes: list[Scene]) -> None:
    covers = np.array([scene.covers for scene in scenes])
    distances = np.abs(covers[:500, None] - covers[None, :500]).sum(axis=2)
    np.fill_diagonal(distances, 9.0)
    assert np.median(distances.min(axis=1)) > 0.1


def test_climate_goes_by_latitude(scenes: list[Scene]) -> None:
    tropics = [scene for scene in scenes if abs(scene.latitude) < 15]
    arctic = [scene for scene in scenes if abs(scene.latitude) > 65]
    assert np.mean([scene.cover("snow") for scene in arctic]) > 0.25
    assert np.mean([scene.cover("snow") for scene in tropics]) < 0.05
    assert np.mean([scene.temperature for scene in tropics]) > 20


def test_photos_are_taken_by_day(scenes: list[Scene]) -> None:
    for scene in scenes[:200]:
        solar_hour = (scene.time.hour + scene.time.minute / 60 + scene.longitude / 15) % 24
        assert 6.0 < solar_hour < 18.0


def test_scenes_cannot_be_changed(scenes: list[Scene]) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        scenes[0].rain = 0.0  # type: ignore[misc]


def test_amount_makes_much_of_little() -> None:
    assert amount(0.0) == 0.0
    assert amount(1.0) == pytest.approx(1.0)
    assert amount(0.05) > 0.4
