"""The stages as the page shows them: what each did, its curves, and what it could not read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from geobind_core.files import read_json
from geobind_core.progress import duration
from geobind_core.report.charts import Chart, line_chart

_LISTED = 20
_IN_NATS = ("infonce", "sigmoid")
_TITLES = {
    "loss": "loss",
    "logit_scale": "logit scale (1 / temperature)",
    "lr": "learning rate",
    "samples_per_second": "throughput [samples/s]",
}
_FROM_ZERO = ("lr", "samples_per_second")


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be read."""

    key: str
    modality: str
    reason: str


@dataclass(frozen=True)
class StageView:
    """One stage.

    Attributes:
        number: Its place in the chain, from 1.
        name: Its name.
        kind: What kind of stage.
        status: `done`, or what else its record says.
        trains: The modalities that it trained.
        anchors: Those that it kept frozen.
        data: The data sets, as a person reads them.
        facts: Further facts: what, and how much.
        charts: Its curves.
        skipped: Samples that could not be read, the first of them.
        skipped_in_all: How many there are.
        seconds: How long it took; None where that is not known.
        samples_per_second: Its throughput; None where that is not known.
        rows: How many rows it trained on; None where that is not known.
        ran_on: Device, precision and versions, as its record says.
    """

    number: int
    name: str
    kind: str
    status: str
    trains: tuple[str, ...]
    anchors: tuple[str, ...]
    data: str
    facts: tuple[tuple[str, str], ...]
    charts: tuple[Chart, ...]
    skipped: tuple[Skipped, ...]
    skipped_in_all: int
    seconds: float | None
    samples_per_second: float | None
    rows: int | None
    ran_on: str


def stage_view(number: int, name: str, folder: Path) -> StageView:
    """Reads a stage's folder. What is missing there is missing on the page."""
    found = read_json(folder / "stage.json")
    record: dict[str, Any] = found if isinstance(found, dict) else {}
    settings = (record.get("inputs") or {}).get("stage") or {}
    summary = record.get("summary") or {}
    steps, skipped = _log(folder / "log.jsonl")
    listed = summary.get("bad_samples") or []
    known = {(s.key, s.modality) for s in skipped}
    return StageView(
        number=number,
        name=name,
        kind=record.get("kind", ""),
        status=record.get("status", "not run"),
        trains=tuple(record.get("trains") or ()),
        anchors=tuple(record.get("anchors") or ()),
        data=_data(settings.get("data")),
        facts=tuple(_facts(settings, summary, record)),
        charts=tuple(_charts(steps, settings)),
        skipped=tuple(skipped[:_LISTED]),
        skipped_in_all=max(len(known), len(listed)),
        seconds=_longest(record.get("seconds"), summary.get("seconds")),
        samples_per_second=summary.get("samples_per_second"),
        rows=summary.get("rows"),
        ran_on=_ran_on(record.get("environment") or {}),
    )


def _ran_on(found: Mapping[str, Any]) -> str:
    """Returns what a stage ran on, such as `NVIDIA H100, 2 processes, bf16, torch 2.12.1`."""
    if not found:
        return ""
    processes, precision = found.get("processes", 1), found.get("mixed_precision", "no")
    parts = [
        str(found.get("device", "")),
        f"{processes} processes" if processes != 1 else "1 process",
        "fp32" if precision == "no" else str(precision),
        *(f"{name} {found[name]}" for name in ("geobind", "torch", "accelerate", "python") if name in found),
    ]
    return ", ".join(filter(None, parts))


def _longest(*seconds: float | None) -> float | None:
    """Returns the longer time: a stage that went on from a checkpoint took longer than its last go."""
    return max((float(value) for value in seconds if value is not None), default=None)


def _log(path: Path) -> tuple[list[dict[str, Any]], list[Skipped]]:
    """Returns what was measured and what was skipped, each sample once."""
    steps: list[dict[str, Any]] = []
    skipped: dict[tuple[str, str], Skipped] = {}
    if not path.is_file():
        return steps, []
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # a line that was cut off
                continue
            if record.get("event") == "bad_sample":
                found = Skipped(*(str(record.get(name, "")) for name in ("key", "modality", "reason")))
                skipped.setdefault((found.key, found.modality), found)
            elif "step" in record and "event" not in record:
                steps.append(record)
    return steps, list(skipped.values())


