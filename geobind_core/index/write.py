"""Writing an index: parts beside it while it is made, one file when it is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from geobind_core.data.paired import Rows
from geobind_core.data.samples import BadSample
from geobind_core.errors import DataError, RunFolderError
from geobind_core.files import read_json, replacing_file, write_json
from geobind_core.index.columns import Columns
from geobind_core.index.file import EmbeddingIndex
from geobind_core.index.parquet import EMBEDDING, ROW_GROUP, open_writer
from geobind_core.index.record import FOOTER, IndexRecord

_PLAN = "plan.json"
_ROW, _BAD = "row", b"bad"


@dataclass(frozen=True)
class Parts:
    """The unfinished index: a folder beside it, with a file for each part that has been embedded.

    Attributes:
        folder: The folder.
        count: How many parts there are to be.
    """

    folder: Path
    count: int

    @classmethod
    def beside(cls, out: Path, count: int) -> Parts:
        """Returns the parts of an index."""
        return cls(out.with_name(f".{out.name}.parts"), count)

    def claim(self, plan: dict[str, object]) -> bool:
        """Makes the folder ready for a plan. Returns whether parts of another plan were thrown away."""
        stale = self.folder.exists() and read_json(self.folder / _PLAN) != plan
        if stale:
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / _PLAN, plan)
        for leftover in self.folder.glob(".*.tmp"):  # of a killed process
            leftover.unlink(missing_ok=True)
        return stale

    def missing(self) -> list[int]:
        """Returns the parts that have yet to be embedded."""
        return [part for part in range(self.count) if not self._path(part).exists()]

    def write(self, part: int, rows: Rows, embeddings: npt.NDArray[np.generic], bad: Sequence[BadSample]) -> None:
        """Stores a part: the numbers of the rows that could be read, and `[n, D]` embeddings."""
        told = json.dumps([[sample.key, sample.modality, sample.reason] for sample in bad])
        table = pa.table({_ROW: pa.array(rows), EMBEDDING: _as_lists(embeddings)})
        with (
            replacing_file(self._path(part)) as temporary,
            pa.OSFile(str(temporary), "wb") as file,
            pa.ipc.new_file(file, table.schema.with_metadata({_BAD: told})) as writer,
        ):
            writer.write_table(table)

    def read(self, part: int) -> pa.Table:
        """Returns a part."""
        with pa.memory_map(str(self._path(part))) as file, pa.ipc.open_file(file) as reader:
            return reader.read_all()

    def bad(self) -> list[BadSample]:
        """Returns what could not be read."""
        told = [json.loads(self.read(part).schema.metadata[_BAD]) for part in range(self.count)]
        return [BadSample(*sample) for samples in told for sample in samples]

    def forget_bad(self) -> None:
        """Removes the parts with something that could not be read: it may have been mended until the next run."""
        for part in range(self.count):
            if self._path(part).exists() and json.loads(self.read(part).schema.metadata[_BAD]):
                self._path(part).unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, part: int) -> Path:
        return self.folder / f"{part:06d}.arrow"


def _as_lists(embeddings: npt.NDArray[np.generic]) -> pa.Array:
    # Nothing in it is ever null; readers that know so have less to look at.
    kind = pa.list_(pa.field("element", pa.from_numpy_dtype(embeddings.dtype), nullable=False), embeddings.shape[1])
    return pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), type=kind)


def assemble(out: Path, parts: Parts, columns: Columns, record: IndexRecord) -> int:
    """Writes the index out of all its parts; it appears whole. Returns how many rows it has."""
    rows = np.concatenate([parts.read(part)[_ROW].to_numpy() for part in range(parts.count)])
    if not len(rows):
        raise DataError("not one row could be read; there is nothing to write.", place=record.data)
    metadata = {FOOTER: record.model_dump_json().encode()}
    if (geo := columns.geo(rows)) is not None:
        metadata[b"geo"] = geo
    file: pq.ParquetWriter | None = None
    with replacing_file(out) as temporary:
        try:
            for embedded in _row_groups(parts):
                table = columns.table(embedded[_ROW].to_numpy())
                # The large column comes last, so that what is read of a few rows lies close together.
                kind = pa.field(EMBEDDING, embedded.schema.field(EMBEDDING).type, nullable=False)
                table = table.append_column(kind, embedded[EMBEDDING])
                table = table.replace_schema_metadata(metadata)
                file = file or open_writer(temporary, table.schema)
                file.write_table(table, row_group_size=ROW_GROUP)
        finally:
            if file is not None:
                file.close()
    return len(rows)


def _row_groups(parts: Parts) -> Iterator[pa.Table]:
    """Yields the rows of all parts, in row groups of the same size."""
    waiting: list[pa.Table] = []
    for part in range(parts.count):
        waiting.append(parts.read(part))
        while sum(table.num_rows for table in waiting) >= ROW_GROUP:
            joined = pa.concat_tables(table.replace_schema_metadata() for table in waiting)
            yield joined.slice(0, ROW_GROUP)
            waiting = [joined.slice(ROW_GROUP)]
    joined = pa.concat_tables(table.replace_schema_metadata() for table in waiting)
    if joined.num_rows:
        yield joined


def require_ours(out: Path, plan: str, *, overwrite: bool) -> EmbeddingIndex | None:
    """Looks at what is at the place of an index to be written.

    Returns:
        The index that is there if it is the one to be written; None when it has to be written.

    Raises:
        DataError: There is another file, or a folder.
        RunFolderError: There is another index, and nobody has said that it may be replaced.
    """
    if not out.exists():
        return None
    if out.is_dir():
        raise DataError("this is a folder; expected the name of a .parquet file.", place=str(out))
    try:
        there = EmbeddingIndex.open(out)
    except DataError as error:
        raise DataError(
            f"a file is here that `geobind embed` did not write, or not as a whole ({error.message})",
            place=str(out),
            hint="Choose another name, or remove it yourself.",
        ) from error
    if overwrite:
        return None
    if there.record.plan == plan:
        return there
    raise RunFolderError(
        f"an index is here that was made of something else: {len(there):,} rows of {there.record.data}, "
        f"{there.modality}, {there.record.dtype}.",
        place=str(out),
        hint="Choose another name, or replace it with --overwrite.",
    )


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Holds the name of an index for this process. The lock goes with the process, however it ends.

    Raises:
        RunFolderError: It cannot be written, or is being written by another.
    """
    path = out.with_name(f".{out.name}.lock")
    lock = FileLock(path, timeout=0)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RunFolderError("another `geobind embed` is writing this index.", place=str(out)) from None
    except OSError as error:
        raise RunFolderError(f"the index cannot be written: {error.strerror or error}.", place=str(out)) from error
    try:
        yield
    finally:
        lock.release()
        path.unlink(missing_ok=True)
