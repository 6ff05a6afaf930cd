"""The benchmarks run, with tiny sizes, and write what they say they write; how fast anything is, is not tested."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FIGURES = {
    "overhead": 2,
    "two_pass": 2,
    "tiled_infonce": 4,
    "anchor_cache": 3,
    "open_clip_train": 2,
    "audio": 4,
    "images": 8,
    "shards": 5,
    "large_table": 4,
    "location": 3,
    "ranks": 5,
    "search": 8,
    "zero_shot_map": 21,
    "gpu_stage_1": 2,
    "gpu_stage_2": 2,
}


def benchmarks(file: Path, *arguments: str) -> dict[str, Any]:
    """Returns the JSON of a rehearsal."""
    command = [sys.executable, "-m", "tests.benchmarks", "--quick", "--json", str(file), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "GeoBind benchmarks" in done.stdout
    report: dict[str, Any] = json.loads(file.read_text())
    assert report["broken"] == {}
    return report


@pytest.fixture(
    scope="module", params=[("overhead", "two_pass", "gpu_stage_1"), pytest.param((), marks=pytest.mark.slow)]
)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of some benchmarks, and of all."""
    only = ["--only", *request.param] if request.param else []
    return benchmarks(tmp_path_factory.mktemp("benchmarks") / "report.json", *only)


def test_every_benchmark_has_its_figures(report: dict[str, Any]) -> None:
    rows = [row["benchmark"] for row in report["rows"]]
    names = report["seconds"]
    assert len(names) in (3, len(FIGURES))
    assert {name: rows.count(name) for name in names} == {name: FIGURES[name] for name in names}


def test_figures_are_numbers_with_their_timings(report: dict[str, Any]) -> None:
    for row in report["rows"]:
        assert row["met"] in (None, True, False)
        assert all(isinstance(value, float) for values in row["raw"].values() for value in values)
        if not row["benchmark"].startswith("gpu"):
            assert row["ours"] >= 0 or row["figure"].startswith("rank correlation")
            assert row["peer_name"] or row["peer"] is None


def test_a_rehearsal_is_not_passed_off_as_a_measurement(report: dict[str, Any]) -> None:
    for row in report["rows"]:
        if row["benchmark"].startswith("gpu"):
            assert (row["ours"], row["met"]) == (None, None)
            assert "rehearsed" in row["note"]


def test_what_should_not_depend_on_the_machine_is_met(report: dict[str, Any]) -> None:
    wanted = ("difference of the gradients", "difference of the loss curves", "kept for the backward pass")
    rows = [row for row in report["rows"] if row["figure"].endswith(wanted)]
    assert rows
    assert all(row["met"] for row in rows)


def test_the_machine_is_named(report: dict[str, Any]) -> None:
    assert {"cpu", "cores", "threads", "device", "torch", "open_clip_torch"} <= set(report["machine"])
