"""Files that are elsewhere: shards, tables and cells at addresses, on a web server and in fsspec's memory."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from filelock import FileLock

from geobind_core.data import remote
from geobind_core.data.cell_ids import cell_ids
from geobind_core.data.copies import Copies
from geobind_core.data.leaks import file_sizes
from geobind_core.data.loading import SequentialBatches, TrainingBatches, batches
from geobind_core.data.paired import PairedData
from geobind_core.data.samples import SampleReader
from geobind_core.data.shard_file import ShardFile, find_shard
from geobind_core.data.table import Table, TableConfig
from geobind_core.data.webdataset import WebDataset, WebDatasetConfig
from geobind_core.errors import DataError
from geobind_core.plugins.modality import Modality, ModalityConfig

SHARDS, SAMPLES = 12, 20
SIZE_GIB = 51_200 / 2**30  # of a shard


def write_shards(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:02d}.tar", "w") as tar:
            for i in range(SAMPLES):
                member = tarfile.TarInfo(f"{shard:02d}-{i:02d}.bin")
                member.size = 1200
                tar.addfile(member, io.BytesIO(f"{shard} {i}".encode().ljust(1200)))


class Server:
    """A web server of a folder; `asked` has the paths of the GET requests, answered `together` if that is set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.together: threading.Barrier | None = None
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                if outer.together is not None:
                    outer.together.wait()
                super().do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path / "served")
    write_shards(found.folder)
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_WAITS", (0.0, 0.0))
    return tmp_path / "cache"


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


class Length(Modality[ModalityConfig]):
    """How many bytes there are."""

    name = "bin"
    reads_files = True

    def read(self, cell: Any) -> float:
        return float(len(cell))


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def source(shards: str, **settings: Any) -> WebDataset:
    config = WebDatasetConfig(source="webdataset", shards=shards, split={"by": "none"}, **settings)
    return WebDataset(config, Path("/"))


def opened(found: WebDataset) -> PairedData:
    found.prepare(lambda *_: None)
    return PairedData("d", found.observations(), found.config)


def read(data: PairedData, row: int) -> tuple[int, int]:
    shard, number = data.cell("bin", row, is_file=True).split()
    return int(shard), int(number)


def copied(cache: Path) -> int:
    return len(list((cache / "shards/copies").glob("*.tar")))


