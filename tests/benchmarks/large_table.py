"""A table of a million rows: how long until the first batch, and in how much memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import yaml

from .data import Architecture, tiny_clip, write_photos
from .measure import ROOT, Settings, interleaved, median
from .results import Goal, Row

NAME = "large_table"
_FEW = 1_000
_PHOTOS = 24


def run(settings: Settings) -> list[Row]:
    """A million rows against a thousand, which shows what the libraries take by themselves."""
    many = 5_000 if settings.quick else 1_000_000
    write_photos(settings.folder / "images", "photo", _PHOTOS, 64)
    return [row for suffix in (".csv", ".parquet") for row in _rows(many, suffix, settings)]


def _rows(many: int, suffix: str, settings: Settings) -> list[Row]:
    chains = {n: write_chain(settings.folder, n, suffix, tiny_clip()) for n in (many, _FEW)}
    raw: dict[int, list[dict[str, Any]]] = {n: [] for n in chains}

    def measured(n: int) -> float:
        raw[n].append(first_batch(chains[n]))
        return float(raw[n][-1]["seconds"])

    interleaved({str(n): lambda n=n: measured(n) for n in chains}, settings.repeats)
    rows = []
    for figure, unit, goal in (("seconds", "s", 10), ("mib", "MiB", 1024)):
        sides = {n: [float(found[figure]) for found in raw[n]] for n in raw}
        rows.append(
            Row(
                NAME,
                f"{many:,} rows of {suffix[1:]} to the first batch",
                unit,
                median(sides[many]),
                median(sides[_FEW]),
                f"{_FEW:,} rows",
                goal=Goal("<=", goal),
                note="the whole process, importing torch included; images and coordinates",
                raw={str(n): side for n, side in sides.items()},
            )
        )
    return rows


def write_chain(folder: Path, rows: int, suffix: str, architecture: Architecture) -> Path:
    """Writes a table of places with an image, a sentence and coordinates each, and a chain over it.

    There are 24 different images, `images/photo_<number>.jpg`, under all the rows.
    """
    images = sorted(path.name for path in (folder / "images").glob("*.jpg"))
    numbers, rng = np.arange(rows), np.random.default_rng(0)
    table = pa.table(
        {
            "key": [f"place-{i:07d}" for i in numbers.tolist()],
            "satellite": [f"images/{images[i % len(images)]}" for i in numbers.tolist()],
            "text": [f"a sentence about place number {i}, which is long enough to be one" for i in numbers.tolist()],
            "longitude": rng.uniform(-180, 180, rows),
            "latitude": rng.uniform(-90, 90, rows),
        }
    )
    path = folder / f"{rows}{suffix}"
    (pyarrow.csv.write_csv if suffix == ".csv" else pyarrow.parquet.write_table)(table, path)
    chain = {
        "binding": "satellite",
        "modalities": {"satellite": {"model": architecture, "image_size": 32}, "location": {}},
        "data": {
            "large": {
                "source": "table",
                "path": path.name,
                "fields": {"satellite": "satellite", "location": ["longitude", "latitude"]},
            }
        },
        "stages": [{"name": "one", "train": ["satellite", "location"], "anchor": [], "data": "large"}],
    }
    written = folder / f"{rows}{suffix}.yaml"
    written.write_text(yaml.safe_dump(chain), encoding="utf-8")
    return written


def first_batch(chain: Path) -> dict[str, Any]:
    """Returns what `first_batch.py` measures, in a process of its own that is set up as the command line is."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    command = [sys.executable, "-m", "tests.benchmarks.first_batch", str(chain)]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
