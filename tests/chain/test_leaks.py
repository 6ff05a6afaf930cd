"""Held-out places beside training places, and files that are in both, are found before a run."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from rich.console import Console

from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.datasets import DataSets
from geobind_core.chain.execute import run_chain
from geobind_core.chain.leaks import check_leaks
from geobind_core.chain.resolve import load_chain
from geobind_core.chain.run_folder import RunFolder
from geobind_core.data import leaks
from geobind_core.errors import DataError
from geobind_core.progress import Reporter

METRES = 360 / 40_030_228.9  # degrees of latitude


class Survey:
    """The world of the tests, with coordinates: 20 places for training and 4 held out, 100 km from each other."""

    def __init__(self, world: Any, clip_architecture: dict[str, Any]) -> None:
        self.folder: Path = world.folder
        self.rows: list[dict[str, Any]] = [dict(row) for row in world.rows]
        for i, row in enumerate(self.rows):
            row["longitude"], row["latitude"] = 10.0, -40.0 + i * 100_000 * METRES
        self.model = clip_architecture

    @property
    def training(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["split"] == "train"]

    @property
    def held_out(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["split"] == "test"]

    def write(self, **settings: Any) -> Path:
        with (self.folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        chain = {
            "binding": "satellite",
            "modalities": {"satellite": {"model": self.model}, "ground_image": {"model": self.model}},
            "data": {"survey": {"source": "table", "path": "table.csv", "split": {"by": "column", "column": "split"}}},
            "stages": [{"name": "one", "train": ["satellite", "ground_image"], "anchor": [], "data": "survey"}],
            **settings,
        }
        path = self.folder / "chain.yaml"
        path.write_text(yaml.safe_dump(chain), encoding="utf-8")
        return path

    def check(self, **settings: Any) -> str:
        chain, said = load_chain(self.write(**settings), plugin_manager()), io.StringIO()
        reporter = Reporter(Console(file=said, width=1000))
        datasets = DataSets(chain, reporter)
        datasets.open("survey")
        check_leaks(chain, datasets, ["survey"], reporter)
        return said.getvalue()


@pytest.fixture
def survey(own_world: Any, clip_architecture: dict[str, Any]) -> Survey:
    return Survey(own_world, clip_architecture)


def test_a_clean_split_says_nothing(survey: Survey) -> None:
    assert survey.check(strict_splits=True) == ""


def test_copies_50_m_away_are_counted(survey: Survey) -> None:
    for held_out, train in zip(survey.held_out[:3], survey.training, strict=False):
        held_out |= {"longitude": train["longitude"] - 360 + 360, "latitude": train["latitude"] + 50 * METRES}
    survey.held_out[3]["longitude"] = "unknown"
    said = survey.check()
    assert "3 of 3 held-out places are less than 1 km from a training place, the nearest 50 m" in said
    with pytest.raises(DataError, match="3 of 3 held-out places"):
        survey.check(strict_splits=True)
    assert survey.check(split_distance_km=0.04, strict_splits=True) == ""
    assert survey.check(split_distance_km=0, strict_splits=True) == ""


def test_blocks_with_a_buffer_are_what_the_warning_advises(survey: Survey) -> None:
    rng = np.random.default_rng(0)
    for row in survey.rows:
        row["longitude"], row["latitude"] = 10 + 0.02 * rng.random(), 50 + 0.02 * rng.random()
    data = {"source": "table", "path": "table.csv"}
    split = {"test": 0.3, "block_km": 0.5}
    near = survey.check(data={"survey": {**data, "split": {"by": "blocks", **split}}})
    assert "held-out places are less than 1 km" in near
    away = {"survey": {**data, "split": {"by": "blocks", **split, "buffer_km": 1}}}
    assert survey.check(data=away, strict_splits=True) == ""


def test_an_identical_file_under_another_name_is_an_error(survey: Survey) -> None:
    copied, train = survey.held_out[1], survey.training[7]
    shutil.copyfile(survey.folder / train["ground_image"], survey.folder / copied["ground_image"])
    expected = f"1 held-out files of 'ground_image' are training files as well: '{copied['key']}' is '{train['key']}'."
    with pytest.raises(DataError) as raised:
        survey.check()
    assert expected in str(raised.value)
    assert "identical_files: warn" in str(raised.value)
    assert expected in survey.check(identical_files="warn")
    assert survey.check(identical_files="off") == ""


def test_equal_beginnings_and_sizes_are_not_enough(survey: Survey) -> None:
    original = (survey.folder / survey.training[0]["satellite"]).read_bytes()
    content = bytearray(original + bytes(40_000))
    (survey.folder / survey.training[0]["satellite"]).write_bytes(content)
    content[-1] = 1
    (survey.folder / survey.held_out[0]["satellite"]).write_bytes(content)
    assert survey.check() == ""
    content[-1] = 0
    (survey.folder / survey.held_out[0]["satellite"]).write_bytes(content)
    with pytest.raises(DataError, match="1 held-out files of 'satellite'"):
        survey.check()


def test_files_in_a_table_are_compared_too(survey: Survey) -> None:
    columns: dict[str, list[Any]] = {name: [row[name] for row in survey.rows] for name in ("key", "split")}
    for name in ("satellite", "ground_image"):
        columns[name] = [(survey.folder / row[name]).read_bytes() for row in survey.rows]
    columns["satellite"][-1] = columns["satellite"][3]
    columns["ground_image"][-2] = None
    pa.parquet.write_table(pa.table(columns), survey.folder / "table.parquet")
    data = {"source": "table", "path": "table.parquet", "split": {"by": "column", "column": "split"}}
    with pytest.raises(DataError, match="1 held-out files of 'satellite' are training files as well: '023' is '003'"):
        survey.check(data={"survey": data})


def test_missing_files_are_left_to_the_reader(survey: Survey) -> None:
    for row in (survey.training[0], survey.held_out[0]):
        (survey.folder / row["satellite"]).unlink()
    assert survey.check() == ""


def test_of_very_many_files_some_are_compared(survey: Survey, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in survey.rows:  # all of one size
        path = survey.folder / row["satellite"]
        path.write_bytes(path.read_bytes().ljust(5000, b"\0"))
    shutil.copyfile(survey.folder / survey.training[0]["satellite"], survey.folder / survey.held_out[0]["satellite"])
    monkeypatch.setattr(leaks, "_MOST_READ", 23)
    part = [np.array([i for i, row in enumerate(survey.rows) if row["split"] == s]) for s in ("train", "test")]
    chain = load_chain(survey.write(), plugin_manager())
    data = DataSets(chain, Reporter(quiet=True)).open("survey")
    found = leaks.same_files("satellite", leaks.Part(data, part[1]), [leaks.Part(data, part[0])])
    assert found.files == 4
    assert found.checked == 3


def test_a_run_stops_before_it_trains(survey: Survey) -> None:
    shutil.copyfile(survey.folder / survey.training[0]["satellite"], survey.folder / survey.held_out[0]["satellite"])
    out = survey.folder / "run"
    with pytest.raises(DataError, match="are training files as well"):
        run_chain(load_chain(survey.write(), plugin_manager()), RunFolder(out), Reporter(quiet=True))
    assert not (out / "stages").exists()
