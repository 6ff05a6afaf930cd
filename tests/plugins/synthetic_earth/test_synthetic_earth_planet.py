"""The planet: smooth, without seams, varied, and the same for all views."""

import dataclasses

import numpy as np
import pytest
from geobind_plugin_synthetic_earth.fields import (
    fibonacci_sphere,
    sphere_field,
    to_degrees,
    to_unit_vectors,
)
from geobind_plugin_synthetic_earth.planet import make_planet, observe, scatter_places
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
