"""`geobind data synth`: a table with files that a chain can use as it is printed."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.resolve import load_chain
from geobind_core.data.paired import PairedData

SMALL = ("--places", "6", "--held-out", "2", "--set", "seconds=0.2", "--set", "satellite_pixels=32")


def test_what_is_printed_is_a_data_set_of_a_chain(geobind: Any, tmp_path: Path) -> None:
    done = geobind("data", "synth", "planet", *SMALL)
    assert done.returncode == 0, done.stderr
    settings = yaml.safe_load(done.stdout.partition("\n\n")[2])["data"]["planet"]
    chain = yaml.safe_load((tmp_path / "chain.yaml").read_text())
    for name in ("fields", "labels"):
        settings[name] = {field: column for field, column in settings[name].items() if field in chain["modalities"]}
    settings["fields"]["caption"] = "text"
    chain["data"] = {"world": settings}
    (tmp_path / "planet.yaml").write_text(yaml.safe_dump(chain))
    loaded = load_chain(tmp_path / "planet.yaml", plugin_manager())
    source = loaded.sources["world"]
    data = PairedData("world", source.observations(), source.config)
    assert (data.count("train"), data.count("test")) == (4, 2)
    for name, known in loaded.modalities.items():
        known.modality.read(data.cell(name, 5, is_file=known.modality.reads_files))


def test_again_and_with_another_seed(geobind: Any, tmp_path: Path) -> None:
    first = geobind("data", "synth", "planet", *SMALL, "--json")
    changed = (tmp_path / "planet/table.parquet").stat().st_mtime_ns
    second = geobind("data", "synth", "planet", *SMALL, "--json")
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert json.loads(first.stdout)["path"] == "planet/table.parquet"
    other = geobind("data", "synth", "planet", *SMALL, "--seed", "1")
    assert other.returncode == 2
    assert "there is another synthetic Earth already" in other.stderr
    assert (tmp_path / "planet/table.parquet").stat().st_mtime_ns == changed
    assert {path.name for path in tmp_path.iterdir()} == {"planet", "chain.yaml"}


def test_a_fifth_is_held_out(geobind: Any, tmp_path: Path) -> None:
    geobind("data", "synth", "planet", "--places", "10", *SMALL[4:])
    assert pyarrow.parquet.read_table(tmp_path / "planet/table.parquet")["split"].to_pylist().count("test") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("chain.yaml",), ("chain.yaml: there is something else already",)),
        ((".",), ("there is something else already",)),
        (("planet", "--places", "3", "--held-out", "3"), ("held_out: 3 leaves nothing to train on",)),
        (("planet", "--set", "pixels=3"), ("unknown key 'pixels'", "ground_pixels")),
        (("chain.yaml/planet",), ("cannot be written",)),
        (
            ("planet", "--disable-plugin", "geobind-plugin-synthetic-earth"),
            ("'synthetic_earth'", "geobind-plugin-synthetic-earth", "disabled"),
        ),
    ],
)
def test_input_that_is_at_fault(
    geobind: Any, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    done = geobind("data", "synth", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "planet").exists()
