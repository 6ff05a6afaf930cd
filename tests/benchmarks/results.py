"""What a benchmark returns, and how it is shown."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Goal:
    """What a figure is to be: at most or at least some value."""

    sense: Literal["<=", ">="]
    value: float

    def met_by(self, figure: float) -> bool:
        return figure <= self.value if self.sense == "<=" else figure >= self.value

    def __str__(self) -> str:
        return f"{self.sense} {self.value:.3g}"


@dataclass(frozen=True)
class Row:
    """One figure of one benchmark.

    Attributes:
        benchmark: The benchmark's name, as `--only` takes it.
        figure: What was measured.
        unit: Unit of `ours` and `peer`.
        ours: GeoBind's figure; None where it was not measured.
        peer: The figure of what it is compared with, or the floor.
        peer_name: What that is.
        ratio: How the two compare; None where `ours` itself is judged.
        goal: What the ratio, or else `ours`, is to be; None for a row that only informs.
        note: What else is to be known.
        raw: Every timing that went into it, by side, in the order taken.
    """

    benchmark: str
    figure: str
    unit: str
    ours: float | None = None
    peer: float | None = None
    peer_name: str = ""
    ratio: float | None = None
    goal: Goal | None = None
    note: str = ""
    raw: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal, or without a figure."""
        judged = self.ours if self.ratio is None else self.ratio
        return None if self.goal is None or judged is None else self.goal.met_by(judged)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "goal": None if self.goal is None else str(self.goal), "met": self.met}


def table_of(rows: Sequence[Row]) -> Table:
    """Returns the rows as a table for people."""
    table = Table(title="GeoBind benchmarks")
    for heading in ("benchmark", "figure"):
        table.add_column(heading)
    for heading in ("ours", "peer or floor", "ratio", "goal"):
        table.add_column(heading, justify="right")
    table.add_column("met")
    table.add_column("note", max_width=60)
    for row in rows:
        peer = f"{_number(row.peer)} ({row.peer_name})" if row.peer is not None else row.peer_name
        table.add_row(
            row.benchmark,
            f"{row.figure} [{row.unit}]" if row.unit else row.figure,
            NOT_MEASURED if row.ours is None else _number(row.ours),
            peer,
            "" if row.ratio is None else f"{row.ratio:.3f}",
            "" if row.goal is None else str(row.goal),
            {True: "yes", False: "NO", None: ""}[row.met],
            row.note,
        )
    return table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3e}" if value != 0 and abs(value) < 1e-3 else f"{value:.4g}"


def machine() -> dict[str, Any]:
    """Returns what the figures were measured on."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_at_start": [round(load, 2) for load in os.getloadavg()],
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "accelerate", "open_clip_torch", "transformers", "geobind")},
    }


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    named = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()
