"""Georeferenced tiles: where each lies, its embedding, and its value burnt into the cells that it covers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import torch
from pyproj.exceptions import ProjError

from geobind_core.data.geography import Numbers
from geobind_core.errors import DataError
from geobind_core.maps.extent import KM_PER_DEGREE, Extent, extent_of
from geobind_core.maps.geotiff import is_map
from geobind_core.maps.grid import LONGITUDE_LATITUDE, Grid
from geobind_core.maps.points import Values
from geobind_core.space.space import Space

SUFFIXES = (".tif", ".tiff", ".jp2")
_DENSE = 21  # points along each side of a tile whose outline is projected
_BATCH = 32
Window = tuple[int, int, int, int]
"""Of a raster: first row and the one behind the last, first column and the one behind the last."""

_CELLS_ACROSS = 4  # of the smallest tile: its edges are then right to an eighth of it


@dataclass(frozen=True)
class Tile:
    """A georeferenced image.

    Attributes:
        path: The file.
        crs: Its coordinate system, as WKT.
        to_pixels: Six numbers of the affine map from that system to columns and rows.
        bounds: Left, bottom, right and top of its outline in that system.
        width: In pixels.
        height: In pixels.
    """

    path: Path
    crs: str
    to_pixels: tuple[float, ...]
    bounds: tuple[float, float, float, float]
    width: int
    height: int

    @cached_property
    def extent(self) -> Extent:
        """Where it lies, in degrees."""
        convert = _transformer(self.crs, LONGITUDE_LATITUDE)
        if convert.source_crs.is_geographic:  # such as from 175 to 185 degrees
            west, south, east, north = self.bounds
            east -= math.floor((west + 180) / 360) * 360
            west -= math.floor((west + 180) / 360) * 360
            return Extent(west, max(-90.0, south), min(east, west + 360), min(90.0, north))
        west, south, east, north = convert.transform_bounds(*self.bounds, densify_pts=_DENSE)
        return Extent(west, south, east if east > west else east + 360, north)

    def covers(self, longitude: Numbers, latitude: Numbers) -> npt.NDArray[np.bool_]:
        """Returns for each of some places whether it lies inside."""
        convert = _transformer(LONGITUDE_LATITUDE, self.crs)
        x, y = convert.transform(longitude, latitude)
        if convert.target_crs.is_geographic:
            x = (np.asarray(x) - self.bounds[0]) % 360 + self.bounds[0]
        a, b, c, d, e, f = self.to_pixels
        with np.errstate(invalid="ignore"):
            column, row = a * x + b * y + c, d * x + e * y + f
            return np.asarray((column >= 0) & (column < self.width) & (row >= 0) & (row < self.height))


@cache
def _transformer(source: str, target: str) -> Any:
    """Returns a transformer: making one takes a hundred times as long as using it."""
    return pyproj.Transformer.from_crs(source, target, always_xy=True)


def open_tiles(folder: Path, warn: Callable[[str], None]) -> list[Tile]:
    """Returns the georeferenced images of a folder, and of those below it. Maps of earlier queries are passed over.

    Args:
        folder: The folder.
        warn: Told about images that do not say where they lie; they are left out.

    Raises:
        DataError: There is none.
    """
    tiles: list[Tile] = []
    first_error: DataError | None = None
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or is_map(path):
            continue
        try:
            tiles.append(open_tile(path))
        except DataError as error:
            first_error = first_error or error
            warn(f"left out: {error.place}: {error.message}")
    if not tiles:
        raise first_error or DataError(
            f"no georeferenced tiles here: expected {', '.join(SUFFIXES)} files, or an index of `geobind embed`.",
            place=str(folder),
        )
    return tiles


def open_tile(path: Path) -> Tile:
    """Reads where a tile lies, and none of its pixels.

    Raises:
        DataError: It cannot be read, or does not say where it lies.
    """
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with rasterio.open(path) as dataset:
            crs, transform, width, height = dataset.crs, dataset.transform, dataset.width, dataset.height
    except (RasterioError, OSError) as error:
        raise DataError(f"the tile cannot be read: {error}", place=str(path)) from error
    if crs is None or transform.is_identity:
        raise DataError("the tile does not say where it lies.", place=str(path), hint="See `gdal_translate -a_ullr`.")
    a, b, c, d, e, f = tuple(transform)[:6]
    x = [a * column + b * row + c for column in (0, width) for row in (0, height)]
    y = [d * column + e * row + f for column in (0, width) for row in (0, height)]
    bounds = (min(x), min(y), max(x), max(y))
    tile = Tile(path, crs.to_wkt(), tuple(~transform)[:6], bounds, width, height)
    try:
        finite = all(map(math.isfinite, (tile.extent.west, tile.extent.south, tile.extent.east, tile.extent.north)))
    except ProjError as error:
        raise DataError(f"it cannot be said where the tile lies: {error}", place=str(path)) from error
    if not finite:
        raise DataError("the tile does not lie on the Earth.", place=str(path))
    return tile


class Mosaic:
    """Values of tiles; a cell has the mean of the tiles in which its centre lies.

    Args:
        tiles: The tiles.
        values: `[B, N]`.
    """

    def __init__(self, tiles: Sequence[Tile], values: Values) -> None:
        self._tiles = tiles
        self._values = values
        self._known: tuple[Grid, list[list[Window]]] | None = None
        self.bands = len(values)
        self.drawn: set[int] = set()
        """The numbers of the tiles that some cell has its centre in, of the rows that have been asked for."""

    def extent(self) -> Extent:
        """Returns the least extent that has all tiles inside."""
        extents = np.array([(t.extent.west, t.extent.south, t.extent.east, t.extent.north) for t in self._tiles])
        return extent_of(*extents.T)

    def usual_cell_km(self) -> float:
        """Returns the size of cells that shows the smallest tile as what it is."""
        return min(_shorter_side_km(tile.extent) for tile in self._tiles) / _CELLS_ACROSS

    def rows(self, grid: Grid, first: int, end: int) -> Values:
        """Returns `[B, rows, width]` values of the cells of some rows; NaN where there is no tile."""
        sums = np.zeros((self.bands, end - first, grid.width))
        counts = np.zeros((end - first, grid.width))
        for number, (tile, windows) in enumerate(zip(self._tiles, self._windows(grid), strict=True)):
            for top, bottom, left, right in windows:
                top, bottom = max(top, first), min(bottom, end)
                if top >= bottom:
                    continue
                cells = grid.places(top, bottom, slice(left, right))
                inside = tile.covers(cells.longitude, cells.latitude).reshape(bottom - top, right - left)
                if inside.any():
                    self.drawn.add(number)
                window = slice(top - first, bottom - first), slice(left, right)
                counts[window] += inside
                sums[:, *window] += inside * self._values[:, number, None, None]
        with np.errstate(invalid="ignore"):
            return (sums / counts).astype(np.float32)

    def _windows(self, grid: Grid) -> list[list[Window]]:
        if self._known is None or self._known[0] != grid:
            self._known = grid, [list(_windows_of(tile.extent, grid)) for tile in self._tiles]
        return self._known[1]


def _shorter_side_km(extent: Extent) -> float:
    middle = math.cos(math.radians((extent.south + extent.north) / 2))
    return min(extent.north - extent.south, (extent.east - extent.west) * max(middle, 1e-3)) * KM_PER_DEGREE


def _windows_of(extent: Extent, grid: Grid) -> Iterator[Window]:
    """Yields the parts of a raster in which the cells of an extent are."""
    left, bottom, right, top = extent.west, extent.south, extent.east, extent.north
    if not grid.is_geographic:
        try:
            left, bottom, right, top = _transformer(LONGITUDE_LATITUDE, grid.crs).transform_bounds(
                left, bottom, right, top, densify_pts=_DENSE
            )
        except ProjError:
            left = math.inf
        if not all(map(math.isfinite, (left, bottom, right, top))):  # a pole in Web Mercator: look everywhere
            left, bottom, right, top = grid.left, grid.bottom, grid.right, grid.top
    x_step, y_step = grid.steps
    # A cell more on each side: outlines are only known at some points.
    first, end = (math.floor((grid.top - top) / y_step) - 1, math.ceil((grid.top - bottom) / y_step) + 1)
    for turn in (-360, 0, 360) if grid.is_geographic else (0,):
        start = max(0, math.floor((left + turn - grid.left) / x_step) - 1)
        stop = min(grid.width, math.ceil((right + turn - grid.left) / x_step) + 1)
        if start < stop:
            yield max(0, first), min(grid.height, end), start, stop


def embed_tiles(
    space: Space, modality: str, tiles: Sequence[Tile], *, warn: Callable[[str], None], advance: Callable[[int], None]
) -> tuple[list[Tile], npt.NDArray[np.float32]]:
    """Embeds the images of tiles.

    Args:
        space: The space.
        modality: The modality that reads the files.
        tiles: The tiles.
        warn: Told about tiles that the modality cannot read; they are left out.
        advance: Told how many more tiles are done.

    Returns:
        The `N` tiles that could be read, and `[N, D]`.

    Raises:
        DataError: None could be read.
        SpaceError: No such modality.
    """
    kept: list[Tile] = []
    parts: list[torch.Tensor] = []
    first_error: DataError | None = None
    for start in range(0, len(tiles), _BATCH):
        batch = tiles[start : start + _BATCH]
        try:
            parts.append(space.embed(modality, [tile.path for tile in batch]))
            kept += batch
        except DataError:  # which of them it was, the space does not know by name
            for tile in batch:
                try:
                    parts.append(space.embed(modality, [tile.path]))
                    kept.append(tile)
                except DataError as error:
                    first_error = first_error or error
                    warn(f"left out: {tile.path}: {error.message}")
        advance(len(batch))
    if not kept:
        assert first_error is not None
        raise first_error
    return kept, torch.cat(parts).cpu().numpy()
