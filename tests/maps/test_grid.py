"""What part of the Earth a map shows, and where its cells are, against pyproj and plain arithmetic."""

import math
from typing import Any

import numpy as np
import pyproj
import pytest

from geobind_core.data.geography import Places
from geobind_core.errors import InputError
from geobind_core.maps.extent import Extent, extent_of, extent_of_places, parse_extent
from geobind_core.maps.grid import Grid, Resolution, make_grid

EARTH = Extent(-180, -90, 180, 90)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-10,35,30,70", (-10, 35, 30, 70)),
        ("170,-20,-170,-10", (170, -20, 190, -10)),
        ("170,-20,190,-10", (170, -20, 190, -10)),
        ("180,-20,-170,-10", (-180, -20, -170, -10)),
        ("-180,-90,180,90", (-180, -90, 180, 90)),
        ("0,-90,360,90", (-180, -90, 180, 90)),
        ("200,0,210,5", (-160, 0, -150, 5)),
    ],
)
def test_a_bbox_is_read(text: str, expected: tuple[float, ...]) -> None:
    extent = parse_extent(text)
    assert (extent.west, extent.south, extent.east, extent.north) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3", "not four numbers"),
        ("a,b,c,d", "not four numbers"),
        ("0,50,10,40", "the south (50) is not below the north (40)"),
        ("0,10,10,10", "not below"),
        ("0,-91,10,10", "beyond 90"),
        ("-190,0,10,10", "a longitude is beyond"),
        ("nan,0,10,10", "not all of these are numbers"),
        ("10,0,10,10", "enclose nothing"),
    ],
)
def test_a_bbox_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match="--bbox") as caught:
        parse_extent(text)
    assert message in str(caught.value)
    assert "W,S,E,N" in str(caught.value)


def test_places_on_both_sides_of_the_antimeridian_lie_close_together() -> None:
    extent = extent_of_places(Places.of([179.5, -179.0, 178.0], [-17, -18, -16]))
    assert (extent.west, extent.south, extent.east, extent.north) == (178.0, -18.0, 181.0, -16.0)
    assert extent.crosses_antimeridian


def test_places_all_around_the_earth_are_shown_from_180_to_180() -> None:
    extent = extent_of_places(Places.of(np.arange(-180, 180, 30), np.zeros(12)))
    assert (extent.west, extent.east) == (-180, 180)


def test_a_box_that_wraps_covers_what_lies_under_it() -> None:
    """One from 170 to 190, one from -175 to -172 beneath it, one from 100 to 110."""
    west, east = np.array([170.0, -175.0, 100.0]), np.array([190.0, -172.0, 110.0])
    extent = extent_of(west, np.zeros(3), east, np.ones(3))
    assert (extent.west, extent.east) == (100, 190)


@pytest.mark.parametrize("seed", range(20))
def test_the_least_extent_is_the_least_of_all(seed: int) -> None:
    """Against trying every place as the western edge."""
    rng = np.random.default_rng(seed)
    longitude = np.round(rng.uniform(-180, 180) + rng.uniform(0, 200, size=7), 3)
    longitude = (longitude + 180) % 360 - 180
    extent = extent_of_places(Places.of(longitude, np.zeros(7)))
    least = min(float(((longitude - west) % 360).max()) for west in longitude)
    assert extent.east - extent.west == pytest.approx(least)
    assert (((longitude - extent.west) % 360) <= least + 1e-9).all()


def test_a_margin_at_a_pole_has_all_longitudes() -> None:
    grown = Extent(10, 80, 20, 89).grown(200)
    assert (grown.west, grown.east, grown.north) == (-180, 180, 90)
    grown = Extent(178, 59, 179, 60).grown(math.pi * 6371.0088 / 180)  # a degree of latitude
    assert (grown.south, grown.north) == pytest.approx((58, 61), abs=1e-6)
    assert grown.west == pytest.approx(178 - 1 / math.cos(math.radians(61)), abs=1e-6)
    assert grown.crosses_antimeridian


@pytest.mark.parametrize("text", ["", "km", "-1", "0", "nan", "1e999", "10 miles", "0km"])
def test_a_resolution_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a size of cells"):
        Resolution.parse(text)


def test_a_resolution_is_read() -> None:
    assert Resolution.parse("0.25") == Resolution(0.25)
    assert Resolution.parse("10km") == Resolution.parse("10 km") == Resolution(10_000, metric=True)
    assert Resolution.parse("500m") == Resolution(500, metric=True)


