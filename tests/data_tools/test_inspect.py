"""`geobind data inspect`: what it counts, what it finds, what it refuses."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from geobind_core.data_tools.duplicates import find_duplicates

FIELDS = ("--field", "satellite=satellite", "--field", "audio=audio", "--field", "text=text")


def inspected(geobind: Any, *arguments: str) -> dict[str, Any]:
    done = geobind("data", "inspect", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class TestWhole:
    def test_a_data_set_of_a_chain(self, geobind: Any, own_world: Any) -> None:
        found = inspected(geobind, "chain.yaml", "--data", "world")
        assert (found["data"], found["source"], found["rows"]) == ("world", "table", 24)
        assert found["splits"] == {"train": 20, "validation": 0, "test": 4, "none": 0}
        assert set(found["fields"]) == {"satellite", "audio", "caption"}
        satellite = found["fields"]["satellite"]
        assert satellite["columns"] == ["satellite"]
        assert satellite["filled"] == 24
        assert satellite["missing"] == satellite["broken"] == {"checked": 24, "found": 0, "examples": []}
        sizes = [(own_world.folder / row["satellite"]).stat().st_size for row in own_world.rows]
        assert satellite["file_bytes"] == {"min": min(sizes), "median": np.median(sizes), "max": max(sizes)}
        assert satellite["ranges"]["width"] == {"min": 40, "median": 40, "max": 40}
        assert satellite["counts"]["format"] == {"JPEG": 24}
        assert found["fields"]["audio"]["ranges"]["sample_rate"]["median"] == 16_000
        assert found["fields"]["caption"]["duplicates"]["distinct"] == 24
        assert (found["findings"], found["extent"]) == ([], None)

    def test_a_table_by_itself_goes_by_the_names_of_its_columns(self, geobind: Any, own_world: Any) -> None:
        found = inspected(geobind, "world/table.csv")
        assert set(found["fields"]) == {"satellite", "ground_image", "audio", "text"}
        assert set(found["unread"]) == {"label", "split"}
        assert found["splits"]["test"] == 4

    def test_for_people(self, geobind: Any, own_world: Any) -> None:
        (own_world.folder / own_world.rows[7]["satellite"]).unlink()
        done = geobind("data", "inspect", "world/table.csv", *FIELDS)
        assert done.returncode == 0
        lines = done.stdout.splitlines()
        assert lines[0] == "table (table): 24 rows (train 20, test 4)"
        (line,) = [line for line in lines if line.split()[:1] == ["satellite"]]
        assert line.split()[1:5] == ["satellite", "24", "1", "0"]
        assert f"! satellite: 1 of 24 files are missing, such as 007: {own_world.rows[7]['satellite']}" in lines


class TestFound:
    def test_missing_broken_and_empty(self, geobind: Any, own_world: Any) -> None:
        files = [own_world.folder / row["satellite"] for row in own_world.rows]
        files[3].unlink()
        files[4].write_bytes(files[4].read_bytes()[:300])
        files[5].write_bytes(b"")
        table = own_world.table.read_text().replace(own_world.rows[6]["satellite"], "")
        own_world.table.write_text(table)
        satellite = inspected(geobind, "world/table.csv", *FIELDS)["fields"]["satellite"]
        assert satellite["filled"] == 23
        assert (satellite["missing"]["checked"], satellite["missing"]["found"]) == (23, 1)
        assert satellite["missing"]["examples"] == [f"003: {own_world.rows[3]['satellite']}"]
        assert (satellite["broken"]["checked"], satellite["broken"]["found"]) == (22, 2)
        assert [example[:4] for example in satellite["broken"]["examples"]] == ["004:", "005:"]

    def test_a_recording_whose_header_is_well(self, geobind: Any, own_world: Any) -> None:
        file = own_world.folder / own_world.rows[8]["audio"]
        file.write_bytes(file.read_bytes()[:120])
        audio = inspected(geobind, "world/table.csv", *FIELDS)["fields"]["audio"]
        assert [example[:4] for example in audio["broken"]["examples"]] == ["008:"]

    def test_duplicates(self, geobind: Any, own_world: Any) -> None:
        rows, folder = own_world.rows, own_world.folder
        shutil.copy(folder / rows[1]["satellite"], folder / rows[2]["satellite"])
        shutil.copy(folder / rows[1]["satellite"], folder / rows[9]["satellite"])
        # As long as another, and not the same.
        same_size = bytearray((folder / rows[1]["satellite"]).read_bytes())
        same_size[-3] ^= 1
        (folder / rows[10]["satellite"]).write_bytes(same_size)
        own_world.table.write_text(own_world.table.read_text().replace(rows[20]["satellite"], rows[21]["satellite"]))
        found = inspected(geobind, "world/table.csv", *FIELDS)
        duplicates = found["fields"]["satellite"]["duplicates"]
        assert (duplicates["distinct"], duplicates["repeated"], duplicates["redundant"]) == (23, 1, 2)
        assert duplicates["identical"] == [[rows[i]["satellite"] for i in (1, 2, 9)]]
        assert len(found["findings"]) == 2

    def test_large_files_that_begin_alike(self, tmp_path: Path) -> None:
        contents = [b"\0" * 200_000 + bytes([i]) for i in (1, 2, 1)]
        for i, content in enumerate(contents):
            (tmp_path / str(i)).write_bytes(content)
        sizes = {tmp_path / str(i): len(content) for i, content in enumerate(contents)}
        found = find_duplicates(None, sizes, root=tmp_path, everything=True, seed=0)
        assert (found.compared, found.identical, found.redundant) == (3, [["0", "2"]], 1)

    @pytest.mark.parametrize(
        ("longitudes", "west", "east"), [((10, 20, 30), 10, 30), ((175, -175, 179), 175, -175), ((350, 10, 5), -10, 10)]
    )
    def test_extent(self, geobind: Any, own_world: Any, longitudes: Any, west: float, east: float) -> None:
        table = pa.table(
            {
                "satellite": [own_world.rows[i]["satellite"] for i in range(5)],
                "lon": [*map(float, longitudes), float("nan"), 0.0],
                "lat": [1.0, 2.0, 3.0, 4.0, 95.0],
            }
        )
        pyarrow.parquet.write_table(table, own_world.folder / "places.parquet")
        found = inspected(geobind, "world/places.parquet")
        assert found["extent"] == {"west": west, "south": 1, "east": east, "north": 3, "without": 2}
        assert found["findings"] == ["2 rows have no usable coordinates"]
        pyarrow.parquet.write_table(table[:4], own_world.folder / "places.parquet")
        assert inspected(geobind, "world/places.parquet")["findings"] == ["1 row has no usable coordinates"]

    def test_a_folder_with_one_table(self, geobind: Any, own_world: Any) -> None:
        assert inspected(geobind, "world") == {**inspected(geobind, "world/table.csv"), "data": "world"}

    def test_texts_are_no_files(self, geobind: Any, tmp_path: Path) -> None:
        table = pa.table({"text": [f"word {i % 3}" for i in range(9)], "note": ["x"] * 9})
        pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
        found = inspected(geobind, "t.parquet")
        assert found["fields"]["text"]["missing"] is None
        assert found["fields"]["text"]["duplicates"]["distinct"] == 3


class TestSampling:
    def test_reads_so_many_at_random_and_says_so(self, geobind: Any, own_world: Any) -> None:
        for row in own_world.rows[:12]:
            (own_world.folder / row["satellite"]).write_bytes(b"no image")
        keys = {}
        for seed in ("0", "0", "1"):
            broken = inspected(geobind, "world/table.csv", *FIELDS, "--check", "6", "--seed", seed)["fields"][
                "satellite"
            ]
            assert broken["broken"]["checked"] == 6
            assert broken["missing"]["checked"] == 24
            keys.setdefault(seed, []).append(broken["broken"]["examples"])
        assert keys["0"][0] == keys["0"][1] != keys["1"][0]
        text = geobind("data", "inspect", "world/table.csv", *FIELDS, "--check", "6").stdout
        assert "of 6 " in text
        assert "--check all" in text

    def test_all(self, geobind: Any, own_world: Any) -> None:
        found = inspected(geobind, "world/table.csv", *FIELDS, "--check", "all")
        assert found["fields"]["satellite"]["broken"]["checked"] == 24

    def test_a_large_table_takes_seconds(self, geobind: Any, tmp_path: Path) -> None:
        """300,000 rows; looking at every file would take many times as long."""
        Image.new("RGB", (8, 8)).save(tmp_path / "tile.jpg")
        names = ["tile.jpg", *(f"none/{i}.jpg" for i in range(299_999))]
        table = pa.table({"satellite": names, "text": [f"text {i}" for i in range(300_000)]})
        pyarrow.parquet.write_table(table, tmp_path / "large.parquet")
        geobind("data", "inspect", "large.parquet", "--field", "text=text")  # imports
        started = time.perf_counter()
        done = geobind("data", "inspect", "large.parquet", "--json")
        assert time.perf_counter() - started < 30
        found = json.loads(done.stdout)["fields"]["satellite"]
        assert found["missing"]["checked"] == 20_000
        assert found["filled"] == found["duplicates"]["distinct"] == 300_000


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("world/nothing.csv",), ("no such table",)),
            (("world/table.csv", "--field", "sattelite=satellite"), ("no modality 'sattelite'", "satellite'?")),
            (("world/table.csv", "--field", "satellite=tile"), ("no column 'tile'", "satellite")),
            (("world/table.csv", "--field", "satellite"), ("--field satellite", "expected MODALITY=COLUMN")),
            (("world/table.csv", "--set", "rooot=x"), ("--set rooot=x", "unknown key", "'root'?")),
            (("world/table.csv", "--data", "world"), ("--data", "is no chain")),
            (("world/table.csv", "--check", "0"), ("--check", "expected a number")),
            (("world/table.csv", "--sheet", "x.jpg"), ("--sheet", ".png")),
            (("chain.yaml",), ("--data: say which data set. Available: other, world.",)),
            (("world/table.csv", "--field", "environment=label"), ("does not work: 'variables' is required",)),
            (("chain.yaml", "--data", "word"), ("no data set 'word'", "'world'?")),
            (("chain.yaml", "--field", "satellite=x"), ("--field", "a chain says itself")),
            (("chain.yaml", "--data", "other"), ("other.csv", "no such table")),
            (("nowhere.yaml",), ("nowhere.yaml",)),
            (("world/names.csv",), ("no modality is called", "--field")),
            (("world/twice.csv",), ("keys are given more than once", "1")),
        ],
    )
    def test_input_that_is_at_fault(self, geobind: Any, own_world: Any, arguments: Any, words: Any) -> None:
        (own_world.folder / "names.csv").write_text("a,b\n1,2\n")
        (own_world.folder / "twice.csv").write_text("key,text\n1,a\n1,b\n")
        done = geobind("data", "inspect", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        for word in words:
            assert word in done.stderr

    def test_data_of_which_nothing_can_be_used(self, geobind: Any, own_world: Any) -> None:
        shutil.rmtree(own_world.folder / "images")
        done = geobind("data", "inspect", "world/table.csv", *FIELDS)
        assert done.returncode == 2
        assert "24 of 24 files are missing" in done.stdout
        assert "error: data.table: there is nothing that can be read for satellite." in done.stderr
