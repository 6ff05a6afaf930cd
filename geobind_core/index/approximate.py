"""Approximate search: faiss looks into those lists of rows that are near the query.

The lists are kept in a file beside the index that is made when it is first needed. It is named after the
content of the index, so that one of an index that was replaced is never used.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geobind_core.errors import ConfigError
from geobind_core.files import replacing_file
from geobind_core.index.file import EmbeddingIndex
from geobind_core.index.search import Box, Hit, Period, as_float32, filtered, hits, query_vectors, search
from geobind_core.progress import Reporter

_ROWS_TO_TRAIN = 64  # for each list; faiss asks for 39 at least
_SHARE_OF_LISTS = 0.1  # that a query looks into
_FEWEST_LISTS = 16
_SMALLEST_SHARE = 0.02  # of rows that pass a filter: of fewer, an exact search reads little and misses none


class ApproximateIndex:
    """An index with lists of near rows: an inverted file of vectors in float16.

    Args:
        index: What is searched.
        lists: The faiss index of it.
    """

    def __init__(self, index: EmbeddingIndex, lists: Any) -> None:
        self._index = index
        self._lists = lists

    @classmethod
    def open(cls, index: EmbeddingIndex, reporter: Reporter) -> ApproximateIndex:
        """Opens the lists of an index, which stay on the disk; makes them if there are none.

        Raises:
            ConfigError: faiss is not installed.
            DataError: The index is damaged.
        """
        faiss = _faiss()
        path = lists_path(index)
        lists = _mapped(faiss, path, index)
        if lists is None:
            if path.exists():
                reporter.warn(f"{path} is damaged, and is made again")
            _build(index, path, reporter)
            lists = _mapped(faiss, path, index)
        return cls(index, lists)

    def search(self, query: npt.ArrayLike, k: int, *, bbox: Box | None = None, time: Period | None = None) -> list[Hit]:
        """Returns nearly what an exact search does; see `search`.

        Where few rows pass the filters, or fewer than `k` are found, it searches exactly.
        """
        faiss = _faiss()
        vector = query_vectors(self._index, np.asarray(query)[None])
        wanted = filtered(self._index, bbox, time)
        share = 1.0 if wanted is None else float(wanted.mean())
        if share < _SMALLEST_SHARE:
            return search(self._index, vector[0], k, bbox=bbox, time=time)
        # Through a filter, as many candidates are to be looked at as without.
        probed = math.ceil(max(_FEWEST_LISTS, _SHARE_OF_LISTS * self._lists.nlist) / share)
        settings: dict[str, Any] = {"nprobe": min(probed, self._lists.nlist)}
        if wanted is not None:
            settings["sel"] = faiss.IDSelectorBitmap(np.packbits(wanted, bitorder="little"))
        found, rows = self._lists.search(vector, k, params=faiss.SearchParametersIVF(**settings))
        there = rows[0] >= 0
        available = len(self._index) if wanted is None else int(wanted.sum())
        if there.sum() < min(k, available):
            return search(self._index, vector[0], k, bbox=bbox, time=time)
        order = np.lexsort((rows[0][there], -found[0][there]))
        return hits(self._index, rows[0][there][order], found[0][there][order])


def lists_path(index: EmbeddingIndex) -> Path:
    """Returns where the lists of an index are kept."""
    name = f"{index.fingerprint()[:12]}.faiss"
    return index.path / name if index.path.is_dir() else index.path.with_name(f"{index.path.name}.{name}")


def _mapped(faiss: Any, path: Path, index: EmbeddingIndex) -> Any | None:
    """Returns the lists in a file, which stay on the disk; None if it is not there, or not whole."""
    # Reading behind the end of a mapped file would end the process.
    if not path.is_file() or path.stat().st_size < len(index) * index.embed_dim * 2:
        return None
    try:
        lists = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError:  # faiss has no other
        return None
    return lists if (lists.ntotal, lists.d) == (len(index), index.embed_dim) else None


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            "an approximate search needs faiss, which is not installed.",
            place="--approximate",
            hint="pip install 'geobind[approximate]'; or search exactly, without --approximate.",
        ) from error
    return faiss


def _build(index: EmbeddingIndex, path: Path, reporter: Reporter) -> None:
    faiss = _faiss()
    count = max(1, min(round(math.sqrt(len(index))), len(index) // _ROWS_TO_TRAIN))
    lists = faiss.index_factory(index.embed_dim, f"IVF{count},SQfp16", faiss.METRIC_INNER_PRODUCT)
    lists.cp.spherical = True
    lists.cp.min_points_per_centroid = 1  # or faiss warns of small indices
    every = max(1, len(index) // (_ROWS_TO_TRAIN * count))
    with reporter.task("approximate index", 2 * len(index), "rows") as task:
        some = []
        for first, embeddings in index.chunks():
            some.append(as_float32(embeddings[-first % every :: every]))
            task.advance(len(embeddings))
        lists.train(np.concatenate(some))
        for _, embeddings in index.chunks():
            lists.add(as_float32(embeddings))
            task.advance(len(embeddings))
    with replacing_file(path) as temporary:
        faiss.write_index(lists, str(temporary))
    pattern = "*.faiss" if index.path.is_dir() else f"{index.path.name}.*.faiss"
    for stale in path.parent.glob(pattern):
        if stale != path:
            stale.unlink(missing_ok=True)
