"""What stands beside the embeddings in an index: key, time, point, bounding box, cells that can be shown."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geobind_core.config.problems import suggest
from geobind_core.data.geography import Places
from geobind_core.data.paired import Rows
from geobind_core.data_tools.opened import OpenedData
from geobind_core.errors import ConfigError, DataError
from geobind_core.index.file import BBOX, GEOMETRY, KEY, TIME
from geobind_core.index.parquet import EMBEDDING
from geobind_core.index.record import IndexedCells

_TIMES = ("time", "timestamp", "datetime", "date")
_RESERVED = (KEY, TIME, EMBEDDING, GEOMETRY, BBOX)
_TIMESTAMP = pa.timestamp("us", "UTC")
_AXES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Columns:
    """Everything that an index holds of the rows of a data set but their embeddings.

    Attributes:
        keys: `[N]` strings, for all rows of the data set.
        places: Where they are; None when no row has coordinates.
        times: `[N]` timestamps; None without.
        further: Column -> its values.
        cells: Modality -> which of these columns hold it.
        root: Where paths in them start, for the footer.
        notes: What a person should know, a line each.
    """

    keys: pa.Array
    places: Places | None
    times: pa.Array | None
    further: Mapping[str, pa.ChunkedArray]
    cells: Mapping[str, IndexedCells]
    root: str
    notes: list[str] = field(default_factory=list)

    def table(self, rows: Rows) -> pa.Table:
        """Returns the columns of some rows."""
        found: dict[str, Any] = {KEY: self.keys.take(pa.array(rows))}
        if self.times is not None:
            found[TIME] = self.times.take(pa.array(rows))
        found |= {name: column.take(pa.array(rows)).combine_chunks() for name, column in self.further.items()}
        if self.places is not None:
            found |= _geometry(self.places.take(rows))
        return pa.table(found)

    def geo(self, rows: Rows) -> bytes | None:
        """Returns what GeoParquet 1.1 wants to know of the geometry of some rows; None without any."""
        if self.places is None:
            return None
        import pyproj

        places = self.places.take(rows)
        known = places.take(places.known)
        described: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": ["Point"],
            "crs": pyproj.CRS("OGC:CRS84").to_json_dict(),
            "covering": {"bbox": {axis: [BBOX, axis] for axis in _AXES}},
        }
        if len(known):
            described["bbox"] = [
                float(limit(axis)) for limit in (np.min, np.max) for axis in (known.longitude, known.latitude)
            ]
        return json.dumps(
            {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: described}}, ensure_ascii=False
        ).encode()


def _geometry(places: Places) -> dict[str, pa.Array]:
    import shapely

    known = places.known
    points = np.full(len(places), None, dtype=object)
    points[known] = shapely.points(places.longitude[known], places.latitude[known])
    x, y = (pa.array(axis, mask=~known) for axis in (places.longitude, places.latitude))
    return {
        GEOMETRY: pa.array(shapely.to_wkb(points, byte_order=1).tolist(), pa.binary()),
        BBOX: pa.StructArray.from_arrays([x, y, x, y], _AXES, mask=pa.array(~known)),
    }


def columns_of(
    opened: OpenedData, modalities: Sequence[str], keep: Sequence[str], time: str | None, folder: Path
) -> Columns:
    """Collects the columns of a data set that belong into an index.

    Args:
        opened: The data set.
        modalities: Those whose cells are kept, if they are paths, texts or numbers.
        keep: Further columns.
        time: The column of times; None takes one that is called like it.
        folder: Where the index will be; relative paths are written from here.

    Raises:
        ConfigError: A column is not there, or is called like one of the index's own.
        DataError: The column of times has none.
    """
    table, data, notes = opened.observations.table, opened.data, []
    for name in [*keep, *([time] if time else [])]:
        if name not in table.column_names:
            raise ConfigError(
                f"no column '{name}'. {suggest(name, table.column_names)}",
                place="--time" if name == time else f"--keep {name}",
            )
    further: dict[str, pa.ChunkedArray] = {}
    for name in keep:
        if name in _RESERVED:
            raise ConfigError(
                "the index has a column of its own of this name.", place=f"--keep {name}", hint="Rename it in the data."
            )
        further[name] = table[name]
    cells = {}
    for modality in modalities:
        wanted = data.fields.get(modality, ())
        if wanted and all(_can_be_shown(name, opened) for name in wanted):
            further |= {name: table[name] for name in wanted}
            cells[modality] = IndexedCells(columns=wanted, is_file=opened.modalities[modality].reads_files)
    places = data.places if data.places is not None and data.places.known.any() else None
    if places is None:
        notes.append("the data has no coordinates: the index is a plain Parquet file, and cannot be searched by place")
    elif not places.known.all():
        notes.append(f"{int((~places.known).sum()):,} rows of the data have no usable coordinates")
    chosen = time or next((name for name in _TIMES if name in table.column_names), None)
    times = None if chosen is None else _times(table[chosen])
    if chosen is not None and (times is None or times.null_count == len(times)):
        if time is not None:
            raise DataError(
                f"'{time}' has no times{_such_as(table[chosen], times)}.",
                place="--time",
                hint="Expected timestamps, dates, or texts in ISO 8601.",
            )
        notes.append(f"column '{chosen}' has no times that are understood; it is left out")
        times = None
    elif chosen is not None and times is not None and times.null_count > table[chosen].null_count:
        lost = times.null_count - table[chosen].null_count
        notes.append(
            f"{lost:,} rows of '{chosen}' have no time that is understood{_such_as(table[chosen], times)}; "
            "expected texts in ISO 8601"
        )
    return Columns(data.keys, places, times, further, cells, _relative(data.root, folder), notes)


def _such_as(column: pa.ChunkedArray, times: pa.Array | None) -> str:
    """Returns the first value that is not understood, for a message."""
    lost = column if times is None else column.combine_chunks().filter(pc.is_null(times))
    found = next((str(value) for value in lost.to_pylist() if value is not None), None)
    return "" if found is None else f", such as '{found}'"


def _can_be_shown(name: str, opened: OpenedData) -> bool:
    observations = opened.observations
    if name in observations.references or name in _RESERVED:
        return False
    kind = observations.table.schema.field(name).type
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(texts or pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _relative(root: Path | str, folder: Path) -> str:
    """Returns a root as an index has it, so that an index and its files can be moved together."""
    if isinstance(root, str):
        return root
    try:
        return Path(os.path.relpath(root.absolute(), folder.absolute())).as_posix()
    except ValueError:  # another drive of Windows
        return str(root.absolute())


def _times(column: pa.ChunkedArray) -> pa.Array | None:
    """Returns timestamps in UTC; null where there is none, None if it is no column of times."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.array([parse_time(text) for text in column.to_pylist()], _TIMESTAMP)
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("us"))
    elif not pa.types.is_timestamp(kind):
        return None
    if column.type.tz is None:
        column = pc.assume_timezone(column, "UTC")
    return column.cast(_TIMESTAMP, safe=False).combine_chunks()


def parse_time(text: str | None) -> datetime | None:
    """Returns a time written in ISO 8601, taken as UTC where it does not say; None if it is none."""
    try:
        found = datetime.fromisoformat((text or "").strip())
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
