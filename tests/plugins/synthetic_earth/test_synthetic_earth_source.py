"""The data set on disk: whole, the same every time, drawn once."""

import hashlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import soundfile
from geobind_plugin_synthetic_earth import geobind_register_sources
from geobind_plugin_synthetic_earth.scene import COVERS
from geobind_plugin_synthetic_earth.source import SyntheticEarth, SyntheticEarthConfig
from PIL import Image
from pydantic import ValidationError

from geobind_core import DataError, Observations

MakeEarth = Callable[..., SyntheticEarth]


def quiet(done: int, total: int, text: str) -> None:
    """Progress that nobody looks at."""


def cells(observations: Observations, column: str) -> list[Any]:
    return list(observations.table[column].to_pylist())


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_hook_registers_the_source() -> None:
    assert geobind_register_sources() == [SyntheticEarth]
    assert SyntheticEarth.name == "synthetic_earth"


def test_every_field_has_its_column_and_every_file_is_there(earth: SyntheticEarth) -> None:
    observations = earth.observations()
    assert set(observations.fields) >= set(earth.default_fields)
    columns = set(observations.table.column_names)
    for field in observations.fields.values():
        assert {field} <= columns if isinstance(field, str) else set(field) <= columns
    for name in ("satellite", "ground_image", "audio"):
        for path in cells(observations, name):
            assert not Path(path).is_absolute()
            assert (observations.root / path).is_file()
    assert len(set(observations.table["key"].to_pylist())) == 24


def test_table_has_the_promised_types(earth: SyntheticEarth) -> None:
    observations = earth.observations()
    table = observations.table
    types = {field.name: str(field.type) for field in table.schema}
    assert types["longitude"] == types["latitude"] == "double"
    assert types["time"] == "timestamp[ms, tz=UTC]"
    assert types["environment"].startswith("fixed_size_list<")
    metadata = table.schema.field("environment").metadata
    assert metadata is not None
    names = json.loads(metadata[b"names"])
    assert names[:2] == ["elevation", "temperature"]
    assert len(names) == len(table["environment"][0].as_py())
    assert all(-180 <= value <= 180 for value in cells(observations, "longitude"))
    assert all(-90 <= value <= 90 for value in cells(observations, "latitude"))


@pytest.mark.parametrize("held_out", [0, 5, 23])
def test_held_out_places_are_counted(make_earth: MakeEarth, tmp_path: Path, held_out: int) -> None:
    from geobind_plugin_synthetic_earth.tables import split_of_places

    settings = make_earth(tmp_path, held_out=held_out).config.settings()
    splits = split_of_places(settings)
    assert splits.count("test") == held_out
    assert splits.count("train") == 24 - held_out


def test_nothing_left_to_train_on_is_refused(make_earth: MakeEarth, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="nothing to train on"):
        make_earth(tmp_path, held_out=24)


def test_sizes_are_as_asked(make_earth: MakeEarth, tmp_path: Path) -> None:
    source = make_earth(
        tmp_path,
        places=2,
        held_out=1,
        satellite_pixels=96,
        ground_pixels=33,
        sample_rate=8000,
        seconds=0.5,
    )
    source.prepare(quiet)
    observations = source.observations()
    row = observations.table.to_pylist()[0]
    with Image.open(observations.root / row["satellite"]) as tile:
        assert (tile.format, tile.size, tile.mode) == ("JPEG", (96, 96), "RGB")
    with Image.open(observations.root / row["ground_image"]) as photo:
        assert photo.size == (33, 33)
    samples, rate = soundfile.read(observations.root / row["audio"])
    assert (samples.shape, rate) == ((4000,), 8000)
    assert soundfile.info(observations.root / row["audio"]).subtype == "PCM_16"


def test_files_do_not_depend_on_the_number_of_processes(
    make_earth: MakeEarth, tmp_path: Path, earth: SyntheticEarth
) -> None:
    shared = make_earth(tmp_path, places=44, workers=2)
    alone = make_earth(tmp_path / "alone", places=44, workers=1)
    shared.prepare(quiet)
    alone.prepare(quiet)
    assert digests(shared.folder()) == digests(alone.folder())


def test_first_places_of_a_larger_set_are_those_of_a_smaller(
    make_earth: MakeEarth, tmp_path: Path, earth: SyntheticEarth
) -> None:
    more = make_earth(tmp_path, places=30, workers=1)
    more.prepare(quiet)
    small, large = earth.observations(), more.observations()
    for name in ("longitude", "text"):
        assert large.table[name].to_pylist()[:24] == small.table[name].to_pylist()
    path = small.table["satellite"][7].as_py()
    assert (small.root / path).read_bytes() == (large.root / path).read_bytes()


