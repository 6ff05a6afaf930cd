"""A map as a picture: bands side by side, each with a colour bar, a graticule and a scale."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geobind_core.data.geography import great_circle_km
from geobind_core.files import replacing_file
from geobind_core.maps.geotiff import SOFTWARE
from geobind_core.maps.graticule import ticks
from geobind_core.maps.grid import Grid
from geobind_core.maps.points import Values

SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"
_NODATA, _INK, _QUIET = "#e4e6e9", "#1b1f24", "#57606a"
_MOST_PIXELS = 1400  # of one band along its longer side
_MOST_BANDS = 12
_DPI = 150
_SCALE_LENGTH = 0.2  # at most, of the map's width
_SAME_SCALE = 0.05
_ROBUST = (1, 99)  # percentiles: a few outliers do not take all the colours


@dataclass(frozen=True)
class _Picture:
    grid: Grid
    values: Values
    names: tuple[str, ...]
    units: tuple[str, ...]
    signed: bool


def draw_map(geotiff: Path, path: Path, *, title: str = "", signed: bool = False) -> None:
    """Draws a map that `write_geotiff` wrote as PNG.

    Args:
        geotiff: The map.
        path: The picture; it appears whole, in place of what was there.
        title: Above all bands; below it are those of the bands.
        signed: Zero has a meaning, and is to be the colour in the middle.
    """
    picture = _read(geotiff, signed=signed)
    with replacing_file(path) as temporary:
        temporary.write_bytes(_draw(picture, title))


def is_picture(path: Path) -> bool:
    """Returns whether a file is a picture that `draw_map` drew."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            return str(image.info.get("Software", "")).startswith(SOFTWARE)
    except (OSError, ValueError):
        return False


def _read(geotiff: Path, *, signed: bool) -> _Picture:
    import rasterio
    from rasterio.enums import Resampling

    with rasterio.open(geotiff) as dataset:
        count = min(dataset.count, _MOST_BANDS)
        shrink = max(1.0, max(dataset.width, dataset.height) / _MOST_PIXELS)
        width, height = (max(1, round(n / shrink)) for n in (dataset.width, dataset.height))
        values = dataset.read(
            list(range(1, count + 1)), out_shape=(count, height, width), resampling=Resampling.average
        )
        bounds, epsg = dataset.bounds, dataset.crs.to_epsg()
        crs = f"EPSG:{epsg}" if epsg else dataset.crs.to_wkt()
        names, units = dataset.descriptions[:count], dataset.units[:count]
    grid = Grid(crs, bounds.left, bounds.bottom, bounds.right, bounds.top, width, height)
    return _Picture(grid, values, tuple(n or "" for n in names), tuple(u or "" for u in units), signed)


