"""The source `soundingearth`: the published layout of the SoundingEarth data set."""

from __future__ import annotations

import re
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from geobind_core.data.table_files import file_fingerprint, read_table
from geobind_core.errors import DataError
from geobind_core.plugins.source import Observations, Source, SourceConfig

_VALIDATION_DIGITS = (7,)
_TEST_DIGITS = (2, 5)


class SoundingEarthConfig(SourceConfig):
    """Settings of SoundingEarth."""

    root: str = Field(description="Folder with metadata.csv, images/ and audio/; relative to the chain file.")


class SoundingEarth(Source[SoundingEarthConfig]):
    """`metadata.csv`, `images/{key}.jpg` and `audio/{key}.mp3`, split by the last digit of the key.

    As published: keys that end in 7 are for validation, in 2 and 5 for test, the rest for training.
    The columns `satellite`, `audio` and `text` (the description) are made from it; all others stay.
    The archives unpack in two ways, `audio/{mp3name}` and `audio/{key}.mp3`; whichever a row has is
    taken. A file that is not there is left to the reader, which counts it as a bad sample.

    Source: Heidler et al. 2023 (reference 17 of the paper), and the released loader for the split.
    """

    name: ClassVar[str] = "soundingearth"
    Config = SoundingEarthConfig
    default_fields: ClassVar[tuple[str, ...]] = ("satellite", "audio", "text")

    def fingerprint(self) -> str:
        """Identifies `metadata.csv`; images and recordings are not opened."""
        return file_fingerprint(self.resolve(self.config.root) / "metadata.csv")

    def observations(self) -> Observations:
        """Reads `metadata.csv`."""
        root = self.resolve(self.config.root)
        table = read_table(root / "metadata.csv", strings=("key", "long_key", "mp3name", "description"))
        for column in ("key", "longitude", "latitude"):
            if column not in table.column_names:
                raise DataError(
                    f"no column '{column}'; SoundingEarth has key, longitude, latitude, ….",
                    place=str(root / "metadata.csv"),
                )
        keys = ["" if key is None else str(key) for key in table["key"].to_pylist()]
        names = table["mp3name"].to_pylist() if "mp3name" in table.column_names else [None] * len(keys)
        present = {path.name for path in (root / "audio").glob("*")} if (root / "audio").is_dir() else set()
        audio = [_recording(key, name, present) for key, name in zip(keys, names, strict=True)]
        table = table.set_column(table.column_names.index("key"), "key", pa.array(keys))
        made = {
            "satellite": pa.array([f"images/{key}.jpg" for key in keys]),
            "audio": pa.array(audio),
            "split": pa.array([_split(key) for key in keys]),
        }
        if "description" in table.column_names:
            made["text"] = pc.utf8_trim_whitespace(table["description"].cast(pa.string()))
        for column, values in made.items():
            table = table.drop_columns([column]) if column in table.column_names else table
            table = table.append_column(column, values)
        return Observations(
            table=table,
            root=root,
            fields={name: name for name in self.default_fields if name in table.column_names},
            split="split",
            longitude="longitude",
            latitude="latitude",
        )


def _recording(key: str, name: str | None, present: set[str]) -> str:
    if name:
        with_suffix = name if name.lower().endswith(".mp3") else f"{name}.mp3"
        if with_suffix in present:
            return f"audio/{with_suffix}"
    return f"audio/{key}.mp3"


def _split(key: str) -> str | None:
    # Keys are numbers; their remainder by ten is their last digit.
    digits = re.findall(r"\d", key)
    if not digits:
        return None
    last = int(digits[-1])
    return "validation" if last in _VALIDATION_DIGITS else "test" if last in _TEST_DIGITS else "train"
