"""`report.html`: one self-contained page about a run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from geobind_core.evaluation.matrix import Evaluation
from geobind_core.files import read_json, write_text
from geobind_core.plugins.modality import Modality
from geobind_core.progress import duration
from geobind_core.report import charts
from geobind_core.report.classification import classification_views
from geobind_core.report.lineage import COLOURS, Starts, lineage_graph
from geobind_core.report.matrix import Pair, between_text, further_figures, heat_maps, pairs_of, shown_recall, written
from geobind_core.report.previews import Album
from geobind_core.report.retrievals import retrieval_examples
from geobind_core.report.score_maps import ScoredPlaces, map_view
from geobind_core.report.stages import StageView, stage_view
from geobind_core.report.surroundings import DataView, versions
from geobind_core.space.lineage import SpaceRecord

BUDGET = 5 * 2**20
"""Bytes that pictures, recordings and texts of observations may take; the rest of a page is a few hundred KiB."""

PLOT = SimpleNamespace(
    width=charts.WIDTH,
    height=charts.HEIGHT,
    left=charts.LEFT,
    right=charts.WIDTH - charts.RIGHT,
    top=charts.TOP,
    bottom=charts.HEIGHT - charts.BOTTOM,
)


@dataclass(frozen=True)
class Subject:
    """What a page is about. What is missing is left out of the page.

    Attributes:
        folder: The run folder.
        stages: The stages' folders by name, in the order of the chain.
        record: The space's lineage.
        metrics: The content of `metrics.json`.
        evaluations: What was measured on each data set: has the examples.
        modalities: How observations are shown, by name.
        maps: Scores at places.
        data: The data sets.
    """

    folder: Path
    stages: Mapping[str, Path]
    record: SpaceRecord
    metrics: Mapping[str, Any]
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    modalities: Mapping[str, Modality[Any]] = field(default_factory=dict)
    maps: Sequence[ScoredPlaces] = ()
    data: Sequence[DataView] = ()


def write_report(path: Path, subject: Subject) -> None:
    """Writes the page.

    Args:
        path: The file; it appears whole.
        subject: What it is about.
    """
    environment = Environment(
        loader=PackageLoader("geobind_core.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    write_text(path, environment.get_template("report.html.jinja").render(_context(subject, environment)))


def _context(subject: Subject, environment: Environment) -> dict[str, Any]:
    record, metrics, names = subject.record, subject.metrics, list(subject.record.modalities)
    pairs = pairs_of(metrics, names)
    stages = [stage_view(i, name, folder) for i, (name, folder) in enumerate(subject.stages.items(), start=1)]
    album = Album(subject.modalities, BUDGET)
    maps = [map_view(scored, album) for scored in subject.maps]
    # What the chain is for comes first: the pairs that nobody trained.
    examples, left_out = retrieval_examples(
        sorted(pairs, key=lambda pair: not pair.is_emergent), subject.evaluations, album
    )
    inputs = [(read_json(folder / "stage.json") or {}).get("inputs") or {} for folder in subject.stages.values()]
    script, style = (_source(environment, name) for name in ("script.js", "style.css"))
    return {
        "name": subject.folder.absolute().name,
        "folder": subject.folder.name if subject.folder.is_absolute() else subject.folder.as_posix(),
        "version": version("geobind"),
        "date": f"{datetime.now(UTC):%-d %B %Y, %H:%M} UTC",
        "record": record,
        "verdict": _verdict(pairs),
        "tiles": _tiles(record, metrics, pairs, stages),
        "gallery": metrics.get("gallery", 0),
        "stages": stages,
        "graph": lineage_graph(record, stages, Starts.of(inputs)),
        "heat_maps": heat_maps(pairs, names),
        "examples": examples,
        "left_out": left_out,
        "maps": maps,
        "classifications": classification_views(metrics),
        "data": subject.data,
        "left_out_of_data": metrics.get("skipped", {}),
        "warnings": metrics.get("warnings", ()),
        "timings": sum(stage.seconds or 0.0 for stage in stages),
        "has_environments": any(stage.ran_on for stage in stages),
        "versions": versions(record),
        "duration": duration,
        "colours": COLOURS,
        "plot": PLOT,
        **_table(pairs),
        "style": Markup(style),  # both are files of this package, and hold nothing of the run
        "script": Markup(script),
        "script_hash": f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    }


def _breakable(text: str) -> Markup:
    """Returns a name that may be broken after an underscore."""
    return Markup("_<wbr>").join(escape(part) for part in text.split("_"))


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _verdict(pairs: Sequence[Pair]) -> list[str]:
    """Returns the figures in a sentence or two: the best and the weakest pair that was not trained, or else of all."""
    shown = shown_recall(pairs)
    plain = [pair for pair in pairs if not pair.is_composed and shown in pair.figures]
    emergent = [pair for pair in plain if pair.is_emergent]
    among = sorted(emergent or plain, key=lambda pair: _above_chance(pair, shown), reverse=True)
    if not among:
        return []
    what = "emergent pair, of modalities that were never trained together," if emergent else "pair"
    best, worst = among[0], among[-1]
    within = shown.removeprefix("recall@")
    chances = [f"{pair.figures[name]:.1%}" if (name := f"chance_{shown}") in pair.figures else "" for pair in among]
    first = (
        f"The best {what} is {best.query} to {best.gallery}: the right answer is among the first {within} of "
        f"{best.figures['gallery']:,} in {best.figures[shown]:.1%} of the queries"
        + (f", by chance in {chances[0]}" if chances[0] else "")
        + "."
    )
    if worst is best:
        return [first]
    last = f"The weakest is {worst.query} to {worst.gallery} with {worst.figures[shown]:.1%}"
    return [f"{first} {last}{f', by chance {chances[-1]}' if chances[-1] != chances[0] else ''}."]


def _above_chance(pair: Pair, figure: str) -> float:
    """Returns how many times as high as chance a figure is; with labels, chance is higher for some pairs."""
    return float(pair.figures[figure] / (pair.figures.get(f"chance_{figure}") or 1.0))


def _tiles(
    record: SpaceRecord, metrics: Mapping[str, Any], pairs: Sequence[Pair], stages: Sequence[StageView]
) -> list[tuple[str, str]]:
    tiles = [
        ("modalities", str(len(record.modalities))),
        ("dimensions", f"{record.embed_dim:,}"),
        ("bound through", record.binding),
    ]
    if metrics.get("gallery"):
        tiles.append(("searched among", f"{metrics['gallery']:,}"))
    shown = shown_recall(pairs)
    for what, wanted in (("trained", False), ("emergent", True)):
        found = [
            p.figures[shown] for p in pairs if p.is_emergent == wanted and not p.is_composed and shown in p.figures
        ]
        if found:
            tiles.append((f"{what}, mean {shown}", f"{sum(found) / len(found):.3f}"))
    if seconds := sum(stage.seconds or 0.0 for stage in stages):
        tiles.append(("trained for", duration(seconds)))
    return tiles


def _table(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Returns what the table of all figures shows."""
    shown = shown_recall(pairs)
    own = list(
        dict.fromkeys(n for p in pairs for n in p.figures if n.startswith(("recall@", "median_rank", "mean_re")))
    )
    figures = own + further_figures(pair.figures for pair in pairs)

    def cell(pair: Pair, name: str) -> tuple[float | None, str, list[str]]:
        value = pair.figures.get(name)
        if value is None:
            return None, "-", []
        interval, chance = (pair.figures.get("intervals") or {}).get(name), pair.figures.get(f"chance_{name}")
        small = [] if interval is None else [between_text(name, interval)]
        small += [] if chance is None else [f"chance {written(name, chance)}"]
        return value, written(name, value), small

    rows = [
        {
            "pair": pair,
            "figures": [cell(pair, name) for name in figures],
            "strict": written(shown, pair.figures["strict"][shown]) if "strict" in pair.figures else "",
        }
        for pair in sorted(pairs, key=lambda pair: not pair.is_emergent)
    ]
    return {
        "shown": shown,
        "figures": figures,
        "table": rows,
        "has_galleries": len({pair.figures.get("gallery") for pair in pairs}) > 1,
        "has_data": len({pair.figures.get("data") for pair in pairs}) > 1,
        "has_strict": any("strict" in pair.figures for pair in pairs),
        "has_emergent": any(pair.is_emergent for pair in pairs),
        "has_intervals": any("intervals" in pair.figures for pair in pairs),
    }