def _charts(steps: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[Chart]:
    """Draws everything that was logged; figures of one name that differ after a slash share a chart."""
    groups: dict[str, dict[str, str]] = {}
    for record in steps:
        for key, value in record.items():
            if key not in ("step", "epoch") and isinstance(value, int | float):
                name, _, line = key.partition("/")
                groups.setdefault(name, {})[line.replace("_", " ")] = key
    x = [float(record["step"]) for record in steps]
    losses = {pair.get("loss", {}).get("name") for pair in settings.get("pairs") or ()}
    charts = []
    for name in sorted(groups, key=lambda n: list(_TITLES).index(n) if n in _TITLES else len(_TITLES)):
        series = {line: [_number(r.get(key)) for r in steps] for line, key in groups[name].items()}
        title = _TITLES.get(name, name.replace("_", " "))
        if name == "loss" and losses and losses <= {*_IN_NATS}:
            title = "loss [nats]"
        chart = line_chart(title, "step", x, series, from_zero=name in _FROM_ZERO)
        if chart is not None:
            charts.append(chart)
    return charts


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _data(value: Any) -> str:
    if isinstance(value, Mapping):
        return " + ".join(f"{weight:g} {name}" for name, weight in value.items())
    return " + ".join(value) if isinstance(value, list) else str(value or "")


def _facts(settings: Mapping[str, Any], summary: Mapping[str, Any], record: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    if data := _data(settings.get("data")):
        facts.append(("data", f"{data}, {summary['rows']:,} rows" if "rows" in summary else data))
    for pair in settings.get("pairs") or ():
        modalities = pair.get("modalities", ())
        facts.append((" and ".join(modalities), _loss(pair, modalities, record.get("trains") or ())))
    if "steps" in summary:
        batch = f" of {settings['batch_size']:,} rows" if "batch_size" in settings else ""
        facts.append(("length", f"{summary['steps']:,} steps{batch}, {summary.get('epochs', 0):,} epochs"))
    optimizer, scheduler = settings.get("optimizer") or {}, settings.get("scheduler") or {}
    if optimizer:
        rate = f"{optimizer.get('name', '')}, learning rate {optimizer.get('lr', 0):g}"
        facts.append(("optimizer", f"{rate}, {str(scheduler.get('name', 'constant')).replace('_', ' ')}"))
    if augment := settings.get("augment"):
        facts.append(("augmentation", "; ".join(f"{name}: {', '.join(steps)}" for name, steps in augment.items())))
    if "samples_per_second" in summary:
        facts.append(("throughput", f"{summary['samples_per_second']:,.0f} samples/s"))
    if "seconds" in record:
        begun = f", started {moment(record['started'])}" if "started" in record else ""
        facts.append(("time", f"{duration(record['seconds'])}{begun}"))
    return facts


def _loss(pair: Mapping[str, Any], modalities: Sequence[str], trains: Sequence[str]) -> str:
    loss, weight = pair.get("loss") or {}, pair.get("weight", 1.0)
    text = ", ".join(filter(None, [str(loss.get("name", "")), _direction(loss, modalities, trains)]))
    return f"{text}, weight {weight:g}" if weight != 1.0 else text


def _direction(loss: Mapping[str, Any], modalities: Sequence[str], trains: Sequence[str]) -> str:
    """Returns which modality asks which. The record knows first and second, whatever the chain file says."""
    direction = str(loss.get("direction", ""))
    if direction not in ("first_to_second", "second_to_first") or len(modalities) != 2:
        return direction.replace("_", " ")
    asking, asked = modalities if direction == "first_to_second" else reversed(modalities)
    both_trained = (asking in trains) == (asked in trains)
    role = "" if both_trained else f" ({'train to anchor' if asking in trains else 'anchor to train'})"
    return f"{asking} to {asked}{role}"


def moment(text: str) -> str:
    """Returns a moment as people write it; what is no moment stays as it is."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{found:%Y-%m-%d %H:%M} {found.tzname() or ''}".strip()
