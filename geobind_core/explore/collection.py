"""Places that are looked at together: where they are, and what was observed there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from geobind_core.data.geography import Places
from geobind_core.data.paired import Rows
from geobind_core.data_tools.opened import OpenedData
from geobind_core.index.file import EmbeddingIndex
from geobind_core.space.space import Space


@dataclass(frozen=True)
class Collection:
    """Rows of a data set, or of an index.

    Attributes:
        name: What people call it.
        keys: `[N]` strings.
        places: Where they are; None when nobody knows.
        filled: Modality -> `[N]`, true where there is an observation of it.
        read_cell: Returns what a modality reads of a row: `read_cell(modality, row)`.
    """

    name: str
    keys: pa.Array
    places: Places | None
    filled: Mapping[str, npt.NDArray[np.bool_]]
    read_cell: Callable[[str, int], Any]

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        """Returns the key of a row."""
        return str(self.keys[row].as_py())

    def place(self, row: int) -> tuple[float, float] | None:
        """Returns longitude and latitude of a row in degrees, if they are known."""
        if self.places is None or not self.places.known[row]:
            return None
        return float(self.places.longitude[row]), float(self.places.latitude[row])


def from_data(opened: OpenedData, rows: Rows) -> Collection:
    """Returns some rows of a data set, with those of its modalities that can be read."""
    data, modalities = opened.data, opened.modalities

    def read_cell(modality: str, row: int) -> Any:
        return data.cell(modality, int(rows[row]), is_file=modalities[modality].reads_files)

    return Collection(
        name=opened.name,
        keys=data.keys.take(pa.array(rows)),
        places=_some(None if data.places is None else data.places.take(rows)),
        filled={name: data.filled(name)[rows] for name in modalities},
        read_cell=read_cell,
    )


def from_index(index: EmbeddingIndex, space: Space) -> Collection:
    """Returns the rows of an index, with what it kept of their cells."""
    cells = {name: found for name, found in index.record.cells.items() if name in space.modalities}
    filled = {
        name: np.logical_and.reduce(
            [pc.is_valid(index.column(column)).to_numpy(zero_copy_only=False) for column in found.columns]
        )
        for name, found in cells.items()
    }
    return Collection(index.path.stem, index.keys(), _some(index.places()), filled, index.cell)


def _some(places: Places | None) -> Places | None:
    return places if places is not None and places.known.any() else None
