"""Exact search: every row is compared, a row group after the other."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from geobind_core.data.geography import Places
from geobind_core.errors import DataError
from geobind_core.index.file import BBOX, KEY, TIME, EmbeddingIndex

Box = tuple[float, float, float, float]
"""West, south, east, north in degrees; west beyond east reaches over the antimeridian."""

Period = tuple[datetime | None, datetime | None]
"""From and to, both included, in UTC; None is open."""

_HINT = "Leave the filter out, or embed data that has them."


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        row: Its number in the index.
        key: Its key in the data.
        score: Cosine similarity with the query; higher is closer.
        longitude: Degrees, WGS 84; None where it is not known.
        latitude: The same.
        time: UTC; None where it is not known.
    """

    row: int
    key: str
    score: float
    longitude: float | None = None
    latitude: float | None = None
    time: datetime | None = None


def scores(index: EmbeddingIndex, queries: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Returns the similarities of queries with every row.

    Args:
        index: `[N, D]`, streamed from the disk.
        queries: `[Q, D]` of unit norm.

    Returns:
        `[Q, N]` float32.
    """
    wanted = query_vectors(index, queries)
    found = np.empty((len(wanted), len(index)), dtype=np.float32)
    for first, embeddings in index.chunks():
        np.matmul(wanted, as_float32(embeddings).T, out=found[:, first : first + len(embeddings)])
    return found


def search(
    index: EmbeddingIndex, query: npt.ArrayLike, k: int, *, bbox: Box | None = None, time: Period | None = None
) -> list[Hit]:
    """Returns the rows nearest to a query, the nearest first, among those that pass the filters.

    Of rows with the same score, that with the smaller number comes first.

    Args:
        index: What to search in.
        query: `[D]` of unit norm.
        k: How many, at most.
        bbox: Only rows in here; rows without coordinates are in no box.
        time: Only rows of this period; rows without a time are of none.

    Raises:
        DataError: A filter asks for what the index does not have, or nothing passes.
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected 1 or more")
    vector = query_vectors(index, np.asarray(query)[None])[0]
    wanted = filtered(index, bbox, time)
    rows = np.empty(0, dtype=np.int64)
    best = np.empty(0, dtype=np.float32)
    for first, embeddings in index.chunks(wanted=wanted):
        found = as_float32(embeddings) @ vector
        numbers = np.arange(first, first + len(found))
        worth = np.ones(len(found), dtype=bool) if wanted is None else wanted[numbers]
        if len(best) == k:  # rows come in order: a later one of the same score stays behind
            worth &= found > best[-1]
        if worth.any():
            rows, best = nearest(np.concatenate([rows, numbers[worth]]), np.concatenate([best, found[worth]]), k)
    return hits(index, rows, best)


def nearest(
    rows: npt.NDArray[np.int64], found: npt.NDArray[np.float32], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Returns the k rows with the highest scores and these, in their order."""
    if len(rows) > 4 * k:  # sorting all would take longer than the products
        least = np.partition(found, len(found) - k)[len(found) - k]
        rows, found = rows[found >= least], found[found >= least]
    order = np.lexsort((rows, -found))[:k]
    return rows[order], found[order]


def hits(index: EmbeddingIndex, rows: npt.NDArray[np.int64], found: npt.NDArray[np.float32]) -> list[Hit]:
    """Returns rows with what the index knows of them."""
    columns = [name for name in (KEY, BBOX, TIME) if name in index.column_names]
    described = index.rows(rows.tolist(), columns)
    return [
        Hit(row, about[KEY], score, *_point(about.get(BBOX)), about.get(TIME))
        for row, score, about in zip(rows.tolist(), found.tolist(), described, strict=True)
    ]


def _point(box: dict[str, float] | None) -> tuple[float | None, float | None]:
    return (None, None) if box is None or box["xmin"] is None else (box["xmin"], box["ymin"])


def filtered(index: EmbeddingIndex, bbox: Box | None, time: Period | None) -> npt.NDArray[np.bool_] | None:
    """Returns `[N]`, true for the rows that pass; None when there is nothing to filter by.

    Raises:
        DataError: The index has no coordinates or no times, or nothing passes.
    """
    wanted: npt.NDArray[np.bool_] | None = None
    if bbox is not None:
        places = index.places()
        if places is None:
            raise DataError("the index has no coordinates to filter by.", place=str(index.path), hint=_HINT)
        wanted = in_box(places, bbox)
    if time is not None:
        times = index.times()
        if times is None:
            raise DataError("the index has no times to filter by.", place=str(index.path), hint=_HINT)
        inside = _in_period(times, time)
        wanted = inside if wanted is None else wanted & inside
    if wanted is not None and not wanted.any():
        raise DataError(f"none of the {len(index):,} rows passes the filters.", place=str(index.path))
    return wanted


def in_box(places: Places, bbox: Box) -> npt.NDArray[np.bool_]:
    """Returns `[N]`, true for places in a box, borders included."""
    west, south, east, north = bbox
    longitude, latitude = places.longitude, places.latitude
    # Places have -180, never 180: a box that ends at 180 has that meridian as well.
    across = (longitude >= west) | (longitude <= east) if west > east else (longitude >= west) & (longitude <= east)
    if east == 180:
        across |= longitude == -180
    inside: npt.NDArray[np.bool_] = across & (latitude >= south) & (latitude <= north)
    return inside


def _in_period(times: Any, period: Period) -> npt.NDArray[np.bool_]:
    import pyarrow as pa
    import pyarrow.compute as pc

    inside = pc.is_valid(times)
    for limit, compare in zip(period, (pc.greater_equal, pc.less_equal), strict=True):
        if limit is not None:
            inside = pc.and_(inside, compare(times, pa.scalar(limit, times.type)).fill_null(False))
    found: npt.NDArray[np.bool_] = inside.to_numpy(zero_copy_only=False)
    return found


def query_vectors(index: EmbeddingIndex, queries: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Returns queries as `[Q, D]` float32.

    Raises:
        ValueError: They are not.
    """
    wanted = np.ascontiguousarray(queries, dtype=np.float32)
    if wanted.ndim != 2 or wanted.shape[1] != index.embed_dim:
        raise ValueError(f"queries of shape {wanted.shape}; expected [Q, {index.embed_dim}]")
    return wanted


def as_float32(embeddings: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Returns embeddings as float32; those that are so already are not copied."""
    return embeddings.astype(np.float32, copy=False)
