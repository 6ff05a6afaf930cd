"""The matrix of pairs as heat maps, one for each figure, and as a table of all figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from geobind_core.config.evaluate import headline_recall

COLOUR_MAP = "YlGnBu"  # one lightness after the other, so that it also works in black and white
_TO = "\N{EN DASH}"
_STOPS = 9  # colours of a legend
_INKS = ("#ffffff", "#10202c")
_OWN = ("recall@", "chance_", "median_rank", "mean_reciprocal_rank")

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """One or several modalities that ask, one that is searched, and the figures of it."""

    name: str
    query: str
    gallery: str
    figures: Figures

    @property
    def is_composed(self) -> bool:
        return bool(self.figures.get("composed"))

    @property
    def is_emergent(self) -> bool:
        return bool(self.figures.get("emergent"))


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map.

    Attributes:
        pair: What it is of.
        value: The figure, written.
        interval: Its 95 % interval, written; empty without one.
        chance: What a random order would have, written.
        background: A colour, such as `#225ea8`.
        ink: The colour of letters on it.
        tooltip: All of it in words.
    """

    pair: Pair
    value: str
    interval: str
    chance: str
    background: str
    ink: str
    tooltip: str


@dataclass(frozen=True)
class Mark:
    """A place on the scale of colours, from 0 to 100."""

    at: float
    label: str


@dataclass(frozen=True)
class HeatMap:
    """The matrix in one figure.

    Attributes:
        figure: Its name, as in `metrics.json`.
        title: Its name for people.
        note: What it is.
        galleries: Names of the columns.
        rows: Name of a row -> its cells, None where there is nothing.
        composed: The same of queries of several modalities.
        colours: Of the scale, from worst to best.
        marks: Values on the scale.
        chance: Where a random order is on the scale: from, to, and the value written.
    """

    figure: str
    title: str
    note: str
    galleries: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    composed: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    colours: tuple[str, ...]
    marks: tuple[Mark, ...]
    chance: tuple[float, float, str] | None


def pairs_of(metrics: Figures, modalities: Sequence[str]) -> list[Pair]:
    """Returns the pairs of `metrics.json`, told apart by the names of the modalities."""
    found = []
    for name, figures in metrics["pairs"].items():
        for gallery in modalities:
            query = name.removesuffix(f"_to_{gallery}")
            if query != name and (query in modalities or figures.get("composed")):
                found.append(Pair(name, query, gallery, figures))
                break
    return found


def shown_recall(pairs: Sequence[Pair]) -> str:
    """Returns the recall that stands for all, whether or not it was measured."""
    return headline_recall(name for pair in pairs[:1] for name in pair.figures)


def heat_maps(pairs: Sequence[Pair], modalities: Sequence[str]) -> list[HeatMap]:
    """Returns a heat map for each figure that the pairs have, that of `shown_recall` first."""
    own = list(dict.fromkeys(name for pair in pairs for name in pair.figures if name.startswith(_OWN)))
    figures = [name for name in own if not name.startswith("chance_")]
    shown = shown_recall(pairs)
    figures.sort(key=lambda name: name != shown)
    return [_heat_map(name, pairs, modalities) for name in figures]


def further_figures(pairs: Iterable[Figures]) -> list[str]:
    """Returns the names of what metrics added to the figures of some pairs."""
    return list(
        dict.fromkeys(
            name
            for figures in pairs
            for name, value in figures.items()
            if isinstance(value, float) and not name.startswith(_OWN)
        )
    )


def title_of(figure: str) -> str:
    """Returns what people call a figure."""
    return figure.replace("_", " ")


def written(figure: str, value: float) -> str:
    """Returns a figure as it is shown."""
    if figure.startswith(("recall@", "mean_reciprocal_rank", "chance_recall@", "chance_mean")):
        return f"{value:.3f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def between_text(figure: str, interval: Sequence[float]) -> str:
    """Returns an interval as it is shown."""
    return f"{written(figure, interval[0])}{_TO}{written(figure, interval[1])}"


def colour(share: float, name: str = COLOUR_MAP) -> str:
    """Returns the colour of a value between 0 and 1."""
    import matplotlib

    red, green, blue, _ = matplotlib.colormaps[name](min(1.0, max(0.0, share)), bytes=True)
    return f"#{red:02x}{green:02x}{blue:02x}"


