"""Where the rows of a GeoParquet file are."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from geobind_core.errors import DataError

LONGITUDE, LATITUDE = "longitude", "latitude"


def with_coordinates(table: pa.Table, place: str) -> pa.Table:
    """Returns a table in which the geometry of a GeoParquet file is replaced by longitudes and latitudes.

    A geometry that is no point counts as its centroid. Other coordinate systems than WGS 84 are
    converted. A table without a geometry, or with columns of these names, comes back as it is.

    Args:
        table: As it was read; the schema's metadata say whether it is a GeoParquet file.
        place: The file, for messages.

    Raises:
        DataError: The geometry cannot be understood.
    """
    described = (table.schema.metadata or {}).get(b"geo")
    if described is None:
        return table
    try:
        geo = json.loads(described)
        column, about = geo["primary_column"], geo["columns"][geo["primary_column"]]
        points = _points(table[column], about["encoding"])
        longitude, latitude = _to_wgs_84(points, about)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the geometry of the GeoParquet file cannot be understood: {type(error).__name__}: {error}",
            place=place,
            hint="Write it with GeoPandas' to_parquet, or keep longitude and latitude as columns of their own.",
        ) from error
    table = table.drop_columns([column])
    if LONGITUDE in table.column_names or LATITUDE in table.column_names:
        return table
    return table.append_column(LONGITUDE, pa.array(longitude)).append_column(LATITUDE, pa.array(latitude))


def _points(column: pa.ChunkedArray, encoding: str) -> npt.NDArray[np.float64]:
    """Returns `[N, 2]` x and y, NaN for a missing or empty geometry."""
    if encoding.lower() == "point":  # a structure of x and y
        parts = (column.combine_chunks().field(axis) for axis in ("x", "y"))
        return np.stack([part.to_numpy(zero_copy_only=False).astype(np.float64) for part in parts], axis=-1)
    if encoding.upper() != "WKB":
        raise ValueError(f"encoding '{encoding}'; expected WKB or point")
    import shapely

    geometries = shapely.from_wkb(np.array(column.to_pylist(), dtype=object))
    centres = shapely.centroid(geometries)
    centres[shapely.is_empty(centres)] = None  # GEOS refuses to say where an empty point is
    return np.stack([shapely.get_x(centres), shapely.get_y(centres)], axis=-1)


def _to_wgs_84(points: npt.NDArray[np.float64], about: dict[str, Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    if "crs" not in about:  # the specification's default: longitude, latitude
        return points[:, 0], points[:, 1]
    if about["crs"] is None:
        raise ValueError("its coordinate system is not known; set one with GeoPandas' set_crs")
    import pyproj
    from pyproj.exceptions import CRSError

    try:
        system = pyproj.CRS.from_json_dict(about["crs"])
    except CRSError as error:
        raise ValueError(f"its coordinate system: {error}") from error
    if system.equals(pyproj.CRS("OGC:CRS84")) or system.to_epsg() == 4326:
        return points[:, 0], points[:, 1]
    convert = pyproj.Transformer.from_crs(system, "OGC:CRS84", always_xy=True)
    longitude, latitude = convert.transform(points[:, 0], points[:, 1])
    return longitude, latitude
