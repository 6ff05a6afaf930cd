"""A space of small random networks, and an index of places around the Earth that was made with it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from geobind_plugin_imagery.images import Satellite
from geobind_plugin_imagery.text import Text

from geobind_core.chain.builtin import plugin_manager
from geobind_core.data_tools.opened import open_path
from geobind_core.index.embed import EmbedOptions, embed_parts, finish, make_job
from geobind_core.progress import Reporter
from geobind_core.space.encoder import SpaceEncoder, content_hash
from geobind_core.space.lineage import ModalityRecord, SpaceRecord
from geobind_core.space.space import Space, assemble, save_encoder

DIM = 24
PLACES = [(179.9999, -17.0), (-179.9999, -18.0), (178.5, -18.2), (-178.9, -16.4), (179.2, -16.1), (-179.5, -19.3)]
"""Longitude and latitude of the first rows of the index: around Fiji, on both sides of the antimeridian."""


@dataclass(frozen=True)
class Mapped:
    """What a map is made from.

    Attributes:
        space: The run folder.
        index: Embeddings of the satellite images of 24 rows; the last has no coordinates.
        table: The rows.
        images: Their images.
    """

    space: Path
    index: Path
    table: Path
    images: list[Path]


def save_space(run: Path, clip_folder: Path, seed: int) -> Path:
    """Saves a space of `satellite` and `text`; of another seed, the satellite encoder is another."""
    plugins, records, folders = plugin_manager(), {}, {}
    for name, cls in (("satellite", Satellite), ("text", Text)):
        modality: Any = cls(cls.Config(pretrained=str(clip_folder)))
        encoder = SpaceEncoder(modality.build_encoder(), DIM, DIM, projected=False)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in encoder.parameters() if seed else ():
                parameter.add_(0.1 * torch.randn_like(parameter))
        provided = plugins.find("modality", name)
        records[name] = ModalityRecord(
            plugin=name,
            distribution=provided.distribution,
            version=provided.version,
            config=modality.rebuild_config(encoder.encoder).model_dump(mode="json"),
            raw_dim=DIM,
            projected=False,
            content_hash=content_hash(encoder),
        )
        folders[name] = run / "weights" / name
        save_encoder(encoder, records[name], folders[name])
    assemble(run / "space", SpaceRecord(embed_dim=DIM, binding="satellite", modalities=records, pairs=[]), folders)
    shutil.rmtree(run / "weights")
    return run


def save_index(space: Path, table: Path, index: Path) -> Path:
    """Embeds the satellite images of a table."""
    reporter = Reporter(quiet=True)
    opened = open_path(table, ["satellite=satellite"], [], plugin_manager(), reporter)
    loaded = Space.load(space)
    job = make_job(loaded, opened, "satellite", index, EmbedOptions())
    job.parts.claim(job.plan)
    embed_parts(loaded, job, job.parts.missing(), reporter, torch.device("cpu"), "embedding")
    finish(loaded, job, index, reporter)
    return index


@pytest.fixture(scope="session")
def new_space(clip_folder: Path) -> Callable[[Path, int], Path]:
    return lambda run, seed: save_space(run, clip_folder, seed)


@pytest.fixture(scope="session")
def mapped(world: Any, clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapped:
    folder = tmp_path_factory.mktemp("mapped")
    space = save_space(folder / "run", clip_folder, 0)
    rng = np.random.default_rng(8)
    names = [row["satellite"] for row in world.rows]
    rest = len(names) - len(PLACES)
    longitude, latitude = (list(values) for values in zip(*PLACES, strict=True))
    longitude += [*rng.uniform(160, 178, rest - 1), None]
    latitude += [*rng.uniform(-40, -20, rest - 1), None]
    times = np.datetime64("2024-01-01", "us") + np.arange(len(names)) * np.timedelta64(10, "D").astype("m8[us]")
    shutil.copytree(world.folder, folder / "world")
    table = folder / "world" / "mapped.parquet"
    columns = {
        "key": [row["key"] for row in world.rows],
        "satellite": names,
        "longitude": pa.array(longitude, pa.float64()),
        "latitude": pa.array(latitude, pa.float64()),
        "time": pa.array(times, pa.timestamp("us", "UTC")),
    }
    pq.write_table(pa.table(columns), table)
    index = save_index(space, table, folder / "index.parquet")
    return Mapped(space, index, table, [folder / "world" / name for name in names])
