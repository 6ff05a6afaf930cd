"""Writing a map as Cloud-Optimised GeoTIFF, a few rows at a time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from geobind_core.errors import DataError
from geobind_core.files import naming, replacing_file
from geobind_core.maps.grid import Grid
from geobind_core.maps.points import Values

SOFTWARE = "GeoBind"
_CELLS_AT_A_TIME = 1 << 18  # a few bytes each, some hundred times
_TILE = 512


class Surface(Protocol):
    """What has a value wherever it is asked for: points with a method, or tiles."""

    def rows(self, grid: Grid, first: int, end: int) -> Values:
        """Returns `[B, rows, width]` values of the cells of some rows; NaN where there is none."""


@dataclass(frozen=True)
class Band:
    """What one band of a map is.

    Attributes:
        name: Shown by programs that open the file.
        unit: Of its values.
        times: First and last moment of the observations that it was made from, UTC; None where they have no time.
        details: More about it, for the band's metadata; values that are no text are written as JSON.
    """

    name: str
    unit: str
    times: tuple[datetime, datetime] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def tags(self) -> dict[str, str]:
        """Returns the band's metadata."""
        tags = {key.upper(): _text(value) for key, value in self.details.items()}
        if self.times is not None:
            tags["TIME_START"], tags["TIME_END"] = map(iso_time, self.times)
        return tags


@dataclass(frozen=True)
class BandSummary:
    """What is in a band: the least and the greatest value, and how many cells have one."""

    least: float
    greatest: float
    cells: int


def write_geotiff(
    path: Path,
    grid: Grid,
    bands: Sequence[Band],
    surface: Surface,
    details: Mapping[str, Any],
    advance: Callable[[int], None] = lambda rows: None,
) -> list[BandSummary]:
    """Writes a map; the file appears whole, in place of what was there.

    Values are float32, nodata is NaN, and overviews are means of the cells that have a value. Nothing in the file
    depends on when or where it was written.

    Args:
        path: The file.
        grid: Its cells.
        bands: What the bands are.
        surface: Their values.
        details: About the map, for the metadata; values that are no text are written as JSON.
        advance: Told how many more rows are done.

    Raises:
        DataError: No cell of the map has a value.
    """
    import rasterio
    from rasterio.shutil import copy

    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as room, naming(path):
        raw = Path(room, "raw.tif")
        summaries = _write_rows(raw, grid, bands, surface, _tags(bands, details), advance)
        if not any(summary.cells for summary in summaries):
            raise DataError(
                "no cell of the map has a value: nothing is near enough to it.",
                place=str(path),
                hint="Look at --bbox and --resolution; of places, at --max-distance and --time as well.",
            )
        with replacing_file(path) as temporary, rasterio.Env(CPL_TMPDIR=room, GDAL_NUM_THREADS="ALL_CPUS"):
            copy(
                raw,
                temporary,
                driver="COG",
                compress="DEFLATE",
                predictor="YES",
                blocksize=_TILE,
                overview_resampling="AVERAGE",
                bigtiff="IF_SAFER",
                statistics="YES",
            )
    return summaries


def is_map(path: Path) -> bool:
    """Returns whether a file is a map that `write_geotiff` wrote."""
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with rasterio.open(path, driver="GTiff") as dataset:
            return bool(dataset.tags().get("TIFFTAG_SOFTWARE", "").startswith(SOFTWARE))
    except (RasterioError, OSError):
        return False


def _write_rows(
    raw: Path,
    grid: Grid,
    bands: Sequence[Band],
    surface: Surface,
    tags: Mapping[str, str],
    advance: Callable[[int], None],
) -> list[BandSummary]:
    import rasterio
    from rasterio.windows import Window

    x_step, y_step = grid.steps
    transform = rasterio.Affine(x_step, 0.0, grid.left, 0.0, -y_step, grid.top)
    least, greatest = np.full(len(bands), np.inf), np.full(len(bands), -np.inf)
    cells = np.zeros(len(bands), dtype=np.int64)
    rows = max(1, _CELLS_AT_A_TIME // grid.width)
    with rasterio.open(
        raw,
        "w",
        driver="GTiff",
        width=grid.width,
        height=grid.height,
        count=len(bands),
        dtype="float32",
        crs=grid.crs,
        transform=transform,
        nodata=np.nan,
        bigtiff="IF_SAFER",
    ) as dataset:
        dataset.update_tags(**tags)
        for number, band in enumerate(bands, start=1):
            dataset.update_tags(number, **band.tags())
        dataset.descriptions = [band.name for band in bands]
        dataset.units = [band.unit for band in bands]
        for first in range(0, grid.height, rows):
            end = min(first + rows, grid.height)
            values = surface.rows(grid, first, end)
            known = ~np.isnan(values)
            values[~known] = np.nan  # of the many kinds of NaN, always the same
            dataset.write(values, window=Window(0, first, grid.width, end - first))
            cells += known.sum(axis=(1, 2))
            least = np.minimum(least, values.min(axis=(1, 2), initial=np.inf, where=known))
            greatest = np.maximum(greatest, values.max(axis=(1, 2), initial=-np.inf, where=known))
            advance(end - first)
    found = zip(least.tolist(), greatest.tolist(), cells.tolist(), strict=True)
    return [BandSummary(low, high, count) for low, high, count in found]


def _tags(bands: Sequence[Band], details: Mapping[str, Any]) -> dict[str, str]:
    from importlib.metadata import version

    tags = {
        "TIFFTAG_SOFTWARE": f"{SOFTWARE} {version('geobind')}",
        "TIFFTAG_IMAGEDESCRIPTION": "; ".join(band.name for band in bands),
        **{f"GEOBIND_{key.upper()}": _text(value) for key, value in details.items()},
    }
    times = [band.times for band in bands if band.times is not None]
    if times:
        first, last = min(t[0] for t in times), max(t[1] for t in times)
        tags |= {"TIME_START": iso_time(first), "TIME_END": iso_time(last)}
        tags["TIFFTAG_DATETIME"] = last.astimezone(UTC).strftime("%Y:%m:%d %H:%M:%S")
    return tags


def iso_time(moment: datetime) -> str:
    """Returns a moment as `2024-05-01T12:00:00Z`."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
