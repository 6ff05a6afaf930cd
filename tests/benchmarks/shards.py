"""Shards: members in random order, against `webdataset` reading the same shards from front to back; a large index."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import webdataset

from geobind_core.data.loading import TrainingBatches
from geobind_core.data.paired import PairedData
from geobind_core.data.shard_index import INDEX_FILE, SHARD, Index, IndexedShard, write_index
from geobind_core.data.shard_table import KEY, PLACE_IN_SHARD, Remarks
from geobind_core.data.webdataset import WebDataset, WebDatasetConfig

from .measure import Settings, interleaved, median, peak_memory, timed
from .results import Goal, Row

NAME = "shards"
_PEER = "webdataset"
_FIELDS = {"satellite": "overhead.jpg", "ground_image": "groundlevel.jpg"}
_BATCH = 256


def _write(folder: Path, shards: int, samples: int, size: int) -> list[str]:
    """Writes shards like Sat2Cap's; `size` is of the two images together."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for shard in range(shards):
        with webdataset.TarWriter(str(folder / f"{shard:06d}.tar")) as writer:
            for i in range(shard * samples, (shard + 1) * samples):
                images = {
                    "overhead.jpg": rng.bytes(size * 3 // 5),
                    "groundlevel.jpg": rng.bytes(size * 2 // 5),
                }
                place = {"latitude": i / 1e6, "longitude": 5.0, "date_taken": "2014-05-01 12:00:00"}
                writer.write({"__key__": f"{i:08d}", **images, "metadata.json": place})
    return sorted(str(path) for path in folder.glob("*.tar"))


def _source(folder: Path) -> WebDataset:
    split = {"by": "none"}
    return WebDataset(WebDatasetConfig(source="webdataset", shards="*.tar", fields=_FIELDS, split=split), folder)


def _opened(folder: Path) -> PairedData:
    source = _source(folder)
    return PairedData("d", source.observations(), source.config)


def _in_random_order(data: PairedData) -> int:
    order = data.order(data.rows("train", _FIELDS), 0, 0).tolist()
    return sum(len(data.cell(name, row, is_file=True)) for row in order for name in _FIELDS)


def _in_sequence(paths: list[str]) -> int:
    samples = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)
    return sum(len(sample[extension]) for sample in samples for extension in _FIELDS.values())


def _reading(settings: Settings, size: int, samples: int) -> Row:
    folder = settings.folder / f"of-{size}"
    paths = _write(folder, 4, samples, size)
    data, counts = _opened(folder), {}

    def rate(name: str, read: Callable[[], int]) -> float:
        seconds = timed(lambda: counts.update({name: read()}))
        return 4 * samples / seconds

    sides = {
        "ours": lambda: rate("ours", lambda: _in_random_order(data)),
        _PEER: lambda: rate(_PEER, lambda: _in_sequence(paths)),
    }
    interleaved(sides, 1)  # brings the files into memory
    raw = interleaved(sides, settings.repeats)
    if counts["ours"] != counts[_PEER]:
        raise AssertionError(f"the sides have read different members: {counts}")
    ours, peer = median(raw["ours"]), median(raw[_PEER])
    note = f"{4 * samples} samples in 4 shards, in a random order; the peer from front to back"
    what = f"two images of a sample, {size / 1000:g} kB together"
    return Row(NAME, what, "samples/s", ours, peer, _PEER, ours / peer, Goal(">=", 0.9), note, raw)


def _indexing(settings: Settings, samples: int) -> Row:
    folder = settings.folder / "to-be-indexed"
    paths = _write(folder, 4, samples, 500)

    def ours() -> None:
        (folder / INDEX_FILE).unlink(missing_ok=True)
        _source(folder).prepare(lambda *_: None)

    def peer() -> None:
        for path in paths:
            with tarfile.open(path) as tar:
                for _ in tar:
                    tar.members = []

    raw = interleaved({"ours": lambda: timed(ours), "tarfile": lambda: timed(peer)}, settings.repeats)
    members = 12 * samples
    ours_s, peer_s = median(raw["ours"]), median(raw["tarfile"])
    note = f"{members:,} members; the peer lists their names and reads no JSON"
    return Row(NAME, "indexing", "s", ours_s, peer_s, "tarfile", peer_s / ours_s, Goal(">=", 1), note, raw)


def write_large_index(folder: Path, shards: int, samples: int) -> None:
    """Writes the index of shards that are nothing but holes, as large as those that it describes."""
    folder.mkdir()
    sizes = np.random.default_rng(1).integers(50_000, 200_000, (samples, 3)) // 512 * 512
    offsets = np.cumsum(sizes.reshape(-1) + 512).reshape(-1, 3) - sizes
    tables, indexed = [], []
    for shard in range(shards):
        path = folder / f"{shard:06d}.tar"
        path.touch()
        os.truncate(path, int(offsets[-1, -1] + sizes[-1, -1] + 1024))
        keys = [f"{i:09d}" for i in range(shard * samples, (shard + 1) * samples)]
        places = [
            pa.StructArray.from_arrays([pa.array(offsets[:, i]), pa.array(sizes[:, i])], fields=list(PLACE_IN_SHARD))
            for i in range(3)
        ]
        columns = dict(zip(("groundlevel.jpg", "metadata.json", "overhead.jpg"), places, strict=True))
        coordinates = {f"metadata.{name}": np.linspace(-80, 80, samples) for name in ("latitude", "longitude")}
        dates = {"metadata.date_taken": [f"2014-05-{i % 28 + 1:02d} 12:{i % 60:02d}:00" for i in range(samples)]}
        numbers = {SHARD: np.full(samples, shard, dtype=np.int32)}
        tables.append(pa.table({KEY: keys, **columns, **dates, **coordinates, **numbers}))
        found = path.stat()
        indexed.append(IndexedShard(path.name, found.st_size, found.st_mtime_ns, "", samples, Remarks()))
    write_index(folder / INDEX_FILE, Index(tuple(indexed), pa.concat_tables(tables)))


def to_the_first_batch(folder: str) -> Callable[[], None]:
    """Returns what a run does with shards until it has read a batch."""

    def work() -> None:
        source = _source(Path(folder))
        source.fingerprint()
        source.prepare(lambda *_: None)
        data = PairedData("d", source.observations(), source.config)
        rows = data.rows("train", _FIELDS)
        batch = next(iter(TrainingBatches(rows, _BATCH, 1, 0, order=data.order, near=data.near(rows))))
        for row in batch.rows.tolist():
            for name in _FIELDS:
                data.cell(name, row, is_file=True)

    return work


def _large(settings: Settings) -> list[Row]:
    shards, samples = (2, 100) if settings.quick else (100, 10_000)
    folder = settings.folder / "large"
    write_large_index(folder, shards, samples)
    note = f"{shards * samples:,} samples, 3 members each, in {shards} shards; from the index to {_BATCH} pairs read"
    raw = [timed(to_the_first_batch(str(folder))) for _ in range(settings.repeats)]
    peak = peak_memory(f"{__name__}:{to_the_first_batch.__name__}", {"folder": str(folder)})
    goals = (None, None) if settings.quick else (Goal("<=", 10.0), Goal("<=", 1024.0))
    return [
        Row(
            NAME,
            "to the first batch",
            "s",
            median(raw),
            peer_name="no peer",
            goal=goals[0],
            note=note,
            raw={"ours": raw},
        ),
        Row(NAME, "memory to the first batch", "MiB", peak / 2**20, peer_name="no peer", goal=goals[1], note=note),
    ]


def run(settings: Settings) -> list[Row]:
    """Reads small and large members, makes an index, and opens one of a million samples."""
    count = 20 if settings.quick else 400
    rows = [_reading(settings, 200_000, count), _reading(settings, 5_000, 5 * count)]
    return [*rows, _indexing(settings, 10 * count), *_large(settings)]
