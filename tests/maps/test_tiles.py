"""Tiles in several coordinate systems, burnt into maps, against asking GDAL cell by cell which tile it is in."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import pytest
import rasterio
from affine import Affine

from geobind_core.errors import DataError
from geobind_core.maps.extent import Extent
from geobind_core.maps.geotiff import Band, write_geotiff
from geobind_core.maps.grid import Grid, Resolution, make_grid
from geobind_core.maps.tiles import Mosaic, Tile, open_tile, open_tiles


def write_tile(path: Path, crs: str | None, transform: Affine, size: tuple[int, int] = (20, 30)) -> Path:
    height, width = size
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=3, dtype="uint8", crs=crs, transform=transform
    ) as dataset:
        dataset.write(np.full((3, height, width), 90, dtype=np.uint8))
    return path


def at(left: float, top: float, step: float, *, turned: float = 0) -> Affine:
    return Affine.translation(left, top) @ Affine.rotation(turned) @ Affine.scale(step, -step)


def inside(path: Path, grid: Grid) -> npt.NDArray[Any]:
    """`[cells]`: whether rasterio finds the centre of a cell in a tile."""
    cells = grid.places(0, grid.height)
    with rasterio.open(path) as dataset:
        there = pyproj.Transformer.from_crs("EPSG:4326", dataset.crs, always_xy=True)
        found = np.zeros(len(cells), dtype=bool)
        for turn in (-360, 0, 360) if dataset.crs.is_geographic else (0,):
            x, y = there.transform(cells.longitude, cells.latitude)
            with np.errstate(invalid="ignore"):
                column, row = ~dataset.transform @ (np.asarray(x) + turn, np.asarray(y))
            found |= (row >= 0) & (row < dataset.height) & (column >= 0) & (column < dataset.width)
    return found


pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

TILES: dict[str, tuple[str, Affine]] = {
    "utm": ("EPSG:32633", at(500_000, 5_000_000, 1000)),
    "utm_beside": ("EPSG:32633", at(515_000, 5_000_000, 1000)),  # half over the first
    "degrees": ("EPSG:4326", at(14.9, 45.6, 0.01)),
    "turned": ("EPSG:3857", at(1_700_000, 5_700_000, 2000, turned=30)),
    "fiji": ("EPSG:4326", at(179.9, -16.9, 0.01)),
    "fiji_west": ("EPSG:4326", at(-180.05, -17.0, 0.01)),
    "fiji_utm": ("EPSG:32760", at(810_000, 8_150_000, 1000)),
    "pole": ("EPSG:3413", at(-600_000, 400_000, 40_000)),
    "wide": ("EPSG:4326", at(170, 10, 1.0)),  # to 200 degrees
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    for name, (crs, transform) in TILES.items():
        write_tile(folder / f"{name}.tif", crs, transform)
    return folder


@pytest.mark.parametrize(
    ("extent", "crs", "size", "names"),
    [
        (Extent(14.5, 44.5, 16, 46), "EPSG:4326", "0.01", ["utm", "utm_beside", "degrees", "turned"]),
        (Extent(14.5, 44.5, 16, 46), "EPSG:3857", "1km", ["utm", "utm_beside", "degrees", "turned"]),
        (Extent(179, -18, 182, -16), "EPSG:4326", "0.01", ["fiji", "fiji_west", "fiji_utm"]),
        (Extent(179, -18, 182, -16), "EPSG:3832", "1km", ["fiji", "fiji_west", "fiji_utm"]),
        (Extent(-180, -90, 180, 90), "EPSG:4326", "0.5", ["wide", "pole"]),
        (Extent(-180, 60, 180, 90), "EPSG:3413", "10km", ["pole"]),
        (Extent(-180, 60, 180, 90), "EPSG:3857", "20km", ["pole"]),
    ],
)
def test_a_cell_has_the_mean_of_the_tiles_that_it_is_in(
    folder: Path, extent: Extent, crs: str, size: str, names: list[str]
) -> None:
    tiles = [open_tile(folder / f"{name}.tif") for name in names]
    values = np.stack([np.arange(len(names)) + 1.0, 10.0 ** np.arange(len(names))]).astype(np.float32)
    grid = make_grid(extent, crs, Resolution.parse(size))
    mosaic = Mosaic(tiles, values)
    middle = grid.height // 2 + 3
    found = np.concatenate([mosaic.rows(grid, 0, middle), mosaic.rows(grid, middle, grid.height)], axis=1)
    covered = np.stack([inside(folder / f"{name}.tif", grid) for name in names]).astype(float)
    assert (covered.sum(axis=1) > 0).all()
    with np.errstate(invalid="ignore"):
        expected = (values @ covered / covered.sum(axis=0)).reshape(found.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_extent_and_the_cells_come_from_the_tiles(folder: Path) -> None:
    tiles = [open_tile(folder / f"{name}.tif") for name in ("fiji", "fiji_west")]
    extent = Mosaic(tiles, np.zeros((1, 2), dtype=np.float32)).extent()
    assert (extent.west, extent.south) == pytest.approx((179.9, -17.2))
    assert (extent.east, extent.north) == pytest.approx((180.25, -16.9))
    # Twenty pixels of a hundredth of a degree are 22.2 km; a quarter of it is a cell.
    assert Mosaic(tiles, np.zeros((1, 2), dtype=np.float32)).usual_cell_km() == pytest.approx(5.56, abs=0.01)


def test_the_extent_of_a_tile_is_that_of_its_outline(folder: Path) -> None:
    tile = open_tile(folder / "utm.tif")
    assert tile.extent.west == pytest.approx(15, abs=1e-9)  # the middle of the zone
    assert tile.extent.north == pytest.approx(45.1534, abs=1e-3)
    assert open_tile(folder / "pole.tif").extent.north == pytest.approx(90, abs=0.1)


def test_what_is_no_georeferenced_image_is_passed_over_and_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    good = tmp_path / "below" / "good.TIF"
    good.write_bytes((folder / "utm.tif").read_bytes())
    write_tile(tmp_path / "nowhere.tif", None, Affine.identity())
    (tmp_path / "broken.tif").write_bytes(b"II*\0 and no more")
    (tmp_path / "notes.txt").write_text("not looked at")
    (tmp_path / ".hidden.tif").write_bytes(b"")
    tile = open_tile(good)
    grid = make_grid(tile.extent, "EPSG:4326", Resolution(0.05))
    values = np.ones((1, 1), dtype=np.float32)
    write_geotiff(tmp_path / "earlier.tif", grid, [Band("surf", "cosine similarity")], Mosaic([tile], values), {})
    told: list[str] = []
    assert [t.path for t in open_tiles(tmp_path, told.append)] == [good]
    assert len(told) == 2
    assert "broken.tif: the tile cannot be read" in told[0]
    assert "nowhere.tif: the tile does not say where it lies" in told[1]


def test_a_folder_without_tiles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected \.tif, \.tiff, \.jp2 files, or an index"):
        open_tiles(tmp_path, print)
    write_tile(tmp_path / "nowhere.tif", None, Affine.identity())
    with pytest.raises(DataError, match="does not say where it lies"):
        open_tiles(tmp_path, print)


def test_many_tiles_are_burnt_in_one_go() -> None:
    """A checkerboard of 900 tiles, against the board."""
    wkt = pyproj.CRS("EPSG:4326").to_wkt()
    tiles = [
        Tile(Path(f"{r}_{c}.tif"), wkt, tuple(~at(c, 31 - r, 0.1))[:6], (c, 30 - r, c + 1, 31 - r), 10, 10)
        for r in range(30)
        for c in range(30)
    ]
    values = (np.add.outer(np.arange(30), np.arange(30)) % 2).astype(np.float32)
    grid = make_grid(Extent(0, 1, 30, 31), "EPSG:4326", Resolution(0.25))
    found = Mosaic(tiles, values.reshape(1, -1)).rows(grid, 0, grid.height)[0]
    np.testing.assert_array_equal(found, values.repeat(4, axis=0).repeat(4, axis=1))
