"""Where the right item comes among a whole gallery, by tiles of similarities.

A product in float32 is quick, but it may give equal items sums that differ in their last bits, by where
they lie in the matrix, and then they no longer tie. How far it can be off is known. So float32 decides
about what lies further than that from the right item, and float64 about the few items that are nearer:
the ranks are those of float64, for little more than the time of the product in float32.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from geobind_core.evaluation.products import Array, Numbers, Work, as_array, products, spans, work_of

_TILE_ELEMENTS = 10_000_000  # 40 MB of float32; for lower tiles, BLAS rearranges the gallery too often
_PART_ELEMENTS = 1_000_000  # of a tile, for one thread: what it goes over several times stays in the cache
_DOUBLE_ELEMENTS = 500_000
_THREADS = 4
_CROWDED = 64
_SEVERAL_FIRST, _UNKNOWN = -1, -2


@dataclass(frozen=True)
class Found:
    """What a gallery answers to queries.

    Attributes:
        ranks: `[Q]` int64, from 1: where the right item came.
        nearest: `[Q]` int64, the gallery's item that came first. Of those that tie, a wrong one, as
            for the ranks; of several wrong ones that with the lowest number.
    """

    ranks: torch.Tensor
    nearest: torch.Tensor


def retrieve(
    query: torch.Tensor,
    gallery: torch.Tensor,
    labels: Sequence[torch.Tensor] = (),
    *,
    own: torch.Tensor | None = None,
) -> Found:
    """Ranks, for each query, the right item among the whole gallery. Memory is that of a tile of similarities.

    Similarities are dot products. Two of them tie if they are equal as far as float64 can tell.

    Args:
        query: `[Q, D]`.
        gallery: `[N, D]`.
        labels: Each `[N]` integers, of the items of the gallery: those with the label of a query's own
            item are right as well, and a negative label is nobody's equal.
        own: `[Q]`, the number of each query's own item in the gallery. Without it, row i's is row i.

    Raises:
        ValueError: The sides do not fit each other, or a value is not finite.
    """
    work = work_of(as_array(query), as_array(gallery), labels, own)
    everyone, size = np.arange(len(work.query)), max(1, len(work.gallery))
    ranks, nearest = np.empty(len(everyone), np.int64), np.full(len(everyone), _UNKNOWN)
    if work.in_range:
        judge = _Judge(work)
        height = max(1, min(len(everyone), _TILE_ELEMENTS // size))
        buffer, lower = np.empty((height, size), np.float32), max(1, _PART_ELEMENTS // size)
        with ThreadPoolExecutor(min(_THREADS, _cores())) as pool:
            for rows in spans(everyone, height):
                # The product takes all cores by itself; what NumPy does with it afterwards does not.
                tile = judge.products(rows, out=buffer[: len(rows)])
                parts = list(spans(rows, lower))
                for part, found in zip(parts, pool.map(judge, parts, spans(tile, lower)), strict=True):
                    ranks[part], nearest[part] = found
        del buffer
        for rows in spans(np.flatnonzero(nearest == _SEVERAL_FIRST), lower):
            nearest[rows] = judge.first(rows)
    for rows in spans(np.flatnonzero(nearest == _UNKNOWN), max(1, _DOUBLE_ELEMENTS // size)):
        scores = products(work.query[rows], work.gallery)
        ranks[rows], nearest[rows] = decide(scores, work.right(rows), work.tie[rows])
    return Found(torch.from_numpy(ranks), torch.from_numpy(nearest))


class _Judge:
    """Finds the ranks of some queries and what came first, from products in float32, which it writes over.

    What came first is `_SEVERAL_FIRST` where float32 does not tell, and `_UNKNOWN` where it does not
    tell the rank either, for then too many items are near.

    Args:
        work: What is asked.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.best, self.best_item = work.best_right(np.arange(len(work.query)))
        self.query, self.gallery = (side.astype(np.float32, copy=False) for side in (work.query, work.gallery))

    def products(self, rows: Numbers, out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        """Returns `[B, N]` products in float32."""
        found: npt.NDArray[np.float32] = np.matmul(self.query[rows], self.gallery.T, out=out)
        return found

    def __call__(self, rows: Numbers, tile: npt.NDArray[np.float32]) -> tuple[Numbers, Numbers]:
        """Returns ranks and first items of rows, given their products."""
        work, band, every = self.work, self.work.band[rows], np.arange(len(rows))
        best, best_item = self.best[rows], self.best_item[rows]
        work.leave_out(tile, rows)
        above, doubtful = np.zeros((2, len(rows), -(-tile.shape[1] // 8) * 8), dtype=bool)
        np.greater_equal(tile, _rounded(best + band, np.inf), out=above[:, : tile.shape[1]])
        np.greater_equal(tile, _rounded(best - band - work.tie[rows], -np.inf), out=doubtful[:, : tile.shape[1]])
        before = _counts(above)
        doubtful ^= above
        crowded = _counts(doubtful) > _CROWDED
        doubtful[crowded] = False
        queries, items = _places(doubtful)
        ties = work.exact(rows[queries], items) >= (best - work.tie[rows])[queries]
        before += np.bincount(queries[ties], minlength=len(rows))

        first = tile.argmax(axis=1)
        highest = tile[every, first]
        tile[every, first] = -np.inf
        near = tile.max(axis=1) >= _rounded(highest - 2 * band, -np.inf)[:, 0]
        nearest = np.where(before == 0, best_item, np.where(near, _SEVERAL_FIRST, first))
        nearest[crowded] = _UNKNOWN
        return 1 + before, nearest

    def first(self, rows: Numbers) -> Numbers:
        """Returns the first of the wrong items with the highest product, where several are near it."""
        work, tile = self.work, self.products(rows)
        work.leave_out(tile, rows)
        mask = tile >= _rounded(tile.max(axis=1) - 2 * work.band[rows], -np.inf)
        mask[np.count_nonzero(mask, axis=1) > _CROWDED] = False
        queries, items = _places(mask)
        values, best = work.exact(rows[queries], items), np.full(len(rows), -np.inf)
        np.maximum.at(best, queries, values)
        within = values >= (best - work.tie[rows])[queries]
        present, starts = np.unique(queries[within], return_index=True)
        first = np.full(len(rows), _UNKNOWN)
        first[present] = items[within][starts]
        return first


def _places(mask: npt.NDArray[np.bool_]) -> tuple[Numbers, Numbers]:
    """Returns where a mask is true, by rows."""
    flat = np.flatnonzero(mask)  # NumPy is slower in two dimensions
    rows = flat // mask.shape[1]
    return rows, flat - rows * mask.shape[1]


def _counts(mask: npt.NDArray[np.bool_]) -> Numbers:
    """Returns how often each row is true; rows are of whole words of 8 bytes."""
    # Eight bytes are added at a time, and of 255 words none can overflow: many times as fast as adding booleans.
    words = mask.view(np.uint64)
    sums = np.add.reduceat(words, np.arange(0, words.shape[1], 255), axis=1)
    found: Numbers = sums.view(np.uint8).sum(axis=1, dtype=np.int64)
    return found


def _rounded(values: Array, towards: float) -> npt.NDArray[np.float32]:
    """Returns `[B, 1]` in float32, on the safe side."""
    return np.nextafter(values.astype(np.float32), np.float32(towards))[:, None]


def decide(scores: Array, right: npt.NDArray[np.bool_], tie: npt.NDArray[np.float64]) -> tuple[Numbers, Numbers]:
    """Returns ranks and what came first, by definition.

    Args:
        scores: `[B, N]`, without error but for `tie`.
        right: `[B, N]`.
        tie: `[B]`, scores no further apart than this are equal.
    """
    chosen = np.where(right, scores, -np.inf)
    best = chosen.max(axis=1) - tie
    wrong = np.where(right, -np.inf, scores)
    before = (wrong >= best[:, None]).sum(axis=1)
    top = (wrong >= (wrong.max(axis=1) - tie)[:, None]).argmax(axis=1)
    return 1 + before, np.where(before > 0, top, (chosen >= best[:, None]).argmax(axis=1))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
