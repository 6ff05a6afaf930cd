"""A space of small networks, a table of places all over the Earth, and its index."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geobind_core import Space
from tests.export.conftest import SaveSpace
from tests.export.conftest import save_space as save_space  # a fixture

PLACES = [
    (180.0, 0.5),
    (-180.0, -0.5),
    (179.9999994, -17.0),
    (-179.9999994, -18.0),
    (0.0, 90.0),
    (12.3456789, -90.0),
    (8.541694, 47.376888),
    (359.5, 12.0),  # half a degree west of Greenwich
]
"""Longitude and latitude of the first rows; the others lie between 100 and 120 degrees east, the last nowhere."""


@dataclass(frozen=True)
class Indexed:
    """What there is to search.

    Attributes:
        space: A space of satellite, text, audio and location.
        table: 24 rows with places and times; the last has no place, and the one before no time.
        index: Embeddings of their satellite images, written by the command line.
    """

    space: Space
    table: Path
    index: Path

    @property
    def folder(self) -> str:
        return str(self.space.folder)


def write_table(path: Path, rows: list[dict[str, str]], **changed: Any) -> Path:
    """Writes rows as Parquet with places and times; a column that is given as None is left out."""
    rng = np.random.default_rng(3)
    rest = len(rows) - len(PLACES) - 1
    places = [*PLACES, *zip(rng.uniform(100, 120, rest), rng.uniform(-60, 60, rest), strict=True), (None, None)]
    times = [np.datetime64("2024-01-01T12:00", "us") + np.timedelta64(10 * i, "D") for i in range(len(rows))]
    columns: dict[str, Any] = {
        **{name: [row[name] for row in rows] for name in ("key", "satellite", "text", "audio", "label", "split")},
        "longitude": pa.array([place[0] for place in places], pa.float64()),
        "latitude": pa.array([place[1] for place in places], pa.float64()),
        "time": pa.array([*times[:-2], None, times[-1]], pa.timestamp("us")),
        **changed,
    }
    pq.write_table(pa.table({name: column for name, column in columns.items() if column is not None}), path)
    return path


@pytest.fixture(scope="session")
def small_space(save_space: SaveSpace, clip_folder: Path, clap_folder: Path) -> Space:
    clip: dict[str, Any] = {"pretrained": str(clip_folder)}
    return save_space(
        24,
        satellite=clip,
        text=clip,
        audio={"pretrained": str(clap_folder), "sample_rate": 16_000, "seconds": 1},
        location={"legendre_polys": 3, "width": 16, "embed_dim": 24},
    )


@pytest.fixture(scope="session")
def indexed(world: Any, small_space: Space, tmp_path_factory: pytest.TempPathFactory) -> Indexed:
    from geobind_core.chain.builtin import plugin_manager
    from geobind_core.chain.embed import embed_to, open_data
    from geobind_core.chain.launch import Launch
    from geobind_core.index.embed import EmbedOptions
    from geobind_core.progress import Reporter

    folder = tmp_path_factory.mktemp("indexed") / "world"
    shutil.copytree(world.folder, folder)
    table = write_table(folder / "places.parquet", world.rows)
    reporter = Reporter(quiet=True)
    plugins = plugin_manager()
    opened = open_data(small_space, small_space.folder, str(table), "satellite", [], [], plugins, reporter)
    options = EmbedOptions(keep=("label",))
    embed_to(folder.parent / "index.parquet", small_space, opened, "satellite", options, Launch(), reporter)
    return Indexed(small_space, table, folder.parent / "index.parquet")
