"""The cells of a map: a raster in any coordinate system, and where on the Earth its cells are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyproj
from pyproj.exceptions import CRSError, ProjError

from geobind_core.data.geography import Numbers, Places
from geobind_core.errors import InputError
from geobind_core.maps.extent import KM_PER_DEGREE, Extent

WGS_84 = "EPSG:4326"
LONGITUDE_LATITUDE = "OGC:CRS84"
MOST_CELLS = 1_000_000_000
_DENSE = 100  # points along each side of an extent that is projected
_INNER = 25  # points across it, to see whether they come out inside
_SLACK = 0.01


@dataclass(frozen=True)
class Resolution:
    """How large cells are.

    Attributes:
        size: More than 0.
        metric: `size` is in metres; else in units of the coordinate system.
    """

    size: float
    metric: bool = False

    @classmethod
    def parse(cls, text: str) -> Resolution:
        """Reads `0.1`, `10km` or `500m`.

        Raises:
            InputError: It is none of these.
        """
        number, metres = text.strip().lower(), 0.0
        for unit, factor in (("km", 1000.0), ("m", 1.0)):
            if number.endswith(unit):
                number, metres = number.removesuffix(unit), factor
                break
        try:
            size = float(number)
        except ValueError:
            size = math.nan
        if not (math.isfinite(size) and size > 0):
            raise InputError(
                "expected a size of cells: 10km, 500m, or a number in units of the coordinate system, such as 0.1.",
                place=f"--resolution {text}",
            )
        return cls(size * metres, metric=True) if metres else cls(size)


@dataclass(frozen=True)
class Grid:
    """A raster whose first row is the northernmost, or the top one.

    Attributes:
        crs: Its coordinate system, as the user wrote it.
        left: Edge of the raster in the coordinate system's units, as the other three.
        bottom: Lower edge.
        right: Right edge. Longitudes go beyond 180 where the antimeridian is inside.
        top: Upper edge.
        width: Columns.
        height: Rows.
    """

    crs: str
    left: float
    bottom: float
    right: float
    top: float
    width: int
    height: int

    @property
    def steps(self) -> tuple[float, float]:
        """Width and height of a cell."""
        return (self.right - self.left) / self.width, (self.top - self.bottom) / self.height

    @cached_property
    def is_geographic(self) -> bool:
        return bool(pyproj.CRS(self.crs).is_geographic)

    @cached_property
    def _to_degrees(self) -> pyproj.Transformer:
        return pyproj.Transformer.from_crs(self.crs, LONGITUDE_LATITUDE, always_xy=True)

    def x(self) -> Numbers:
        """Returns `[width]` centres of the columns."""
        return np.asarray(self.left + (np.arange(self.width) + 0.5) * self.steps[0], dtype=np.float64)

    def y(self, first: int = 0, end: int | None = None) -> Numbers:
        """Returns centres of the rows from `first` up to but not `end`."""
        rows = np.arange(first, self.height if end is None else end)
        return np.asarray(self.top - (rows + 0.5) * self.steps[1], dtype=np.float64)

    def places(self, first: int, end: int, columns: slice = slice(None)) -> Places:
        """Returns where the centres of cells are, row after row; cells that are not on the Earth have no place."""
        x, y = np.meshgrid(self.x()[columns], self.y(first, end))
        return self.to_places(x.ravel(), y.ravel())

    def to_places(self, x: Numbers, y: Numbers) -> Places:
        """Returns where points in the raster's coordinate system are."""
        if self.crs == WGS_84:
            return Places.of(x, y)
        if self.is_geographic:
            return Places.of(*self._to_degrees.transform((x + 180) % 360 - 180, y))
        longitude, latitude = self._to_degrees.transform(x, y)
        # Of some projections, what lies outside the outline of the world comes out as some place inside.
        back_x, back_y = self._to_degrees.transform(longitude, latitude, direction="INVERSE")
        with np.errstate(invalid="ignore"):
            there = (np.abs(back_x - x) < self.steps[0]) & (np.abs(back_y - y) < self.steps[1])
        return Places.of(np.where(there, longitude, np.nan), latitude)


