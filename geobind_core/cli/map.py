"""`geobind map`: where on the Earth a query is likely, as a raster and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geobind_core.cli.common import AsJson, Disabled, load_plugins, print_json, say
from geobind_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from geobind_core.maps.score_map import MapResult


def draw(
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="A space, or a run folder.")],
    index: Annotated[
        Path,
        typer.Argument(
            metavar="INDEX", help="What `geobind embed` wrote, or a folder of georeferenced tiles (.tif, .jp2)."
        ),
    ],
    query: Annotated[
        list[str],
        typer.Option(
            "--query",
            "-q",
            help="Text, file or coordinates, or several: 'text=a beach + audio=surf.flac*0.5'. Each --query is a band.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The GeoTIFF to write.")],
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The picture to write. Default: beside the GeoTIFF.")
    ] = None,
    no_png: Annotated[bool, typer.Option("--no-png", help="Write no picture.")] = False,
    difference: Annotated[
        bool, typer.Option("--difference", help="One band: the first of two queries minus the second.")
    ] = False,
    normalise: Annotated[
        str, typer.Option(metavar="HOW", help="none: cosine similarity; softmax: probability among the queries.")
    ] = "none",
    temperature: Annotated[float, typer.Option(help="Of the softmax.")] = 0.01,
    resolution: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Of a cell: 10km, 500m, or 0.1 in units of the coordinate system."),
    ] = None,
    bbox: Annotated[
        str | None,
        typer.Option(metavar="W,S,E,N", help="Show this part, in degrees; W > E reaches across the antimeridian."),
    ] = None,
    crs: Annotated[str, typer.Option(metavar="NAME", help="Coordinate system, such as EPSG:3857.")] = "EPSG:4326",
    method: Annotated[
        str, typer.Option(metavar="NAME", help="How cells get values from points: nearest, mean, idw, kernel.")
    ] = "nearest",
    max_distance: Annotated[
        float | None,
        typer.Option(metavar="KM", help="How far a point reaches. Default: three times their usual distance."),
    ] = None,
    period: Annotated[
        str | None,
        typer.Option("--time", metavar="START/END", help="Only observations of this time: 2024-06-01/2024-08-31."),
    ] = None,
    modality: Annotated[str | None, typer.Option(metavar="NAME", help="Who reads the tiles of a folder.")] = None,
    disable_plugin: Disabled = None,
    as_json: AsJson = False,
) -> None:
    """Draw a map of how well places fit a query. Writes a Cloud-Optimised GeoTIFF and a picture."""
    from accelerate import PartialState

    from geobind_core.index.file import EmbeddingIndex
    from geobind_core.index.period import parse_period
    from geobind_core.maps.bands import MapOptions
    from geobind_core.maps.extent import parse_extent
    from geobind_core.maps.grid import Resolution
    from geobind_core.maps.points import METHODS
    from geobind_core.maps.score_map import map_of_index, map_of_tiles
    from geobind_core.progress import Reporter
    from geobind_core.space.space import Space

    _one_of(method, METHODS, "--method")
    _one_of(normalise, ("none", "softmax"), "--normalise")
    if difference and normalise != "none":
        raise ConfigError("a difference is one of cosine similarities; leave --normalise out.", place="--difference")
    options = MapOptions(
        kind="difference" if difference else "probability" if normalise == "softmax" else "cosine",
        temperature=temperature,
        extent=None if bbox is None else parse_extent(bbox),
        resolution=None if resolution is None else Resolution.parse(resolution),
        crs=crs,
        method=method,  # type: ignore[arg-type]
        max_distance_km=max_distance,
        period=None if period is None else parse_period(period),
    )
    picture = None if no_png else png or out.with_suffix(".png")
    reporter = Reporter()
    loaded = Space.load(space, device=PartialState().device, plugins=load_plugins(disable_plugin))
    if not index.exists():
        raise DataError("no such index, and no such folder of tiles.", place=str(index))
    if index.is_dir() and not any(index.glob("*.parquet")):
        if modality is None:
            raise ConfigError(
                "this is a folder of tiles; say which modality they are of.",
                place=str(index),
                hint=f"--modality {'|'.join(name for name in loaded.modalities if loaded.modality(name).reads_files)}",
            )
        result = map_of_tiles(loaded, index, modality, query, out, options, reporter, picture)
    else:
        if modality is not None:
            raise ConfigError("an index has a modality of its own; leave this out.", place=f"--modality {modality}")
        result = map_of_index(loaded, EmbeddingIndex.open(index), query, out, options, reporter, picture)
    print_json(_as_json(result)) if as_json else _tell(result)


def _one_of(value: str, among: tuple[str, ...], option: str) -> None:
    from geobind_core.config.problems import suggest

    if value not in among:
        raise ConfigError(f"no '{value}'. {suggest(value, among)}", place=option)


def _as_json(result: MapResult) -> dict[str, Any]:
    grid = result.grid
    return {
        "geotiff": str(result.path),
        "png": None if result.picture is None else str(result.picture),
        "crs": grid.crs,
        "bounds": [grid.left, grid.bottom, grid.right, grid.top],
        "width": grid.width,
        "height": grid.height,
        "observations": result.observations,
        "bands": [
            {
                "name": band.name,
                "unit": band.unit,
                "min": summary.least if summary.cells else None,
                "max": summary.greatest if summary.cells else None,
                "cells": summary.cells,
            }
            for band, summary in result.bands
        ],
    }


def _tell(result: MapResult) -> None:
    grid, (x_step, y_step) = result.grid, result.grid.steps
    say(f"{result.path}: {grid.width} x {grid.height} cells of {x_step:.6g} x {y_step:.6g}, {grid.crs}")
    for number, (band, summary) in enumerate(result.bands, start=1):
        found = f"{summary.least:.3f} to {summary.greatest:.3f}" if summary.cells else "no data"
        say(f"  {number}  {band.name}: {found}, {summary.cells / (grid.width * grid.height):.0%} of the cells")
    if result.picture is not None:
        say(f"{result.picture}")