@pytest.mark.parametrize("step", [0.1, 0.25, 1 / 3, 7.0])
def test_edges_are_those_of_the_extent_and_cells_not_larger_than_asked_for(step: float) -> None:
    grid = make_grid(Extent(170, -20, 190, -10), "EPSG:4326", Resolution(step))
    assert (grid.left, grid.bottom, grid.right, grid.top) == (170, -20, 190, -10)
    assert max(grid.steps) <= step * (1 + 1e-6)
    assert (grid.width, grid.height) == (math.ceil(20 / step - 1e-6), math.ceil(10 / step - 1e-6))
    expected = 170 + (np.arange(grid.width) + 0.5) * 20 / grid.width
    np.testing.assert_allclose(grid.x(), expected, atol=1e-12)
    places = grid.places(0, 1)
    np.testing.assert_allclose(places.longitude, (expected + 180) % 360 - 180, atol=1e-12)
    np.testing.assert_allclose(places.latitude, -10 - 5 / grid.height, atol=1e-12)


def test_kilometres_in_degrees_are_right_in_the_middle_of_the_map() -> None:
    grid = make_grid(Extent(0, 50, 20, 70), "EPSG:4326", Resolution.parse("10km"))
    x_step, y_step = grid.steps
    geod = pyproj.Geod(a=6371008.8, b=6371008.8)
    assert geod.inv(0, 60, 0, 60 + y_step)[2] == pytest.approx(10_000, rel=0.01)
    assert geod.inv(0, 60, x_step, 60)[2] == pytest.approx(10_000, rel=0.01)


@pytest.mark.parametrize(
    ("crs", "extent"),
    [
        ("EPSG:3857", EARTH),  # without the poles, which it cannot show
        ("EPSG:3035", Extent(-10, 35, 30, 70)),
        ("EPSG:3031", Extent(-180, -90, 180, -60)),
        ("EPSG:3413", Extent(-180, 60, 180, 90)),
        ("EPSG:3832", Extent(170, -20, 190, 0)),
        ("EPSG:32760", Extent(176, -20, 181, -10)),
        ("EPSG:8857", EARTH),
        ("EPSG:4269", Extent(170, -20, 190, 0)),
        ("ESRI:54009", EARTH),
    ],
)
def test_cells_in_other_coordinate_systems_are_where_pyproj_says(crs: str, extent: Extent) -> None:
    system: Any = pyproj.CRS(crs)
    resolution = Resolution(0.5) if system.is_geographic else Resolution.parse("50km")
    grid = make_grid(extent, crs, resolution)
    places = grid.places(0, grid.height)
    assert places.known.mean() > 0.7
    rows, columns = np.divmod(np.flatnonzero(places.known), grid.width)
    x = grid.left + (columns + 0.5) * grid.steps[0]
    y = grid.top - (rows + 0.5) * grid.steps[1]
    there = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    back_x, back_y = there.transform(places.longitude[places.known], places.latitude[places.known])
    if system.is_geographic:
        back_x = np.where(back_x < grid.left, back_x + 360, back_x)
    np.testing.assert_allclose(back_x, x, atol=1e-3 if not system.is_geographic else 1e-9)
    np.testing.assert_allclose(back_y, y, atol=1e-3 if not system.is_geographic else 1e-9)


def test_a_map_of_a_million_million_cells_is_refused_with_its_size() -> None:
    with pytest.raises(InputError) as caught:
        make_grid(EARTH, "EPSG:4326", Resolution(0.0002))
    assert "1,800,000 x 900,000 cells" in str(caught.value)
    assert "6,480 GB" in str(caught.value)
    assert "40.2 times as large" in str(caught.value)


@pytest.mark.parametrize(
    ("crs", "extent", "message"),
    [
        ("EPSG:99999", EARTH, "no such coordinate system"),
        ("a map", EARTH, "no such coordinate system"),
        ("EPSG:4978", EARTH, "needs a coordinate system of two axes"),
        ("EPSG:4979", EARTH, "needs a coordinate system of two axes"),
        ("EPSG:4807", EARTH, "degrees from Greenwich"),
        ("EPSG:32633", EARTH, "cannot be drawn in this coordinate system, which is made for 12, 0, 18, 84"),
        ("EPSG:3031", Extent(0, 10, 20, 20), "cannot be drawn"),
        ("EPSG:3857", Extent(170, -20, 190, 0), "cut in two"),
        ("EPSG:8857", Extent(170, -20, 190, 0), "cut in two"),
    ],
)
def test_a_coordinate_system_that_does_not_do_is_refused(crs: str, extent: Extent, message: str) -> None:
    with pytest.raises(InputError, match="--crs") as caught:
        make_grid(extent, crs, Resolution.parse("100km"))
    assert message in str(caught.value)


def test_cells_beyond_the_edge_of_the_world_have_no_place() -> None:
    grid = Grid("ESRI:54009", -18_040_000, -9_020_000, 18_040_000, 9_020_000, 40, 20)
    known = grid.places(0, 20).known.reshape(20, 40)
    assert known[10].all()
    assert not known[0, 0]
    assert not known[-1, -1]
    assert known.mean() == pytest.approx(math.pi / 4, abs=0.05)
