"""Embeddings on the disk: what is stored is found, by many processes, whatever becomes of any of them."""

import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geobind_core.data.cache_entries import EntryDescription, cache_root, list_entries
from geobind_core.data.cache_prune import prune
from geobind_core.data.embedding_cache import EmbeddingCache, Ids
from geobind_core.errors import RunFolderError, TrainingError

DIMENSION = 24
DESCRIPTION = EntryDescription("satellite", "clip", "12ab", "embedding", DIMENSION, "no", transform={"size": 224})


def ids_of(numbers: Any) -> Ids:
    """Returns ids that differ in a few places only, and many of which end in zeros."""
    words = np.zeros((len(numbers), 2), dtype=np.uint64)
    words[:, 0] = np.asarray(numbers) % 7
    words[:, 1] = np.asarray(numbers)
    return words.view("V16").reshape(-1)


def values_of(numbers: Any, dimension: int = DIMENSION) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Returns vectors of unit norm, of each number its own."""
    angles = np.asarray(numbers, dtype=np.float64)[:, None] * 0.37 + np.arange(dimension)
    values = np.sin(angles).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def store(cache: EmbeddingCache, numbers: Any) -> None:
    cache.append(ids_of(numbers), values_of(numbers))


def segments(cache: EmbeddingCache) -> list[Path]:
    return sorted(cache.folder.glob("seg-*"))


def assert_has_just(cache: EmbeddingCache, numbers: Any, among: int = 1000) -> None:
    positions = cache.locate(ids_of(np.arange(among)))
    assert np.flatnonzero(positions >= 0).tolist() == sorted(set(numbers))
    found = np.flatnonzero(positions >= 0)
    np.testing.assert_array_equal(cache.read(positions[found]), values_of(found))


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache.open(tmp_path, DESCRIPTION)


@contextmanager
def child(work: Callable[[], None]) -> Iterator[int]:
    """Does something in a copy of this process, which is killed if it has not ended by itself."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class TestStore:
    def test_what_is_stored_is_found(self, cache: EmbeddingCache, tmp_path: Path) -> None:
        store(cache, [5, 3, 900])
        store(cache, np.arange(100, 200))
        for found in (cache, EmbeddingCache.open(tmp_path, DESCRIPTION)):
            assert_has_just(found, [3, 5, 900, *range(100, 200)])
            assert (len(found), found.warnings) == (103, ())

    def test_wherever_it_lies_and_whatever_torch_prefers(self, tmp_path: Path) -> None:
        with torch.device("meta"), torch.inference_mode():
            cache = EmbeddingCache.open(tmp_path / "Küste, %20 [x]", DESCRIPTION)
            store(cache, [1, 2])
            assert_has_just(cache, [1, 2])

    def test_positions_in_any_order_and_more_than_once(self, cache: EmbeddingCache) -> None:
        for start in range(0, 500, 50):
            store(cache, np.arange(start, start + 50))
        wanted = np.random.default_rng(0).integers(0, 500, 300)
        read = cache.read(cache.locate(ids_of(wanted)))
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, values_of(wanted))
        assert cache.read(np.empty(0, dtype=np.int64)).shape == (0, DIMENSION)

    def test_a_position_that_is_none(self, cache: EmbeddingCache) -> None:
        store(cache, [1, 2])
        for wrong in (-1, 2):
            with pytest.raises(IndexError, match="expected 0 to 1"):
                cache.read(np.array([0, wrong]))

    def test_nothing_is_written_before_there_is_something_to_store(self, cache: EmbeddingCache, tmp_path: Path) -> None:
        assert cache.locate(ids_of([1, 2])).tolist() == [-1, -1]
        cache.append(ids_of([]), np.empty((0, DIMENSION)))
        assert list(tmp_path.iterdir()) == []

    def test_locates_as_a_dictionary_does(self, cache: EmbeddingCache) -> None:
        rng = np.random.default_rng(1)
        # Few values a byte, so that ids share beginnings and ends and come more than once.
        ids = rng.integers(0, 2, (5000, 16), dtype=np.uint8)
        ids[:, :4] = 0
        stored = ids[:4000].reshape(-1).view("V16")
        for part in np.split(stored, 8):
            cache.append(part, np.zeros((len(part), DIMENSION)))
        first: dict[bytes, int] = {}
        for position, value in enumerate(stored):
            first.setdefault(value.tobytes(), position)
        assert len(first) < len(stored)
        expected = [first.get(row.tobytes(), -1) for row in ids]
        assert -1 in expected
        assert cache.locate(ids.reshape(-1).view("V16")).tolist() == expected

    def test_a_million(self, tmp_path: Path) -> None:
        cache = EmbeddingCache.open(tmp_path, replace(DESCRIPTION, dimension=1))
        ids = np.random.default_rng(2).integers(0, 256, (1_000_000, 16), dtype=np.uint8).reshape(-1).view("V16")
        for start in range(0, len(ids), 50_000):
            cache.append(ids[start : start + 50_000], np.ones((50_000, 1)))
        started = time.perf_counter()
        assert (cache.locate(ids[::-1]) == np.arange(len(ids))[::-1]).all()
        assert time.perf_counter() - started < 8  # about one second, on a machine with nothing else to do

    def test_positions_stay_when_more_is_stored(self, cache: EmbeddingCache, tmp_path: Path) -> None:
        other = EmbeddingCache.open(tmp_path, DESCRIPTION)
        store(other, [1, 2])
        store(cache, [3, 4])
        before = cache.locate(ids_of([3, 4]))
        cache.refresh()  # an older segment turns up
        np.testing.assert_array_equal(cache.read(before), values_of([3, 4]))
        assert_has_just(cache, [1, 2, 3, 4])

    def test_of_two_rows_with_an_id_the_oldest_wins_everywhere(self, cache: EmbeddingCache, tmp_path: Path) -> None:
        other = EmbeddingCache.open(tmp_path, DESCRIPTION)
        other.append(ids_of([1]), values_of([10]))
        cache.append(ids_of([1]), values_of([20]))
        cache.refresh()
        other.refresh()
        for one in (cache, other, EmbeddingCache.open(tmp_path, DESCRIPTION)):
            np.testing.assert_array_equal(one.read(one.locate(ids_of([1]))), values_of([10]))

    @pytest.mark.parametrize("dtype", ["V8", "S16"])
    def test_what_is_no_id(self, cache: EmbeddingCache, dtype: str) -> None:
        ids = np.zeros((2, 1), dtype=dtype) if dtype == "S16" else np.zeros(2, dtype=dtype)
        with pytest.raises(ValueError, match="expected"):
            cache.locate(ids)

    def test_values_of_another_shape(self, cache: EmbeddingCache) -> None:
        with pytest.raises(ValueError, match=r"found values \(2, 3\); expected \(2, 24\)"):
            cache.append(ids_of([1, 2]), np.zeros((2, 3)))

    def test_no_file_stays_open(self, cache: EmbeddingCache) -> None:
        store(cache, [0])
        before = len(list(Path("/proc/self/fd").iterdir()))
        for number in range(1, 50):
            store(cache, [number])
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        assert_has_just(cache, range(50))


