"""What held-out rows have in common with training rows, and should not."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from geobind_core.data.geography import nearest_km
from geobind_core.data.paired import PairedData, Rows
from geobind_core.errors import DataError
from geobind_core.plugins.source import Reference

T = TypeVar("T")
R = TypeVar("R")

Entry = tuple[PairedData, int]
Digest = Callable[[PairedData, int, str], bytes | None]

_THREADS = 16  # that wait for a file system at a time
_BLOCK = 256
_HEAD = 16 * 2**10  # bytes that tell most files apart
_MOST_READ = 100_000  # files that are compared


@dataclass(frozen=True)
class Part:
    """Some rows of a data set."""

    data: PairedData
    rows: Rows


@dataclass(frozen=True)
class NearPlaces:
    """Held-out places that lie beside training places.

    Attributes:
        near: How many held-out rows are closer than asked for.
        known: How many held-out rows have coordinates.
        nearest_km: The least distance found.
        example: Key of the held-out row that it belongs to.
    """

    near: int
    known: int
    nearest_km: float
    example: str


@dataclass(frozen=True)
class SameFiles:
    """Held-out files that are training files under the same or another name.

    Attributes:
        pairs: Key of a held-out row, and of a training row with the very same content.
        checked: How many held-out files were compared.
        files: How many there are.
    """

    pairs: tuple[tuple[str, str], ...]
    checked: int
    files: int


def near_places(held_out: Part, training: Iterable[Part], distance_km: float) -> NearPlaces | None:
    """Looks for held-out places closer to a training place than a distance; None if there is no such place."""
    if held_out.data.places is None:
        return None
    places = held_out.data.places.take(held_out.rows)
    least = np.full(len(places), np.inf)
    for part in training:
        if part.data.places is not None:
            least = np.minimum(least, nearest_km(places, part.data.places.take(part.rows), distance_km))
    near = int((least < distance_km).sum())
    if not near:
        return None
    closest = int(least.argmin())
    key = held_out.data.key(int(held_out.rows[closest]))
    return NearPlaces(near, int(places.known.sum()), float(least[closest]), key)


def same_files(modality: str, held_out: Part, training: Sequence[Part]) -> SameFiles:
    """Looks for held-out files with the same content as a training file.

    Only files of equal size are opened, and read to their end only where they begin alike. Where that
    would be more than 100,000 files, some of the held-out ones are left out, the same in every run.

    Args:
        modality: Which of the fields; its cells are files.
        held_out: The held-out rows that have it.
        training: The training rows that have it.
    """
    sizes = file_sizes(held_out.data, modality, held_out.rows)
    known: dict[int, list[Entry]] = defaultdict(list)
    wanted = set(sizes.tolist()) - {-1}
    for part in training:
        found = file_sizes(part.data, modality, part.rows)
        for row, size in zip(part.rows.tolist(), found.tolist(), strict=True):
            if size in wanted:
                known[size].append((part.data, row))
    suspects = [i for i, size in enumerate(sizes.tolist()) if size in known]
    ours: list[Entry] = []
    theirs: list[Entry] = []
    taken: set[int] = set()
    for i in np.random.default_rng(0).permutation(suspects).tolist():
        if len(ours) + len(theirs) >= _MOST_READ:
            break
        size = int(sizes[i])
        ours.append((held_out.data, int(held_out.rows[i])))
        theirs += [] if size in taken else known[size]
        taken.add(size)
    pairs = sorted((mine[0].key(mine[1]), other[0].key(other[1])) for mine, other in _equal(ours, theirs, modality))
    present = int((sizes >= 0).sum())
    return SameFiles(tuple(pairs), present - len(suspects) + len(ours), present)


def _equal(ours: Sequence[Entry], theirs: Sequence[Entry], modality: str) -> list[tuple[Entry, Entry]]:
    """Returns each of our entries that has the content of one of theirs, with that one."""
    alike = _matched(ours, theirs, modality, _digest_of_head)
    # Whole files are read only of those that begin alike.
    ours = [entry for entries, _ in alike for entry in entries]
    theirs = [entry for _, entries in alike for entry in entries]
    return [(mine, others[0]) for many, others in _matched(ours, theirs, modality, _digest_of_all) for mine in many]


def _matched(
    ours: Sequence[Entry], theirs: Sequence[Entry], modality: str, digest: Digest
) -> list[tuple[list[Entry], list[Entry]]]:
    """Returns ours and theirs of each digest that both have."""
    groups: list[dict[bytes, list[Entry]]] = []
    for entries in (ours, theirs):
        group: dict[bytes, list[Entry]] = defaultdict(list)
        for entry, found in zip(entries, _in_threads(lambda e: digest(*e, modality), entries), strict=True):
            if found is not None:
                group[found].append(entry)
        groups.append(group)
    return [(groups[0][found], groups[1][found]) for found in groups[0].keys() & groups[1].keys()]


def _digest_of_head(data: PairedData, row: int, modality: str) -> bytes | None:
    def digest(file: BinaryIO) -> bytes:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        return hashlib.blake2b(b"%d:" % size + file.read(_HEAD)).digest()

    return _of_file(data, row, modality, digest)


def _digest_of_all(data: PairedData, row: int, modality: str) -> bytes | None:
    return _of_file(data, row, modality, lambda file: hashlib.file_digest(file, "sha256").digest())


def _of_file(data: PairedData, row: int, modality: str, digest: Callable[[Any], bytes]) -> bytes | None:
    try:
        with _opened(data.cell(modality, row, is_file=True)) as file:
            return digest(file)
    except (DataError, OSError, TypeError, ValueError):  # what cannot be read is counted where it is needed
        return None


def _opened(cell: Any) -> BinaryIO:
    if isinstance(cell, dict):
        cell = cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"])
    return cell.open("rb") if isinstance(cell, Path) else BytesIO(cell)


def file_sizes(data: PairedData, modality: str, rows: Rows) -> npt.NDArray[np.int64]:
    """Returns the sizes in bytes of a modality's files, -1 where that is not known. No file is opened."""

    def of(row: int) -> int:
        cell = data.unread_cell(modality, row, is_file=True)
        if isinstance(cell, Reference):
            size = cell.size()
            return -1 if size is None else size
        if isinstance(cell, dict):
            cell = cell["bytes"] if cell.get("bytes") is not None else Path(str(cell.get("path")))
        try:
            return len(cell) if isinstance(cell, bytes) else os.stat(cell).st_size  # noqa: PTH116 - twice as fast
        except (OSError, TypeError, ValueError):
            return -1

    return np.array(_in_threads(of, rows.tolist()), dtype=np.int64)


def _in_threads(action: Callable[[T], R], items: Sequence[T]) -> list[R]:
    blocks = [items[start : start + _BLOCK] for start in range(0, len(items), _BLOCK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [
            result for results in pool.map(lambda block: [action(item) for item in block], blocks) for result in results
        ]
