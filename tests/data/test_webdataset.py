"""The source `webdataset`: shards as webdataset writes them, what becomes of them, and what is said of broken ones."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import tarfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from geobind_core.data.paired import PairedData
from geobind_core.data.webdataset import WebDataset, WebDatasetConfig
from geobind_core.errors import DataError

SAT2CAP = {"satellite": "overhead.jpg", "ground_image": "groundlevel.jpg"}


def sample(i: int) -> dict[str, Any]:
    """One of Sat2Cap, as far as its names go."""
    place = {"latitude": i / 10, "longitude": -i / 10, "date_taken": f"2014-01-{i + 1:02d}", "tags": ["a"]}
    content = {"overhead.jpg": b"over %d" % i * (i + 1), "groundlevel.jpg": b"ground %d" % i, "metadata.json": place}
    return {"__key__": f"{i:06d}", **content}


def write(path: Path, samples: list[dict[str, Any]]) -> Path:
    with webdataset.TarWriter(str(path)) as writer:
        for one in samples:
            writer.write(one)
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **settings: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in settings.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def source(folder: Path, shards: str | list[str] = "{000000..000002}.tar", **settings: Any) -> WebDataset:
    return WebDataset(WebDatasetConfig(source="webdataset", shards=shards, **settings), folder)


def opened(found: WebDataset) -> PairedData:
    found.prepare(lambda *_: None)
    return PairedData("d", found.observations(), found.config)


@pytest.fixture
def sat2cap(tmp_path: Path) -> Path:
    """Three shards of 4, 5 and 3 samples."""
    for shard, numbers in enumerate((range(4), range(4, 9), range(9, 12))):
        write(tmp_path / f"{shard:06d}.tar", [sample(i) for i in numbers])
    return tmp_path


class TestContent:
    def test_sat2cap_as_it_is(self, sat2cap: Path) -> None:
        data = opened(source(sat2cap, fields=SAT2CAP))
        assert [data.key(row) for row in range(len(data))] == [f"{i:06d}" for i in range(12)]
        for row in range(12):
            assert data.cell("satellite", row, is_file=True) == sample(row)["overhead.jpg"]
            assert data.cell("ground_image", row, is_file=True) == sample(row)["groundlevel.jpg"]
        assert set(data.fields) == set(SAT2CAP)
        assert data.places is not None
        np.testing.assert_allclose(data.places.longitude, -np.arange(12) / 10)
        np.testing.assert_allclose(data.places.latitude, np.arange(12) / 10)

    def test_fields_of_json_files_are_columns(self, sat2cap: Path) -> None:
        table = source(sat2cap).observations().table
        assert table["metadata.date_taken"].to_pylist() == [f"2014-01-{i + 1:02d}" for i in range(12)]
        assert "metadata.tags" not in table.column_names

    def test_as_webdataset_reads_them(self, sat2cap: Path) -> None:
        theirs = webdataset.WebDataset(sorted(map(str, sat2cap.glob("*.tar"))), shardshuffle=False)
        data = opened(source(sat2cap, "*.tar"))
        for row, one in enumerate(theirs):
            assert data.key(row) == one["__key__"]
            for extension in ("overhead.jpg", "groundlevel.jpg", "metadata.json"):
                assert data.cell(extension, row, is_file=True) == one[extension]
        assert row == len(data) - 1

    def test_kinds_of_files(self, tmp_path: Path) -> None:
        one = {"__key__": "a", "txt": "wörds", "json": {"n": 1, "place": {"lon": 1}}, "cls": 7, "bin": b"\x00\xff"}
        write(tmp_path / "x.tar", [one, {"__key__": "b", "TXT": "more"}])
        data = opened(source(tmp_path, "x.tar", labels={"txt": "cls"}))
        assert data.cell("txt", 0, is_file=False) == "wörds"
        assert data.cell("txt", 0, is_file=True) == "wörds".encode()
        assert json.loads(data.cell("json", 0, is_file=False)) == one["json"]
        assert data.cell("cls", 0, is_file=False) == 7
        assert data.cell("bin", 0, is_file=False) == b"\x00\xff"
        assert data.cell("txt", 1, is_file=False) == "more"  # extensions are taken in lower case, as webdataset does
        assert data.cell("bin", 1, is_file=True) is None
        assert data.rows("train", ["txt"]).tolist() + data.rows("test", ["txt"]).tolist() == [0, 1]
        assert data.rows("train", ["bin"]).tolist() + data.rows("test", ["bin"]).tolist() == [0]
        assert data.labels("txt").tolist() == [0, -1]  # type: ignore[union-attr]

    def test_split_by_a_field(self, tmp_path: Path) -> None:
        write(tmp_path / "x.tar", [{"__key__": str(i), "json": {"part": ["train", "val"][i % 2]}} for i in range(6)])
        data = opened(source(tmp_path, "x.tar", split={"by": "column", "column": "json.part"}))
        assert data.rows("validation", ["json"]).tolist() == [1, 3, 5]

    def test_a_label_in_a_file(self, sat2cap: Path) -> None:
        with pytest.raises(DataError, match=r"labels.satellite: the values of 'overhead.jpg' are files in shards"):
            opened(source(sat2cap, fields=SAT2CAP, labels={"satellite": "overhead.jpg"}))

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([1, 2], [1, 2]),
            ([1, 2.5], [1.0, 2.5]),
            ([1, float("inf")], [1.0, float("inf")]),
            ([1, "two"], ["1", "two"]),
            ([True, False], [True, False]),
            ([True, 1], ["true", "1"]),
            ([2**70, 1], [float(2**70), 1.0]),
            ([10**400, 1], ["1" + "0" * 400, "1"]),
            ([None, 1], [None, 1]),
            (["half \ud83d", "whole"], ["half ?", "whole"]),
        ],
    )
    @pytest.mark.parametrize("shards", [1, 2])
    def test_types_of_fields(self, tmp_path: Path, values: list[Any], expected: list[Any], shards: int) -> None:
        samples = [{"__key__": str(i), "json": json.dumps({"v": value})} for i, value in enumerate(values)]
        for shard in range(shards):
            write(tmp_path / f"{shard}.tar", samples if shards == 1 else samples[shard : shard + 1])
        found = source(tmp_path, "*.tar").observations().table["json.v"].to_pylist()
        assert [str(v).lower() for v in found] == [str(v).lower() for v in expected]

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"lon": 1.5, "lat": 2}, ("m.lon", "m.lat")),
            ({"Longitude": "1.5", "Latitude": "x"}, ("m.longitude", "m.latitude")),
            ({"lat": 2}, (None, None)),
        ],
    )
    def test_coordinates_by_their_names(self, tmp_path: Path, fields: dict[str, Any], expected: Any) -> None:
        write(tmp_path / "x.tar", [{"__key__": "a", "m.json": fields}])
        found = source(tmp_path, "x.tar").observations()
        assert tuple(c and c.lower() for c in (found.longitude, found.latitude)) == expected
        opened(source(tmp_path, "x.tar"))

    def test_two_pairs_of_coordinates_are_not_chosen_from(self, tmp_path: Path) -> None:
        both = {"from.json": {"lon": 1, "lat": 2}, "to.json": {"lon": 3, "lat": 4}}
        write(tmp_path / "x.tar", [{"__key__": "a", **both}])
        assert source(tmp_path, "x.tar").observations().longitude is None
        named = source(tmp_path, "x.tar", longitude="to.lon", latitude="to.lat")
        assert opened(named).places.longitude.tolist() == [3]  # type: ignore[union-attr]


class TestNamingShards:
    @pytest.mark.parametrize(
        ("shards", "keys"),
        [
            ("{000000..000002}.tar", range(12)),
            ("00000[12].tar", range(4, 12)),
            (["000002.tar", "000000.tar"], [*range(9, 12), *range(4)]),
            ("{000000,000002}.tar", [*range(4), *range(9, 12)]),
            (["*.tar", "000001.tar"], range(12)),
        ],
    )
    def test_patterns(self, sat2cap: Path, shards: str | list[str], keys: Any) -> None:
        data = opened(source(sat2cap, shards))
        assert [int(data.key(row)) for row in range(len(data))] == list(keys)
        assert data.cell("overhead.jpg", 0, is_file=True) == sample(next(iter(keys)))["overhead.jpg"]

    def test_absolute_paths_and_file_addresses(self, sat2cap: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        elsewhere = tmp_path_factory.mktemp("chain")
        for pattern in (f"{sat2cap}/*.tar", f"file://{sat2cap}/*.tar", f"file://{sat2cap}/{{000000..000002}}.tar"):
            found = opened(source(elsewhere, pattern))
            assert len(found) == 12
            assert found.blocks is None

    @pytest.mark.parametrize(
        ("shards", "words"),
        [
            ("{000000..000004}.tar", r"2 of 5 shards are missing: .*000003.tar, .*000004.tar\."),
            ("*.tgz", "no shard fits the pattern"),
            ("{0..9999999}.tar", "more than 1,000,000 shards"),
            ("{000000.tar", "a brace is not closed"),
            ("pipe:curl https://example.org/0.tar", "commands are not run"),
            (".", "found a folder"),
            ([], "no shards are named"),
        ],
    )
    def test_refused(self, sat2cap: Path, shards: str | list[str], words: str) -> None:
        with pytest.raises(DataError, match=words):
            source(sat2cap, shards).prepare(lambda *_: None)

    def test_several_folders(self, tmp_path: Path) -> None:
        for i, name in enumerate(("one", "two")):
            (tmp_path / name).mkdir()
            write(tmp_path / name / "0.tar", [sample(2 * i), sample(2 * i + 1)])
        data = opened(source(tmp_path, ["two/0.tar", "one/*.tar"]))
        assert [int(data.key(row)) for row in range(4)] == [2, 3, 0, 1]
        assert data.cell("overhead.jpg", 3, is_file=True) == sample(1)["overhead.jpg"]


class TestFingerprint:
    def test_changes_with_the_shards_and_not_with_their_place(self, sat2cap: Path, tmp_path_factory: Any) -> None:
        moved = tmp_path_factory.mktemp("moved") / "data"
        before = source(sat2cap).fingerprint()
        assert source(sat2cap, fields=SAT2CAP, cache_gib=3, shards_at_once=5).fingerprint() == before
        assert source(sat2cap, "{000000..000001}.tar").fingerprint() != before
        assert source(sat2cap, prefix_keys=True).fingerprint() != before
        sat2cap.rename(moved)
        assert source(moved).fingerprint() == before
        os.utime(moved / "000001.tar", ns=(0, 0))
        assert source(moved).fingerprint() != before


class TestKeys:
    def test_in_two_shards(self, tmp_path: Path) -> None:
        for name in ("a", "b", "c"):
            write(tmp_path / f"{name}.tar", [{"__key__": "0", "txt": name}, {"__key__": f"{name}1", "txt": name}])
        with pytest.raises(DataError, match=r"1 keys are in more than one shard, such as '0' in .*a.tar and .*b.tar"):
            opened(source(tmp_path, "*.tar"))
        data = opened(source(tmp_path, "*.tar", prefix_keys=True))
        assert [data.key(row) for row in range(6)] == ["a/0", "a/a1", "b/0", "b/b1", "c/0", "c/c1"]

    def test_prefixes_tell_folders_apart(self, tmp_path: Path) -> None:
        for name in ("train-1", "train-2"):
            (tmp_path / name).mkdir()
            write(tmp_path / name / "0.tar", [{"__key__": "x", "txt": name}])
        data = opened(source(tmp_path, "*/0.tar", prefix_keys=True))
        assert [data.key(row) for row in range(2)] == ["train-1/0/x", "train-2/0/x"]

    def test_files_of_a_key_need_not_be_neighbours(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for extension in ("txt", "bin"):
                for i in range(3):
                    add(tar, f"{i}.{extension}", f"{extension} {i}".encode())
        data = opened(source(tmp_path, "x.tar"))
        assert [(data.cell("txt", r, is_file=False), data.cell("bin", r, is_file=False)) for r in range(3)] == [
            (f"txt {i}", f"bin {i}".encode()) for i in range(3)
        ]


def broken(path: Path) -> Path:
    """A tar file with everything that should not be in one, and two samples."""
    with tarfile.open(path, "w") as tar:
        add(tar, "good.txt", b"first")
        add(tar, "folder", type=tarfile.DIRTYPE)
        add(tar, "good.txt", b"second")
        add(tar, "../out.txt", b"out")
        add(tar, "a/../../out.txt", b"out")
        add(tar, "/etc/root.txt", b"root")
        add(tar, "link.txt", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "hard.txt", type=tarfile.LNKTYPE, linkname="good.txt")
        add(tar, "null.txt", type=tarfile.CHRTYPE)
        add(tar, "fifo.txt", type=tarfile.FIFOTYPE)
        add(tar, "README", b"no extension")
        add(tar, "._good.txt", b"what macOS leaves")
        add(tar, "good.", b"an empty extension")
        add(tar, "good.__key__", b"the name of a column")
        add(tar, "__meta__", b"{}")
        add(tar, "bad\udcff.txt", b"not UTF-8")
        add(tar, "good.cls", b"cat")
        add(tar, "good.json", b"{not json")
        add(tar, "last.txt", b"last")
        add(tar, "last.json", b"[" * 100_000)
    return path


class TestBroken:
    def test_what_is_left_out_is_named(self, tmp_path: Path) -> None:
        path = broken(tmp_path / "x.tar")
        found = source(tmp_path, "x.tar")
        data = opened(found)
        assert [(data.key(r), data.cell("txt", r, is_file=False)) for r in range(len(data))] == [
            ("good", "first"), ("last", "last"),
        ]  # fmt: skip
        notes = {line.removeprefix("left out: ").removesuffix(f" in {path}") for line in found.notes()}
        assert notes == {
            "1 names given twice in a shard, of which the first is used, such as 'good.txt'",
            "3 names that lead out of the archive, such as '../out.txt'",
            "2 links, such as 'link.txt'",
            "2 devices and pipes, such as 'null.txt'",
            "4 names without a key and an extension, such as 'README'",
            r"1 names that are not UTF-8, such as 'bad\\xff.txt'",
            "1 files that should hold a whole number and do not, such as 'good.cls'",
            "2 JSON files that cannot be read, such as 'good.json'",
        }
        again = source(tmp_path, "x.tar")  # from the index
        again.prepare(lambda *_: None)
        assert again.notes() == found.notes()

    def test_shards_that_are_not_whole(self, sat2cap: Path) -> None:
        (sat2cap / "000003.tar").write_bytes(b"")
        (sat2cap / "000004.tar").write_bytes(b"<html>404</html>" * 100)
        write(sat2cap / "000005.tar", [])
        os.truncate(sat2cap / "000001.tar", 9_000)
        found = source(sat2cap, "*.tar", fields=SAT2CAP)
        data = opened(found)
        assert [int(data.key(row)) for row in range(len(data))] == [0, 1, 2, 3, 4, 5, 9, 10, 11]
        assert data.cell("satellite", 4, is_file=True) == sample(4)["overhead.jpg"]
        assert data.cell("satellite", 5, is_file=True) is None  # cut off before it
        name = str(sat2cap)
        assert [line.removeprefix(f"{name}/") for line in found.notes()] == [
            "000001.tar: it is cut off in the header at byte 9216; the 4 members before that are used",
            "000003.tar: it is empty, 0 bytes",
            "000004.tar: it is no tar file: there is no header of a member at byte 0",
        ]

    def test_nothing_usable(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar").write_bytes(b"")
        with pytest.raises(DataError, match=r"no samples in 1 shards: .*a.tar: it is empty, 0 bytes"):
            opened(source(tmp_path, "a.tar"))

    def test_compressed(self, sat2cap: Path) -> None:
        path = sat2cap / "x.tar.gz"
        path.write_bytes(gzip.compress((sat2cap / "000000.tar").read_bytes()))
        with pytest.raises(DataError, match="compressed with gzip; a compressed file cannot be read from the middle"):
            opened(source(sat2cap, "x.tar.gz"))

    def test_keys_with_dots(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for i in range(300):
                add(tar, f"48.{i}.jpg", b"x")
        with pytest.raises(
            DataError, match=r"more than 256 different extensions, such as .256\.jpg. of .48\.256\.jpg."
        ):
            opened(source(tmp_path, "x.tar"))

    def test_a_hundred_broken_shards(self, sat2cap: Path) -> None:
        """Nothing but a `DataError` comes of them, and every cell that is listed can be read."""
        rng = random.Random(1)
        whole, folder = (sat2cap / "000001.tar").read_bytes(), sat2cap / "broken"
        folder.mkdir()
        for i in range(100):
            content = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.4 else whole)
            for _ in range(rng.randrange(0, 10)):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            (folder / f"{i:03d}.tar").write_bytes(content)
        found = source(folder, "*.tar", prefix_keys=True)
        data = opened(found)
        assert len(data) > 50
        assert len(found.notes()) > 20
        for name in data.fields:
            for row in range(len(data)):
                cell = data.cell(name, row, is_file=name.endswith("jpg"))
                assert cell is None or isinstance(cell, bytes if name.endswith("jpg") else str | int | float)


def _indexed(folder: Path) -> tuple[int, int]:
    """How often a process was told of a shard that it has read, and how many rows it finds."""
    calls: list[int] = []
    found = source(folder)
    found.prepare(lambda done, *_: calls.append(done))
    return len(calls), found.observations().table.num_rows


class TestIndex:
    def test_is_made_once(self, sat2cap: Path) -> None:
        calls: list[tuple[int, int, str]] = []
        found = source(sat2cap)
        found.prepare(lambda *state: calls.append(state))
        assert calls == [(i, 3, "shards indexed") for i in (1, 2, 3)]
        source(sat2cap).prepare(lambda *_: pytest.fail("indexed twice"))
        assert {path.name for path in sat2cap.iterdir()} == {*(f"00000{i}.tar" for i in range(3)), "index.parquet"}

    def test_only_what_changed_is_read_again(self, sat2cap: Path) -> None:
        opened(source(sat2cap, "*.tar"))
        write(sat2cap / "000001.tar", [sample(i) for i in range(20, 22)])
        write(sat2cap / "000003.tar", [sample(30)])
        (sat2cap / "000000.tar").unlink()
        calls: list[int] = []
        found = source(sat2cap, "*.tar")
        found.prepare(lambda done, total, _: calls.append(total))
        assert calls == [2, 2]
        data = opened(found)
        assert [int(data.key(row)) for row in range(len(data))] == [20, 21, 9, 10, 11, 30]
        assert data.cell("overhead.jpg", 4, is_file=True) == sample(11)["overhead.jpg"]
        names = [
            s["name"] for s in json.loads(pq.read_schema(sat2cap / "index.parquet").metadata[b"geobind"])["shards"]
        ]
        assert names == ["000001.tar", "000002.tar", "000003.tar"]

    def test_two_data_sets_share_it(self, sat2cap: Path) -> None:
        opened(source(sat2cap, "000000.tar"))
        calls: list[int] = []
        source(sat2cap, "{000001,000002}.tar").prepare(lambda done, total, _: calls.append(total))
        assert calls == [2, 2]
        source(sat2cap).prepare(lambda *_: pytest.fail("indexed twice"))
        assert len(opened(source(sat2cap, "000001.tar"))) == 5

    @pytest.mark.parametrize("content", [b"", b"PAR1 and so on", b"x" * 1000])
    def test_somebody_elses_file_of_that_name_stays(self, sat2cap: Path, content: bytes) -> None:
        (sat2cap / "index.parquet").write_bytes(content)
        assert len(opened(source(sat2cap))) == 12
        assert (sat2cap / "index.parquet").read_bytes() == content
        source(sat2cap).prepare(lambda *_: pytest.fail("indexed twice"))

    def test_in_a_folder_that_cannot_be_written(self, sat2cap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GEOBIND_CACHE", str(sat2cap / "cache"))
        (sat2cap / "index.parquet").mkdir()  # whoever runs the tests may write to every folder
        assert len(opened(source(sat2cap))) == 12
        assert list((sat2cap / "cache/shards").glob("index-*.parquet"))
        write(sat2cap / "000001.tar", [sample(77)])
        assert len(opened(source(sat2cap))) == 8

    def test_by_several_processes_at_once(self, sat2cap: Path) -> None:
        with get_context("fork").Pool(4) as pool:
            found = pool.map(_indexed, [sat2cap] * 4, chunksize=1)
        assert sorted(calls for calls, _ in found) == [0, 0, 0, 3]  # one of them reads, the others wait for it
        assert [rows for _, rows in found] == [12] * 4

    def test_what_was_read_before_an_interruption_is_kept(self, sat2cap: Path) -> None:
        def interrupt(done: int, total: int, text: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            source(sat2cap).prepare(interrupt)
        calls: list[int] = []
        source(sat2cap).prepare(lambda done, total, _: calls.append(total))
        assert 0 < len(calls) < 3
