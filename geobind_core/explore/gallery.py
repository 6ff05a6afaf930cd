"""The embeddings of one modality at the places of a collection."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from geobind_core.data.paired import Rows
from geobind_core.explore.collection import Collection
from geobind_core.index.file import EmbeddingIndex
from geobind_core.index.parquet import EMBEDDING
from geobind_core.index.search import nearest, scores

Vector = npt.NDArray[np.float32]

_IN_MEMORY = 512 * 2**20  # bytes of float32; what is larger is read from the disk for every query


class Gallery:
    """What queries are compared with.

    Args:
        index: The embeddings.
        collection: The rows that they are of, found by their keys.

    Attributes:
        modality: What was embedded.
        rows: `[M]` the collection's row of each embedding.
    """

    def __init__(self, index: EmbeddingIndex, collection: Collection) -> None:
        self.modality = index.modality
        self._index = index
        self._collection_size = len(collection)
        found = pc.index_in(index.keys(), value_set=collection.keys)
        self.rows: Rows = found.to_numpy(zero_copy_only=False).astype(np.int64)
        self._place = np.full(len(collection), -1, dtype=np.int64)
        self._place[self.rows] = np.arange(len(self.rows))
        self._vectors: Vector | None = None
        if len(index) * index.embed_dim * 4 <= _IN_MEMORY:
            self._vectors = np.concatenate([part.astype(np.float32) for _, part in index.chunks()])

    def __len__(self) -> int:
        return len(self.rows)

    def similarities(self, query: Vector) -> Vector:
        """Returns the cosine similarity of a query `[D]` with each row of the collection, `[N]`; NaN without one."""
        found = np.full(self._collection_size, np.nan, dtype=np.float32)
        if self._vectors is None:
            found[self.rows] = scores(self._index, query[None])[0]
        else:
            found[self.rows] = self._vectors @ query
        return found

    def vector(self, row: int) -> Vector | None:
        """Returns the embedding of a row of the collection, `[D]`, if it has one."""
        place = int(self._place[row])
        if place < 0:
            return None
        if self._vectors is not None:
            return np.asarray(self._vectors[place])
        return np.asarray(self._index.rows([place], [EMBEDDING])[0][EMBEDDING], dtype=np.float32)


def best(similarities: Vector, k: int, wanted: npt.NDArray[np.bool_] | None = None) -> Rows:
    """Returns the rows with the highest similarities, the highest first; rows without one are left out."""
    usable = ~np.isnan(similarities) if wanted is None else ~np.isnan(similarities) & wanted
    rows = np.flatnonzero(usable)
    return nearest(rows, similarities[rows], k)[0]
