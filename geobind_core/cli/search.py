"""`geobind search`: the rows of an index that are nearest to a query."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geobind_core.cli.common import AsJson, Disabled, load_plugins, print_json, print_table
from geobind_core.errors import ConfigError

if TYPE_CHECKING:
    from geobind_core.index.search import Box


def search(
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="A space, or a run folder.")],
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="What `geobind embed` wrote.")],
    queries: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[QUERY]...", help="A text, a file, or MODALITY=VALUE[*WEIGHT]; several make one query together."
        ),
    ] = None,
    query: Annotated[
        list[str] | None, typer.Option("--query", "-q", metavar="QUERY", help="The same, as `geobind map` takes it.")
    ] = None,
    modality: Annotated[
        str | None, typer.Option("--as", metavar="MODALITY", help="Who reads a query that does not say so itself.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many rows to find.")] = 10,
    bbox: Annotated[
        str | None,
        typer.Option(metavar="W,S,E,N", help="Only here, in degrees; W > E reaches across the antimeridian."),
    ] = None,
    period: Annotated[
        str | None, typer.Option("--time", metavar="START/END", help="Only of this time: 2024-06-01/2024-08-31.")
    ] = None,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Look at some of the rows only; the first time prepares for it.")
    ] = False,
    show: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw what is found, as a PNG.")] = None,
    geojson: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what is found as GeoJSON; - prints it.")
    ] = None,
    disable_plugin: Disabled = None,
    as_json: AsJson = False,
) -> None:
    """Search an index. By text, sound, image, place, or several at once."""
    written = [*(queries or []), *(query or [])]
    if not written:
        raise ConfigError("nothing to search by.", place="QUERY", hint="Give a text, a file, or MODALITY=VALUE.")
    if show is not None and show.suffix.lower() != ".png":
        raise ConfigError(f"found '{show}'; expected the name of a .png file.", place="--show")
    if str(geojson) == "-" and as_json:
        raise ConfigError("both would be printed; leave one out.", place="--geojson -, --json")

    from accelerate import PartialState

    from geobind_core.files import write_json
    from geobind_core.index import show as shown
    from geobind_core.index.approximate import ApproximateIndex
    from geobind_core.index.file import EmbeddingIndex
    from geobind_core.index.period import parse_period
    from geobind_core.index.query import embed_query, parse_query
    from geobind_core.index.search import search as search_exactly
    from geobind_core.progress import Reporter
    from geobind_core.space.space import Space

    box = None if bbox is None else _box(bbox)
    time = None if period is None else parse_period(period)
    reporter = Reporter()
    loaded = Space.load(space, device=PartialState().device, plugins=load_plugins(disable_plugin))
    opened = EmbeddingIndex.open(index)
    opened.require_space(loaded)
    parts = [part for text in written for part in parse_query(text, loaded, modality=modality)]
    vector = embed_query(loaded, parts)
    if approximate:
        found = ApproximateIndex.open(opened, reporter).search(vector, k, bbox=box, time=time)
    else:
        found = search_exactly(opened, vector, k, bbox=box, time=time)

    rows = shown.as_json(opened, found)
    if show is not None:
        missing = shown.write_sheet(show, opened, found, loaded.modality(opened.modality), " + ".join(written))
        if missing:
            reporter.warn(f"{len(missing)} of {len(found)} could not be drawn: {missing[0]}")
        reporter.say(f"contact sheet: {show}")
    if str(geojson) == "-":
        print_json(shown.as_geojson(rows))
        return
    if geojson is not None:
        write_json(geojson, shown.as_geojson(rows))
        reporter.say(f"GeoJSON: {geojson}")
    print_json(rows) if as_json else print_table(shown.as_table(opened, rows))


def _box(text: str) -> Box:
    from geobind_core.maps.extent import parse_extent

    extent = parse_extent(text)
    east = extent.east - 360 if extent.crosses_antimeridian else extent.east
    return extent.west, extent.south, east, extent.north
