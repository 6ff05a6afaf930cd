"""One Parquet file of an index: how it is laid out, and how that makes it quick to read.

Embeddings hardly compress, and decoding them takes longer than comparing them. So they are written as they are in
memory, all numbers of a row group in one page, which Parquet allows. In such a page they come last, behind the
levels of the lists. They are read from there. What another program has rewritten is decoded by pyarrow.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from geobind_core.errors import DataError
from geobind_core.index.record import HOW_TO_WRITE, read_record

EMBEDDING = "embedding"
ROW_GROUP = 8_192
"""Rows of a row group: what a filter can pass over, 16 MiB of 512 float32 numbers."""

_LEAF = f"{EMBEDDING}.list.element"
_ONE_PAGE = 2**30  # bytes; more than any row group has
_TOLERANCE = 0.01  # of the norm of an embedding in float16


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Returns what writes an index: all columns compressed but the embeddings."""
    others = [leaf for leaf in _leaves(schema) if leaf != _LEAF]
    return pq.ParquetWriter(
        path,
        schema,
        compression={leaf: "none" if leaf == _LEAF else "zstd" for leaf in [*others, _LEAF]},
        use_dictionary=others,
        write_statistics=others,
        data_page_size=_ONE_PAGE,
    )


def _leaves(schema: pa.Schema) -> list[str]:
    """Returns the names of the columns as Parquet has them, those within structures and lists too."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    columns = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    return [columns.column(number).path for number in range(len(columns))]


class IndexFile:
    """One file; each thread reads through a handle of its own.

    Args:
        path: The file.

    Raises:
        DataError: It is missing, no Parquet file, or no index.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handles = threading.local()
        if not path.is_file():
            raise DataError("no such index.", place=str(path), hint=HOW_TO_WRITE)
        try:
            self.metadata = pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"this is no whole Parquet file: {' '.join(str(error).split())}", place=str(path), hint=HOW_TO_WRITE
            ) from error
        self.groups: int = self.metadata.num_row_groups
        self.record = read_record(self.metadata.metadata or {}, path)

    def footer(self) -> bytes:
        """Returns the bytes at the end that describe the file."""
        with self.path.open("rb") as file:
            file.seek(-8, os.SEEK_END)  # the footer's length, and the letters PAR1
            length = int.from_bytes(file.read(4), "little")
            file.seek(-8 - length, os.SEEK_END)
            return file.read(length)

    def read(self, group: int | None, columns: Sequence[str]) -> pa.Table:
        """Reads columns of a row group, or of all.

        Raises:
            DataError: The file is damaged.
        """
        try:
            handle = getattr(self._handles, "file", None)
            if handle is None:
                # Not mapped: pages of a mapped file count as memory of this process.
                handle = self._handles.file = pq.ParquetFile(self.path, metadata=self.metadata, pre_buffer=False)
            groups = range(self.groups) if group is None else [group]
            return handle.read_row_groups(groups, columns=list(columns), use_threads=group is None)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(" ".join(str(error).split())) from error

    def embeddings(self, group: int) -> npt.NDArray[Any]:
        """Returns the embeddings of a row group, `[n, D]` as they are stored.

        Raises:
            DataError: The file is damaged.
        """
        found = self._plain(group) if self._is_plain else self._decoded(group)
        ends = np.linalg.norm(found[[0, -1]].astype(np.float64), axis=1)
        if not (np.abs(ends - 1) < _TOLERANCE).all():
            raise self._damaged("embeddings do not have unit norm")
        return found

    def _decoded(self, group: int) -> npt.NDArray[Any]:
        column = self.read(group, [EMBEDDING])[EMBEDDING].combine_chunks()
        flat = column.flatten()
        # `to_numpy` would import pandas, which takes longer than many a search.
        numbers = np.frombuffer(flat.buffers()[1], dtype=self.record.dtype)[flat.offset : flat.offset + len(flat)]
        return numbers.reshape(-1, self.record.embed_dim)

    def _plain(self, group: int) -> npt.NDArray[Any]:
        """Reads the last bytes of the page of a row group, which are the numbers."""
        rows = self.metadata.row_group(group).num_rows
        chunk = self.metadata.row_group(group).column(self._column)
        found = np.empty((rows, self.record.embed_dim), dtype=self.record.dtype)
        end = chunk.data_page_offset + chunk.total_compressed_size
        with self.path.open("rb", buffering=0) as file:
            file.seek(end - found.nbytes)
            left = found.reshape(-1).view(np.uint8).data
            while left and (count := file.readinto(left)):
                left = left[count:]
        if left:
            raise self._damaged("it ends too early")
        return found

    @cached_property
    def _column(self) -> int:
        schema = self.metadata.schema
        return next((i for i in range(len(schema)) if schema.column(i).path == _LEAF), -1)

    @cached_property
    def _is_plain(self) -> bool:
        """Whether the numbers of each row group lie in one page, as they are in memory."""
        if self._column < 0:
            return False
        for group in range(self.groups):
            chunk = self.metadata.row_group(group).column(self._column)
            stored = self.metadata.row_group(group).num_rows * self.record.embed_dim
            size = stored * np.dtype(self.record.dtype).itemsize
            if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page or chunk.total_compressed_size < size:
                return False
            if "PLAIN" not in chunk.encodings or not {*chunk.encodings} <= {"PLAIN", "RLE", "BIT_PACKED"}:
                return False
        # Several pages would have their levels among the numbers, so that the first row was another.
        return self.groups > 0 and bool(np.array_equal(self._plain(0), self._decoded(0)))

    def _damaged(self, what: str) -> DataError:
        return DataError(f"the index is damaged: {what}", place=str(self.path), hint=HOW_TO_WRITE)