class TestPrecision:
    def test_half(self, tmp_path: Path) -> None:
        cache = EmbeddingCache.open(tmp_path, replace(DESCRIPTION, dtype="float16", dimension=512))
        exact = values_of(np.arange(200), 512)
        cache.append(ids_of(np.arange(200)), exact)
        read = cache.read(cache.locate(ids_of(np.arange(200))))
        assert np.abs(read - exact).max() < 2**-11 * np.abs(exact).max() + 2**-25
        np.testing.assert_allclose(np.linalg.norm(read, axis=1), 1, atol=2e-7)
        assert np.abs(read @ read.T - exact @ exact.T).max() < 1e-4
        # What comes of a row does not depend on what it is read with.
        alone = np.concatenate([cache.read(np.array([position])) for position in range(200)])
        np.testing.assert_array_equal(alone, read)
        (file,) = cache.folder.glob("*/values.npy")
        assert np.load(file).dtype == np.float16

    def test_features_keep_their_norm(self, tmp_path: Path) -> None:
        cache = EmbeddingCache.open(tmp_path, replace(DESCRIPTION, dtype="float16", output="features"))
        cache.append(ids_of([1]), 100 * values_of([1]))
        np.testing.assert_allclose(cache.read(np.array([0])), 100 * values_of([1]), rtol=2**-10)

    def test_too_large_for_half(self, tmp_path: Path) -> None:
        cache = EmbeddingCache.open(tmp_path, replace(DESCRIPTION, dtype="float16", output="features"))
        with pytest.raises(
            TrainingError, match=r"1 of 2 rows of 'satellite' \(features\) are too large for float16: up to 100000;"
        ):
            cache.append(ids_of([1, 2]), np.array([[1.0], [100_000.0]]) * np.ones((2, DIMENSION)))
        assert list(tmp_path.iterdir()) == []

    def test_not_finite(self, cache: EmbeddingCache) -> None:
        with pytest.raises(TrainingError, match=r"1 of 2 rows of 'satellite' \(embedding\) are not finite"):
            cache.append(ids_of([1, 2]), np.array([[1.0], [np.nan]]) * np.ones((2, DIMENSION)))

    def test_single_comes_back_to_the_bit(self, cache: EmbeddingCache) -> None:
        values = np.random.default_rng(0).standard_normal((10, DIMENSION)).astype(np.float32)
        cache.append(ids_of(np.arange(10)), values)
        np.testing.assert_array_equal(cache.read(np.arange(10)), values)


