"""From queries and what they are compared with to a map: which bands, over what, how fine."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geobind_core.config.problems import suggest
from geobind_core.data.geography import Places
from geobind_core.errors import ConfigError, DataError
from geobind_core.index.file import EmbeddingIndex
from geobind_core.index.query import QueryPart, embed_query, parse_query
from geobind_core.index.search import filtered, scores
from geobind_core.maps.bands import MapOptions, make_bands
from geobind_core.maps.extent import KM_PER_DEGREE, Extent, extent_of_places
from geobind_core.maps.geotiff import Band, BandSummary, Surface, write_geotiff
from geobind_core.maps.grid import WGS_84, Grid, Resolution, make_grid
from geobind_core.maps.output import require_room
from geobind_core.maps.picture import draw_map
from geobind_core.maps.points import Points, Values
from geobind_core.maps.tiles import Mosaic, Tile, embed_tiles, open_tiles
from geobind_core.progress import Reporter
from geobind_core.space.space import Space

_CELLS_BY_DEFAULT = 4_000_000  # at most; whoever wants more gives a resolution
_CELLS_PER_SPACING = 4
_WARNED = 5


@dataclass(frozen=True)
class MapResult:
    """What was written.

    Attributes:
        path: The GeoTIFF.
        picture: The PNG; None if none was asked for.
        grid: Its cells.
        bands: What its bands are, with what is in them.
        observations: Of how many places or tiles it was made.
    """

    path: Path
    picture: Path | None
    grid: Grid
    bands: list[tuple[Band, BandSummary]]
    observations: int


@dataclass(frozen=True)
class _Scored:
    """What queries were compared with.

    Attributes:
        similarities: `[Q, N]` cosine similarities.
        places: Where the `N` are; None for tiles.
        tiles: The tiles; None for places.
        modality: Their modality.
        times: First and last moment; None if they have no times.
        source: What they are of, for the metadata.
    """

    similarities: Values
    modality: str
    source: str
    places: Places | None = None
    tiles: tuple[Tile, ...] = ()
    times: tuple[datetime, datetime] | None = None


def map_of_index(
    space: Space,
    index: EmbeddingIndex,
    queries: Sequence[str],
    path: Path,
    options: MapOptions,
    reporter: Reporter,
    picture: Path | None = None,
) -> MapResult:
    """Draws a map of what `geobind embed` wrote.

    Args:
        space: The space that the index was made with.
        index: Embeddings with coordinates.
        queries: As people write them, see `parse_query`.
        path: The GeoTIFF to write; a map that is there already is replaced.
        options: What it is to be.
        reporter: Told what is under way.
        picture: The PNG to write beside it.

    Raises:
        GeoBindError: The input is at fault; nothing is written.
    """
    require_room(path, picture)
    options.require_sense(len(queries))
    index.require_space(space)
    places = index.places()
    if places is None or not places.known.any():
        raise DataError(
            "the index has no coordinates; there is nothing to draw a map of.",
            place=str(index.path),
            hint="Embed data with a longitude and a latitude, or a GeoParquet file with a geometry.",
        )
    wanted = places.known
    if not wanted.all():
        reporter.warn(f"{index.path}: {(~wanted).sum():,} of {len(index):,} rows have no coordinates and are left out")
    if options.period is not None:
        passed = filtered(index, None, options.period)
        wanted = wanted & passed if passed is not None else wanted
    if not wanted.any():
        raise DataError("no row of this time has coordinates.", place=str(index.path), hint="Look at --time.")
    parts, vectors = _embedded(space, queries)
    scored = _Scored(
        scores(index, vectors)[:, wanted],
        index.modality,
        index.record.data,
        places=places.take(wanted),
        times=_range_of(index, wanted),
    )
    return _draw(space, scored, queries, parts, path, picture, options, reporter)


def map_of_tiles(
    space: Space,
    folder: Path,
    modality: str,
    queries: Sequence[str],
    path: Path,
    options: MapOptions,
    reporter: Reporter,
    picture: Path | None = None,
) -> MapResult:
    """Draws a map of a folder of georeferenced tiles: each is embedded, and its value burnt into its outline.

    Args:
        space: The space.
        folder: Has the tiles, in any coordinate systems.
        modality: The modality that reads them.
        queries: As people write them, see `parse_query`.
        path: The GeoTIFF to write; a map that is there already is replaced.
        options: What it is to be.
        reporter: Told what is under way.
        picture: The PNG to write beside it.

    Raises:
        GeoBindError: The input is at fault; nothing is written.
    """
    require_room(path, picture)
    options.require_sense(len(queries))
    if options.period is not None:
        raise ConfigError("tiles have no times to choose by.", place="--time", hint="Embed a table that has them.")
    for option, is_given in (
        ("--method", options.method != MapOptions.method),
        ("--max-distance", options.max_distance_km is not None),
    ):
        if is_given:
            raise ConfigError("tiles are drawn where they lie; leave this out.", place=option)
    space.record_of(modality)
    if not space.modality(modality).reads_files:
        names = [name for name in space.modalities if space.modality(name).reads_files]
        raise ConfigError(f"'{modality}' does not read files. {suggest(modality, names)}", place="--modality")
    parts, vectors = _embedded(space, queries)
    complain = _few_warnings(reporter)
    tiles = open_tiles(folder, complain)
    outlines = Mosaic(tiles, np.empty((0, len(tiles)), dtype=np.float32))
    _grid(options, outlines.extent(), outlines.usual_cell_km())  # what cannot be drawn is said before the work is done
    with reporter.task("embedding", len(tiles), "tiles") as task:
        kept, embeddings = embed_tiles(space, modality, tiles, warn=complain, advance=task.advance)
    scored = _Scored(vectors @ embeddings.T, modality, folder.resolve().name, tiles=tuple(kept))
    return _draw(space, scored, queries, parts, path, picture, options, reporter)


def _embedded(space: Space, queries: Sequence[str]) -> tuple[list[list[QueryPart]], npt.NDArray[np.float32]]:
    parts = [parse_query(query, space) for query in queries]
    return parts, np.stack([embed_query(space, found) for found in parts])


def _draw(
    space: Space,
    scored: _Scored,
    queries: Sequence[str],
    parts: Sequence[Sequence[QueryPart]],
    path: Path,
    picture: Path | None,
    options: MapOptions,
    reporter: Reporter,
) -> MapResult:
    bands, values = make_bands(scored.similarities, queries, parts, options, scored.times)
    surface: Surface
    how: dict[str, Any]
    if scored.places is None:
        mosaic = Mosaic(scored.tiles, values)
        surface, count = mosaic, len(scored.tiles)
        grid = _grid(options, mosaic.extent(), mosaic.usual_cell_km())
        how = {"method": "tiles", "tiles": count}
    else:
        points = Points(scored.places, values, options.method, options.max_distance_km)
        surface, count = points, len(scored.places)
        margin = min(points.max_distance_km, 3 * points.spacing_km)
        grid = _grid(
            options,
            extent_of_places(scored.places).grown(margin),
            points.spacing_km / _CELLS_PER_SPACING,
        )
        how = {
            "method": options.method,
            "max_distance_km": float(f"{points.max_distance_km:.6g}"),
            "observations": count,
        }
    details = {**_lineage(space, scored.modality, parts), "source": scored.source, "kind": options.kind, **how}
    if options.kind == "probability":
        details["temperature"] = options.temperature
    with reporter.task("drawing", grid.height, "rows") as task:
        summaries = write_geotiff(path, grid, bands, surface, details, task.advance)
    if isinstance(surface, Mosaic) and options.extent is None and len(surface.drawn) < count:
        reporter.warn(
            f"{count - len(surface.drawn)} of {count} tiles are smaller than a cell, and lie between the centres "
            "of cells; a finer --resolution shows them"
        )
    if picture is not None:
        draw_map(path, picture, signed=options.kind == "difference")
    return MapResult(path, picture, grid, list(zip(bands, summaries, strict=True)), count)


def _grid(options: MapOptions, everything: Extent, cell_km: float) -> Grid:
    """Returns the cells of a map, with what the user has not said taken from the data."""
    extent = options.extent or everything
    resolution = options.resolution
    if resolution is None:
        # Not finer than what gives a map that opens at once.
        area = (extent.east - extent.west) * (extent.north - extent.south)
        degrees = max(cell_km / KM_PER_DEGREE, math.sqrt(area / _CELLS_BY_DEFAULT))
        in_degrees = options.crs == WGS_84
        size = degrees if in_degrees else degrees * KM_PER_DEGREE * 1000
        power = 10.0 ** math.floor(math.log10(size))
        size = max(step * power for step in (1, 2, 5) if step * power <= size * (1 + 1e-9))
        resolution = Resolution(size, metric=not in_degrees)
    if options.extent is None and not resolution.metric and options.crs == WGS_84:
        extent = extent.snapped(resolution.size)
    return make_grid(extent, options.crs, resolution)


def _lineage(space: Space, modality: str, parts: Sequence[Sequence[QueryPart]]) -> dict[str, Any]:
    """Returns which encoders a map was made with: the space's hash, and those that took part with their lineage."""
    record = space.record.model_dump(mode="json")
    taking_part = {modality, *(part.modality for found in parts for part in found)}
    return {
        "space": hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest(),
        "modality": modality,
        "lineage": {
            name: {key: record["modalities"][name][key] for key in ("plugin", "content_hash", "stage", "aligned_to")}
            for name in sorted(taking_part)
        },
    }


def _range_of(index: EmbeddingIndex, wanted: npt.NDArray[np.bool_]) -> tuple[datetime, datetime] | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    times = index.times()
    if times is None:
        return None
    found = pc.min_max(times.filter(pa.array(wanted)))
    first, last = found["min"].as_py(), found["max"].as_py()
    return None if first is None else (first, last)


def _few_warnings(reporter: Reporter) -> Any:
    said = 0

    def warn(text: str) -> None:
        nonlocal said
        said += 1
        if said <= _WARNED:
            reporter.warn(text)
        elif said == _WARNED + 1:
            reporter.warn("and more")

    return warn
