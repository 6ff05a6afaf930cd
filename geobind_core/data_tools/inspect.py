"""What is in a data set: how much of it, how much is missing or broken, what it is like, and where."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import pyarrow as pa

from geobind_core.data.geography import Places
from geobind_core.data.paired import PairedData, Rows
from geobind_core.data.samples import describe
from geobind_core.data.splits import Split
from geobind_core.data_tools.duplicates import Duplicates, find_duplicates, shown
from geobind_core.data_tools.opened import OpenedData
from geobind_core.plugins.modality import Modality
from geobind_core.progress import Reporter, Task

FILES_LOOKED_FOR = 20_000
"""Of more files than that, so many are looked for, unless all are asked for."""

_THREADS = 16  # that wait for a file system at a time
_EXAMPLES = 5
_WORDS = 8  # different words of a property that are shown

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Numbers in three: the least, the one in the middle, the greatest."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Range:
        """Takes at least one number."""
        low, middle, high = (float(value) for value in np.quantile(np.asarray(numbers, dtype=np.float64), [0, 0.5, 1]))
        return cls(low, middle, high)


@dataclass(frozen=True)
class Problems:
    """How many were looked at, how many of them have the problem, and some of those.

    Attributes:
        checked: How many were looked at.
        found: How many of them have it.
        examples: The first of those, each with its key and what is wrong.
    """

    checked: int
    found: int
    examples: list[str]

    @classmethod
    def of(cls, checked: int, found: Sequence[str]) -> Problems:
        """Takes all that have it."""
        return cls(checked, len(found), list(found[:_EXAMPLES]))


@dataclass(frozen=True)
class FieldReport:
    """What a data set has for one modality.

    Attributes:
        columns: Its columns.
        filled: Rows of any split, or of none, that have something.
        missing: Files that are not there; None where cells are no paths.
        broken: Cells that cannot be read, of those whose files are there.
        file_bytes: Sizes of the files that were looked for.
        ranges: Property -> its numbers, such as `width`.
        counts: Property -> how often each word occurs, such as `format`.
        duplicates: Cells and files that are there more than once.
    """

    columns: tuple[str, ...]
    filled: int
    missing: Problems | None
    broken: Problems
    file_bytes: Range | None
    ranges: dict[str, Range]
    counts: dict[str, dict[str, int]]
    duplicates: Duplicates


@dataclass(frozen=True)
class Extent:
    """Where the rows are, in degrees, WGS 84; across the antimeridian, west is greater than east.

    `without` counts the rows that have no usable coordinates.
    """

    west: float
    south: float
    east: float
    north: float
    without: int


@dataclass(frozen=True)
class Inspection:
    """What was found in a data set.

    Attributes:
        data: Its name.
        source: The registered name of its source.
        rows: How many there are.
        splits: Split -> its rows; `none` for rows in no split.
        fields: Modality -> what there is of it.
        unread: Further fields, for which no modality was given.
        extent: Where the rows are; None without coordinates.
        notes: What the source has to say, such as which shards are cut off.
    """

    data: str
    source: str
    rows: int
    splits: dict[str, int]
    fields: dict[str, FieldReport]
    unread: list[str]
    extent: Extent | None
    notes: list[str]


def inspect(opened: OpenedData, reporter: Reporter, *, check: int | None = 200, seed: int = 0) -> Inspection:
    """Looks at a data set. Big ones are looked at in part: the report says how much of each thing was.

    Args:
        opened: The data set.
        reporter: Told how far it is.
        check: How many cells of each modality to read, drawn at random; None for all.
        seed: Of the draw.
    """
    data = opened.data
    splits = {str(name): data.count(name) for name in get_args(Split)}
    fields = {}
    for name in opened.modalities:
        filled = np.flatnonzero(data.filled(name))
        looked = _draw(filled, None if check is None else max(check, FILES_LOOKED_FOR), seed)
        with reporter.task(name, len(looked), "cells") as task:
            fields[name] = _Look(opened, name, task).report(filled, looked, check, seed)
    return Inspection(
        data=opened.name,
        source=opened.source.name,
        rows=len(data),
        splits={**splits, "none": len(data) - sum(splits.values())},
        fields=fields,
        unread=[name for name in data.fields if name not in opened.modalities],
        extent=_extent(data.places),
        notes=[*opened.source.notes(), *data.notes],
    )


def _draw(rows: Rows, count: int | None, seed: int) -> Rows:
    if count is None or count >= len(rows):
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))


@dataclass
class _Look:
    """Looks at the cells of one modality."""

    opened: OpenedData
    name: str
    task: Task

    @property
    def data(self) -> PairedData:
        return self.opened.data

    @property
    def modality(self) -> Modality[Any]:
        return self.opened.modalities[self.name]

    def report(self, filled: Rows, looked: Rows, check: int | None, seed: int) -> FieldReport:
        """Looks for files first, and then reads some of those that are there."""
        files = self._files(looked) if self.modality.reads_files else {}
        sizes = dict(zip(files, self._in_threads(_size, list(files.values()), _THREADS), strict=True))
        lost = {row for row, size in sizes.items() if size is None}
        to_read = _draw(np.array([row for row in looked.tolist() if row not in lost], dtype=np.int64), check, seed)
        self.task.update(0, len(to_read))
        seen = self._in_threads(self._read, to_read.tolist(), os.cpu_count() or 1, self.task)
        broken = [f"{self.data.key(row)}: {it}" for row, it in zip(to_read.tolist(), seen, strict=True) if _bad(it)]
        missing = [f"{self.data.key(row)}: {shown(files[row], self.data.root)}" for row in sorted(lost)]
        found = {files[row]: size for row, size in sizes.items() if size is not None}
        ranges, counts = _summary([it for it in seen if not isinstance(it, str)])
        return FieldReport(
            columns=self.data.fields[self.name],
            filled=len(filled),
            missing=Problems.of(len(files), missing) if files else None,
            broken=Problems.of(len(to_read), broken),
            file_bytes=Range.of(list(found.values())) if found else None,
            ranges=ranges,
            counts=counts,
            duplicates=find_duplicates(
                self._column(filled), found, root=self.data.root, everything=check is None, seed=seed
            ),
        )

    def _column(self, filled: Rows) -> pa.ChunkedArray | None:
        columns = self.data.fields[self.name]
        if len(columns) != 1:
            return None
        mask = np.zeros(len(self.data), dtype=bool)
        mask[filled] = True
        # Unlike taking rows, it never has to put more than 2 GiB of texts into one array.
        return self.opened.observations.table[columns[0]].filter(pa.array(mask))

    def _files(self, rows: Rows) -> dict[int, Path]:
        """Returns the files that cells name; there are none where the table has the files' content."""
        found = {}
        for row in rows.tolist():
            cell = self.data.unread_cell(self.name, row, is_file=True)
            if isinstance(cell, dict) and cell.get("bytes") is None and isinstance(cell.get("path"), str):
                cell = Path(cell["path"])
            if isinstance(cell, Path):
                found[row] = cell
        return found

    def _read(self, row: int) -> Mapping[str, str | int | float] | str:
        """Returns the properties of a cell, or what is wrong with it."""
        try:
            cell = self.data.cell(self.name, row, is_file=self.modality.reads_files)
            self.opened.require_readable(self.name, cell)
            return self.modality.inspect(cell)
        except Exception as error:  # decoders raise what they like
            return describe(error)

    @staticmethod
    def _in_threads(
        function: Callable[[Any], T], items: Sequence[Any], threads: int, task: Task | None = None
    ) -> list[T]:
        results = []
        with ThreadPoolExecutor(threads) as pool:
            for result in pool.map(function, items):
                results.append(result)
                if task is not None:
                    task.advance(1)
        return results