class TestEntry:
    def test_whatever_differs_makes_another(self) -> None:
        changes: list[dict[str, Any]] = [
            {"modality": "text"},
            {"plugin": "other"},
            {"encoder": "12ac"},
            {"output": "features"},
            {"dimension": 25},
            {"precision": "bf16"},
            {"dtype": "float16"},
            {"transform": {"size": 225}},
            {"transform": {}},
        ]
        keys = {replace(DESCRIPTION, **change).key() for change in changes}
        assert len(keys | {DESCRIPTION.key()}) == len(changes) + 1
        assert all(len(key) == 32 for key in keys)

    def test_key_is_the_same_everywhere(self) -> None:
        assert DESCRIPTION.key() == "3ab29ebb3e66506a8482fa0b28d55cb8"
        both = replace(DESCRIPTION, transform={"a": 1, "b": 2}), replace(DESCRIPTION, transform={"b": 2, "a": 1})
        assert both[0].key() == both[1].key()

    def test_says_what_it_is(self, cache: EmbeddingCache, tmp_path: Path) -> None:
        store(cache, [1, 2])
        record = json.loads((tmp_path / "anchors" / DESCRIPTION.key() / "entry.json").read_text())
        assert record["description"]["modality"] == "satellite"
        assert record["description"]["transform"] == {"size": 224}
        assert (tmp_path / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
        (entry,) = list_entries(tmp_path)
        assert (entry.folder, entry.rows) == (cache.folder, 2)
        assert entry.size == sum(path.stat().st_size for path in cache.folder.rglob("*") if path.is_file())

    def test_opening_notes_the_use(self, cache: EmbeddingCache, tmp_path: Path) -> None:
        store(cache, [1])
        os.utime(cache.folder / "last_used", (1, 1))
        assert list_entries(tmp_path)[0].last_used == 1
        EmbeddingCache.open(tmp_path, DESCRIPTION)
        assert list_entries(tmp_path)[0].last_used > time.time() - 60

    def test_use_that_cannot_be_noted(self, cache: EmbeddingCache, tmp_path: Path) -> None:
        store(cache, [1])
        (cache.folder / "last_used").unlink()
        (cache.folder / "last_used").symlink_to(tmp_path / "no" / "where")
        assert_has_just(EmbeddingCache.open(tmp_path, DESCRIPTION), [1])

    def test_where(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GEOBIND_CACHE", "~/mine")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cache_root() == tmp_path / "mine"
        monkeypatch.setenv("GEOBIND_CACHE", "")
        assert cache_root() == tmp_path / "xdg" / "geobind"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_root() == tmp_path / ".cache" / "geobind"


def _cut(file: str, size: int) -> Callable[[Path], None]:
    return lambda segment: os.truncate(segment / file, size)


def _other(file: str, array: Any) -> Callable[[Path], None]:
    return lambda segment: np.save(segment / file, array)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "values cut off": _cut("values.npy", 1000),
    "values without a header": _cut("values.npy", 40),
    "no values": _cut("values.npy", 0),
    "ids cut off": _cut("ids.npy", 150),
    "another dimension": _other("values.npy", np.zeros((20, DIMENSION + 1), dtype=np.float32)),
    "another type": _other("values.npy", np.zeros((20, DIMENSION))),
    "columns first": _other("values.npy", np.zeros((DIMENSION, 20), dtype=np.float32).T),
    "a vector": _other("values.npy", np.zeros(20, dtype=np.float32)),
    "fewer values than ids": _other("values.npy", np.zeros((19, DIMENSION), dtype=np.float32)),
    "ids of another kind": _other("ids.npy", np.arange(20)),
    "a pickle": _other("ids.npy", np.array([{}])),
    "not npy": lambda segment: (segment / "ids.npy").write_bytes(b"\x00" * 500),
    "missing": lambda segment: (segment / "values.npy").unlink(),
    "a folder": lambda segment: ((segment / "ids.npy").unlink(), (segment / "ids.npy").mkdir())[1],
    "a file": lambda segment: (shutil.rmtree(segment), segment.write_text(""))[0],
}


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGE)
    def test_counts_as_missing(self, cache: EmbeddingCache, tmp_path: Path, damage: str) -> None:
        store(cache, np.arange(10))
        store(cache, np.arange(100, 120))
        store(cache, np.arange(200, 210))
        DAMAGE[damage](segments(cache)[1])
        opened = EmbeddingCache.open(tmp_path, DESCRIPTION)
        (warning,) = opened.warnings
        assert str(segments(cache)[1]) in warning
        assert_has_just(opened, [*range(10), *range(200, 210)])
        store(opened, np.arange(100, 120))
        assert_has_just(EmbeddingCache.open(tmp_path, DESCRIPTION), [*range(10), *range(100, 120), *range(200, 210)])

    def test_what_is_not_a_segment_is_left_alone(self, cache: EmbeddingCache, tmp_path: Path) -> None:
        store(cache, [1])
        (cache.folder / "notes").mkdir()
        (cache.folder / ".tmp-seg-1").mkdir()
        opened = EmbeddingCache.open(tmp_path, DESCRIPTION)
        assert opened.warnings == ()
        assert_has_just(opened, [1])


