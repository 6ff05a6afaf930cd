"""The data set as the chain sees it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import ClassVar

from pydantic import Field, model_validator

from geobind_core import DataError, Observations, Progress, Source, SourceConfig
from geobind_plugin_synthetic_earth.views import VIEWS, Settings, View

GENERATOR_VERSION = 2
"""Raise it whenever the same settings give other files."""


class SyntheticEarthConfig(SourceConfig):
    """Settings of the synthetic Earth."""

    root: Path = Field(Path("data/synthetic-earth"), description="Folder in which data sets are kept between runs.")
    places: int = Field(5000, ge=1, le=1_000_000, description="Number of places.")
    held_out: int = Field(1000, ge=0, description="How many of the places are for testing.")
    seed: int = Field(0, ge=0, description="Another seed is another planet.")
    satellite_pixels: int = Field(64, ge=32, le=1024, description="Side of a satellite tile.")
    ground_pixels: int = Field(64, ge=32, le=1024, description="Side of a ground photo.")
    sample_rate: int = Field(16000, ge=4000, le=48000, description="Of the recordings, in hertz.")
    seconds: float = Field(3.0, gt=0.0, le=60.0, description="Length of a recording.")
    workers: int | None = Field(None, ge=1, description="Processes that draw; one per core by default.")

    @model_validator(mode="after")
    def _something_to_train_on(self) -> SyntheticEarthConfig:
        if self.held_out >= self.places:
            raise ValueError(
                f"held_out: {self.held_out} leaves nothing to train on, expected less than places: {self.places}"
            )
        return self

    def settings(self) -> Settings:
        """The part that decides the content of files."""
        names = Settings.__dataclass_fields__
        return Settings(**{name: getattr(self, name) for name in names})


class SyntheticEarth(Source[SyntheticEarthConfig]):
    """A seeded planet: satellite tiles, ground photos, recordings, captions, locations.

    The files are drawn on first use and kept; they are then read as any real data set is.
    """

    name = "synthetic_earth"
    Config = SyntheticEarthConfig
    default_fields = ("satellite", "ground_image", "audio", "text", "sound_text", "location", "environment")
    views: ClassVar[tuple[View, ...]] = VIEWS

    def fingerprint(self) -> str:
        """Identifies the content by the settings that decide it; draws nothing."""
        identity = {
            "generator": GENERATOR_VERSION,
            "settings": self.config.settings().__dict__,
            "views": [[view.name, view.version] for view in self.views],
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def folder(self) -> Path:
        """Where the data set is or will be."""
        name = f"{self.config.places}-places-seed-{self.config.seed}-{self.fingerprint()[:8]}"
        return self.resolve(self.config.root) / name

    def prepare(self, progress: Progress) -> None:
        """Draws the planet unless it is there already. Processes that ask at once wait for one.

        Args:
            progress: Told about places done.

        Raises:
            DataError: The folder cannot be written.
        """
        folder = self.folder()
        if folder.is_dir():
            return
        from filelock import FileLock

        from geobind_plugin_synthetic_earth.writer import write_planet

        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f"{folder.name}.lock")):
                if not folder.is_dir():
                    settings = self.config.settings()
                    write_planet(folder, settings, self.views, progress, self.config.workers)
        except OSError as error:
            raise DataError(
                f"cannot write the synthetic Earth: {error}",
                place=str(folder),
                hint="set `root` of this data set to a folder that can be written, with free space",
            ) from error

    def observations(self) -> Observations:
        """Reads the table of observations.

        Raises:
            DataError: The planet has not been drawn.
        """
        import pyarrow.parquet as parquet

        folder = self.folder()
        if not (folder / "table.parquet").is_file():
            raise DataError(
                "the synthetic Earth has not been drawn yet",
                place=str(folder),
                hint="call prepare() first; `geobind run` does so",
            )
        fields: dict[str, str | tuple[str, ...]] = {view.name: view.name for view in self.views}
        return Observations(
            table=parquet.read_table(folder / "table.parquet"),
            root=folder,
            fields={
                **fields,
                "location": ("longitude", "latitude"),
                "environment": "environment",
            },
            labels={"text": "text", "sound_text": "sound_text"},
            split="split",
            longitude="longitude",
            latitude="latitude",
        )
