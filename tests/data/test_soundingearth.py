"""The published layout of SoundingEarth, with real MP3 and JPEG files."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from geobind_plugin_audio.audio import Audio
from geobind_plugin_imagery.images import Satellite
from PIL import Image

from geobind_core.data.paired import PairedData
from geobind_core.data.samples import BadSample, SampleReader
from geobind_core.data.soundingearth import SoundingEarth, SoundingEarthConfig
from geobind_core.errors import DataError

COLUMNS = [
    "long_key", "key", "longitude", "latitude", "altitude", "description", "date_recorded", "date_uploaded", "creator",
    "licenseurl", "title", "mp3name", "mp3mb", "mp3seconds", "mp3channels", "mp3bitrate", "mp3samplerate", "mp3file",
]  # fmt: skip
COUNT = 20

pytestmark = pytest.mark.usefixtures("one_thread")


def write(root: Path, count: int = COUNT, **changes: Any) -> Path:
    """Writes the data set; even rows keep their recording under `mp3name`, odd ones under the key."""
    (root / "images").mkdir(parents=True)
    (root / "audio").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        name = f"aporee_{i}_sound"
        row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
        row |= {
            "long_key": f"aporee_{i}_{100 + i}",
            "key": str(100 + i),
            "longitude": round(-180 + 17.3 * i, 4),
            "latitude": round(-60 + 5.9 * i, 4),
            "description": f'Rain, "thunder"\nand {i} frogs ' if i != 3 else "",
            "date_recorded": "2012-03-04",
            "mp3name": name,
            "mp3seconds": 0.3,
            "mp3channels": 2,
            "mp3samplerate": 44_100,
            **{key: value(i) for key, value in changes.items()},
        }
        rows.append(row)
        tile = rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)
        Image.fromarray(tile).save(root / "images" / f"{100 + i}.jpg")
        file = f"{name}.mp3" if i % 2 == 0 else f"{100 + i}.mp3"
        sound = rng.normal(0, 0.1, (13_230, 2)).astype(np.float32)
        soundfile.write(root / "audio" / file, sound, 44_100, format="MP3")
    with (root / "metadata.csv").open("w", newline="", encoding="utf-8") as file_:
        writer = csv.DictWriter(file_, fieldnames=COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("chain") / "SoundingEarth")


def opened(root: Path, **settings: Any) -> PairedData:
    config = SoundingEarthConfig.model_validate({"source": "soundingearth", "root": root.name, **settings})
    return PairedData("soundingearth", SoundingEarth(config, root.parent).observations(), config)


def test_the_published_split(root: Path) -> None:
    data = opened(root)
    by_split = {s: {data.key(r) for r in data.rows(s, ["satellite"])} for s in ("train", "validation", "test")}  # type: ignore[arg-type]
    assert by_split["validation"] == {"107", "117"}
    assert by_split["test"] == {"102", "105", "112", "115"}
    assert by_split["train"] == {str(100 + i) for i in range(20)} - by_split["validation"] - by_split["test"]


def test_the_split_may_be_another(root: Path) -> None:
    data = opened(root, split={"by": "none"})
    assert data.count("train") == COUNT


def test_files_and_descriptions(root: Path, clip_architecture: dict[str, Any]) -> None:
    data = opened(root)
    image = SampleReader(data, "satellite", Satellite(Satellite.Config(model=clip_architecture)), train=False, seed=0)
    modality = Audio(Audio.Config(model="geobind-tiny", sample_rate=16_000, seconds=0.25))
    sound = SampleReader(data, "audio", modality, train=False, seed=0)
    for row in range(COUNT):  # both ways in which the archives unpack
        assert image.read(row).shape == (3, 30, 30)
        waveform = sound.finish(sound.read(row), row, epoch=0)
        assert not isinstance(waveform, BadSample), waveform
        assert waveform.shape == (0.25 * 16_000,)
        assert waveform.abs().max() > 0.05
    assert data.cell("text", 4, is_file=False) == 'Rain, "thunder"\nand 4 frogs'
    assert 3 not in data.rows("train", ["text"])
    assert 3 in data.rows("train", ["audio", "satellite"])


def test_a_recording_that_is_not_there_is_a_bad_sample(tmp_path: Path) -> None:
    root = write(tmp_path / "S", count=4)
    (root / "audio" / "101.mp3").unlink()
    (root / "audio" / "aporee_2_sound.mp3").write_bytes(b"ID3 and nothing else")
    modality = Audio(Audio.Config(model="geobind-tiny", sample_rate=16_000, seconds=0.25))
    reader = SampleReader(opened(root), "audio", modality, train=False, seed=0)
    found = [reader.read(row) for row in range(4)]
    assert [isinstance(sample, BadSample) for sample in found] == [False, True, True, False]
    assert found[1].key == "101"
    assert "101.mp3" in found[1].reason


@pytest.mark.parametrize("name", [lambda i: f"aporee_{i}_sound.mp3", lambda i: ""], ids=["with suffix", "without name"])
def test_other_ways_to_write_the_name(tmp_path: Path, name: Any) -> None:
    root = write(tmp_path / "S", count=2, mp3name=name)
    data = opened(root)
    cells = [data.cell("audio", row, is_file=True) for row in range(2)]
    if name(0):
        assert cells[0] == root / "audio" / "aporee_0_sound.mp3"
    assert cells[1] == root / "audio" / "101.mp3"


def test_titles_and_names_that_look_like_numbers(tmp_path: Path) -> None:
    root = write(
        tmp_path / "S", count=4, description=lambda i: str(10 * i), mp3name=lambda i: str(i), title=lambda i: i
    )
    data = opened(root)
    assert data.cell("text", 2, is_file=False) == "20"


def test_missing_metadata(tmp_path: Path) -> None:
    (tmp_path / "S").mkdir()
    with pytest.raises(DataError, match="no such table") as raised:
        opened(tmp_path / "S")
    assert str(tmp_path / "S" / "metadata.csv") in str(raised.value)
    config = SoundingEarthConfig(source="soundingearth", root="S")
    with pytest.raises(DataError, match="cannot be read"):
        SoundingEarth(config, tmp_path).fingerprint()


def test_metadata_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "S").mkdir()
    (tmp_path / "S" / "metadata.csv").write_text("id,lat\n1,2\n")
    with pytest.raises(DataError, match="no column 'key'"):
        opened(tmp_path / "S")


def test_the_fingerprint_follows_the_metadata(root: Path, tmp_path: Path) -> None:
    config = SoundingEarthConfig(source="soundingearth", root=str(root))
    before = SoundingEarth(config, tmp_path).fingerprint()
    assert (
        SoundingEarth(SoundingEarthConfig(source="soundingearth", root=root.name), root.parent).fingerprint() == before
    )
    other = write(tmp_path / "other", count=3)
    assert SoundingEarth(SoundingEarthConfig(source="soundingearth", root=str(other)), root).fingerprint() != before
