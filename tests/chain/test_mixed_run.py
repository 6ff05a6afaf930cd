"""A stage on several data sets, run as users do."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.execute import run_chain
from geobind_core.chain.plan import make_plan
from geobind_core.chain.resolve import load_chain
from geobind_core.chain.run_folder import RunFolder
from geobind_core.errors import GeoBindError
from geobind_core.progress import Reporter


@pytest.fixture
def folder(own_world: Any, clip_architecture: dict[str, Any]) -> Path:
    """The world's rows in two tables, and a chain over both."""
    for name, rows in (("north", own_world.rows[::2]), ("south", own_world.rows[1::2])):
        with (own_world.folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    table = {"source": "table", "split": {"by": "column", "column": "split"}}
    chain = {
        "binding": "satellite",
        "modalities": {"satellite": {"model": clip_architecture}, "ground_image": {"model": clip_architecture}},
        "data": {"north": {**table, "path": "north.csv"}, "south": {**table, "path": "south.csv"}},
        "stages": [
            {
                "name": "one",
                "train": ["satellite", "ground_image"],
                "anchor": [],
                "data": {"north": 3, "south": 1},
                "batch_size": 10,
                "epochs": 2,
            }
        ],
        "evaluate": {"recall_at": [1]},
    }
    (own_world.folder / "chain.yaml").write_text(yaml.safe_dump(chain), encoding="utf-8")
    return own_world.folder


def loaded(folder: Path, *assignments: str) -> Any:
    return load_chain(folder / "chain.yaml", plugin_manager(), assignments)


def plan(folder: Path, *assignments: str) -> tuple[str, str]:
    (only,) = make_plan(loaded(folder, *assignments), RunFolder(folder / "run"))
    return only.action, only.why


def test_a_stage_on_two_data_sets(folder: Path) -> None:
    (folder / "images" / "satellite_3.jpg").write_bytes(b"")
    console = Console(file=io.StringIO(), width=200)
    metrics = run_chain(loaded(folder, "stages.one.max_bad_samples=0.2"), RunFolder(folder / "run"), Reporter(console))
    assert isinstance(console.file, io.StringIO)
    stage = json.loads((folder / "run/stages/01-one/stage.json").read_text())
    assert set(stage["inputs"]["data"]) == {"north", "south"}
    assert any(bad.startswith("south/003 (satellite)") for bad in stage["summary"]["bad_samples"])
    assert "; 1 unreadable sample skipped, named in log.jsonl: south/003" in console.file.getvalue()
    assert metrics is not None
    assert metrics["pairs"]["satellite_to_ground_image"]["data"] == "north", "the first of them"

    assert plan(folder) == ("done", "nothing changed")
    assert plan(folder, "stages.one.data.south=2") == ("run", "data.south: 1.0 -> 2.0")
    with (folder / "south.csv").open("a") as file:
        file.write(",".join(["new", *["x"] * 6]) + "\n")
    assert plan(folder) == ("run", "the data of 'south' changed")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["north", "sooth"], "no data set 'sooth'. Available: north, south. Did you mean 'south'?"),
        (["north", "north"], "data names north twice"),
        ([], "data names no data set"),
        ({}, "data names no data set"),
        ({"north": 1, "south": 0}, "greater than 0"),
        ({"north": 1, "south": "much"}, "number"),
        (7, "expected"),
    ],
)
def test_what_is_wrong_with_data(folder: Path, data: Any, message: str) -> None:
    chain = yaml.safe_load((folder / "chain.yaml").read_text())
    chain["stages"][0]["data"] = data
    (folder / "chain.yaml").write_text(yaml.safe_dump(chain), encoding="utf-8")
    with pytest.raises(GeoBindError) as raised:
        loaded(folder)
    assert message in str(raised.value)
    assert "stages[0]" in str(raised.value)
