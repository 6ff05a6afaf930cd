"""The source `webdataset`: tar files whose members belong together by name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from io import FileIO
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from geobind_core.data.copies import Copies
from geobind_core.data.members import MEMBER, MemberColumn, Shards
from geobind_core.data.remote import shown
from geobind_core.data.shard_file import ShardFile
from geobind_core.data.shard_index import SHARD, Index, index_of, shards_folder
from geobind_core.data.shard_list import find_shards
from geobind_core.data.shard_table import KEY, Remarks, joined
from geobind_core.errors import DataError
from geobind_core.plugins.source import Observations, Progress, Source, SourceConfig

_GIB = 2**30
_COORDINATES = (("longitude", "latitude"), ("lon", "lat"), ("lng", "lat"), ("long", "lat"))


class WebDatasetConfig(SourceConfig):
    """Settings of shards."""

    shards: str | list[str] = Field(
        description="The tar files: paths relative to the chain file, or addresses, with {000..610} or *; or a list."
    )
    prefix_keys: bool = Field(False, description="Put the shard's name before its keys, where each shard counts anew.")
    longitude: str | None = Field(None, description="Column of longitudes, degrees, WGS 84; default: by its name.")
    latitude: str | None = Field(None, description="Column of latitudes, degrees, WGS 84; default: by its name.")
    cache_gib: float = Field(64, gt=0, description="Disk space for copies of shards at addresses, in GiB.")
    shards_at_once: int = Field(
        16, ge=1, description="From so many shards at addresses rows are mixed; another number is another order."
    )


class WebDataset(Source[WebDatasetConfig]):
    """Tar files as `webdataset` writes them. A row is a key, a column an extension or a field of a JSON file.

    Nothing is unpacked. Where the members lie is stored in an index, and each is read from its place, so that
    the order is as free, and as repeatable, as with single files. Shards at addresses are copied, each as a
    whole, when they are first needed.
    """

    name: ClassVar[str] = "webdataset"
    Config = WebDatasetConfig

    _indexed: tuple[tuple[ShardFile, ...], pa.Table, tuple[Remarks, ...]] | None = None

    def fingerprint(self) -> str:
        """Identifies the shards by their names, sizes and times, or what a server says instead; none is read."""
        files = self._files()
        config = self.config
        found = [(file.name, file.size, file.mtime_ns, file.version) for file in files]
        mixed = config.shards_at_once if any(file.is_remote for file in files) else None
        settings = [config.prefix_keys, config.longitude, config.latitude, mixed]
        return hashlib.sha256(json.dumps([found, settings]).encode()).hexdigest()

    def prepare(self, progress: Progress) -> None:
        """Indexes the shards that are not indexed yet."""
        files = self._files()
        by_folder: dict[str, list[int]] = {}
        for number, file in enumerate(files):
            by_folder.setdefault(file.folder, []).append(number)
        parts = [
            (numbers, index_of(folder, [files[n] for n in numbers], self._opened, progress))
            for folder, numbers in by_folder.items()
        ]
        remarks = {n: shard.remarks for numbers, index in parts for n, shard in zip(numbers, index.shards, strict=True)}
        self._indexed = files, _in_order(parts), tuple(remarks[n] for n in range(len(files)))

    def notes(self) -> list[str]:
        """Returns which shards are not whole, and how many members were left out for which reason."""
        if self._indexed is None:
            return []
        files, _, remarks = self._indexed
        both = list(zip(files, remarks, strict=True))
        lines = [f"{shown(file.location)}: {found.state}" for file, found in both if found.state]
        for reason in dict.fromkeys(reason for _, found in both for reason in found.skipped):
            concerned = [(file, *found.skipped[reason]) for file, found in both if reason in found.skipped]
            file, _, names = concerned[0]
            count = sum(count for _, count, _ in concerned)
            lines.append(f"left out: {count} {reason}, such as {names[0]!r} in {shown(file.location)}")
        return lines

    def observations(self) -> Observations:
        """Reads the index."""
        if self._indexed is None:
            self.prepare(lambda *_: None)
        assert self._indexed is not None
        files, table, _ = self._indexed
        if table.num_rows == 0:
            states = "; ".join(self.notes()[:5])
            raise DataError(f"no samples in {len(files)} shards{f': {states}' if states else ''}.", place="shards")
        if self.config.prefix_keys:
            table = _with_longer_keys(table, files)
        _require_one_shard_per_key(table, files)
        store = Shards(files, self._copies())
        numbers = table[SHARD].combine_chunks()
        references = {}
        for position, column in enumerate(table.schema):
            if pa.types.is_struct(column.type):
                references[column.name] = MemberColumn(store, column.name)
                table = table.set_column(position, column.name, _member_column(table[position], numbers))
        columns = [name for name in table.column_names if name not in (KEY, SHARD)]
        longitude, latitude = _coordinates([name for name in columns if name not in references])
        remote = any(file.is_remote for file in files)
        ahead = self._room_ahead(files)
        return Observations(
            table=table,
            root=self.base,
            fields={} if self.config.fields else {name: name for name in columns},
            key=KEY,
            longitude=self.config.longitude or longitude,
            latitude=self.config.latitude or latitude,
            references=references,
            blocks=SHARD if remote else None,
            blocks_at_once=self.config.shards_at_once,
            blocks_ahead=ahead,
            fetch_block=store.fetch,
        )

    def _files(self) -> tuple[ShardFile, ...]:
        return find_shards(self.config.shards, self.resolve)

    def _copies(self) -> Copies:
        return Copies(shards_folder() / "copies", int(self.config.cache_gib * _GIB))

    def _opened(self, file: ShardFile) -> FileIO:
        return self._copies().open(file) if file.is_remote else FileIO(file.location)

    def _room_ahead(self, files: Sequence[ShardFile]) -> int:
        """Returns how many shards there is room for beside those that are in use at a time.

        Raises:
            DataError: Those in use do not fit. Each would be copied again for each row.
        """
        # One more is about to be done with, and one has begun.
        in_use = self.config.shards_at_once + 2
        sizes = sorted((file.size for file in files if file.is_remote), reverse=True)
        if sum(sizes[:in_use]) > self.config.cache_gib * _GIB:
            raise DataError(
                f"{len(sizes[:in_use])} shards are in use at a time, {sum(sizes[:in_use]) / _GIB:.3g} GiB; "
                f"copies may take {self.config.cache_gib:g} GiB.",
                place="cache_gib",
                hint="Raise cache_gib, or lower shards_at_once.",
            )
        room = np.cumsum(sizes) <= self.config.cache_gib * _GIB
        return int(room[in_use:].sum()) if not room.all() else len(sizes)


def _in_order(parts: Sequence[tuple[Sequence[int], Index]]) -> pa.Table:
    """Returns the rows of all folders, shard after shard as they are listed; columns without a value are left out."""
    tables = []
    for numbers, index in parts:
        listed = np.array(numbers, dtype=np.int32)[index.table[SHARD].to_numpy()]
        position = index.table.column_names.index(SHARD)
        tables.append(index.table.set_column(position, SHARD, pa.array(listed)))
    table = joined(tables)
    found = table[SHARD].to_numpy()
    if (np.diff(found) < 0).any():
        table = table.take(pa.array(np.argsort(found, kind="stable")))
    empty = [name for name in table.column_names if table[name].null_count == table.num_rows > 0]
    return table.drop_columns(empty).replace_schema_metadata(None)


def _member_column(places: pa.ChunkedArray, shards: pa.Array) -> pa.StructArray:
    whole = places.combine_chunks()
    content = [shards, whole.field("offset"), whole.field("size")]
    return pa.StructArray.from_arrays(content, fields=list(MEMBER), mask=pc.is_null(whole))


def _with_longer_keys(table: pa.Table, files: Sequence[ShardFile]) -> pa.Table:
    common = os.path.commonprefix([f"{file.folder}/" for file in files])  # noqa: RUF071 - cut off in the next line
    start = common.rfind("/") + 1
    names = pa.array([file.location[start:].removesuffix(".tar") for file in files])
    keys = pc.binary_join_element_wise(names.take(table[SHARD].combine_chunks()), table[KEY].combine_chunks(), "/")
    return table.set_column(table.column_names.index(KEY), KEY, keys)


def _require_one_shard_per_key(table: pa.Table, files: Sequence[ShardFile]) -> None:
    keys = table[KEY]
    if pc.count_distinct(keys).as_py() == len(keys):
        return
    counts = pc.value_counts(keys.combine_chunks())
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    numbers = table[SHARD].filter(pc.equal(keys, twice[0])).to_pylist()
    raise DataError(
        f"{len(twice)} keys are in more than one shard, such as '{twice[0]}' in "
        f"{shown(files[numbers[0]].location)} and {shown(files[numbers[1]].location)}.",
        place="shards",
        hint="Where each shard counts its keys anew, set `prefix_keys: true`. Or else a shard is there twice.",
    )


def _coordinates(columns: Sequence[str]) -> tuple[str | None, str | None]:
    """Returns the columns that are called like coordinates, if there is one such pair."""
    found = list(_pairs(columns))
    return found[0] if len(found) == 1 else (None, None)


def _pairs(columns: Sequence[str]) -> Iterator[tuple[str, str]]:
    by_name = {name.lower(): name for name in columns}
    for file in sorted({name.rpartition(".")[0] for name in by_name}):
        for longitude, latitude in _COORDINATES:
            both = (f"{file}.{longitude}", f"{file}.{latitude}")
            if all(name in by_name for name in both):
                yield by_name[both[0]], by_name[both[1]]
                break
