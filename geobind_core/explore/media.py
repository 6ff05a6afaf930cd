"""Observations as a browser may show them."""

from __future__ import annotations

import threading
from collections import OrderedDict

from geobind_core.data_tools.media import kind_of
from geobind_core.explore.collection import Collection
from geobind_core.plugins.modality import Preview
from geobind_core.space.space import Space

PIXELS = 512
"""Longer side of an image that is shown."""

_CACHE = 64 * 2**20  # bytes


class Previews:
    """Makes previews, and keeps the latest in memory."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._kept: OrderedDict[tuple[int, int, str], Preview | None] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, number: int, collection: Collection, row: int, modality: str) -> Preview | None:
        """Returns an observation for people; None if there is none, or no way to show it.

        Args:
            number: The collection's number.
            collection: The collection.
            row: Its row.
            modality: One of its modalities.

        Raises:
            Exception: Whatever the modality raises of a cell that it cannot read.
        """
        key = (number, row, modality)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = self._made(collection, row, modality)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = found
                self._size += _size(found)
            while self._size > _CACHE:
                self._size -= _size(self._kept.popitem(last=False)[1])
        return found

    def _made(self, collection: Collection, row: int, modality: str) -> Preview | None:
        if not collection.filled[modality][row]:
            return None
        cell = collection.read_cell(modality, row)
        preview = self._space.modality(modality).preview(cell, size=PIXELS)
        if preview is None and isinstance(cell, tuple | list) and all(isinstance(v, str | int | float) for v in cell):
            text = ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in cell)
            return Preview("text/plain", text.encode())
        return preview if preview is not None and kind_of(preview) is not None else None


def _size(preview: Preview | None) -> int:
    return 128 + (len(preview.data) if preview is not None else 0)
