"""What the bands of a map are: similarities, their difference, or probabilities among the queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from geobind_core.errors import ConfigError
from geobind_core.index.query import QueryPart
from geobind_core.index.search import Period
from geobind_core.maps.extent import Extent
from geobind_core.maps.geotiff import Band
from geobind_core.maps.grid import WGS_84, Resolution
from geobind_core.maps.points import Method, Values

Kind = Literal["cosine", "difference", "probability"]
UNITS: dict[Kind, str] = {
    "cosine": "cosine similarity",
    "difference": "difference of cosine similarities",
    "probability": "probability among the queries",
}


@dataclass(frozen=True)
class MapOptions:
    """What a map is to be.

    Attributes:
        kind: `cosine`: a band per query. `difference`: one band, the first of two queries minus the second.
            `probability`: a band per query, the softmax over the queries.
        temperature: Of the softmax.
        extent: What it shows; None: all that there is.
        resolution: Size of its cells; None: a quarter of the usual distance between places, or of the smallest tile.
        crs: Its coordinate system.
        method: How cells get their values from places; tiles have outlines and need none.
        max_distance_km: How far a place reaches; None: three times the usual distance between places.
        period: Only observations of this time.
    """

    kind: Kind = "cosine"
    temperature: float = 0.01
    extent: Extent | None = None
    resolution: Resolution | None = None
    crs: str = WGS_84
    method: Method = "nearest"
    max_distance_km: float | None = None
    period: Period | None = None

    def require_sense(self, queries: int) -> None:
        """Makes sure that there are as many queries as the kind of map needs.

        Raises:
            ConfigError: There are not, or a number is out of range.
        """
        if self.kind == "difference" and queries != 2:
            raise ConfigError(
                f"found {queries}; a difference needs exactly two queries: the first minus the second.", place="--query"
            )
        if self.kind == "probability" and queries < 2:
            raise ConfigError("a softmax over one query is 1 everywhere; give two or more.", place="--query")
        if not queries:
            raise ConfigError("a map needs a query.", place="--query")
        for name, value in (("--temperature", self.temperature), ("--max-distance", self.max_distance_km)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"found {value:g}; expected a number above 0.", place=name)


def make_bands(
    similarities: Values,
    queries: Sequence[str],
    parts: Sequence[Sequence[QueryPart]],
    options: MapOptions,
    times: tuple[datetime, datetime] | None = None,
) -> tuple[list[Band], Values]:
    """Returns what the bands of a map are, and their values `[B, N]` at `N` places.

    Args:
        similarities: `[Q, N]` cosine similarities.
        queries: What each query is called.
        parts: What each query is made of.
        options: Which kind of map.
        times: First and last moment of the observations. An encoder that is conditioned on time would give a band
            for each moment: bands carry their times, so that nothing else has to change.
    """
    unit = UNITS[options.kind]
    described = [{"query": [_described(part) for part in found]} for found in parts]
    if options.kind == "difference":
        minus = {"query": described[0]["query"], "minus": described[1]["query"]}
        return [Band(f"{queries[0]} minus {queries[1]}", unit, times, minus)], similarities[:1] - similarities[1:]
    bands = [Band(query, unit, times, about) for query, about in zip(queries, described, strict=True)]
    if options.kind == "probability":
        scaled = similarities.astype(np.float64) / options.temperature
        weights = np.exp(scaled - scaled.max(axis=0))
        return bands, (weights / weights.sum(axis=0)).astype(np.float32)
    return bands, similarities


def _described(part: QueryPart) -> dict[str, Any]:
    item = part.item
    if isinstance(item, Path):  # whose folder is nobody's business
        item = item.name
    elif isinstance(item, bytes):
        item = f"{len(item)} bytes"
    elif not isinstance(item, str | int | float | list):
        item = type(item).__name__
    return {"modality": part.modality, "item": item, "weight": part.weight}
