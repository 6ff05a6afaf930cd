"""A small real run that has a part for every section of the report."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.execute import run_chain
from geobind_core.chain.resolve import load_chain
from geobind_core.chain.run_folder import RunFolder
from geobind_core.progress import Reporter

ATTACK = "</script><img src=x onerror=alert(1)>"
QUERIES = ["a red place", f"a place & a {ATTACK}"]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: The run folder.
        chain: Its chain file.
    """

    folder: Path
    chain: Path

    @property
    def page(self) -> str:
        return (self.folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, world: Any, clip_architecture: Any, clap_folder: Path) -> Run:
    """Four modalities; an attack in every text, an image that is none, one place in both splits."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "broken.jpg").write_bytes(b"no image")
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        columns = [*world.rows[0], "longitude", "latitude"]
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        for i, row in enumerate(world.rows):
            paths = {m: str(world.folder / row[m]) for m in ("satellite", "ground_image", "audio")}
            text = f"{row['text']} {ATTACK}"
            place = {"longitude": -170 + 14 * i, "latitude": 60 - 5 * i, "split": "test" if i % 2 else "train"}
            if i == 7:  # lies where row 6 does
                place |= {"longitude": -170 + 14 * 6, "latitude": 60 - 5 * 6}
            if i == 2:
                paths["ground_image"] = str(folder / "broken.jpg")
            writer.writerow({**row, **paths, "text": text, **place})
    model = {"model": clip_architecture}
    document = {
        "binding": "satellite",
        "modalities": {
            "ground_image": model,
            "text": model,
            "satellite": {**model, "init_from": "ground_image"},
            "audio": {"pretrained": str(clap_folder), "sample_rate": 16000, "seconds": 1},
        },
        "data": {
            "places": {
                "source": "table",
                "path": "table.csv",
                "fields": {m: m for m in ("satellite", "ground_image", "audio", "text")},
                "labels": {"text": "label"},
                "split": {"by": "column", "column": "split"},
                "longitude": "longitude",
                "latitude": "latitude",
                "license": "CC-BY-4.0",
            }
        },
        "stages": [
            {"name": "clip", "train": ["ground_image", "text"], "anchor": [], "max_bad_samples": 0.5},
            {"name": "satellite", "train": "satellite", "anchor": "ground_image", "max_bad_samples": 0.5},
            {"name": "audio", "train": "audio"},
        ],
        "evaluate": {
            "recall_at": [1, 5, "50%"],
            "compose": [["audio", "text"]],
            "metrics": ["median_km"],
            "maps": {"data": "places", "modality": "satellite", "text": "text", "queries": QUERIES},
            "zero_shot": {
                "colour": {
                    "data": "places",
                    "modality": "satellite",
                    "text": "text",
                    "label": "label",
                    "classes": sorted({row["label"] for row in world.rows}),
                    "templates": ["a {} place"],
                }
            },
        },
        "log_with": [],
    }
    for stage in document["stages"]:  # type: ignore[attr-defined]
        stage |= {"data": "places", "batch_size": 4, "epochs": 6}
    chain = folder / "chain.yaml"
    chain.write_text(yaml.safe_dump(document), encoding="utf-8")
    loaded = load_chain(chain, plugin_manager())
    run_chain(loaded, RunFolder(folder / "run"), Reporter(quiet=True))
    return Run(folder / "run", chain)
