"""Zero-shot maps: how much the places of a data set are like a text, as points on a map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geobind_core.config.evaluate import MapsConfig
from geobind_core.data.geography import Numbers, Places
from geobind_core.data.paired import PairedData, Rows
from geobind_core.evaluation.held_out import Embedder, some_rows
from geobind_core.evaluation.similarity import dot_scores
from geobind_core.maps.extent import extent_of_places
from geobind_core.maps.graticule import ticks
from geobind_core.maps.grid import LONGITUDE_LATITUDE, WGS_84, Grid, Resolution, make_grid
from geobind_core.report.charts import Tick
from geobind_core.report.matrix import colour
from geobind_core.report.previews import Album, Observation

COLOUR_MAP = "viridis"  # as the maps of `geobind map`
WIDTH = 640.0
LEFT, BELOW, ABOVE = 44.0, 20.0, 14.0
"""Room for labels beside the map, in units of the drawing."""

_MOST_PLACES = 10_000
_EQUAL_EARTH = "EPSG:8857"  # all of the Earth without making the poles large
_EARTH = (-17_243_959.06, -8_392_927.6, 17_243_959.06, 8_392_927.6)
_WIDE = 100.0  # degrees: what spans more is shown on a map of the whole Earth
_COLOURS = 24
_ROBUST = (1, 99)  # percentiles: a few outliers do not take all the colours
_BEST = 4
_LINES = 7


@dataclass(frozen=True)
class ScoredPlaces:
    """How much the rows of a data set are like a text.

    Attributes:
        query: The text.
        text: The modality that read it.
        modality: The modality that is compared with it.
        data: The data set.
        rows: `[N]` rows that have coordinates.
        scores: `[N]` cosine similarities.
    """

    query: str
    text: str
    modality: str
    data: PairedData
    rows: Rows
    scores: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Dots:
    """Places of one colour: an SVG path of lines without a length, which round ends make dots."""

    colour: str
    path: str


@dataclass(frozen=True)
class Label:
    """A word beside the map."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Best:
    """One of the places that are the most like the text."""

    score: float
    x: float
    y: float
    seen: Observation


@dataclass(frozen=True)
class MapView:
    """A map, ready to be drawn, in units of the drawing.

    Attributes:
        scored: What it shows.
        width: With the room for labels.
        height: Likewise.
        outline: Path of the edge of the map.
        graticule: Paths of lines of equal longitude and latitude.
        below: Labels of longitudes.
        aside: Labels of latitudes.
        dots: The places, the most alike last.
        size: Diameter of a dot.
        colours: Of the scale.
        bar: Values on the scale: at 0 to 100 of its length.
        best: The places that are the most alike.
    """

    scored: ScoredPlaces
    width: float
    height: float
    outline: str
    graticule: tuple[str, ...]
    below: tuple[Label, ...]
    aside: tuple[Label, ...]
    dots: tuple[Dots, ...]
    size: float
    colours: tuple[str, ...]
    bar: tuple[Tick, ...]
    best: tuple[Best, ...]


def score_places(config: MapsConfig, embedder: Embedder, seed: int) -> list[ScoredPlaces]:
    """Compares held-out places with texts.

    Args:
        config: What with what.
        embedder: Of the data set.
        seed: Decides which places, where there are too many.

    Raises:
        DataError: Too many observations cannot be read.
    """
    data = embedder.data
    rows = embedder.rows([config.modality])
    rows = rows[data.places.known[rows]] if data.places is not None else rows[:0]
    if not len(rows):
        embedder.reporter.warn(
            f"evaluate.maps: no held-out row of data.{data.name} with '{config.modality}' has coordinates; "
            "the report has no maps"
        )
        return []
    readable, embeddings = embedder.embed(config.modality, some_rows(rows, _MOST_PLACES, seed))
    texts = embedder.space.embed(config.text, config.queries).cpu()
    scores = dot_scores(texts, embeddings).numpy()
    return [
        ScoredPlaces(query, config.text, config.modality, data, readable, of_query)
        for query, of_query in zip(config.queries, scores, strict=True)
    ]


def map_view(scored: ScoredPlaces, album: Album) -> MapView:
    """Lays out a map."""
    assert scored.data.places is not None
    places = scored.data.places.take(scored.rows)
    frame = _frame(places)
    x, y = frame.drawn(*frame.projected(places))
    low, high = _limits(scored.scores)
    shades = np.clip((scored.scores - low) / (high - low) * _COLOURS, 0, _COLOURS - 1).astype(int)
    dots = []
    for shade in range(_COLOURS):
        among = np.flatnonzero(shades == shade)
        path = "".join(f"M{x[i]:.1f} {y[i]:.1f}h0" for i in among.tolist() if math.isfinite(x[i]))
        if path:
            dots.append(Dots(colour((shade + 0.5) / _COLOURS, COLOUR_MAP), path))
    best = np.argsort(-scored.scores, kind="stable")[:_BEST].tolist()
    seen = [album.take(album.look_at(scored.data, scored.modality, int(scored.rows[i]))) for i in best]
    values = np.linspace(low, high, 5).tolist()
    across, up = ticks(frame.grid, _LINES)
    below, aside = _labels(frame, across, up)
    return MapView(
        scored,
        WIDTH,
        frame.height + ABOVE + BELOW,
        _outline(frame),
        tuple(path for tick in (*across, *up) if (path := _path(*frame.drawn(*tick.line)))),
        below,
        aside,
        tuple(dots),
        float(np.clip(170 / math.sqrt(len(scored.rows)), 2.2, 9.0)),
        tuple(colour(i / 8, COLOUR_MAP) for i in range(9)),
        tuple(Tick(25.0 * i, f"{round(value, 2) + 0.0:.2f}") for i, value in enumerate(values)),
        tuple(
            Best(float(scored.scores[i]), float(x[i]), float(y[i]), observation)
            for i, observation in zip(best, seen, strict=True)
        ),
    )


