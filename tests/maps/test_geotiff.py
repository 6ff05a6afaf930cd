"""The file: what a validator, GDAL and a pair of eyes make of it."""

import json
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rio_cogeo import cog_validate

from geobind_core.data.geography import Places
from geobind_core.errors import DataError
from geobind_core.maps.extent import Extent
from geobind_core.maps.geotiff import Band, is_map, write_geotiff
from geobind_core.maps.grid import Grid, Resolution, make_grid
from geobind_core.maps.picture import draw_map, is_picture
from geobind_core.maps.points import Points

EARTH = Extent(-180, -90, 180, 90)
TIMES = (datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 8, 31, 12, 30, tzinfo=UTC))
HOT = [
    (179.9999, 10.0),
    (-179.9999, -10.0),
    (-180.0, 30.0),
    (0.0, 0.0),
    (8.5417, 47.3769),
    (-70.6, -33.4),
    (45.0, 89.99),
    (-120.0, -89.99),
    (13.0, 89.0),
]


class Plane:
    """Values that say where they are: longitude and latitude of the cell's centre, with a hole."""

    def rows(self, grid: Grid, first: int, end: int) -> Any:
        places = grid.places(first, end)
        values = np.stack([places.longitude, places.latitude]).astype(np.float32)
        values[:, (np.abs(places.latitude) < 3) & (np.abs(places.longitude) < 5)] = np.nan
        return values.reshape(2, end - first, grid.width)


def written(path: Path, extent: Extent = EARTH, crs: str = "EPSG:4326", size: str = "0.25") -> Path:
    grid = make_grid(extent, crs, Resolution.parse(size))
    bands = [
        Band("waves on a beach", "cosine similarity", TIMES, {"query": [{"modality": "text", "item": "é"}]}),
        Band("a “forest”", "cosine similarity"),
    ]
    write_geotiff(path, grid, bands, Plane(), {"modality": "satellite", "lineage": {"text": {"stage": "clip"}}})
    return path


@pytest.fixture(scope="module")
def world_map(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("map") / "world.tif")


@pytest.mark.parametrize(
    ("extent", "crs", "size"),
    [
        (EARTH, "EPSG:4326", "0.25"),
        (Extent(170, -20, 190, -10), "EPSG:4326", "0.01"),
        (Extent(8, 47, 9, 48), "EPSG:4326", "0.1"),
        (EARTH, "EPSG:3857", "50km"),
        (Extent(-180, -90, 180, -60), "EPSG:3031", "5km"),
    ],
)
def test_a_validator_finds_it_cloud_optimised(tmp_path: Path, extent: Extent, crs: str, size: str) -> None:
    path = written(tmp_path / "map.tif", extent, crs, size)
    valid, errors, warnings = cog_validate(str(path), strict=True)
    assert valid, (errors, warnings)
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]  # nothing temporary is left
    with rasterio.open(path) as dataset:
        assert dataset.dtypes == ("float32", "float32")
        assert np.isnan(dataset.nodata)
        assert dataset.compression.value == "DEFLATE"
        assert dataset.crs.to_epsg() == int(crs.removeprefix("EPSG:"))
        assert bool(dataset.overviews(1)) == (max(dataset.shape) > 512)


def test_it_says_what_it_is(world_map: Path) -> None:
    with rasterio.open(world_map) as dataset:
        assert dataset.descriptions == ("waves on a beach", "a “forest”")
        assert dataset.units == ("cosine similarity", "cosine similarity")
        tags, first, second = dataset.tags(), dataset.tags(1), dataset.tags(2)
    assert tags["TIFFTAG_SOFTWARE"].startswith("GeoBind ")
    assert tags["GEOBIND_MODALITY"] == "satellite"
    assert json.loads(tags["GEOBIND_LINEAGE"]) == {"text": {"stage": "clip"}}
    assert tags["TIFFTAG_DATETIME"] == "2024:08:31 12:30:00"
    assert (first["TIME_START"], first["TIME_END"]) == ("2024-05-01T00:00:00Z", "2024-08-31T12:30:00Z")
    assert (tags["TIME_START"], tags["TIME_END"]) == (first["TIME_START"], first["TIME_END"])
    assert json.loads(first["QUERY"]) == [{"modality": "text", "item": "é"}]
    assert "TIME_START" not in second