class TestShards:
    def test_are_copied_once_each(self, server: Server) -> None:
        data = opened(source(f"{server.url}/{{00..11}}.tar"))
        order = np.random.default_rng(0).permutation(len(data)).tolist()
        assert {row: read(data, row) for row in order} == {row: divmod(row, SAMPLES) for row in order}
        assert sorted(p for p in server.asked if p.endswith(".tar")) == [f"/{i:02d}.tar" for i in range(SHARDS)]

    def test_an_index_beside_them_saves_reading_them(self, server: Server) -> None:
        opened(WebDataset(WebDatasetConfig(source="webdataset", shards="*.tar"), server.folder))
        assert (server.folder / "index.parquet").is_file()
        data = opened(source(f"{server.url}/{{00..11}}.tar"))
        assert len(data) == SHARDS * SAMPLES
        assert server.asked == ["/index.parquet"]
        assert read(data, 45) == (2, 5)
        assert server.asked == ["/index.parquet", "/02.tar"]

    def test_a_run_in_order_copies_each_shard_once_into_little_room(self, server: Server, own_cache: Path) -> None:
        """Two epochs: no shard twice in an epoch, never more room than allowed."""
        shards = f"{server.url}/{{00..11}}.tar"
        small = source(shards, cache_gib=5.5 * SIZE_GIB, shards_at_once=3)
        data = opened(small)
        assert copied(own_cache) <= 5
        rows = data.rows("train", ["bin"])
        for epoch in range(2):
            server.asked.clear()
            for row in data.order(rows, 0, epoch).tolist():
                assert read(data, row) == divmod(row, SAMPLES)
            assert copied(own_cache) == 5
            assert len(server.asked) == len(set(server.asked)) >= SHARDS - 5

    def test_two_epochs_and_a_restart_give_the_promised_keys(self, server: Server) -> None:
        def keys(start: int) -> list[list[str]]:
            data = opened(source(f"{server.url}/{{00..11}}.tar", cache_gib=6 * SIZE_GIB, shards_at_once=3))
            rows = data.rows("train", ["bin"])
            sampler = TrainingBatches(rows, 32, 2, 4, start, order=data.order, near=data.near(rows))
            return [[data.key(row) for row in request.rows.tolist()] for request in sampler]

        whole = keys(0)
        assert len(whole) == 14
        assert {key for batch in whole[:7] for key in batch} != {key for batch in whole[7:] for key in batch}
        assert [keys(start) for start in (3, 7, 10)] == [whole[3:], whole[7:], whole[10:]]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_the_next_ones_are_copied_while_a_batch_is_trained_on(
        self, server: Server, workers: int, own_cache: Path
    ) -> None:
        small = source(f"{server.url}/{{00..11}}.tar", shards_at_once=1, cache_gib=11.5 * SIZE_GIB)
        data = opened(small)
        for copy in (own_cache / "shards/copies").glob("*.tar"):  # of indexing
            copy.unlink()
        server.asked.clear()
        rows = data.rows("train", ["bin"])
        sampler = TrainingBatches(rows, 10, 1, seed=0, order=data.order)
        reader = SampleReader(data, "bin", Length(ModalityConfig()), train=False, seed=0)
        loader = batches({"bin": reader}, sampler, workers=workers, pin_memory=False)
        assert len(loader) == len(sampler)
        expected = [request.rows.tolist() for request in sampler]
        needed = [list(dict.fromkeys((np.array(batch) // SAMPLES).tolist())) for batch in expected]
        found = []
        for number, batch in enumerate(loader):
            found.append(batch["rows"].tolist())
            assert batch["inputs"]["bin"].tolist() == [1200.0] * 10
            if number == 3:
                there = {shard for batch in needed[:4] for shard in batch}
                coming = list(dict.fromkeys(s for batch in needed[4:] for s in batch if s not in there))[:2]
                wait_for(lambda: {f"/{shard:02d}.tar" for shard in coming} <= set(server.asked))  # noqa: B023
        assert found == expected
        assert sorted(server.asked) == [f"/{i:02d}.tar" for i in range(SHARDS)]

    @pytest.mark.parametrize("given_up", [False, True])
    def test_nothing_is_fetched_any_more_behind_the_last_batch(self, server: Server, *, given_up: bool) -> None:
        def alive() -> int:
            return sum(thread.name == "fetch ahead" for thread in threading.enumerate())

        before, data = alive(), opened(source(f"{server.url}/{{00..11}}.tar"))
        reader = SampleReader(data, "bin", Length(ModalityConfig()), train=False, seed=0)
        rows = data.rows("train", ["bin"])
        read = iter(batches({"bin": reader}, SequentialBatches(rows, 60), workers=0, pin_memory=False))
        next(read)
        assert alive() > before
        read.close() if given_up else list(read)  # type: ignore[attr-defined]
        wait_for(lambda: alive() == before)

    def test_too_little_room(self, server: Server) -> None:
        with pytest.raises(DataError, match=r"cache_gib: 5 shards are in use at a time, .* copies may take .* GiB"):
            opened(source(f"{server.url}/{{00..11}}.tar", cache_gib=4 * SIZE_GIB, shards_at_once=3))

    def test_in_memory_by_pattern(self, memory: Any, tmp_path: Path) -> None:
        write_shards(tmp_path / "own")
        memory.put(f"{tmp_path}/own/", "/bucket/", recursive=True)
        found = source("memory://bucket/0*.tar")
        data = opened(found)
        assert len(data) == 10 * SAMPLES
        assert read(data, 5) == (0, 5)
        before = found.fingerprint()
        ids = cell_ids(data, "bin", np.arange(25), is_file=True).tolist()
        assert len(set(ids)) == 25
        memory.pipe("/bucket/00.tar", memory.cat("/bucket/00.tar"))  # the same again, at another time
        assert source("memory://bucket/0*.tar").fingerprint() != before
        changed = opened(source("memory://bucket/0*.tar"))
        after = cell_ids(changed, "bin", np.arange(25), is_file=True).tolist()
        assert [a == b for a, b in zip(ids, after, strict=True)] == [False] * 20 + [True] * 5

    def test_nothing_is_copied_to_know_their_ids_and_sizes(self, server: Server) -> None:
        opened(WebDataset(WebDatasetConfig(source="webdataset", shards="*.tar"), server.folder))
        data = opened(source(f"{server.url}/{{00..11}}.tar"))
        assert len(set(cell_ids(data, "bin", np.arange(240), is_file=True).tolist())) == 240
        assert set(file_sizes(data, "bin", np.arange(240)).tolist()) == {-1}
        assert server.asked == ["/index.parquet"]

    def test_one_is_missing(self, server: Server) -> None:
        with pytest.raises(DataError, match=r"/12.tar: no such file"):
            opened(source(f"{server.url}/{{00..12}}.tar"))

    def test_by_several_processes(self, server: Server) -> None:
        data = opened(source(f"{server.url}/{{00..11}}.tar", cache_gib=7 * SIZE_GIB, shards_at_once=4))
        rows = data.order(data.rows("train", ["bin"]), 0, 0).tolist()
        with get_context("fork").Pool(2) as pool:
            found = pool.starmap(read, [(data, row) for row in rows], chunksize=10)
        assert found == [divmod(row, SAMPLES) for row in rows]


class TestCopies:
    def file(self, server: Server, name: str = "00.tar") -> ShardFile:
        found = find_shard(f"{server.url}/{name}")
        assert found is not None
        return found

    def test_by_many_threads_at_once(self, server: Server, tmp_path: Path) -> None:
        copies, file = Copies(tmp_path / "copies", 2**30), self.file(server)
        with ThreadPoolExecutor(8) as pool:
            sizes = list(pool.map(lambda _: len(copies.open(file).read()), range(8)))
        assert sizes == [file.size] * 8
        assert server.asked == ["/00.tar"]

    def test_what_was_not_used_for_longest_makes_room(self, server: Server, tmp_path: Path) -> None:
        files = [self.file(server, f"{i:02d}.tar") for i in range(4)]
        copies = Copies(tmp_path / "copies", 3 * files[0].size)
        for file in files[:3]:
            copies.open(file).close()
        copies.path(files[0]).touch()
        copies.open(files[3]).close()
        assert [copies.path(file).exists() for file in files] == [True, False, True, True]

    def test_an_open_copy_outlives_its_removal(self, server: Server, tmp_path: Path) -> None:
        copies = Copies(tmp_path / "copies", self.file(server).size)
        handle = copies.open(self.file(server))
        copies.open(self.file(server, "01.tar")).close()
        assert len(handle.read()) == self.file(server).size

    def test_half_of_one_is_not_kept(self, server: Server, tmp_path: Path) -> None:
        copies = Copies(tmp_path / "copies", 2**30)
        with pytest.raises(DataError, match="51200 bytes arrived of 60000"):
            copies.open(self.file(server)._replace(size=60_000))
        assert [path.name for path in copies.folder.iterdir() if not path.name.startswith(".lock")] == []

    def test_leftovers_of_a_killed_process_go(self, server: Server, tmp_path: Path) -> None:
        copies = Copies(tmp_path / "copies", 2**30)
        copies.folder.mkdir()
        (copies.folder / "old.tar.part").write_bytes(b"half")
        (copies.folder / "old.tar.room").write_bytes(b"")
        copies.open(self.file(server)).close()
        assert not list(copies.folder.glob("old.tar.*"))

    def test_room_that_a_killed_process_reserved_for_the_same_file(self, server: Server, tmp_path: Path) -> None:
        file = self.file(server)
        copies = Copies(tmp_path / "copies", file.size)
        copies.folder.mkdir()
        for suffix, size in ((".part", 100), (".room", file.size)):
            with (copies.folder / (copies.path(file).name + suffix)).open("wb") as left:
                left.truncate(size)
        assert len(copies.open(file).read()) == file.size
        assert [p.name for p in copies.folder.iterdir() if not p.name.startswith(".")] == [copies.path(file).name]

    def test_several_are_copied_at_the_same_time(self, server: Server, tmp_path: Path) -> None:
        """The server answers only when as many ask."""
        copies = Copies(tmp_path / "copies", 2**30)
        found = (self.file(server, f"{i:02d}.tar") for i in range(SHARDS))
        # Two that happen to have the same lock are copied one after the other.
        files = list({copies._lock_of(copies.path(file)): file for file in found}.values())[:3]
        server.together = threading.Barrier(3, timeout=20)
        with ThreadPoolExecutor(3) as pool:
            assert [len(h.read()) for h in pool.map(copies.open, files)] == [file.size for file in files]

    def test_never_more_room_than_allowed(self, server: Server, tmp_path: Path) -> None:
        """Eight threads want twelve files, three of which fit."""
        files = [self.file(server, f"{i:02d}.tar") for i in range(SHARDS)]
        copies = Copies(tmp_path / "copies", 3 * files[0].size)
        copies.folder.mkdir()
        most, done = 0, threading.Event()

        def watch() -> None:
            nonlocal most
            while not done.is_set():
                with FileLock(copies.folder / ".lock"):  # a folder that changes is not listed as it is at any time
                    most = max(most, len(list(copies.folder.glob("*.tar"))))

        watcher = threading.Thread(target=watch)
        watcher.start()
        with ThreadPoolExecutor(8) as pool:
            sizes = list(pool.map(lambda file: len(copies.open(file).read()), files * 3))
        done.set()
        watcher.join()
        assert sizes == [files[0].size] * 3 * SHARDS
        assert 0 < most <= 3

    def test_a_failure_is_remembered_for_a_while(self, server: Server, tmp_path: Path) -> None:
        copies, file = Copies(tmp_path / "copies", 2**30), self.file(server)
        (server.folder / "00.tar").unlink()
        for _ in range(5):
            with pytest.raises(DataError, match=r"00\.tar: no such file"):
                copies.open(file)
        assert server.asked == ["/00.tar"]

    def test_larger_than_all_room(self, server: Server, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="more than all copies together may take"):
            Copies(tmp_path / "copies", 100).open(self.file(server))


class TestTablesAndCells:
    @pytest.fixture
    def pairs(self, server: Server) -> str:
        for i in range(3):
            (server.folder / f"{i}.jpg").write_bytes(b"picture %d" % i)
        rows = ["key,photo,note", "a,0.jpg,one", f"b,{server.url}/1.jpg,http://example.org", "c,2.jpg,three"]
        (server.folder / "pairs.csv").write_text("\n".join(rows))
        return f"{server.url}/pairs.csv"

    def table(self, path: str, base: Path = Path("/"), **settings: Any) -> PairedData:
        found = Table(TableConfig(source="table", path=path, **settings), base)
        return PairedData("d", found.observations(), found.config)

    def test_a_table_at_an_address(self, pairs: str) -> None:
        data = self.table(pairs)
        assert [data.cell("photo", row, is_file=True) for row in range(3)] == [b"picture %d" % i for i in range(3)]
        assert data.cell("note", 1, is_file=False) == "http://example.org"

    def test_its_fingerprint_is_that_of_its_content(self, pairs: str, server: Server) -> None:
        def fingerprint(path: str) -> str:
            return Table(TableConfig(source="table", path=path), Path("/")).fingerprint()

        before = fingerprint(pairs)
        assert fingerprint(str(server.folder / "pairs.csv")) == before
        with (server.folder / "pairs.csv").open("a") as file:
            file.write("\nd,3.jpg,four")
        assert fingerprint(pairs) != before

    def test_addresses_in_a_table_here(self, pairs: str, server: Server, tmp_path: Path) -> None:
        (tmp_path / "here.csv").write_text(f"key,photo\na,{server.url}/0.jpg\nb,x.jpg\nc,file://{server.folder}/2.jpg")
        data = self.table("here.csv", tmp_path)
        assert data.cell("photo", 0, is_file=True) == b"picture 0"
        assert data.cell("photo", 1, is_file=True) == tmp_path / "x.jpg"
        assert data.cell("photo", 2, is_file=True) == server.folder / "2.jpg"
        server.asked.clear()
        assert len(set(cell_ids(data, "photo", np.arange(3), is_file=True).tolist())) == 3
        assert server.asked == []

    def test_a_root_at_an_address(self, pairs: str, server: Server, tmp_path: Path) -> None:
        (tmp_path / "here.csv").write_text("key,photo\na,0.jpg\n")
        assert self.table("here.csv", tmp_path, root=server.url).cell("photo", 0, is_file=True) == b"picture 0"

    def test_in_memory(self, memory: Any, tmp_path: Path) -> None:
        memory.pipe("/bucket/x.jpg", b"in memory")
        (tmp_path / "here.csv").write_text("key,photo\na,memory://bucket/x.jpg\nb,memory://bucket/y.jpg")
        data = self.table("here.csv", tmp_path)
        assert data.cell("photo", 0, is_file=True) == b"in memory"
        with pytest.raises(DataError, match=r"memory://bucket/y\.jpg: no such file"):
            data.cell("photo", 1, is_file=True)


class TestErrors:
    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("s3://bucket/a.tar", r"'s3://' needs a package that is not installed.*\n.*pip install s3fs"),
            ("gs://bucket/a.tar", r"pip install gcsfs"),
            ("nosuch://bucket/a.tar", r"no way to read 'nosuch://'"),
            ("simplecache::http://x/a.tar", r"no such|shards are missing"),
            ("http://x/simplecache::http://x/a.tar", r"several joined by `::`"),
        ],
    )
    def test_no_way_there(self, url: str, words: str) -> None:
        with pytest.raises(DataError, match=words):
            opened(source(url))

    def test_nobody_answers(self) -> None:
        with pytest.raises(DataError, match=r"127.0.0.1:9/a.tar: it cannot be read.*\n.*Three attempts failed"):
            opened(source("http://user:secret@127.0.0.1:9/a.tar?signature=secret"))
        with pytest.raises(DataError) as caught:
            opened(source("http://user:secret@127.0.0.1:9/a.tar?signature=secret"))
        assert "secret" not in caught.value.place

    def test_a_passing_trouble_passes(self, monkeypatch: pytest.MonkeyPatch, memory: Any) -> None:
        memory.pipe("/x.bin", b"x")
        system = type(memory)
        whole, calls = system.cat_file, []

        def flaky(self: Any, *arguments: Any, **named: Any) -> bytes:
            calls.append(1)
            if len(calls) < 3:
                raise ConnectionResetError("reset")
            return whole(self, *arguments, **named)

        monkeypatch.setattr(system, "cat_file", flaky)
        assert remote.read_bytes("memory://x.bin") == b"x"

    def test_credentials_are_not_in_the_index(self, server: Server, own_cache: Path) -> None:
        opened(source(f"{server.url}/00.tar?token=secret"))
        import pyarrow.parquet as pq

        [path] = (own_cache / "shards").glob("index-*.parquet")
        content = json.loads(pq.read_schema(path).metadata[b"geobind"])
        assert [shard["name"] for shard in content["shards"]] == ["00.tar"]