def make_grid(extent: Extent, crs: str, resolution: Resolution) -> Grid:
    """Lays a raster over an extent. Its edges are those of the extent, so cells may be a little smaller than asked for.

    Args:
        extent: What the map is to show.
        crs: Any name of a coordinate system that PROJ knows, such as `EPSG:3857`.
        resolution: The greatest size of a cell. Of metres in a coordinate system of degrees, the size is right
            in the middle of the map.

    Raises:
        InputError: There is no such coordinate system, or none of these degrees in it; too many cells.
    """
    system = _system(crs)
    if system.is_geographic:
        left, bottom, right, top = extent.west, extent.south, extent.east, extent.north
    else:
        left, bottom, right, top = _projected(system, crs, extent)
    x_step = y_step = resolution.size
    if resolution.metric and system.is_geographic:
        y_step = resolution.size / 1000 / KM_PER_DEGREE
        middle = math.cos(math.radians((extent.south + extent.north) / 2))
        x_step = y_step / max(middle, 1e-3)
    elif resolution.metric:
        x_step = y_step = resolution.size / system.axis_info[0].unit_conversion_factor
    width, height = (max(1, math.ceil(n - 1e-6)) for n in ((right - left) / x_step, (top - bottom) / y_step))
    if width * height > MOST_CELLS:
        coarser = math.sqrt(width * height / MOST_CELLS)
        raise InputError(
            f"a map of {width:,} x {height:,} cells would take {width * height * 4 / 1e9:,.0f} GB a band; "
            f"at most {MOST_CELLS:,} cells are drawn.",
            place="--resolution",
            hint=f"Take cells that are {coarser:,.3g} times as large, or a smaller --bbox.",
        )
    return Grid(crs, left, bottom, right, top, width, height)


def _system(crs: str) -> pyproj.CRS:
    try:
        system = pyproj.CRS(crs)
    except CRSError as error:
        raise InputError(
            f"there is no such coordinate system: {error}",
            place=f"--crs {crs}",
            hint="Names are such as EPSG:4326 (degrees), EPSG:3857 (web maps), EPSG:32633 (UTM zone 33 north).",
        ) from None
    axes, meridian = [axis.unit_name for axis in system.axis_info], system.prime_meridian
    from_greenwich = meridian is None or meridian.longitude == 0
    in_degrees = system.is_geographic and axes == ["degree", "degree"] and from_greenwich
    if not (in_degrees or (system.is_projected and len(axes) == 2)):
        raise InputError(
            "a map needs a coordinate system of two axes: projected, or degrees from Greenwich.", place=f"--crs {crs}"
        )
    return system


def _projected(system: pyproj.CRS, crs: str, extent: Extent) -> tuple[float, float, float, float]:
    """Returns left, bottom, right and top of an extent in a projected coordinate system."""
    south, north, area = extent.south, extent.north, system.area_of_use
    if area is not None and area.east - area.west >= 360:
        # Web Mercator has no poles, and each polar system has one.
        south, north = max(south, area.south), min(north, area.north)
    outside = InputError(
        f"the extent {extent} cannot be drawn in this coordinate system"
        + (f", which is made for {', '.join(f'{value:g}' for value in area.bounds)}." if area is not None else "."),
        place=f"--crs {crs}",
        hint="Give a --bbox inside of that, or another --crs.",
    )
    if south >= north:
        raise outside
    convert = pyproj.Transformer.from_crs(LONGITUDE_LATITUDE, system, always_xy=True)
    try:
        bounds = convert.transform_bounds(extent.west, south, extent.east, north, densify_pts=_DENSE)
    except ProjError:
        raise outside from None
    left, bottom, right, top = map(float, bounds)
    if not (all(map(math.isfinite, bounds)) and left < right and bottom < top):
        raise outside
    # What a system is not made for comes out anywhere: the whole Earth in a UTM zone has its edges inside.
    inner = np.linspace(0.02, 0.98, _INNER)
    longitude, latitude = np.meshgrid(
        extent.west + inner * (extent.east - extent.west), south + inner * (north - south)
    )
    x, y = convert.transform(longitude, latitude)
    slack_x, slack_y = _SLACK * (right - left), _SLACK * (top - bottom)
    if not ((x > left - slack_x) & (x < right + slack_x) & (y > bottom - slack_y) & (y < top + slack_y)).all():
        raise outside
    if extent.crosses_antimeridian:
        middle = (south + north) / 2
        (before, after), _ = convert.transform([180 - 1e-6, -180 + 1e-6], [middle, middle])
        if abs(after - before) > 0.5 * (right - left):
            raise InputError(
                f"the extent {extent} lies across the antimeridian, where this coordinate system is cut in two.",
                place=f"--crs {crs}",
                hint=f"Take {WGS_84}, or one that is whole there, such as EPSG:3832 for the Pacific.",
            )
    return left, bottom, right, top
