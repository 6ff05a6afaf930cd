"""An epoch with cached anchors against the same with anchors that are embedded every time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geobind_core import StageContext
from geobind_core.config.models import AlignConfig

from .data import Architecture, light_clip, table_source, tiny_clip, vit_b_32, write_photos, write_table, write_weights
from .measure import Settings, interleaved, median
from .results import Goal, Row
from .stage import Trace, train_copies, with_stage

NAME = "anchor_cache"
_SIDE = 800


@dataclass(frozen=True)
class _Case:
    """A stage to be measured; with `side`, images are JPEG files of that many pixels on a side."""

    what: str
    architecture: Architecture
    rows: int
    batch_size: int
    goal: float
    side: int | None = None
    note: str = ""


def run(settings: Settings) -> list[Row]:
    """ViT-B-32 from memory and from files, and a small network, for which files are the bottleneck."""
    rows: list[Row] = []
    differences: dict[str, float] = {}
    for i, case in enumerate(_cases(settings)):
        folder = settings.folder / str(i)
        found, difference = with_stage(
            _document(case, folder),
            folder,
            lambda config, context, case=case: _compare(config, context, case, settings),
        )
        rows.append(found)
        differences[case.what] = difference
    rows.append(
        Row(
            NAME,
            "difference of the loss curves",
            "",
            max(differences.values()),
            peer_name="live anchors",
            goal=Goal("<=", 1e-4),
            note="largest of any step of any run above",
            raw={what: [value] for what, value in differences.items()},
        )
    )
    return rows


def _cases(settings: Settings) -> list[_Case]:
    if settings.quick:
        tiny = tiny_clip()
        return [
            _Case("a tiny network, from memory", tiny, 16, 8, 1.3),
            _Case("a tiny network, from JPEG", tiny, 16, 8, 1.8, side=64),
        ]
    large = vit_b_32()
    photos = f"{_SIDE} x {_SIDE} JPEG"
    return [
        _Case("ViT-B-32, from memory", large, 96, 32, 1.3),
        _Case(f"ViT-B-32, from {photos}", large, 64, 32, 1.8, _SIDE, "on a CPU the networks take most of the time"),
        _Case(
            f"light ViT, from {photos}",
            light_clip(),
            256,
            32,
            1.8,
            _SIDE,
            "reading takes most of the time, as it does beside an accelerator",
        ),
    ]


def _document(case: _Case, folder: Path) -> dict[str, Any]:
    modalities = ("satellite", "ground_image")
    weights = write_weights(case.architecture, folder / "weights")
    cells: dict[str, Any] = dict.fromkeys(modalities, range(case.rows))
    if case.side:
        cells = {name: write_photos(folder / "photos", name, case.rows, case.side) for name in modalities}
    memory_image = {"plugin": "memory_image", "model": case.architecture}
    return {
        "binding": "satellite",
        "modalities": {"satellite": memory_image, "ground_image": {**memory_image, "pretrained": str(weights)}},
        "data": {"pairs": table_source(write_table(folder / "table.csv", cells), modalities)},
        "stages": [
            {
                "name": "satellite",
                "train": "satellite",
                "anchor": "ground_image",
                "data": "pairs",
                "batch_size": case.batch_size,
                "epochs": 1,
            }
        ],
        # Files stand for a data set that does not fit into memory, so nothing is kept decoded.
        "loader": {"decoded_cache_mib": 0} if case.side else {},
    }


def _compare(config: AlignConfig, context: StageContext, case: _Case, settings: Settings) -> tuple[Row, float]:
    curves: dict[str, list[list[float]]] = {"cached": [], "live": []}

    def epoch(side: str, **changes: Any) -> float:
        trace = train_copies(config, context, **changes)
        curves[side].append(trace.losses)
        return _seconds(trace, from_files=case.side is not None)

    train_copies(config, context)  # fills the cache, and warms up
    raw = interleaved(
        {"cached": lambda: epoch("cached"), "live": lambda: epoch("live", anchor_cache="off")}, settings.repeats
    )
    cached, live = median(raw["cached"]), median(raw["live"])
    difference = max(
        abs(a - b)
        for first, second in zip(curves["cached"], curves["live"], strict=True)
        for a, b in zip(first, second, strict=True)
    )
    row = Row(
        NAME,
        case.what,
        "s an epoch",
        cached,
        live,
        "live anchors",
        live / cached,
        Goal(">=", case.goal),
        ", ".join(part for part in (f"{case.rows} pairs, batch {case.batch_size}", case.note) if part),
        raw,
    )
    return row, difference


def _seconds(trace: Trace, *, from_files: bool) -> float:
    """Returns the time of an epoch.

    From memory, it is told by the steps after the first, which also starts up. Files are read ahead
    of the steps, so there the whole epoch counts.
    """
    if from_files:
        return float(trace.summary["seconds"])
    steps = trace.step_seconds()
    return sum(steps) / len(steps) * len(trace.moments)
