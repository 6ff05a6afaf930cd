"""A small run to explore, in this process and served by a process of its own."""

from __future__ import annotations

import csv
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.execute import run_chain
from geobind_core.chain.resolve import load_chain
from geobind_core.chain.run_folder import RunFolder
from geobind_core.explore.explorer import Explorer
from geobind_core.explore.opening import RunOptions, open_run, prepare
from geobind_core.progress import Reporter

EVIL_TEXT = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script> a red place"
EVIL_KEY = "<b onmouseover=alert(1)>evil</b>"
ROWS = 24


@pytest.fixture(scope="session")
def run_folder(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five modalities on `world` with coordinates; one caption and one key are markup."""
    folder = tmp_path_factory.mktemp("explored")
    rng = np.random.default_rng(2)
    rows = [
        {**row, "longitude": f"{rng.uniform(-170, 170):.4f}", "latitude": f"{rng.uniform(-70, 70):.4f}"}
        for row in world.rows
    ]
    rows[0] |= {"key": EVIL_KEY, "text": EVIL_TEXT}
    rows[1] |= {"audio": ""}  # nobody listened here
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    modalities: dict[str, Any] = {name: {"model": model} for name in ("satellite", "ground_image", "text")}
    modalities["audio"] = {"model": "geobind-tiny", "sample_rate": 16_000, "seconds": 1}
    modalities["location"] = {"legendre_polys": 3, "width": 16, "embed_dim": 16}
    bound = {"train": [*modalities], "pairs": [["satellite", name] for name in modalities if name != "satellite"]}
    common = {"data": "world", "batch_size": 10, "epochs": 1}
    chain = {
        "binding": "satellite",
        "embed_dim": 16,
        "log_with": [],
        "split_distance_km": 0,
        "modalities": modalities,
        "data": {
            "world": {
                "source": "table",
                "path": "table.csv",
                "root": str(world.folder),
                "fields": {"location": ["longitude", "latitude"]}
                | {name: name for name in ("satellite", "ground_image", "text", "audio")},
                "split": {"by": "column", "column": "split"},
            }
        },
        # The second stage is never run: a run that is not at its end can be explored, and is not measured here.
        "stages": [{"name": "bind", **bound, **common}, {"name": "later", "train": "audio", **common}],
    }
    (folder / "chain.yaml").write_text(yaml.safe_dump(chain), encoding="utf-8")
    loaded = load_chain(folder / "chain.yaml", plugin_manager())
    run_chain(loaded, RunFolder(folder / "run"), Reporter(quiet=True), "bind")
    return folder / "run"


@pytest.fixture(scope="session")
def explorer(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Explorer:
    """All places of that run, all modalities embedded."""
    options = RunOptions(split="all", keep=tmp_path_factory.mktemp("embedded"))
    opened, left = open_run(run_folder, plugin_manager(), Reporter(quiet=True), options, torch.device("cpu"))
    prepare(opened, left, Reporter(quiet=True), threading.Event())
    return opened


@dataclass(frozen=True)
class Server:
    """A `geobind explore` in a process of its own.

    Attributes:
        address: Of the page, as it was printed.
        process: Ended by whoever wants to, or else when the tests are over.
    """

    address: str
    process: subprocess.Popen[str]


@pytest.fixture(scope="session")
def server(run_folder: Path) -> Iterator[Server]:
    """Serves that run, all places, uploads of 1 MiB."""
    options = ["--split", "all", "--upload-limit", "1", "--port", "0", "--no-open"]
    process = subprocess.Popen(
        [sys.executable, "-m", "geobind_core", "explore", str(run_folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: lines.put(process.stdout.readline() if process.stdout else ""), daemon=True).start()
    try:
        line = lines.get(timeout=120)
        assert "http://" in line, process.communicate()[1]
        yield Server(line[line.index("http://") :].strip(), process)
    finally:
        process.kill()
        process.communicate()
