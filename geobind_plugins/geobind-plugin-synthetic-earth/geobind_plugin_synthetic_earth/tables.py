"""The two tables of a planet: the one that training reads, and the truth that it never does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from geobind_plugin_synthetic_earth.drawing import Cells, place_key
from geobind_plugin_synthetic_earth.scene import COVERS, FACTORS, Scene
from geobind_plugin_synthetic_earth.views import Settings

ENVIRONMENT = {
    "elevation": "m",
    "temperature": "degree Celsius",
    "moisture": "1",
    "population": "1/km2",
    "wind": "1",
    "rain": "1",
}
"""Entries of the environment vector, in order, and their units."""


def write_table(path: Path, settings: Settings, scenes: tuple[Scene, ...], cells: Cells) -> None:
    """Writes the table of observations: a row is a place, a column an observation of it.

    Args:
        path: The Parquet file.
        settings: Seed and size of the test split.
        scenes: What is at each place.
        cells: One column per view.
    """
    environment = np.array([[getattr(scene, name) for name in ENVIRONMENT] for scene in scenes], dtype=np.float32)
    columns = {
        "key": pa.array([place_key(place) for place in range(len(scenes))]),
        "longitude": pa.array([scene.longitude for scene in scenes], pa.float64()),
        "latitude": pa.array([scene.latitude for scene in scenes], pa.float64()),
        "time": pa.array([scene.time for scene in scenes], pa.timestamp("ms", "UTC")),
        "split": pa.array(split_of_places(settings)),
        "land_cover": pa.array([scene.land_cover for scene in scenes]),
        **{name: pa.array(values, pa.string()) for name, values in cells.items()},
        "environment": pa.FixedSizeListArray.from_arrays(pa.array(environment.ravel()), len(ENVIRONMENT)),
    }
    table = pa.table(columns)
    index = table.schema.get_field_index("environment")
    described = table.schema.field(index).with_metadata(
        {"names": json.dumps(list(ENVIRONMENT)), "units": json.dumps(list(ENVIRONMENT.values()))}
    )
    parquet.write_table(table.cast(table.schema.set(index, described)), path)


def write_truth(path: Path, scenes: tuple[Scene, ...]) -> None:
    """Writes what is really there, for those who check what a model has understood.

    Args:
        path: The Parquet file.
        scenes: What is at each place.
    """
    columns: dict[str, list[object]] = {
        "key": [place_key(place) for place in range(len(scenes))],
        **{cover: [scene.covers[number] for scene in scenes] for number, cover in enumerate(COVERS)},
        **{factor: [getattr(scene, factor) for scene in scenes] for factor in FACTORS},
    }
    parquet.write_table(pa.table(columns), path)


def split_of_places(settings: Settings) -> list[str]:
    """``train`` or ``test`` for each place; ``held_out`` of them, chosen at random, for testing."""
    order = np.random.default_rng([settings.seed, 4]).permutation(settings.places)
    splits = np.full(settings.places, "train", dtype=object)
    splits[order[: settings.held_out]] = "test"
    return list(splits)