def ink_on(background: str) -> str:
    """Returns a dark or a light colour, whichever has more contrast as WCAG 2 defines it."""
    behind = _luminance(background)
    contrasts = {ink: abs(math.log((_luminance(ink) + 0.05) / (behind + 0.05))) for ink in _INKS}
    return max(contrasts, key=contrasts.__getitem__)


def _luminance(shade: str) -> float:
    parts = [int(shade[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _heat_map(figure: str, pairs: Sequence[Pair], modalities: Sequence[str]) -> HeatMap:
    of_figure = {(pair.query, pair.gallery): pair for pair in pairs if figure in pair.figures}
    galleries = [name for name in modalities if any(pair.gallery == name for pair in of_figure.values())]
    single = [name for name in modalities if any(pair.query == name for pair in of_figure.values())]
    composed = list(dict.fromkeys(pair.query for pair in of_figure.values() if pair.is_composed))
    largest = max((int(pair.figures.get("gallery", 2)) for pair in of_figure.values()), default=2)

    def row(query: str) -> tuple[str, tuple[Cell | None, ...]]:
        found = [of_figure.get((query, gallery)) for gallery in galleries]
        return query, tuple(None if pair is None else _cell(figure, pair, largest) for pair in found)

    return HeatMap(
        figure,
        title_of(figure),
        _note(figure),
        tuple(galleries),
        tuple(map(row, single)),
        tuple(map(row, composed)),
        tuple(colour(i / (_STOPS - 1)) for i in range(_STOPS)),
        _marks(figure, largest),
        _chance(figure, of_figure.values(), largest),
    )


def _note(figure: str) -> str:
    if figure == "recall@1":
        return "The share of queries whose right answer came first."
    if figure.startswith("recall@"):
        k = figure.removeprefix("recall@")
        within = f"{k} of the gallery" if k.endswith("%") else k
        return f"The share of queries whose right answer came among the first {within}."
    if figure == "median_rank":
        return "Half of the right answers came at this rank or before; 1 is best. Colours go by its logarithm."
    return "The mean of 1 / rank of the right answer; 1 is best."


def _share(figure: str, value: float, gallery: int) -> float:
    """Returns how good a value is, between 0 and 1."""
    if figure == "median_rank":
        return 1 - math.log(max(value, 1.0)) / math.log(max((gallery + 1) / 2, 1.5))
    return value


def _cell(figure: str, pair: Pair, largest: int) -> Cell:
    value = float(pair.figures[figure])
    interval = (pair.figures.get("intervals") or {}).get(figure)
    chance = pair.figures.get(f"chance_{figure}")
    between = "" if interval is None else between_text(figure, interval)
    random = "" if chance is None else written(figure, chance)
    background = colour(_share(figure, value, largest))
    lines = [
        f"{pair.query} to {pair.gallery}: {title_of(figure)} {written(figure, value)}",
        f"95 % interval {between}" if between else "",
        f"chance {random}" if random else "",
        "emergent: never trained together" if pair.is_emergent else f"trained in {pair.figures.get('trained_in')}",
        f"{pair.figures['gallery']:,} items to search" if "gallery" in pair.figures else "",
    ]
    return Cell(
        pair, written(figure, value), between, random, background, ink_on(background), "\n".join(filter(None, lines))
    )


def _marks(figure: str, gallery: int) -> tuple[Mark, ...]:
    if figure != "median_rank":
        return tuple(Mark(100 * value, f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1))
    worst = (gallery + 1) / 2
    ranks = [10**power for power in range(6) if 10**power < worst / 1.8]
    return (Mark(0, f"{worst:,.4g}"), *(Mark(100 * _share(figure, r, gallery), f"{r:,}") for r in reversed(ranks)))


def _chance(figure: str, pairs: Iterable[Pair], gallery: int) -> tuple[float, float, str] | None:
    found = [float(p.figures[f"chance_{figure}"]) for p in pairs if p.figures.get(f"chance_{figure}") is not None]
    if not found:
        return None
    low, high = min(found), max(found)
    texts = [written(figure, low), written(figure, high)]
    first, last = sorted(100 * min(1.0, max(0.0, _share(figure, value, gallery))) for value in (low, high))
    return first, last, texts[0] if texts[0] == texts[1] else f"{texts[0]} to {texts[1]}"