def test_another_seed_is_another_planet(make_earth: MakeEarth, tmp_path: Path, earth: SyntheticEarth) -> None:
    other = make_earth(tmp_path, seed=1)
    assert other.fingerprint() != earth.fingerprint()
    other.prepare(quiet)
    assert other.observations().table["text"] != earth.observations().table["text"]


def test_fingerprint_knows_content_and_not_place(make_earth: MakeEarth, tmp_path: Path, earth: SyntheticEarth) -> None:
    assert make_earth(tmp_path, workers=7).fingerprint() == earth.fingerprint()
    assert make_earth(tmp_path, ground_pixels=128).fingerprint() != earth.fingerprint()
    assert not any(tmp_path.iterdir())


def test_second_prepare_writes_nothing(earth: SyntheticEarth) -> None:
    before = {path: path.stat().st_mtime_ns for path in earth.folder().rglob("*")}
    earth.prepare(lambda *_: pytest.fail("drawn twice"))
    assert {path: path.stat().st_mtime_ns for path in earth.folder().rglob("*")} == before


def test_what_a_killed_run_leaves_is_removed(make_earth: MakeEarth, tmp_path: Path) -> None:
    source = make_earth(tmp_path, places=3, held_out=1)
    partial = source.folder().with_name(f"{source.folder().name}.partial")
    (partial / "satellite").mkdir(parents=True)
    (partial / "satellite" / "place-000099.jpg").write_bytes(b"half a file")
    source.prepare(quiet)
    assert not partial.exists()
    assert not (source.folder() / "satellite" / "place-000099.jpg").exists()
    assert source.observations().table.num_rows == 3


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX signals")
def test_kill_leaves_no_data_set_behind(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from geobind_plugin_synthetic_earth.source import *\n"
        "config = SyntheticEarthConfig(source='x', places=4000, root=sys.argv[1])\n"
        "SyntheticEarth(config, Path('.')).prepare(lambda *state: print(*state, flush=True))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    process.stdout.readline()  # some places are there
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    folders = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    assert len(folders) == 1
    assert folders[0].endswith(".partial")

    def places() -> int:
        return len(list((tmp_path / folders[0] / "audio").iterdir()))

    deadline = time.monotonic() + 20
    while True:  # the processes that drew for it end by themselves
        count = places()
        time.sleep(0.5)
        if places() == count:
            break
        assert time.monotonic() < deadline, "somebody goes on drawing"
    assert count < 4000


def test_folder_that_cannot_be_written_is_explained(make_earth: MakeEarth, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    source = make_earth(tmp_path / "file" / "below")
    with pytest.raises(DataError, match="cannot write") as caught:
        source.prepare(quiet)
    assert "root" in caught.value.hint


def test_reading_before_drawing_is_explained(make_earth: MakeEarth, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has not been drawn"):
        make_earth(tmp_path).observations()


def test_truth_is_complete_and_apart(earth: SyntheticEarth) -> None:
    truth = parquet.read_table(earth.folder() / "truth.parquet")
    shares = np.stack([truth[cover].to_numpy() for cover in COVERS], axis=1)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    assert truth["key"].to_pylist() == earth.observations().table["key"].to_pylist()
    # Training reads what observations() returns, and nothing of the truth is in it.
    assert "truth" not in inspect.getsource(SyntheticEarth.observations)
    assert not set(COVERS) & set(earth.observations().table.column_names)


def test_land_cover_is_the_largest_and_no_modality(earth: SyntheticEarth) -> None:
    truth = parquet.read_table(earth.folder() / "truth.parquet")
    largest = np.stack([truth[cover].to_numpy() for cover in COVERS], axis=1).argmax(axis=1)
    observations = earth.observations()
    assert cells(observations, "land_cover") == [COVERS[number] for number in largest]
    assert "land_cover" not in str(observations.fields)
    assert "land_cover" not in earth.default_fields


def test_settings_are_named_in_the_schema() -> None:
    properties = SyntheticEarthConfig.model_json_schema()["properties"]
    assert all("description" in properties[name] for name in ("places", "held_out", "root", "seed"))


def test_importing_the_plugin_is_cheap() -> None:
    program = (
        "import sys, geobind_plugin_synthetic_earth as plugin\n"
        "plugin.geobind_register_sources()\n"
        "print([name for name in ('torch', 'PIL', 'soundfile', 'pyarrow') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