@dataclass(frozen=True)
class _Frame:
    """The part of the Earth that is drawn, and where it is in the drawing."""

    grid: Grid
    aspect: float  # of a unit across to a unit up

    @property
    def scale(self) -> float:
        return (WIDTH - LEFT - 8) / (self.grid.right - self.grid.left)

    @property
    def height(self) -> float:
        return (self.grid.top - self.grid.bottom) * self.scale * self.aspect

    def projected(self, places: Places) -> tuple[Numbers, Numbers]:
        """Returns places in the coordinate system of the map."""
        if self.grid.is_geographic:  # whose longitudes go on beyond 180 where the antimeridian is inside
            return np.where(
                places.longitude < self.grid.left, places.longitude + 360, places.longitude
            ), places.latitude
        import pyproj

        transformer = pyproj.Transformer.from_crs(LONGITUDE_LATITUDE, self.grid.crs, always_xy=True)
        x, y = transformer.transform(places.longitude, places.latitude)
        return np.asarray(x), np.asarray(y)

    def drawn(self, x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
        """Returns where points of the map are in the drawing."""
        across = LEFT + (np.asarray(x) - self.grid.left) * self.scale
        return across, ABOVE + (self.grid.top - np.asarray(y)) * self.scale * self.aspect


def _frame(places: Places) -> _Frame:
    extent = extent_of_places(places)
    if extent.east - extent.west > _WIDE or extent.north - extent.south > _WIDE / 1.5:
        return _Frame(Grid(_EQUAL_EARTH, *_EARTH, 64, 32), 1.0)
    span = max(extent.east - extent.west, extent.north - extent.south, 0.01)
    extent = extent.grown(span * 111 * 0.05)
    middle = math.cos(math.radians((extent.south + extent.north) / 2))
    return _Frame(make_grid(extent, WGS_84, Resolution(span / 64)), 1 / max(middle, 0.2))


def _outline(frame: _Frame) -> str:
    if frame.grid.is_geographic:
        left, right = frame.grid.left, frame.grid.right
        corners = np.array([left, right, right, left, left]), np.array([0, 0, 1, 1, 0])
        height = frame.grid.top - frame.grid.bottom
        return _path(*frame.drawn(corners[0], frame.grid.bottom + corners[1] * height))
    x, y = _western_edge(frame)
    return f"{_path(*frame.drawn(np.concatenate([x, -x[::-1]]), np.concatenate([y, y[::-1]])))}Z"


def _western_edge(frame: _Frame) -> tuple[Numbers, Numbers]:
    """Returns the edge of the map of the whole Earth, from the south to the north; the eastern one mirrors it."""
    up = np.linspace(-90, 90, 91)
    return frame.projected(Places(np.full(91, -np.nextafter(180.0, 0)), up))


def _labels(frame: _Frame, across: Sequence[Any], up: Sequence[Any]) -> tuple[tuple[Label, ...], tuple[Label, ...]]:
    """Returns the labels at the lower and the left edge; on the whole Earth, those of latitudes follow its edge."""
    bottom = ABOVE + frame.height
    if frame.grid.is_geographic:
        below = [(tick.edge, tick.label) for tick in across if tick.edge is not None]
        aside = [(frame.grid.left, tick.edge, tick.label) for tick in up if tick.edge is not None]
    else:
        below = [(tick.line[0][0], tick.label) for tick in across if math.isfinite(tick.line[0][0])]
        level = [(float(np.nanmean(tick.line[1])), tick.label) for tick in up if np.isfinite(tick.line[1]).any()]
        edge_x, edge_y = _western_edge(frame)
        aside = [
            (float(np.interp(y, edge_y, edge_x)), y, label) for y, label in level if abs(y) < 0.93 * frame.grid.top
        ]
    lower = [Label(float(frame.drawn(np.array(x), np.array(0.0))[0]), bottom + 14, text) for x, text in below]
    left = []
    for x, y, text in aside:
        at_x, at_y = frame.drawn(np.array(x), np.array(y))
        left.append(Label(float(at_x) - 8, float(at_y) + 4, text))
    return tuple(lower), tuple(left)


def _path(x: Numbers, y: Numbers) -> str:
    """Returns an SVG path through points; NaN leaves a gap."""
    parts, pen = [], "M"
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(a) and math.isfinite(b):
            parts.append(f"{pen}{a:.1f} {b:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)


def _limits(scores: npt.NDArray[np.float32]) -> tuple[float, float]:
    low, high = map(float, np.percentile(scores, _ROBUST))
    return (low, high) if high > low else (low - 0.5, high + 0.5)
