"""From the columns of a table to places."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from geobind_core.data.geography import Places
from geobind_core.errors import DataError
from geobind_core.plugins.source import Observations, SourceConfig

_LOOKED_AT = 1000  # rows, for one that shows what is wrong


def places_of(observations: Observations, config: SourceConfig | None, place: str) -> tuple[Places | None, list[str]]:
    """Returns where the rows of a data set are, and what a person should know of it, a sentence each.

    Coordinates that are no numbers are none.

    Args:
        observations: What the source yielded.
        config: The data set's settings.
        place: What messages call it.

    Raises:
        DataError: The settings name columns in which no row has coordinates.
    """
    columns = [column for column in (observations.longitude, observations.latitude) if column is not None]
    if len(columns) < 2:
        return None, []
    places = Places.of(*(_numbers(observations.table[column]) for column in columns))
    if places.known.any():
        return places, []
    first = (_first(observations.table[column]) for column in columns)
    found = " and ".join(f"'{value}' in '{column}'" for value, column in zip(first, columns, strict=True))
    error = DataError(
        f"no row has usable coordinates; the first are {found}.",
        place=f"{place}.longitude",
        hint='Expected degrees, WGS 84, such as 8.54 and 47.37; with decimal commas, `decimal: ","` says so.',
    )
    if all(getattr(config, name, None) is not None for name in ("longitude", "latitude")):
        raise error
    return places, [error.message]  # columns that are only called like coordinates may hold anything


def _first(column: pa.ChunkedArray) -> str:
    return next((str(value) for value in column.slice(0, _LOOKED_AT).to_pylist() if value is not None), "")


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    try:
        cast = column.cast(pa.float64())
    except pa.ArrowInvalid:  # a text file in which one cell is no number is a column of texts
        return np.array([_number(value) for value in column.to_pylist()])
    numbers: npt.NDArray[np.float64] = cast.to_numpy()
    return numbers


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
