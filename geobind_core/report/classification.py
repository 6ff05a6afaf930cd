"""Zero-shot classifications as the page shows them: accuracy, a bar for each class, the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from geobind_core.report.matrix import colour, ink_on

_MOST_CLASSES = 40  # of a confusion matrix that can be read


@dataclass(frozen=True)
class ClassBar:
    """How many rows of a class were recognised.

    Attributes:
        label: The class.
        recall: Their share; None where there are no rows.
        rows: How many rows the class has.
    """

    label: str
    recall: float | None
    rows: int


@dataclass(frozen=True)
class Count:
    """A cell of the confusion matrix: how many rows, and the colours of the cell."""

    rows: int
    background: str
    ink: str


@dataclass(frozen=True)
class ClassificationView:
    """A classification.

    Attributes:
        name: What the chain calls it.
        figures: Its entry in `metrics.json`.
        accuracies: k, accuracy@k, its 95 % interval, and that of a random order.
        bars: The classes.
        confusion: Class -> how many of its rows were taken for each class; empty where there are too many classes.
    """

    name: str
    figures: Mapping[str, Any]
    accuracies: tuple[tuple[str, float, tuple[float, float] | None, float | None], ...]
    bars: tuple[ClassBar, ...]
    confusion: tuple[tuple[str, tuple[Count, ...]], ...]


def classification_views(metrics: Mapping[str, Any]) -> list[ClassificationView]:
    """Returns the classifications of `metrics.json`."""
    return [_view(name, figures) for name, figures in (metrics.get("zero_shot") or {}).items()]


def _view(name: str, figures: Mapping[str, Any]) -> ClassificationView:
    intervals = figures.get("intervals") or {}
    accuracies = []
    for key, value in figures.items():
        if key.startswith("accuracy@"):
            interval = intervals.get(key)
            accuracies.append(
                (
                    key.removeprefix("accuracy@"),
                    float(value),
                    None if interval is None else (float(interval[0]), float(interval[1])),
                    figures.get(f"chance_{key}"),
                )
            )
    classes, confusion = list(figures.get("classes") or ()), figures.get("confusion") or []
    rows = [sum(counts) for counts in confusion]
    recall = figures.get("recall") or {}
    return ClassificationView(
        name,
        figures,
        tuple(accuracies),
        tuple(ClassBar(label, recall.get(label), n) for label, n in zip(classes, rows, strict=True)),
        tuple(
            (label, tuple(_count(count, total) for count in counts))
            for label, counts, total in zip(classes, confusion, rows, strict=True)
        )
        if len(classes) <= _MOST_CLASSES
        else (),
    )


def _count(rows: int, total: int) -> Count:
    background = colour(rows / total if total else 0.0)
    return Count(rows, background, ink_on(background))
