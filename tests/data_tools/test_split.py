"""`geobind data split`: a table with a column more."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from geobind_core.cli.verbs import app
from geobind_core.data.geography import Places, nearest_km
from geobind_core.errors import GeoBindError

ROWS = 400


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "places.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "lon", "lat", "code", "note"])
        for i in range(ROWS):
            place = (179.5 + rng.normal(0, 0.5) + 180) % 360 - 180, -17 + rng.normal(0, 0.5)
            writer.writerow([f"{i:04d}", *(f"{value:.5f}" for value in place), f"{i % 7:03d}", f'a "note", {i}'])
    return path


def split(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["data", "split", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_blocks_with_a_buffer(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    said = split(table, out, "--by", "blocks", "--block-km", "20", "--buffer-km", "3", "--test", "0.3")
    written = rows(out)
    assert [{k: v for k, v in row.items() if k != "split"} for row in written] == rows(table), "the rest as it was"
    parts = {name: [r for r in written if r["split"] == name] for name in ("train", "test", "")}
    assert all(parts.values())
    train, test = (Places.of(*zip(*((r["lon"], r["lat"]) for r in parts[n]), strict=True)) for n in ("train", "test"))
    distance = nearest_km(test, train).min()
    assert distance >= 3
    assert f"train {len(parts['train'])}, validation 0, test {len(parts['test'])}, in no split {len(parts[''])}" in said
    assert f"{distance:.3g} km apart" in said
    assert "split: {by: column, column: split}" in said


def test_hash_as_json_into_parquet(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    options = ["--test", "0.25", "--validation", "0.25", "--seed", "4", "--column", "part"]
    found = json.loads(split(table, out, *options, "--json"))
    column = pyarrow.parquet.read_table(out)["part"].to_pylist()
    assert found["rows"] == {name: column.count(name) for name in ("train", "validation", "test")} | {"none": 0}
    assert 0.4 < found["rows"]["train"] / ROWS < 0.6
    again = json.loads(split(table, tmp_path / "again.parquet", *options, "--json"))
    assert again == found


def test_a_geoparquet_file_stays_one(table: Path, tmp_path: Path) -> None:
    frame = geopandas.read_file(table)
    points = geopandas.points_from_xy(frame.lon.astype(float), frame.lat.astype(float), crs=4326)
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    geopandas.GeoDataFrame(frame[["key"]], geometry=points).to_crs(3857).to_parquet(source)
    split(source, out, "--by", "blocks", "--block-km", "30")
    written = geopandas.read_parquet(out)
    assert written.crs == 3857
    assert set(written["split"]) == {"train", "test"}


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("out.csv", ["--by", "blcks"], "Did you mean 'blocks'?"),
        ("out.csv", ["--test", "0.8", "--validation", "0.5"], "leave nothing to train on"),
        ("out.csv", ["--column", "code"], "there is a column 'code' already"),
        ("out.csv", ["--by", "blocks", "--set", "longitude=x"], "no column 'x'"),
        (
            "out.csv",
            ["--by", "blocks", "--set", "longitude=note", "--set", "latitude=note"],
            "no row has usable coordinates",
        ),
        ("out.csv.gz", [], "written uncompressed"),
        ("out.txt.doc", [], "expected a table"),
        ("no/such/folder/out.csv", [], "cannot be written"),
    ],
)
def test_bad_input_writes_nothing(table: Path, tmp_path: Path, out: str, options: list[str], message: str) -> None:
    before = table.read_bytes()
    with pytest.raises(GeoBindError) as raised:
        split(table, tmp_path / out, *options)
    assert message in str(raised.value)
    assert raised.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["places.csv"]
    assert table.read_bytes() == before


def test_over_itself(table: Path) -> None:
    before: Any = rows(table)
    split(table, table)
    assert [{k: v for k, v in row.items() if k != "split"} for row in rows(table)] == before
