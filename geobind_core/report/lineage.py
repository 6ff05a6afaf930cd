"""The chain as a picture: a lane for each modality, a column for each stage, an arc for each pair drawn together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geobind_core.report.stages import StageView
from geobind_core.space.lineage import SpaceRecord

LANE, COLUMN = 46, 140
LEFT, TOP, END = 150, 64, 128
"""Room for the names of the modalities, the heads of the stages, and what became of each encoder."""

COLOURS = 6
"""How many colours stages have before they come round again."""

_LETTER = 7.2  # typical width of a letter of the names
_HEAD = 20  # letters of a column's head


@dataclass(frozen=True)
class Lane:
    """A modality.

    Attributes:
        name: Its name.
        y: Where its lane runs.
        start: Where it begins.
        note: What it started from.
        end: What became of it.
        is_binding: Whether it is the binding modality.
    """

    name: str
    y: float
    start: float
    note: str
    end: str
    is_binding: bool


@dataclass(frozen=True)
class Column:
    """A stage: where it is, its colour, its name, and its data."""

    x: float
    colour: int
    number: int
    name: str
    data: str


@dataclass(frozen=True)
class Stop:
    """A modality that takes part in a stage, trained or frozen."""

    x: float
    y: float
    colour: int
    trained: bool
    text: str


@dataclass(frozen=True)
class Arc:
    """Two modalities that a stage drew together, or one that started from the weights of another (`is_copy`)."""

    path: str
    colour: int
    text: str
    is_copy: bool = False


@dataclass(frozen=True)
class Graph:
    """The whole picture, in units of the drawing."""

    width: float
    height: float
    left: float
    lanes: tuple[Lane, ...]
    columns: tuple[Column, ...]
    stops: tuple[Stop, ...]
    arcs: tuple[Arc, ...]


@dataclass(frozen=True)
class Starts:
    """What encoders started from, where it was not from nothing.

    Attributes:
        copies: Modality -> the one whose weights it started from.
        pretrained: Modality -> what its pretrained weights are called.
    """

    copies: Mapping[str, str]
    pretrained: Mapping[str, str]

    @classmethod
    def of(cls, inputs: Iterable[Mapping[str, Any]]) -> Starts:
        """Reads them from `inputs` of each stage's record."""
        copies: dict[str, str] = {}
        pretrained: dict[str, str] = {}
        for stage in inputs:
            for name, settings in (stage.get("modalities") or {}).items():
                if source := settings.get("init_from"):
                    copies.setdefault(name, str(source))
                if weights := settings.get("pretrained"):
                    pretrained.setdefault(name, Path(weights).name if Path(weights).is_absolute() else str(weights))
        return cls(copies, pretrained)


def lineage_graph(record: SpaceRecord, stages: Sequence[StageView], starts: Starts) -> Graph | None:
    """Lays out the chain; None for a space that no stage made.

    Args:
        record: The space's lineage.
        stages: The stages, in order.
        starts: What encoders started from.
    """
    if not stages:
        return None
    names = list(record.modalities)
    left = max(LEFT, 40 + _LETTER * max(len(name) for name in names))
    y = {name: TOP + LANE * (i + 0.5) for i, name in enumerate(names)}
    x = [left + COLUMN * (i + 0.5) for i in range(len(stages))]
    part_of = {name: [i for i, s in enumerate(stages) if name in (*s.trains, *s.anchors)] for name in names}
    lanes, stops, arcs = [], [], []
    for name, entry in record.modalities.items():
        first = part_of[name][0] if part_of[name] else None
        note = f"from {_cut(starts.pretrained[name])}" if name in starts.pretrained else ""
        if first is None or name not in stages[first].trains:
            note = note or "came with weights"
        lanes.append(
            Lane(
                name,
                y[name],
                left if first is None or note else x[first],
                note,
                f"trained in {entry.stage}" if entry.stage else "never trained",
                name == record.binding,
            )
        )
    for i, stage in enumerate(stages):
        for name in (*stage.trains, *stage.anchors):
            if name in y:
                trained = name in stage.trains
                text = f"{name}: {'trained' if trained else 'frozen'} in {stage.name}"
                stops.append(Stop(x[i], y[name], i % COLOURS, trained, text))
        for pair in record.pairs:
            first_name, second_name = pair.modalities
            if pair.stage == stage.name and first_name in y and second_name in y:
                text = f"{first_name} and {second_name}, drawn together in {stage.name}"
                arcs.append(Arc(_arc(x[i], y[first_name], y[second_name]), i % COLOURS, text))
    for name, source in starts.copies.items():
        if name in y and source in y and part_of[name]:
            i = part_of[name][0]
            path = f"M{x[i] - COLUMN * 0.5:.1f} {y[source]:.1f}C{x[i] - COLUMN * 0.3:.1f} {y[source]:.1f} "
            path += f"{x[i] - COLUMN * 0.35:.1f} {y[name]:.1f} {x[i] - 11:.1f} {y[name]:.1f}"
            arcs.append(Arc(path, i % COLOURS, f"{name} started from the weights of {source}", is_copy=True))
    return Graph(
        left + COLUMN * len(stages) + END,
        TOP + LANE * len(names) + 8,
        left,
        tuple(lanes),
        tuple(Column(x[i], i % COLOURS, s.number, _cut(s.name), _cut(s.data)) for i, s in enumerate(stages)),
        tuple(stops),
        tuple(arcs),
    )


def _arc(x: float, first: float, second: float) -> str:
    """Returns a line between two lanes, bent to the right around the lanes in between."""
    top, bottom = sorted((first, second))
    bend = 0.0 if bottom - top <= LANE * 1.01 else 12 + 7 * (bottom - top) / LANE
    return f"M{x:.1f} {top:.1f}Q{x + 2 * bend:.1f} {(top + bottom) / 2:.1f} {x:.1f} {bottom:.1f}"


def _cut(text: str) -> str:
    return text if len(text) <= _HEAD else f"{text[: _HEAD - 1]}…"
