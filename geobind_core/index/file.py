"""An index: the embeddings of one modality with where, when and of what they are, in GeoParquet."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from geobind_core.config.problems import suggest
from geobind_core.data.geography import Places
from geobind_core.data.remote import RemoteFile, is_url, located
from geobind_core.errors import DataError, SpaceError
from geobind_core.index.parquet import IndexFile
from geobind_core.index.record import HOW_TO_WRITE, IndexedCells

if TYPE_CHECKING:
    from geobind_core.space.space import Space

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
KEY, TIME, GEOMETRY, BBOX = "key", "time", "geometry", "bbox"


class EmbeddingIndex:
    """A GeoParquet file that `geobind embed` wrote, or a folder of such files that belong together.

    Opening reads footers only. Embeddings are streamed from the disk, never held as a whole.

    Example:
        >>> index = EmbeddingIndex.open("earth.parquet")              # doctest: +SKIP
        >>> for first, embeddings in index.chunks():                  # doctest: +SKIP
        ...     print(first, embeddings.shape)

    Attributes:
        path: The file or folder.
        record: What it says of itself.
    """

    def __init__(self, path: Path, files: Sequence[IndexFile]) -> None:
        self.path = path
        self.record = files[0].record
        self._files = list(files)
        # Row groups of all files, with the number of the first row of each.
        sizes = [file.metadata.row_group(group).num_rows for file in files for group in range(file.groups)]
        self._groups = [(file, group) for file in files for group in range(file.groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @classmethod
    def open(cls, path: str | Path) -> EmbeddingIndex:
        """Opens an index.

        Raises:
            DataError: It is missing, no Parquet file, or none that GeoBind wrote.
        """
        path = Path(path)
        if path.is_dir():
            paths = sorted(p for p in path.glob("*.parquet") if not p.name.startswith("."))
            if not paths:
                raise DataError("no .parquet files in the folder.", place=str(path), hint=HOW_TO_WRITE)
        else:
            paths = [path]
        files = [IndexFile(p) for p in paths]
        for file in files[1:]:
            differs = [n for n in ("modality", "content_hash", "dtype") if _of(file, n) != _of(files[0], n)]
            if differs:
                raise DataError(
                    f"{paths[0].name} and {file.path.name} do not belong together: they differ in "
                    f"{', '.join(differs)}.",
                    place=str(path),
                )
        index = cls(path, files)
        if not len(index):
            raise DataError("the index has no rows.", place=str(path), hint=HOW_TO_WRITE)
        return index

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"EmbeddingIndex({str(self.path)!r}, {self.modality}, {len(self)} x {self.embed_dim} {self.dtype})"

    @property
    def modality(self) -> str:
        """The modality that was embedded."""
        return self.record.modality

    @property
    def embed_dim(self) -> int:
        """The dimension D."""
        return self.record.embed_dim

    @property
    def content_hash(self) -> str:
        """The hash of the encoder's weights."""
        return self.record.content_hash

    @property
    def dtype(self) -> np.dtype[Any]:
        """How the embeddings are stored: float32 or float16."""
        return np.dtype(self.record.dtype)

    @property
    def column_names(self) -> list[str]:
        """The columns that it has."""
        names: list[str] = self._files[0].metadata.schema.to_arrow_schema().names
        return names

    @property
    def root(self) -> Path | str:
        """Where relative paths of files in it start."""
        root = self.record.root
        return root if is_url(root) else (self._files[0].path.absolute().parent / root).resolve()

    def fingerprint(self) -> str:
        """Returns a hash of the footers: of lineage, and of the sizes and limits of all that is stored."""
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(file.footer())
        return digest.hexdigest()

    def require_space(self, space: Space) -> None:
        """Makes sure that queries of a space can be compared with these embeddings.

        Raises:
            SpaceError: They were made by another encoder.
        """
        known = space.record.modalities.get(self.modality)
        if known is None:
            raise SpaceError(
                f"the index holds embeddings of '{self.modality}', which the space {space.folder} does not have. "
                f"{suggest(self.modality, space.modalities)}",
                place=str(self.path),
                hint="Give the space that the index was made with.",
            )
        if known.content_hash != self.content_hash:
            raise SpaceError(
                f"the index belongs to another space: its encoder of '{self.modality}' has hash "
                f"{self.content_hash[:12]}…, that of {space.folder} has {known.content_hash[:12]}….",
                place=str(self.path),
                hint="Give the space that it was made with, or embed the data again with `geobind embed`.",
            )

    def keys(self) -> pa.Array:
        """Returns the keys, a string per row."""
        return self.column(KEY).combine_chunks()

    def places(self) -> Places | None:
        """Returns where the rows are; None when the data had no coordinates."""
        if BBOX not in self.column_names:
            return None
        box = self.column(BBOX).combine_chunks()
        # A point's bounding box is the point. What is null reads as NaN.
        axes = (pc.struct_field(box, axis).to_numpy(zero_copy_only=False) for axis in ("xmin", "ymin"))
        return Places(*(axis.astype(np.float64) for axis in axes))

    def times(self) -> pa.Array | None:
        """Returns when the rows are, UTC timestamps; None when the data had no times."""
        return self.column(TIME).combine_chunks() if TIME in self.column_names else None

    def column(self, name: str) -> pa.ChunkedArray:
        """Returns a column.

        Raises:
            DataError: There is none of that name.
        """
        if name not in self.column_names:
            raise DataError(f"no column '{name}'. {suggest(name, self.column_names)}", place=str(self.path))
        return pa.chunked_array([chunk for file in self._files for chunk in file.read(None, [name])[name].chunks])

    def rows(self, numbers: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Returns some columns of a few rows, in the order asked for."""
        wanted = np.searchsorted(self._starts, np.asarray(numbers, dtype=np.int64), side="right") - 1
        tables = {int(group): self._read(int(group), columns) for group in np.unique(wanted)}
        return [
            {name: _value(table[name][int(number - self._starts[group])]) for name in columns}
            for number, group in zip(numbers, wanted.tolist(), strict=True)
            for table in (tables[group],)
        ]

    def cell(self, modality: str, row: int) -> Any:
        """Returns what a modality reads of a row, as the index remembers it; the content of addresses is fetched.

        Raises:
            DataError: The index remembers nothing of it.
        """
        cells = self.require_cells(modality)
        values = tuple(self.rows([row], cells.columns)[0].values())
        if cells.is_file:
            values = tuple(self._file(value) for value in values)
        return values[0] if len(values) == 1 else values

    def require_cells(self, modality: str) -> IndexedCells:
        """Returns which columns hold the observations of a modality.

        Raises:
            DataError: The index remembers nothing of them.
        """
        if modality not in self.record.cells:
            raise DataError(
                f"the index does not know where its observations of '{modality}' are.",
                place=str(self.path),
                hint="It remembers paths, texts and numbers; what lies in shards or in the table itself it does not.",
            )
        return self.record.cells[modality]

    def _file(self, value: Any) -> Any:
        found = located(self.root, value) if isinstance(value, str) else value
        return found.read(is_file=True) if isinstance(found, RemoteFile) else found

    def chunks(
        self, batch_rows: int = 65_536, wanted: npt.NDArray[np.bool_] | None = None
    ) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yields the embeddings in their order, read ahead by as many threads as there are cores.

        Args:
            batch_rows: Rows at a time, at most.
            wanted: `[N]`; row groups in which no row is wanted are not read.

        Yields:
            The number of the first row, and `[n, D]` float32 or float16.

        Raises:
            DataError: The file is damaged.
        """
        groups = [
            group
            for group in range(len(self._groups))
            if wanted is None or wanted[self._starts[group] : self._starts[group + 1]].any()
        ]
        threads = max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        waiting: deque[tuple[int, Future[npt.NDArray[Any]]]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="index") as pool:
            try:
                for group in groups:
                    waiting.append((group, pool.submit(self._embeddings, group)))
                    if len(waiting) > threads:
                        yield from self._slices(*waiting.popleft(), batch_rows)
                while waiting:
                    yield from self._slices(*waiting.popleft(), batch_rows)
            finally:
                for _, future in waiting:
                    future.cancel()

    def _slices(
        self, group: int, future: Future[npt.NDArray[Any]], batch_rows: int
    ) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        embeddings, first = future.result(), int(self._starts[group])
        for start in range(0, len(embeddings), batch_rows):
            yield first + start, embeddings[start : start + batch_rows]

    def _embeddings(self, group: int) -> npt.NDArray[Any]:
        file, number = self._groups[group]
        return file.embeddings(number)

    def _read(self, group: int, columns: Sequence[str]) -> pa.Table:
        file, number = self._groups[group]
        return file.read(number, columns)


def _of(file: IndexFile, name: str) -> object:
    return getattr(file.record, name)


def _value(scalar: pa.Scalar) -> Any:
    if scalar.type == pa.timestamp("us", "UTC") and scalar.is_valid:
        return _EPOCH + timedelta(microseconds=scalar.value)  # `as_py` would import pandas, if it is installed
    return scalar.as_py()
