"""What held-out rows have in common with training rows, and should not."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from geobind_core.data.geography import nearest_km
from geobind_core.data.paired import PairedData, Rows
from geobind_core.data.same_content import in_threads, same_content
from geobind_core.plugins.source import Reference

Entry = tuple[PairedData, int]

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
    """Returns each of our entries that has the content of one of theirs, with the first such one."""
    sides = [(True, entry) for entry in ours] + [(False, entry) for entry in theirs]
    groups = same_content(
        sides,
        lambda item: _opened(item[1][0].cell(modality, item[1][1], is_file=True)),
        lambda group: group[0][0] and not group[-1][0],  # ours come first
    )
    found = []
    for group in groups:
        other = next(entry for is_ours, entry in group if not is_ours)
        found += [(entry, other) for is_ours, entry in group if is_ours]
    return found


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

    return np.array(in_threads(of, rows.tolist()), dtype=np.int64)
