"""The two tables of a planet: the one that training reads, and the truth that it never does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from geobind_plugin_synthetic_earth.scene import COVERS, FACTORS, Scene
from geobind_plugin_synthetic_earth.views import Settings
from geobind_plugin_synthetic_earth.worker import Cells, place_key

ENVIRONMENT = ("elevation", "temperature", "moisture", "population", "wind", "rain")
"""Names of the entries of the environment vector; the units are those of :class:`Scene`."""


def write_table(
    path: Path, settings: Settings, scenes: tuple[Scene, ...], cells: Cells
) -> None:
    """Writes the table of observations: a row is a place, a column an observation of it.

    Args:
        path: The Parquet file.
        settings: Seed and size of the test split.
        scenes: What is at each place.
        cells: One column per view.
    """
    environment = np.array(
        [[getattr(scene, name) for name in ENVIRONMENT] for scene in scenes], dtype=np.float32
    )
    columns = {
        "key": pa.array([place_key(place) for place in range(len(scenes))]),
        "longitude": pa.array([scene.longitude for scene in scenes], pa.float64()),
        "latitude": pa.array([scene.latitude for scene in scenes], pa.float64()),
        "time": pa.array([scene.time for scene in scenes], pa.timestamp("s", "UTC")),
        "split": pa.array(split_of_places(settings)),
        **{name: pa.array(values, pa.string()) for name, values in cells.items()},
        "environment": pa.FixedSizeListArray.from_arrays(
            pa.array(environment.ravel()), len(ENVIRONMENT)
        ),
    }
    table = pa.table(columns)
    index = table.schema.get_field_index("environment")
    names = table.schema.field(index).with_metadata({"names": json.dumps(ENVIRONMENT)})
    parquet.write_table(table.cast(table.schema.set(index, names)), path)


def write_truth(path: Path, scenes: tuple[Scene, ...]) -> None:
    """Writes what is really there, for those who check what a model has understood.

    Args:
        path: The Parquet file.
        scenes: What is at each place.
    """
    columns: dict[str, list[object]] = {
        "key": [place_key(place) for place in range(len(scenes))],
        **{
            cover: [scene.covers[number] for scene in scenes] for number, cover in enumerate(COVERS)
        },
        **{factor: [getattr(scene, factor) for scene in scenes] for factor in FACTORS},
    }
    parquet.write_table(pa.table(columns), path)


def split_of_places(settings: Settings) -> list[str]:
    """``train`` or ``test`` for each place; exactly ``held_out`` of them, at random, are ``test``."""
    order = np.random.default_rng([settings.seed, 4]).permutation(settings.places)
    splits = np.full(settings.places, "train", dtype=object)
    splits[order[: settings.held_out]] = "test"
    return list(splits)
