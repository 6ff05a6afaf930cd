"""Several data sets as one, for a stage that trains on all of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from geobind_core.data.geography import Places
from geobind_core.data.order import ANYWHERE, Blocks, Rows, epoch_order
from geobind_core.data.paired import PairedData
from geobind_core.data.splits import Split


class MixedData(PairedData):
    """The rows of several data sets, one after the other.

    Args:
        parts: Name -> data set.
        weights: Name -> its share of the rows of an epoch, in proportion to the others'. None: every
            row of every data set is read once in an epoch.
    """

    def __init__(self, parts: Mapping[str, PairedData], weights: Mapping[str, float] | None = None) -> None:
        self.parts = tuple(parts.values())
        self.weights = None if weights is None else np.array([weights[name] for name in parts])
        self.name = "+".join(parts)
        self.place = " + ".join(part.place for part in self.parts)
        first, *others = self.parts
        # Only what all of them have can be trained; which columns that is differs from one to the other.
        self.fields = {name: columns for name, columns in first.fields.items() if all(name in p.fields for p in others)}
        self._starts = np.cumsum([0, *map(len, self.parts)])
        self.places = _joined_places(self.parts)
        self.blocks = _joined_blocks(self.parts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _part(self, row: int) -> tuple[PairedData, int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.parts[number], row - int(self._starts[number])

    def key(self, row: int) -> str:
        """Returns the key of a row, with the name of its data set: two may have the same."""
        part, own = self._part(row)
        return f"{part.name}/{part.key(own)}"

    def unread_cell(self, modality: str, row: int, *, is_file: bool) -> Any:
        """Returns what stands in a row for a modality, as `PairedData.unread_cell` does."""
        part, own = self._part(row)
        return part.unread_cell(modality, own, is_file=is_file)

    def rows(self, split: Split, modalities: Iterable[str]) -> Rows:
        """Returns the rows of a split that have something for each of these modalities, in order."""
        wanted = list(modalities)
        found = [part.rows(split, wanted) + start for part, start in zip(self.parts, self._starts, strict=False)]
        return np.concatenate(found)

    def filled(self, modality: str) -> npt.NDArray[np.bool_]:
        """Returns `[N]`, true where a row of any split or none has something for a modality."""
        return np.concatenate([part.filled(modality) for part in self.parts])

    def split_names(self) -> list[str | None]:
        """Returns the split of each row, None for a row in none."""
        return [name for part in self.parts for name in part.split_names()]

    def column_has_values(self, modality: str) -> bool:
        """Whether any row has something for a modality."""
        return any(part.column_has_values(modality) for part in self.parts)

    def count(self, split: Split) -> int:
        """Returns how many rows a split has, complete or not."""
        return sum(part.count(split) for part in self.parts)

    def label_values(self, modality: str) -> pa.Array | None:
        """Returns the label of each row as a text; equal ones are equal across the data sets."""
        found = [part.label_values(modality) for part in self.parts]
        if all(values is None for values in found):
            return None
        nothing = (pa.nulls(len(part), pa.string()) for part in self.parts)
        return pa.concat_arrays([n if v is None else v for v, n in zip(found, nothing, strict=True)])

    def order(self, rows: Rows, seed: int, epoch: int) -> Rows:
        """Returns the rows of an epoch in their order, a pure function of the arguments.

        With weights an epoch has as many rows as without. A data set that gives fewer than it has goes
        on in the next epoch where it stopped; one that gives more begins again, in another order.
        """
        if self.weights is None:
            return epoch_order(rows, seed, epoch, self.blocks)
        parts = np.split(rows, np.searchsorted(rows, self._starts[1:-1]))
        counts = _shares(self.weights, len(rows))
        chosen = [_stretch(p, seed, i, epoch * n, n) for i, (p, n) in enumerate(zip(parts, counts, strict=True))]
        return epoch_order(np.concatenate(chosen), seed, epoch, self.blocks)


def _shares(weights: npt.NDArray[np.float64], total: int) -> list[int]:
    """Divides a number in proportion to weights, exactly."""
    ends = np.rint(np.cumsum(weights) / weights.sum() * total).astype(np.int64)
    counts: list[int] = np.diff(ends, prepend=0).tolist()
    return counts


def _stretch(rows: Rows, seed: int, number: int, start: int, length: int) -> Rows:
    """Returns a stretch of the endless sequence of all passes over some rows, each pass in an order of its own."""
    if length == 0:
        return rows[:0]
    first, last = start // len(rows), (start + length - 1) // len(rows)
    passes = [epoch_order(rows, seed + (number + 1) * 2**32, turn) for turn in range(first, last + 1)]
    offset = start - first * len(rows)
    return np.concatenate(passes)[offset : offset + length]


def _joined_places(parts: Iterable[PairedData]) -> Places:
    found = []
    for part in parts:
        nowhere = np.full(len(part), np.nan)
        found.append(part.places or Places(nowhere, nowhere))
    return Places(np.concatenate([p.longitude for p in found]), np.concatenate([p.latitude for p in found]))


def _joined_blocks(parts: Iterable[PairedData]) -> Blocks | None:
    numbers, found, starts, start = [], [], [], 0
    for part in parts:
        if part.blocks is None:
            numbers.append(np.full(len(part), ANYWHERE, dtype=np.int32))
        else:
            own = part.blocks.numbers
            numbers.append(np.where(own == ANYWHERE, own, own + start))
            found.append(part.blocks)
            starts.append(start)
            start += int(own.max()) + 1
    if not found:
        return None
    at_once, ahead = min(blocks.at_once for blocks in found), min(blocks.ahead for blocks in found)
    return Blocks(np.concatenate(numbers), at_once, ahead, _Fetch(tuple(found), tuple(starts)))


@dataclass(frozen=True)
class _Fetch:
    """Fetches a block by its number among those of all data sets."""

    blocks: tuple[Blocks, ...]
    starts: tuple[int, ...]

    def __call__(self, block: int) -> None:
        part = bisect_right(self.starts, block) - 1
        if (fetch := self.blocks[part].fetch) is not None:
            fetch(block - self.starts[part])
