"""What lies where in the shards of a folder: a Parquet file, made once and kept up with the shards.

It lies beside the shards as `index.parquet`, or in the cache where that cannot be written. Its metadata says of each
shard what it was when it was read, so that one that is new or has changed is read again, and no other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from geobind_core.data.cache_entries import cache_root
from geobind_core.data.remote import is_url, read_if_there, shown
from geobind_core.data.shard_file import ShardFile
from geobind_core.data.shard_table import Remarks, joined, read_shard
from geobind_core.errors import DataError
from geobind_core.files import replacing_file
from geobind_core.plugins.source import Progress

INDEX_FILE = "index.parquet"
SHARD = "__shard__"

_METADATA = b"geobind"
_FORMAT = "geobind shard index"
_VERSION = 1
_THREADS = 8  # that wait for a disk at a time


@dataclass(frozen=True)
class IndexedShard:
    """A shard in an index: its name in the folder, what it was when it was read, and what was left out."""

    name: str
    size: int
    mtime_ns: int
    version: str
    rows: int
    remarks: Remarks = field(compare=False)

    def is_of(self, file: ShardFile) -> bool:
        """Whether a shard is still the one that was read."""
        if (self.name, self.size) != (file.name, file.size):
            return False
        if not file.is_remote:
            return self.mtime_ns == file.mtime_ns
        # An index that was made before the shards were put there knows no version.
        return not self.version or not file.version or self.version == file.version


@dataclass(frozen=True)
class Index:
    """The rows of the shards of a folder.

    Attributes:
        shards: The shards.
        table: The rows; `__shard__` is a position in `shards`.
    """

    shards: tuple[IndexedShard, ...]
    table: pa.Table

    def of(self, files: Sequence[ShardFile]) -> Index:
        """Returns the part that is of these shards, in their order. Each must be there."""
        place = {shard.name: number for number, shard in enumerate(self.shards)}
        chosen = np.array([place[file.name] for file in files], dtype=np.int32)
        rank = np.full(len(self.shards), -1, dtype=np.int32)
        rank[chosen] = np.arange(len(chosen), dtype=np.int32)
        ranks = rank[self.table[SHARD].to_numpy()]
        rows = np.flatnonzero(ranks >= 0)
        rows = rows[np.argsort(ranks[rows], kind="stable")]
        in_place = len(rows) == len(ranks) and bool((np.diff(rows) > 0).all())
        table = self.table if in_place else self.table.take(pa.array(rows))
        numbers = pa.array(ranks[rows])
        table = table.set_column(table.column_names.index(SHARD), SHARD, numbers)
        return Index(tuple(self.shards[number] for number in chosen.tolist()), table)


def index_of(
    folder: str, files: Sequence[ShardFile], opened: Callable[[ShardFile], FileIO], progress: Progress
) -> Index:
    """Returns the index of shards of one folder; what is not known yet is read and stored.

    Args:
        folder: The path or the address of the folder.
        files: The shards, all of them in that folder.
        opened: Opens a shard.
        progress: Told how many shards have been read.

    Raises:
        DataError: A shard cannot be read.
    """
    known = _known(folder)
    if known is not None and not _unknown(known, files):
        return known.of(files)
    with _alone(folder):
        known = _known(folder)  # another process may just have stored it
        unknown = _unknown(known, files)
        if not unknown and known is not None:
            return known.of(files)
        found: dict[ShardFile, tuple[pa.Table, Remarks]] = {}
        try:
            for file, content in _read(unknown, opened, progress):
                found[file] = content
        finally:  # of a million members, those that have been read need not be read again
            if found:
                known = _merged(known, found, folder, files)
                _store(folder, known)
    assert known is not None
    return known.of(files)


def _read(
    files: Sequence[ShardFile], opened: Callable[[ShardFile], FileIO], progress: Progress
) -> Iterator[tuple[ShardFile, tuple[pa.Table, Remarks]]]:
    def read(file: ShardFile) -> tuple[pa.Table, Remarks]:
        try:
            with opened(file) as handle:
                return read_shard(handle, shown(file.location))
        except OSError as error:
            raise DataError(f"the shard cannot be read: {error.strerror or error}.", place=file.location) from error

    pool = ThreadPoolExecutor(_THREADS)
    try:
        tasks: Mapping[Future[tuple[pa.Table, Remarks]], ShardFile] = {pool.submit(read, f): f for f in files}
        for done, task in enumerate(as_completed(tasks), start=1):
            yield tasks[task], task.result()
            progress(done, len(files), "shards indexed")
    finally:
        pool.shutdown(cancel_futures=True)


def _unknown(known: Index | None, files: Sequence[ShardFile]) -> list[ShardFile]:
    by_name = {shard.name: shard for shard in known.shards} if known else {}
    return [file for file in files if file.name not in by_name or not by_name[file.name].is_of(file)]


def _merged(
    known: Index | None, found: Mapping[ShardFile, tuple[pa.Table, Remarks]], folder: str, files: Sequence[ShardFile]
) -> Index:
    """Returns an index of what was known and still is there, and of what was read."""
    new = {file.name for file in found}
    wanted = {file.name for file in files}
    kept = (
        [s for s in known.shards if s.name not in new and (s.name in wanted or _is_there(folder, s.name))]
        if known
        else []
    )
    # In the order of their names, so that the same shards make the same index.
    parts: list[tuple[IndexedShard, pa.Table | None]] = [(shard, None) for shard in kept]
    for file, (table, remarks) in found.items():
        parts.append((IndexedShard(file.name, file.size, file.mtime_ns, file.version, len(table), remarks), table))
    parts.sort(key=lambda part: part[0].name)
    tables = [_renumbered(known, {part[0]: number for number, part in enumerate(parts)})] if known and kept else []
    for number, (_, content) in enumerate(parts):
        if content is not None:
            tables.append(content.append_column(SHARD, pa.array(np.full(len(content), number, dtype=np.int32))))
    whole = joined(tables)
    numbers = whole[SHARD].to_numpy()
    if (np.diff(numbers) < 0).any():
        whole = whole.take(pa.array(np.argsort(numbers, kind="stable")))
    return Index(tuple(part[0] for part in parts), whole)


def _renumbered(known: Index, numbers: Mapping[IndexedShard, int]) -> pa.Table:
    """Returns the rows of the shards that have a number."""
    by_position = np.array([numbers.get(shard, -1) for shard in known.shards], dtype=np.int32)
    found = by_position[known.table[SHARD].to_numpy()]
    table = known.table.set_column(known.table.column_names.index(SHARD), SHARD, pa.array(found))
    return table.filter(pa.array(found >= 0))


def _is_there(folder: str, name: str) -> bool:
    return is_url(folder) or Path(folder, name).is_file()


# ---------------------------------------------------------------------- on the disk


def shards_folder() -> Path:
    """Returns the folder of the cache for what belongs to shards."""
    return cache_root() / "shards"


def _in_cache(folder: str) -> Path:
    return shards_folder() / f"index-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.parquet"


@contextmanager
def _alone(folder: str) -> Iterator[None]:
    lock = _in_cache(folder).with_suffix(".lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            yield
    except OSError as error:
        raise DataError(
            f"the cache cannot be written: {error.strerror or error}.",
            place=str(lock.parent),
            hint="Set GEOBIND_CACHE to a folder with room.",
        ) from error


def _known(folder: str) -> Index | None:
    """Returns what is stored of a folder: beside the shards, or else in the cache."""
    found = read_index(_in_cache(folder))
    if is_url(folder):
        content = read_if_there(f"{folder}/{INDEX_FILE}") if found is None else None
        return found if content is None else _parsed(pa.BufferReader(content))
    beside = Path(folder, INDEX_FILE)
    # Only one of the two is written at a time; the newer one knows more.
    if found is None or (beside.is_file() and beside.stat().st_mtime_ns > _in_cache(folder).stat().st_mtime_ns):
        found = read_index(beside) or found
    return found


def read_index(path: Path) -> Index | None:
    """Reads an index; None if it is not there, damaged, or something else."""
    return _parsed(path) if path.is_file() else None


def _parsed(source: Any) -> Index | None:
    try:
        table = pq.read_table(source)
        content = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}"))
        if content.get("format") != _FORMAT or content.get("version") != _VERSION:
            return None
        shards = tuple(IndexedShard(**{**s, "remarks": Remarks(**s["remarks"])}) for s in content["shards"])
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError):
        return None
    return Index(shards, table)


def _is_index(path: Path) -> bool:
    """Whether a file is an index, of whatever version, and not somebody's table of the same name."""
    try:
        content = json.loads((pq.read_schema(path).metadata or {}).get(_METADATA, b"{}"))
    except (pa.ArrowException, OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == _FORMAT


def write_index(path: Path, index: Index) -> None:
    """Writes an index whole.

    Raises:
        OSError: It cannot be written.
    """
    shards = [
        {**{k: v for k, v in vars(s).items() if k != "remarks"}, "remarks": vars(s.remarks)} for s in index.shards
    ]
    content = json.dumps({"format": _FORMAT, "version": _VERSION, "shards": shards})
    with replacing_file(path) as temporary:
        pq.write_table(index.table.replace_schema_metadata({_METADATA: content}), temporary, compression="zstd")


def _store(folder: str, index: Index) -> None:
    beside = Path(folder, INDEX_FILE)
    if not is_url(folder) and (not beside.exists() or _is_index(beside)):
        with suppress(OSError):  # a folder that can only be read
            write_index(beside, index)
            return
    write_index(_in_cache(folder), index)