def _draw(picture: _Picture, title: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(picture.names)
    aspect = _aspect(picture.grid)
    shape = (picture.grid.right - picture.grid.left) / (picture.grid.top - picture.grid.bottom) / aspect
    columns = _columns(count, shape)
    rows = math.ceil(count / columns)
    width = {1: 9.0, 2: 6.6}.get(columns, 4.8)
    across = min(max(width - 1.6, 1), 8.0 * shape)  # of the map itself, without bar and labels
    figure = Figure(
        figsize=(columns * (across + 1.9), rows * (across / shape + 0.95) + (0.4 if title else 0)),
        dpi=_DPI,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for number, panel in enumerate(axes):
        if number < count:
            _draw_band(figure, panel, picture, number, aspect, across)
        else:
            panel.axis("off")
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", color=_INK)
    target = BytesIO()
    figure.savefig(
        target, format="png", facecolor="white", bbox_inches="tight", pad_inches=0.12, metadata={"Software": SOFTWARE}
    )
    return target.getvalue()


def _columns(count: int, shape: float) -> int:
    """Returns how many bands stand beside each other: so many that the whole is about as wide as high."""
    return max(1, min(count, round(math.sqrt(count * 1.3 / max(shape, 0.1)))))


def _aspect(grid: Grid) -> float:
    """Returns how much longer a unit of y is to be drawn than a unit of x."""
    if not grid.is_geographic:
        return 1.0
    # Narrow maps are drawn as their middle is; on one of the whole Earth, degrees are squares.
    middle = math.cos(math.radians((grid.bottom + grid.top) / 2))
    return 1 / max(middle, 0.25)


def _draw_band(figure: Any, panel: Any, picture: _Picture, number: int, aspect: float, across: float) -> None:
    grid, values = picture.grid, picture.values[number]
    low, high, extend = _limits(values, signed=picture.signed)
    image = panel.imshow(
        np.ma.masked_invalid(values),
        extent=(grid.left, grid.right, grid.bottom, grid.top),
        cmap=DIVERGING if picture.signed else SEQUENTIAL,
        vmin=low,
        vmax=high,
        interpolation="nearest",
        aspect=aspect,
    )
    panel.set_facecolor(_NODATA)
    for side in panel.spines.values():
        side.set(color=_QUIET, linewidth=0.6)
    panel.set_title("\n".join(textwrap.wrap(picture.names[number], max(24, int(across * 11)))), fontsize=10, color=_INK)
    _draw_graticule(panel, grid, max(3, round(across)))
    _draw_scale(panel, grid)
    bar = figure.colorbar(image, ax=panel, extend=extend, shrink=0.85, aspect=22, pad=0.02)
    bar.set_label(picture.units[number], fontsize=8, color=_QUIET)
    bar.ax.tick_params(labelsize=7, color=_QUIET, labelcolor=_QUIET)
    bar.outline.set(color=_QUIET, linewidth=0.6)
    if np.isnan(values).any():
        _draw_nodata(panel)


def _limits(values: Values, *, signed: bool) -> tuple[float, float, str]:
    known = values[~np.isnan(values)]
    if not len(known):
        return 0.0, 1.0, "neither"
    low, high = map(float, np.percentile(known, _ROBUST))
    if signed:
        high = max(abs(low), abs(high))
        low = -high
    if high <= low:
        low, high = low - 0.5, high + 0.5
    below, above = known.min() < low, known.max() > high
    return low, high, {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")


def _draw_graticule(panel: Any, grid: Grid, most: int) -> None:
    paper = {"facecolor": "white", "alpha": 0.6, "linewidth": 0, "boxstyle": "round,pad=0.15"}
    for found, set_ticks in zip(ticks(grid, most), (panel.set_xticks, panel.set_yticks), strict=True):
        for tick in found:
            panel.plot(*tick.line, color="white", linewidth=0.5, alpha=0.55, scalex=False, scaley=False)
            if tick.edge is None and tick.inside is not None:
                panel.text(*tick.inside, tick.label, fontsize=6, color=_INK, ha="center", va="center", bbox=paper)
        labelled = [tick for tick in found if tick.edge is not None]
        set_ticks([tick.edge for tick in labelled], [tick.label for tick in labelled])
    panel.set_xlim(grid.left, grid.right)
    panel.set_ylim(grid.bottom, grid.top)
    panel.tick_params(labelsize=7, color=_QUIET, labelcolor=_QUIET, width=0.6, length=3)


def _draw_scale(panel: Any, grid: Grid) -> None:
    """Draws a bar of a round number of kilometres, right in the middle of the map."""
    from matplotlib.font_manager import FontProperties
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped]

    longest = _SCALE_LENGTH * (grid.right - grid.left)
    x, y = (grid.left + grid.right) / 2, (grid.bottom + grid.top) / 2
    kilometres = _length(grid, x, y, longest)
    if not (math.isfinite(kilometres) and kilometres > 0):  # the middle is not on the Earth
        return
    nice = _nice(kilometres)
    low, high = 0.0, longest  # the scale need not be the same all along: found by halving
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _length(grid, x, y, middle) < nice else (low, middle)
    text = f"{nice:,.0f} km" if nice >= 1 else f"{nice * 1000:,.0f} m"
    elsewhere = [_length(grid, x, grid.bottom + share * (grid.top - grid.bottom), longest) for share in (0.2, 0.8)]
    if any(not abs(other / kilometres - 1) < _SAME_SCALE for other in elsewhere):
        latitude = round(float(grid.to_places(np.array([x]), np.array([y])).latitude[0]))
        text += f" at {abs(latitude)}°" + (f" {'N' if latitude > 0 else 'S'}" if latitude else "")
    bar = AnchoredSizeBar(
        panel.transData,
        high,
        text,
        "lower left",
        pad=0.5,
        sep=3,
        borderpad=0.6,
        color=_INK,
        size_vertical=0,
        fontproperties=FontProperties(size=7),
    )
    bar.patch.set(alpha=0.85, edgecolor="#cccccc", linewidth=0.8, boxstyle="round,pad=0,rounding_size=0.2")
    panel.add_artist(bar)


def _length(grid: Grid, x: float, y: float, step: float) -> float:
    first, second = (grid.to_places(np.array([at]), np.array([y])) for at in (x - step / 2, x + step / 2))
    return float(great_circle_km(first, second)[0])


def _nice(value: float) -> float:
    """Returns the greatest of 1, 2, 5, 10, 20, … that is not more."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(m * power for m in (1, 2, 5) if m * power <= value * (1 + 1e-9))


def _draw_nodata(panel: Any) -> None:
    from matplotlib.patches import Patch

    patch = Patch(facecolor=_NODATA, edgecolor=_QUIET, linewidth=0.6, label="no data")
    panel.legend(
        handles=[patch],
        loc="lower right",
        fontsize=7,
        framealpha=0.85,
        borderpad=0.4,
        handlelength=1.2,
        labelcolor=_QUIET,
    )


def to_pixels(values: Values, *, signed: bool = False) -> npt.NDArray[np.uint8]:
    """Returns `[H, W, 4]` colours of one band, transparent where there is no value."""
    import matplotlib

    low, high, _ = _limits(values, signed=signed)
    coloured = matplotlib.colormaps[DIVERGING if signed else SEQUENTIAL](
        np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0, 1), bytes=True
    )
    coloured[..., 3] = np.where(np.isnan(values), 0, 255)
    return np.ascontiguousarray(coloured)
