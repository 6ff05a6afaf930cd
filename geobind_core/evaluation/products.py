"""What is asked of a gallery, and products of which is known how exact they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

EXACT_ELEMENTS = 500_000  # 4 MB of float64
_PAIR_ELEMENTS = 32_768  # small enough to be in the cache, and not to be asked of the system each time
_SINGLE, _DOUBLE = 2.0**-24, 2.0**-53

Array = npt.NDArray[Any]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Work:
    """A retrieval, and how far its products may be off.

    Attributes:
        query: `[Q, D]`.
        gallery: `[N, D]`.
        own: `[Q]`, the own item of each query.
        labels: Each `[N]`, equal only where labels are.
        band: `[Q]`, how far a product in float32 can be from the true one.
        tie: `[Q]`, how far two products in float64 can be apart that are truly equal.
        in_range: Whether float32 can hold the products, and what makes them up.
        members: For each of `labels`, the items with each number, in order.
    """

    query: Array
    gallery: Array
    own: Numbers
    labels: list[npt.NDArray[np.int32]]
    band: npt.NDArray[np.float64]
    tie: npt.NDArray[np.float64]
    in_range: bool
    members: list[list[Numbers]]

    def right(self, rows: Numbers) -> npt.NDArray[np.bool_]:
        """Returns `[B, N]`: what is right for some queries."""
        own = self.own[rows]
        right = np.zeros((len(rows), len(self.gallery)), dtype=bool)
        for codes in self.labels:
            right |= codes[own][:, None] == codes
        right[np.arange(len(rows)), own] = True
        return right

    def leave_out(self, tile: Array, rows: Numbers) -> None:
        """Makes what is right the lowest in products of some queries with the gallery."""
        own = self.own[rows]
        for codes in self.labels:
            np.copyto(tile, -np.inf, where=codes[own][:, None] == codes)
        tile[np.arange(len(rows)), own] = -np.inf

    def best_right(self, rows: Numbers) -> tuple[npt.NDArray[np.float64], Numbers]:
        """Returns the highest product of each query with what is right for it, and the first item that has it."""
        own, tie = self.own[rows], self.tie[rows]
        best, item = self.exact(rows, own), own.copy()
        for codes, members in zip(self.labels, self.members, strict=True):
            wanted = codes[own]
            order = np.argsort(wanted, kind="stable")
            for group in np.split(order, np.flatnonzero(np.diff(wanted[order])) + 1):
                items = members[wanted[group[0]]]
                for part in spans(group, max(1, EXACT_ELEMENTS // len(items))) if len(items) > 1 else ():
                    values = products(self.query[rows[part]], self.gallery[items])
                    value = np.maximum(best[part], values.max(axis=1))
                    within = values >= (value - tie[part])[:, None]
                    first = np.where(within.any(axis=1), items[within.argmax(axis=1)], len(self.gallery))
                    item[part] = np.minimum(first, np.where(best[part] >= value - tie[part], item[part], first))
                    best[part] = value
        return best, item

    def exact(self, rows: Numbers, items: Numbers) -> npt.NDArray[np.float64]:
        """Returns `[P]` products of pairs of a query and an item, in float64."""
        found = np.empty(len(rows))
        for part in spans(np.arange(len(rows)), max(1, _PAIR_ELEMENTS // max(1, self.query.shape[1]))):
            both = np.multiply(self.query[rows[part]], self.gallery[items[part]], dtype=np.float64)
            both.sum(axis=1, out=found[part[0] : part[-1] + 1])
        return found


def work_of(query: Array, gallery: Array, labels: Sequence[torch.Tensor], own: torch.Tensor | None) -> Work:
    """Checks what is asked; the arguments are those of `retrieve`.

    Raises:
        ValueError: The sides do not fit each other, or a value is not finite.
    """
    if query.shape[1] != gallery.shape[1] or (own is None and len(query) != len(gallery)):
        raise ValueError(f"query has shape {query.shape}, gallery {gallery.shape}; expected the same")
    if not (np.isfinite(query).all() and np.isfinite(gallery).all()):
        raise ValueError("an embedding is not finite; it has no rank")
    numbers = np.arange(len(query)) if own is None else own.cpu().numpy().astype(np.int64)
    if len(numbers) != len(query) or (len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(gallery)):
        raise ValueError(f"own has shape {numbers.shape}; expected one item of the gallery for each query")
    dimension = query.shape[1]
    norms, others = _norms(query), _norms(gallery)
    norm_products = norms * others.max(initial=0)
    codes = [_comparable(of_one) for of_one in labels]
    return Work(
        query,
        gallery,
        numbers,
        codes,
        # A sum of D products, in whatever order, is off by D roundings at most, each a share of the
        # product of the norms (Higham 2002, section 3.1). The rest is for inputs in float64.
        band=(dimension + 4) * _SINGLE * norm_products,
        tie=2 * (dimension + 4) * _DOUBLE * norm_products,
        in_range=all((((side > 1e-15) & (side < 1e15)) | (side == 0)).all() for side in (norms, others)),
        members=[np.split(np.argsort(c, kind="stable"), np.cumsum(np.bincount(c))[:-1]) for c in codes],
    )


def as_array(embeddings: torch.Tensor) -> Array:
    """Returns embeddings as an array in float32, or in float64 if they are."""
    found = embeddings.detach().cpu()
    return (found if found.dtype == torch.float64 else found.float()).contiguous().numpy()


def _norms(side: Array) -> npt.NDArray[np.float64]:
    parts = spans(np.arange(len(side)), max(1, EXACT_ELEMENTS // max(1, side.shape[1])))
    return np.concatenate([np.zeros(0), *(np.linalg.norm(side[p].astype(np.float64), axis=1) for p in parts)])


def _comparable(labels: torch.Tensor) -> npt.NDArray[np.int32]:
    """Returns labels as small numbers; what has none has a number of its own."""
    codes = labels.cpu().numpy().astype(np.int64)
    own = np.where(codes >= 0, codes, -1 - np.arange(len(codes)))
    return np.unique(own, return_inverse=True)[1].reshape(-1).astype(np.int32)


def spans(rows: Array, height: int) -> Iterator[Array]:
    """Yields so many rows after the other."""
    for start in range(0, len(rows), height):
        yield rows[start : start + height]


def products(query: Array, gallery: Array) -> npt.NDArray[np.float64]:
    """Returns `[Q, N]` products in float64; of the gallery, a part at a time is made wider."""
    found, wide = np.empty((len(query), len(gallery))), query.astype(np.float64)
    for part in spans(np.arange(len(gallery)), max(1, EXACT_ELEMENTS // max(1, gallery.shape[1]))):
        found[:, part[0] : part[-1] + 1] = wide @ gallery[part].astype(np.float64).T
    return found