class TestKilled:
    @pytest.mark.parametrize("call", range(1, 4))
    def test_at_each_step(self, cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
        """Before and after ids and values are written, and just before they get their name."""
        calls = 0

        def die(*_: object) -> None:
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)

        store(cache, [1, 2])
        monkeypatch.setattr(os, "fsync", die)
        monkeypatch.setattr(Path, "rename", die)
        with child(lambda: store(cache, [3, 4])) as pid:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        monkeypatch.undo()
        assert len(list(cache.folder.glob(".tmp-*"))) == 1
        cache.refresh()
        assert cache.warnings == ()
        assert_has_just(cache, [1, 2])
        store(cache, [3, 4])
        assert_has_just(cache, [1, 2, 3, 4])

    def test_at_any_moment(self, tmp_path: Path) -> None:
        rng = random.Random(3)
        whole = 0

        def work() -> None:
            own = EmbeddingCache.open(tmp_path, DESCRIPTION)
            for _ in range(10_000):
                store(own, np.random.default_rng().integers(0, 1000, rng.randrange(1, 400)))

        for _ in range(30):
            with child(work):
                time.sleep(rng.uniform(0.005, 0.06))
            found = EmbeddingCache.open(tmp_path, DESCRIPTION)
            assert found.warnings == ()
            positions = found.locate(ids_of(np.arange(1000)))
            there = np.flatnonzero(positions >= 0)
            np.testing.assert_array_equal(found.read(positions[there]), values_of(there))
            assert len(found) >= whole
            whole = len(found)
        assert whole > 0