def _bad(seen: Mapping[str, str | int | float] | str) -> bool:
    return isinstance(seen, str)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # missing, not to be reached, or no name that a file can have
        return None


def _summary(
    seen: Sequence[Mapping[str, str | int | float]],
) -> tuple[dict[str, Range], dict[str, dict[str, int]]]:
    """Returns numbers as ranges, and words as counts, the most frequent first."""
    numbers: dict[str, list[float]] = {}
    words: dict[str, Counter[str]] = {}
    for properties in seen:
        for name, value in properties.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers.setdefault(name, []).append(value)
            else:
                words.setdefault(name, Counter())[str(value)] += 1
    counts = {}
    for name, counter in words.items():
        shown = dict(sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:_WORDS])
        others = counter.total() - sum(shown.values())
        counts[name] = {**shown, **({"others": others} if others else {})}
    return {name: Range.of(values) for name, values in numbers.items()}, counts


def _extent(places: Places | None) -> Extent | None:
    if places is None or not places.known.any():
        return None
    known = places.take(places.known)
    longitudes = np.sort(known.longitude)
    west, east = longitudes[0], longitudes[-1]
    if len(longitudes) > 1:
        gaps = np.diff(longitudes)
        widest = int(gaps.argmax())
        if 360 - gaps[widest] < (east - west) / 2:  # far narrower the other way round
            west, east = longitudes[widest + 1], longitudes[widest]
    box = (round(float(x), 6) for x in (west, known.latitude.min(), east, known.latitude.max()))
    west, south, east, north = box
    return Extent(west, south, east, north, without=len(places) - len(known))
