"""A chain of places and what is measured there: trains, extends, draws random places, goes on after a failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as parquet
import pytest
import torch
import yaml
from geobind_plugin_environment.encoder import EnvironmentEncoder
from geobind_plugin_location.location import Location

from geobind_core import GeoBindError, Space
from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.execute import run_chain
from geobind_core.chain.resolve import load_chain
from geobind_core.chain.run_folder import RunFolder
from geobind_core.progress import Reporter

pytestmark = pytest.mark.usefixtures("one_thread")

PLACES, HELD_OUT = 240, 60
NETWORK = {"width": 48, "embed_dim": 16}


@pytest.fixture(scope="module")
def chain_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of places and a climate that follows from where they are, with gaps; and a chain of two stages."""
    folder = tmp_path_factory.mktemp("chain")
    rng = np.random.default_rng(1)
    drawn = [Location(Location.Config()).draw(rng).tolist() for _ in range(PLACES)]
    east, north = np.radians(np.array(drawn)).T
    climate = [30 - 40 * np.sin(north) ** 2, 1000 * np.cos(east), 1000 * np.sin(east), 8 * np.sin(north)]
    rows = np.stack(climate, axis=1).tolist()
    for row in rows[::5]:
        row[int(rng.integers(4))] = None
    table = {
        "longitude": [longitude % 360 for longitude, _ in drawn],
        "latitude": [latitude for _, latitude in drawn],
        "climate": pa.array(rows, pa.list_(pa.float32())),
        "split": ["test"] * HELD_OUT + ["train"] * (PLACES - HELD_OUT),
    }
    parquet.write_table(pa.table(table), folder / "survey.parquet")
    variables = {"variables": ["warmth", "east", "west", "tilt"], "mean": [16, 0, 0, 0], "std": [10, 700, 700, 5]}
    common = {"data": "survey", "batch_size": 60, "checkpoint": {"steps": 4}, "epochs": 12}
    optimizer = {"lr": 5e-3}
    document = {
        "binding": "climate",
        "seed": 3,
        "log_with": [],
        "modalities": {
            "climate": {"plugin": "environment", **variables, **NETWORK, "depth": 1},
            "location": {"legendre_polys": 4, **NETWORK},
            "map": {"plugin": "location", "encoder": "random_fourier", "sigmas": [0.5], "frequencies": 16, **NETWORK},
        },
        "data": {
            "survey": {
                "source": "table",
                "path": "survey.parquet",
                "fields": {name: ["longitude", "latitude"] for name in ("location", "map")} | {"climate": "climate"},
                "split": {"by": "column", "column": "split"},
            }
        },
        "stages": [
            {"name": "first", "train": ["climate", "location"], "anchor": [], "optimizer": optimizer, **common},
            {"name": "second", "train": "map", "loss": {"random_negatives": 20}, "optimizer": optimizer, **common},
        ],
        "evaluate": {"recall_at": [5]},
    }
    (folder / "chain.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return folder / "chain.yaml"


def run(path: Path, out: Path, *assignments: str) -> dict[str, Any]:
    metrics = run_chain(load_chain(path, plugin_manager(), assignments), RunFolder(out), Reporter(quiet=True))
    assert metrics is not None
    return metrics


def hashes(out: Path) -> dict[str, str]:
    modalities = json.loads((out / "space/space.json").read_text())["modalities"]
    return {name: record["content_hash"] for name, record in modalities.items()}


@pytest.fixture(scope="module")
def finished(chain_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("finished")
    return out, run(chain_file, out)


def test_held_out_places_are_found(finished: tuple[Path, dict[str, Any]]) -> None:
    pairs = finished[1]["pairs"]
    for pair in ("location_to_climate", "climate_to_location", "climate_to_map", "location_to_map"):
        assert pairs[pair]["recall@5"] > 4 * pairs[pair]["chance_recall@5"], pair
    assert pairs["location_to_map"]["emergent"]


def test_the_space_takes_coordinates_and_gaps(finished: tuple[Path, dict[str, Any]]) -> None:
    space = Space.load(finished[0])
    places = space.embed("location", [(190, 10), (-170, 10), np.array([8.5, 47.4])])
    assert torch.equal(places[0], places[1])
    found = space.embed("climate", [[16, None, None, 0], [16, 0, 0, 0]])
    assert torch.isfinite(found).all()
    assert space.similarity(places, found).shape == (3, 2)


def test_a_stage_goes_on_after_a_failure(
    finished: tuple[Path, dict[str, Any]], chain_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = EnvironmentEncoder.forward, 0

    def failing(self: EnvironmentEncoder, values: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise RuntimeError("power cut")
        return forward(self, values)

    monkeypatch.setattr(EnvironmentEncoder, "forward", failing)
    with pytest.raises((RuntimeError, GeoBindError), match="power cut"):
        run(chain_file, tmp_path)
    assert (tmp_path / "stages/01-first/checkpoint").is_dir()
    monkeypatch.undo()
    run(chain_file, tmp_path)
    assert hashes(tmp_path) == hashes(finished[0])


def test_slices_change_nothing(finished: tuple[Path, dict[str, Any]], chain_file: Path, tmp_path: Path) -> None:
    """No statistics of a batch are in the networks. After few steps, before rounding has had time to grow."""
    few = ["stages.first.epochs=2", "stages.second.epochs=2"]
    run(chain_file, tmp_path / "whole", *few)
    run(chain_file, tmp_path / "slices", *few, "stages.first.micro_batch_size=7", "stages.second.micro_batch_size=7")
    whole, slices = Space.load(tmp_path / "whole"), Space.load(tmp_path / "slices")
    for name, cells in {"location": [(3, 4), (90, -60)], "map": [(3, 4)], "climate": [[16, None, 3, 0]]}.items():
        torch.testing.assert_close(whole.embed(name, cells), slices.embed(name, cells), atol=1e-4, rtol=0)


def test_a_column_for_each_variable(finished: tuple[Path, dict[str, Any]], chain_file: Path, tmp_path: Path) -> None:
    """As people have it: a CSV file with empty cells. The same networks come of it as of a column of lists."""
    document = yaml.safe_load(chain_file.read_text())
    variables = document["modalities"]["climate"]["variables"]
    table = parquet.read_table(chain_file.parent / "survey.parquet")
    for variable, values in zip(variables, zip(*table["climate"].to_pylist(), strict=True), strict=True):
        table = table.append_column(variable, pa.array(values, pa.float32()))
    csv.write_csv(table.drop_columns(["climate"]), tmp_path / "survey.csv")
    assert ",," in (tmp_path / "survey.csv").read_text()
    document["data"]["survey"] |= {"path": "survey.csv"}
    document["data"]["survey"]["fields"]["climate"] = variables
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    run(tmp_path / "chain.yaml", tmp_path / "run")
    assert hashes(tmp_path / "run") == hashes(finished[0])