class TestTogether:
    def test_processes_write_at_the_same_time(self, cache: EmbeddingCache, tmp_path: Path) -> None:
        def work(first: int) -> Callable[[], None]:
            def append() -> None:
                own = EmbeddingCache.open(tmp_path, DESCRIPTION)
                for start in range(first, first + 600, 20):
                    store(own, np.arange(start, start + 20))

            return append

        with child(work(0)) as one, child(work(300)) as two:
            for pid in (one, two):
                status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                assert status is not None
                assert status.si_status == 0
        cache.refresh()
        assert len(cache) == 1200
        assert_has_just(cache, range(900))
        again = EmbeddingCache.open(tmp_path, DESCRIPTION)
        ids = ids_of(np.arange(900))
        assert (again.locate(ids) == cache.locate(ids)).all()

    def test_a_copy_maps_the_same_files(self, cache: EmbeddingCache) -> None:
        for start in range(0, 9000, 3000):
            store(cache, np.arange(start, start + 3000))
        positions = cache.locate(ids_of(np.arange(0, 9000, 7)))
        pickled = pickle.dumps(cache)
        assert len(pickled) < 2000
        store(cache, np.arange(9000, 9010))
        copy = pickle.loads(pickled)
        np.testing.assert_array_equal(copy.read(positions), cache.read(positions))
        assert len(copy) == 9000
        copy.refresh()
        assert len(copy) == 9010

    def test_the_copy_of_what_was_removed(self, cache: EmbeddingCache) -> None:
        store(cache, [1])
        store(cache, [2])
        pickled = pickle.dumps(cache)
        shutil.rmtree(segments(cache)[0])
        with pytest.raises(RunFolderError, match="1 segments were removed from the cache while it was in use"):
            pickle.loads(pickled)

    def test_pruned_while_in_use(self, cache: EmbeddingCache, tmp_path: Path) -> None:
        store(cache, np.arange(50))
        prune(tmp_path, everything=True)
        assert not cache.folder.exists()
        assert_has_just(cache, range(50))
        cache.refresh()
        store(cache, [100])
        assert_has_just(cache, [*range(50), 100])
        assert_has_just(EmbeddingCache.open(tmp_path, DESCRIPTION), [100])

    def test_pruned_while_it_writes(
        self, cache: EmbeddingCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store(cache, [1])
        fsync = os.fsync

        def pruned_first(file: int) -> None:
            monkeypatch.setattr(os, "fsync", fsync)
            prune(tmp_path, everything=True)

        monkeypatch.setattr(os, "fsync", pruned_first)
        store(cache, [2])
        assert_has_just(cache, [1, 2])
        assert_has_just(EmbeddingCache.open(tmp_path, DESCRIPTION), [2])
        assert list((tmp_path / "anchors").iterdir()) == [cache.folder]


class TestRefused:
    def test_no_room(self, cache: EmbeddingCache) -> None:
        store(cache, [1])
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            with pytest.raises(RunFolderError) as caught:
                store(cache, np.arange(900))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert str(cache.folder) in str(caught.value)
        assert "cannot be written: File too large." in str(caught.value)
        assert "GEOBIND_CACHE" in caught.value.hint
        assert "anchor_cache: off" in caught.value.hint
        assert sorted(path.name[:4] for path in cache.folder.iterdir()) == ["entr", "last", "seg-"]
        assert_has_just(cache, [1])

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "anchors").write_text("")
        with pytest.raises(RunFolderError, match="cannot be read: Not a directory"):
            EmbeddingCache.open(tmp_path, DESCRIPTION)
        with pytest.raises(RunFolderError, match="cannot be written: "):
            store(EmbeddingCache(tmp_path, DESCRIPTION), [1])

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_read_only(self, cache: EmbeddingCache, tmp_path: Path) -> None:
        store(cache, [1])
        cache.folder.chmod(0o500)
        (cache.folder / "last_used").chmod(0o400)
        try:
            opened = EmbeddingCache.open(tmp_path, DESCRIPTION)
            assert_has_just(opened, [1])
            with pytest.raises(RunFolderError, match="cannot be written: Permission denied"):
                store(opened, [2])
        finally:
            cache.folder.chmod(0o700)