def test_every_cell_is_where_its_value_says(world_map: Path) -> None:
    """The values are coordinates; GDAL's are compared with them, and with plain arithmetic to 1e-9 degrees."""
    with rasterio.open(world_map) as dataset:
        longitude, latitude = dataset.read()
        rows, columns = np.mgrid[0 : dataset.height, 0 : dataset.width]
        x, y = rasterio.transform.xy(dataset.transform, rows.ravel(), columns.ravel())
    np.testing.assert_allclose(x, -180 + (columns.ravel() + 0.5) * 0.25, atol=1e-9)
    np.testing.assert_allclose(y, 90 - (rows.ravel() + 0.5) * 0.25, atol=1e-9)
    hole = np.isnan(longitude)
    assert hole.sum() == 24 * 40
    np.testing.assert_allclose(longitude[~hole], np.asarray(x)[~hole.ravel()], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(latitude[~hole], np.asarray(y)[~hole.ravel()], rtol=1e-6, atol=1e-6)


def test_overviews_are_means_that_know_nodata(world_map: Path) -> None:
    with rasterio.open(world_map) as dataset:
        level = dataset.overviews(2)[0]
        latitude = dataset.read(2)
    with rasterio.open(world_map, overview_level=0) as coarse:
        found = coarse.read(2)
    assert level == 2
    blocks = latitude.reshape(latitude.shape[0] // 2, 2, latitude.shape[1] // 2, 2).swapaxes(1, 2)
    known = ~np.isnan(blocks).all(axis=(2, 3))
    np.testing.assert_allclose(found[known], np.nanmean(blocks[known], axis=(1, 2)), rtol=1e-5, atol=1e-5)
    assert (np.isnan(found) == ~known).all()


@pytest.mark.parametrize("resolution", ["0.47", "50km"])
def test_a_hot_place_is_where_it_was_put(tmp_path: Path, resolution: str) -> None:
    """One place is 1, all others 0: what GDAL finds at its coordinates is 1, also at the poles and the antimeridian."""
    longitude, latitude = map(np.array, zip(*HOT, strict=True))
    far = np.random.default_rng(3)
    places = Places.of(
        np.concatenate([longitude, far.uniform(-180, 180, 400)]), np.concatenate([latitude, far.uniform(-85, 85, 400)])
    )
    distance = np.linalg.norm(places.unit_vectors()[:, None] - places.unit_vectors()[None, : len(HOT)], axis=-1)
    places = places.take(np.concatenate([np.arange(len(HOT)), np.flatnonzero(distance.min(axis=1) > 0.05)]))
    values = np.zeros((len(HOT), len(places)), dtype=np.float32)
    values[np.arange(len(HOT)), np.arange(len(HOT))] = 1
    grid = make_grid(EARTH, "EPSG:4326", Resolution.parse(resolution))
    path = tmp_path / "hot.tif"
    write_geotiff(path, grid, [Band(str(place), "1") for place in HOT], Points(places, values, "nearest", 400), {})
    with rasterio.open(path) as dataset:
        found = np.array(list(dataset.sample(HOT)))
        np.testing.assert_array_equal(found, np.eye(len(HOT)))
        # Not only there: the middle of what is 1 is the place, but for half a cell and what lies between others.
        row, column = np.nonzero(dataset.read(4))
        x, y = dataset.xy(row, column)
    assert abs(np.mean(x)) < 3
    assert abs(np.mean(y)) < 3


def test_across_the_antimeridian_longitudes_go_on(tmp_path: Path) -> None:
    places = Places.of([179.9999, -179.9999, 175.0, -175.0], [-15.0, -17.0, -15.0, -15.0])
    values = np.eye(4, dtype=np.float32)
    grid = make_grid(Extent(170, -20, 190, -10), "EPSG:4326", Resolution(0.01))
    path = tmp_path / "fiji.tif"
    write_geotiff(path, grid, [Band(str(n), "1") for n in range(4)], Points(places, values, "nearest", 30), {})
    with rasterio.open(path) as dataset:
        assert dataset.bounds == (170, -20, 190, -10)
        assert dataset.transform.c + 1000.5 * dataset.transform.a == pytest.approx(180.005, abs=1e-9)
        at = [(179.9999, -15), (180.0001, -17), (175, -15), (185, -15)]
        np.testing.assert_array_equal(np.array(list(dataset.sample(at))), np.eye(4))
        first = dataset.read(1)
    # Thirty kilometres to each side of the antimeridian, without a seam.
    column = np.nonzero(first == 1)[1]
    x = 170 + (column + 0.5) * 0.01
    reach = np.degrees(30 / 6371.0088 / np.cos(np.radians(15)))
    assert x.min() == pytest.approx(180 - reach, abs=0.011)
    assert x.max() == pytest.approx(180 + reach, abs=0.011)


def test_gdalinfo_agrees(world_map: Path) -> None:
    program = shutil.which("gdalinfo")
    if program is None:
        pytest.skip("gdalinfo is not installed")
    done = subprocess.run([program, "-json", str(world_map)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["geoTransform"] == pytest.approx([-180, 0.25, 0, 90, 0, -0.25], abs=1e-9)
    assert found["size"] == [1440, 720]
    assert found["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG"
    assert [band["description"] for band in found["bands"]] == ["waves on a beach", "a “forest”"]
    assert done.stderr == ""


def test_a_map_without_any_value_is_not_written(tmp_path: Path) -> None:
    grid = make_grid(Extent(0, 0, 10, 10), "EPSG:4326", Resolution(1))
    points = Points(Places.of([100.0], [50.0]), np.ones((1, 1), dtype=np.float32), "nearest", 10)
    path = tmp_path / "map.tif"
    path.write_bytes(b"what was there")
    with pytest.raises(DataError, match="no cell of the map has a value"):
        write_geotiff(path, grid, [Band("a", "1")], points, {})
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interruption_leaves_what_was_there(tmp_path: Path) -> None:
    class Interrupted(Plane):
        def rows(self, grid: Grid, first: int, end: int) -> Any:
            if first > 0:
                raise KeyboardInterrupt
            return super().rows(grid, first, end)

    path = written(tmp_path / "map.tif", Extent(0, 10, 10, 20), size="0.5")
    before = path.read_bytes()
    grid = make_grid(EARTH, "EPSG:4326", Resolution(0.25))
    with pytest.raises(KeyboardInterrupt):
        write_geotiff(path, grid, [Band("a", "1"), Band("b", "1")], Interrupted(), {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_input_gives_the_same_bytes(world_map: Path, tmp_path: Path) -> None:
    assert written(tmp_path / "again.tif").read_bytes() == world_map.read_bytes()


def test_its_own_files_are_known_again(world_map: Path, tmp_path: Path) -> None:
    assert is_map(world_map)
    other = tmp_path / "other.tif"
    with rasterio.open(
        other, "w", driver="GTiff", width=2, height=2, count=1, dtype="uint8", crs="EPSG:4326",
        transform=rasterio.transform.from_bounds(0, 0, 1, 1, 2, 2),
    ) as dataset:  # fmt: skip
        dataset.write(np.zeros((1, 2, 2), dtype=np.uint8))
    picture = tmp_path / "other.png"
    Image.new("RGB", (4, 4)).save(picture)
    assert not is_map(other)
    assert not is_map(picture)
    assert not is_map(tmp_path / "missing.tif")
    assert not is_picture(picture)
    assert not is_picture(world_map)


@pytest.mark.parametrize(
    ("extent", "crs", "size"),
    [
        (EARTH, "EPSG:4326", "1"),
        (Extent(170, -20, 190, -10), "EPSG:4326", "0.1"),
        (Extent(8, 47.00, 8.001, 47.001), "EPSG:4326", "0.0001"),
        (Extent(-180, -90, 180, -60), "EPSG:3031", "50km"),
        (EARTH, "ESRI:54009", "100km"),
    ],
)
def test_the_picture_is_drawn(tmp_path: Path, extent: Extent, crs: str, size: str) -> None:
    path = tmp_path / "map.png"
    draw_map(written(tmp_path / "map.tif", extent, crs, size), path)
    assert is_picture(path)
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 500
        colours = image.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 150  # of two bands, bars and text


def test_a_difference_has_white_in_the_middle(tmp_path: Path, world_map: Path) -> None:
    """Longitudes from -180 to 180: blue in the west, red in the east, and as much of the one as of the other."""
    path = tmp_path / "map.png"
    draw_map(world_map, path, title="West and east", signed=True)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    upper = pixels[: len(pixels) // 2, : int(0.85 * pixels.shape[1])]  # the first band, without its colour bar
    blue, red = upper[..., 2] > upper[..., 0] + 60, upper[..., 0] > upper[..., 2] + 60
    assert blue.sum() > 10_000
    assert red.sum() == pytest.approx(blue.sum(), rel=0.1)
    assert np.nonzero(blue)[1].max() < np.nonzero(red)[1].min()
