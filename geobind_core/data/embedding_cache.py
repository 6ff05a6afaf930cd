"""Embeddings on the disk, under what they were made of: shared by runs and processes, mapped into memory.

An entry is a folder of segments. A segment is written beside and renamed into place, and never changed
afterwards, so that any number of processes write at the same time without a lock, and one that is killed
leaves a whole segment or none.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from geobind_core.data.cache_entries import (
    ID_BYTES,
    IDS_FILE,
    SEGMENT_PREFIX,
    TEMPORARY_PREFIX,
    VALUES_FILE,
    EntryDescription,
    anchors_folder,
    prepare_entry,
    touch,
)
from geobind_core.data.cell_ids import Ids
from geobind_core.errors import RunFolderError, TrainingError

Positions = npt.NDArray[np.int64]

_ID = np.dtype(f"V{ID_BYTES}")
# Compared byte by byte; sixteen bytes each, so that it does not matter that numpy ignores zeros at the end.
_COMPARABLE = np.dtype(f"S{ID_BYTES}")


@dataclass(frozen=True)
class _Segment:
    name: str
    start: int
    ids: Ids
    values: npt.NDArray[np.floating[Any]]


class EmbeddingCache:
    """One entry of the cache. Use `open`.

    It has what was stored when it was opened, what it has stored itself, and what `refresh` has found. Rows
    have positions, which stay the same as long as the object lives, and in its copies in other processes.
    A copy maps the files again. Any number of threads may read.

    Args:
        root: The cache, see `cache_root`.
        description: What the embeddings depend on.
    """

    def __init__(self, root: Path, description: EntryDescription) -> None:
        self.root = root
        self.description = description
        self.folder = anchors_folder(root) / description.key()
        self._dtype = np.dtype(description.dtype).newbyteorder("<")
        self._segments: list[_Segment] = []
        self._starts = np.empty(0, dtype=np.int64)
        self._index: tuple[npt.NDArray[np.bytes_], Positions] | None = None
        self._damaged: dict[str, str] = {}

    @classmethod
    def open(cls, root: Path, description: EntryDescription) -> EmbeddingCache:
        """Opens an entry; nothing is written before there is something to store, but that it is in use.

        Raises:
            RunFolderError: It is there and cannot be read.
        """
        cache = cls(root, description)
        touch(cache.folder)
        cache.refresh()
        return cache

    def __len__(self) -> int:
        """The number of rows; one that was stored twice counts twice."""
        return self._segments[-1].start + len(self._segments[-1].ids) if self._segments else 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was found damaged and is taken for missing."""
        return tuple(self._damaged.values())

    def refresh(self) -> None:
        """Takes in what others have stored since.

        Raises:
            RunFolderError: The folder cannot be read.
        """
        try:
            names = os.listdir(self.folder)  # noqa: PTH208 - nothing but the names
        except FileNotFoundError:
            return
        except OSError as error:
            raise RunFolderError(
                f"the cache cannot be read: {error.strerror or error}.",
                place=str(self.folder),
                hint="Set GEOBIND_CACHE to another folder, or `anchor_cache: off` in the stage.",
            ) from error
        known = {segment.name for segment in self._segments}
        self._take(sorted(name for name in names if name.startswith(SEGMENT_PREFIX) and name not in known))

    def locate(self, ids: Ids) -> Positions:
        """Returns the positions `[N]` of ids `[N]`, -1 for those that are not stored.

        Of several rows with the same id it is the one in the first segment by name, which is the oldest, in
        every process that knows the same segments.
        """
        if self._index is None:
            ordered = sorted(self._segments, key=lambda segment: segment.name)
            known = _joined([segment.ids.view(_COMPARABLE) for segment in ordered], _COMPARABLE)
            positions = _joined([s.start + np.arange(len(s.ids)) for s in ordered], np.dtype(np.int64))
            order = np.argsort(known, kind="stable")
            self._index = known[order], positions[order]
        known, positions = self._index
        wanted = _checked(ids).view(_COMPARABLE)
        if not len(known):
            return np.full(len(wanted), -1, dtype=np.int64)
        found = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.where(known[found] == wanted, positions[found], -1)

    def append(self, ids: Ids, values: npt.ArrayLike) -> None:
        """Stores rows as one new segment; better thousands at a time than a few.

        Args:
            ids: `[N]` what the rows are known by.
            values: `[N, D]` floats, on the CPU.

        Raises:
            RunFolderError: The cache cannot be written. Nothing half-written is left.
            TrainingError: A value is not finite, or too large for float16.
        """
        ids, given = _checked(ids), np.asarray(values, dtype=np.float32)
        if given.shape != (len(ids), self.description.dimension):
            raise ValueError(f"found values {given.shape}; expected {(len(ids), self.description.dimension)}")
        if not len(ids):
            return
        with np.errstate(over="ignore"):  # looked for in the next line
            stored = np.ascontiguousarray(given, dtype=self._dtype)
        self._require_finite(given, stored)
        # By time, so that the oldest is the first by name.
        name = f"{SEGMENT_PREFIX}{time.time_ns():016x}-{uuid.uuid4().hex[:12]}"
        try:
            try:
                self._write(name, ids, stored)
            except FileNotFoundError:  # the entry was pruned just now
                self._write(name, ids, stored)
        except OSError as error:
            raise RunFolderError(
                f"the cache cannot be written: {error.strerror or error}.",
                place=str(self.folder),
                hint="Set GEOBIND_CACHE to a folder with room, or `anchor_cache: off` in the stage. "
                "`geobind cache prune` makes room.",
            ) from error
        touch(self.folder)
        self._take([name])

    def read(self, positions: Positions) -> npt.NDArray[np.float32]:
        """Returns the rows `[B, D]` at positions `[B]`.

        Embeddings that are stored in half precision are brought to unit norm again; features come as they are.

        Raises:
            IndexError: A position is not one that `locate` has returned.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if len(positions) and not (positions.min() >= 0 and positions.max() < len(self)):
            raise IndexError(f"found positions {positions.min()} to {positions.max()}; expected 0 to {len(self) - 1}")
        result = np.empty((len(positions), self.description.dimension), dtype=np.float32)
        order = np.argsort(positions, kind="stable")  # from the front to the back of each file
        segments = np.searchsorted(self._starts, positions[order], side="right") - 1
        numbers, first = np.unique(segments, return_index=True)
        for number, rows in zip(numbers, np.split(order, first[1:]), strict=False):
            segment = self._segments[number]
            result[rows] = segment.values[positions[rows] - segment.start]
        if self.description.output == "embedding" and self._dtype.itemsize < result.itemsize:
            norm = np.linalg.norm(result, axis=1, keepdims=True)
            result /= np.where(norm > 0, norm, 1)
        return result

    def __getstate__(self) -> dict[str, Any]:
        names = [segment.name for segment in self._segments]
        return {"root": self.root, "description": self.description, "names": names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        EmbeddingCache.__init__(self, state["root"], state["description"])
        self._take(state["names"])
        found = {segment.name for segment in self._segments}
        lost = [name for name in state["names"] if name not in found]
        if lost:
            raise RunFolderError(
                f"{len(lost)} segments were removed from the cache while it was in use, such as {lost[0]}.",
                place=str(self.folder),
                hint="Run the same command again; what is missing is computed anew.",
            )

    def _take(self, names: Sequence[str]) -> None:
        """Maps segments behind those that are known already."""
        for name in names:
            try:
                ids = _mapped(self.folder / name / IDS_FILE, _ID, ())
                values = _mapped(self.folder / name / VALUES_FILE, self._dtype, (self.description.dimension,))
                if len(ids) != len(values):
                    raise ValueError(f"{len(ids)} ids and {len(values)} values")
            except (OSError, ValueError, RuntimeError) as error:
                if (self.folder / name).exists():  # or else it was pruned, and nothing is wrong
                    self._damaged[name] = f"{self.folder / name}: damaged, taken for missing: {error}. Remove it."
                continue
            self._damaged.pop(name, None)
            self._segments.append(_Segment(name, len(self), ids, values))
        self._starts = np.array([segment.start for segment in self._segments], dtype=np.int64)
        self._index = None

    def _write(self, name: str, ids: Ids, values: npt.NDArray[np.floating[Any]]) -> None:
        folder = prepare_entry(self.root, self.description)
        temporary = folder / f"{TEMPORARY_PREFIX}{name}"
        try:
            temporary.mkdir()
            _save(temporary / IDS_FILE, ids)
            _save(temporary / VALUES_FILE, values)
            temporary.rename(folder / name)
        except BaseException:  # a full disk, an interruption
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _require_finite(self, given: npt.NDArray[np.float32], stored: npt.NDArray[np.floating[Any]]) -> None:
        bad = int((~np.isfinite(stored).all(axis=1)).sum())
        if not bad:
            return
        what = f"{bad} of {len(given)} rows of '{self.description.modality}' ({self.description.output}) are"
        if np.isfinite(given).all():
            raise TrainingError(
                f"{what} too large for float16: up to {np.abs(given).max():g}; expected 65504 at most.",
                hint="Set `anchor_cache: float32` in the stage.",
            )
        raise TrainingError(f"{what} not finite; they are not stored.", hint="Look at its weights and its data.")


def _checked(ids: Ids) -> Ids:
    ids = np.ascontiguousarray(ids)
    if ids.dtype.itemsize != ID_BYTES or ids.ndim != 1:
        raise ValueError(f"found ids {ids.dtype}{ids.shape}; expected {_ID} in one dimension")
    return ids.view(_ID)


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    # Not by `np.save`, whose errors do not say that the disk is full.
    with path.open("xb") as file:
        npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(array))
        file.write(array.view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())  # or else a power cut may leave the name and not the content


def _mapped(path: Path, dtype: np.dtype[Any], tail: tuple[int, ...]) -> npt.NDArray[Any]:
    """Maps a .npy file of shape `[N, *tail]`.

    Raises:
        OSError, ValueError, RuntimeError: It is missing, cut off, or holds something else.
    """
    import torch

    with path.open("rb") as file:
        if npy.read_magic(file) != (1, 0):
            raise ValueError(f"{path.name} is of another version")
        shape, columns_first, found = npy.read_array_header_1_0(file)
        header, size = file.tell(), os.fstat(file.fileno()).st_size
    if found != dtype or shape[1:] != tail or len(shape) != 1 + len(tail) or (columns_first and tail):
        raise ValueError(f"{path.name} has {found}{shape}; expected {dtype}(N, {', '.join(map(str, tail))})")
    if size != header + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path.name} has {size} bytes; expected {header + math.prod(shape) * dtype.itemsize}")
    # numpy's own maps keep a file open each; of those a process has a thousand, and there may be more segments.
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8, device="cpu").numpy()
    array: npt.NDArray[Any] = content[header:].view(dtype).reshape(shape)
    array.flags.writeable = False
    return array
