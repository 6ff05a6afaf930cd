"""Cells inside shards: read by any thread and process, known without being read, refused when the shard has changed."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from geobind_core.data.cell_ids import cell_ids
from geobind_core.data.leaks import file_sizes
from geobind_core.data.members import MEMBER
from geobind_core.data.paired import PairedData
from geobind_core.data.webdataset import WebDataset, WebDatasetConfig
from geobind_core.errors import DataError

SHARDS, SAMPLES = 100, 5


def content(shard: int, sample: int) -> bytes:
    return f"{shard}/{sample} ".encode() * (sample + 1)


def write(path: Path, shard: int, count: int = SAMPLES) -> None:
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            member = tarfile.TarInfo(f"{shard}-{i}.bin")
            member.size = len(content(shard, i))
            tar.addfile(member, io.BytesIO(content(shard, i)))


def opened(folder: Path) -> PairedData:
    found = WebDataset(WebDatasetConfig(source="webdataset", shards="*.tar"), folder)
    return PairedData("d", found.observations(), found.config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shard in range(SHARDS):
        write(tmp_path / f"{shard:03d}.tar", shard)
    return tmp_path


def wrong_cells(data: PairedData, rows: list[int]) -> list[int]:
    return [r for r in rows if data.cell("bin", r, is_file=True) != content(*divmod(r, SAMPLES))]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list open files")
def test_few_files_are_open(folder: Path) -> None:
    data, before = opened(folder), open_files()
    rows = np.random.default_rng(0).permutation(SHARDS * SAMPLES).tolist()
    assert wrong_cells(data, rows) == []
    assert 0 < open_files() - before <= 64
    del data
    assert open_files() == before


def test_by_many_threads(folder: Path) -> None:
    data = opened(folder)
    orders = [np.random.default_rng(i).permutation(SHARDS * SAMPLES).tolist() for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda rows: wrong_cells(data, rows), orders)) == [[]] * 16


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_by_other_processes(folder: Path, method: str) -> None:
    data = opened(folder)
    assert wrong_cells(data, [3, 499]) == []  # some files are open already
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.starmap(wrong_cells, [(data, list(range(i, 500, 2))) for i in range(2)]) == [[], []]
    assert wrong_cells(data, list(range(500))) == []


def test_a_copy_takes_no_file_along(folder: Path) -> None:
    data = opened(folder)
    wrong_cells(data, list(range(500)))
    assert wrong_cells(pickle.loads(pickle.dumps(data)), list(range(500))) == []


def test_a_cell_takes_twenty_bytes() -> None:
    values = pa.array([{"shard": i % 600, "offset": i * 10**6, "size": 10**5} for i in range(8000)], MEMBER)
    assert values.nbytes <= 21 * len(values)


class TestChangedShards:
    @pytest.mark.parametrize("is_open", [False, True])
    def test_of_another_size(self, folder: Path, is_open: bool) -> None:
        data = opened(folder)
        assert not is_open or wrong_cells(data, [0]) == []
        with (folder / "000.tar").open("ab") as file:
            file.write(bytes(512))
        with pytest.raises(
            DataError, match=r"000.tar: the shard has changed since .* it has 10752 bytes, and had 10240"
        ):
            data.cell("bin", 0, is_file=True)
        assert wrong_cells(opened(folder), list(range(500))) == []

    def test_written_again(self, folder: Path) -> None:
        data = opened(folder)
        write(folder / "000.tar", 7)
        with pytest.raises(DataError, match="it was written again"):
            data.cell("bin", 0, is_file=True)

    def test_cut_off_while_it_is_read(self, folder: Path) -> None:
        data = opened(folder)
        wrong_cells(data, [0])
        os.truncate(folder / "000.tar", 600)
        with pytest.raises(DataError, match="it has 600 bytes"):
            data.cell("bin", 4, is_file=True)

    def test_missing(self, folder: Path) -> None:
        data = opened(folder)
        (folder / "000.tar").unlink()
        with pytest.raises(DataError, match=r"000.tar: the shard cannot be read: No such file"):
            data.cell("bin", 0, is_file=True)


class TestWithoutReading:
    def test_ids_differ(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = opened(folder)
        rows = np.arange(SHARDS * SAMPLES)
        monkeypatch.setattr(os, "pread", lambda *_: pytest.fail("read"))
        ids = cell_ids(data, "bin", rows, is_file=True).tolist()
        assert len(set(ids)) == len(rows)
        assert cell_ids(opened(folder), "bin", rows, is_file=True).tolist() == ids

    def test_sizes_are_known_without_reading(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = opened(folder)
        monkeypatch.setattr(os, "pread", lambda *_: pytest.fail("read"))
        sizes = file_sizes(data, "bin", np.arange(SHARDS * SAMPLES)).tolist()
        assert sizes == [len(content(*divmod(row, SAMPLES))) for row in range(SHARDS * SAMPLES)]

    def test_ids_change_with_their_shard_alone(self, folder: Path) -> None:
        rows = np.arange(2 * SAMPLES)
        before = cell_ids(opened(folder), "bin", rows, is_file=True).tolist()
        os.utime(folder / "001.tar", ns=(0, 0))
        after = cell_ids(opened(folder), "bin", rows, is_file=True).tolist()
        assert [a == b for a, b in zip(before, after, strict=True)] == [True] * SAMPLES + [False] * SAMPLES
