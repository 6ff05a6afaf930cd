"""Ranks and what is made of them.

Definitions, the same everywhere: a higher similarity is closer; ranks start at 1; items that tie
with the right one are counted before it; where several items are right, the best-ranked one counts;
recall@k is the share of ranks <= k; the median of an even count is the mean of the middle two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_TILE_ELEMENTS = 4_000_000  # 16 MB of float32


@dataclass(frozen=True)
class Found:
    """What a gallery answers to queries.

    Attributes:
        ranks: `[N]` int64, from 1: where the right item came.
        nearest: `[N]` int64, the gallery's item that came first. Of those that tie, a wrong one, as
            for the ranks; of several wrong ones that with the lowest number.
    """

    ranks: torch.Tensor
    nearest: torch.Tensor


def retrieval_ranks(query: torch.Tensor, gallery: torch.Tensor, labels: Sequence[torch.Tensor] = ()) -> torch.Tensor:
    """Returns the `[N]` ranks alone, see `retrieve`."""
    return retrieve(query, gallery, labels).ranks


def retrieve(query: torch.Tensor, gallery: torch.Tensor, labels: Sequence[torch.Tensor] = ()) -> Found:
    """Ranks, for each query, the right item among the whole gallery. Memory is that of a tile of similarities.

    Args:
        query: `[N, D]`; row i's right item is row i of the gallery.
        gallery: `[N, D]`.
        labels: Each `[N]` integers; rows with equal labels are right for each other as well, and a
            negative label is nobody's equal.

    Raises:
        ValueError: The sides differ in length, or a value is not finite.
    """
    if query.shape != gallery.shape:
        raise ValueError(f"query has shape {tuple(query.shape)}, gallery {tuple(gallery.shape)}; expected the same")
    if not (torch.isfinite(query).all() and torch.isfinite(gallery).all()):
        raise ValueError("an embedding is not finite; it has no rank")
    count = len(query)
    ranks, nearest = torch.empty(count, dtype=torch.long), torch.empty(count, dtype=torch.long)
    tile = max(1, _TILE_ELEMENTS // max(1, count))
    everyone = torch.arange(count, device=query.device)
    wide = gallery.double().T
    for start in range(0, count, tile):
        rows = everyone[start : start + tile]
        # By way of float64: a product in float32 may give equal items sums that differ in their last
        # bit, by where they lie in the matrix, and then they no longer tie.
        similarity = (query[rows].double() @ wide).float()
        right = rows[:, None] == everyone[None, :]
        for codes in labels:
            own = codes.to(query.device)[rows]
            right |= (own[:, None] == codes.to(query.device)[None, :]) & (own >= 0)[:, None]
        best, best_right = similarity.masked_fill(~right, -torch.inf).max(dim=1)
        wrong = similarity.masked_fill_(right, -torch.inf)
        # Nothing that is right lies above the best of what is right, so only wrong items count.
        before = (wrong >= best[:, None]).sum(dim=1)
        ranks[start : start + tile] = 1 + before.cpu()
        nearest[start : start + tile] = torch.where(before > 0, wrong.argmax(dim=1), best_right).cpu()
    return Found(ranks, nearest)


def recall_at(ranks: torch.Tensor, k: int) -> float:
    """Returns the share of ranks that are at most k, in [0, 1]."""
    return float((ranks <= k).double().mean())


def median_rank(ranks: torch.Tensor) -> float:
    """Returns the median; of an even count, the mean of the middle two."""
    ordered = ranks.sort().values
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return float(ordered[middle])
    return float(ordered[middle - 1] + ordered[middle]) / 2


def chance_recall_at(k: int, right_items: torch.Tensor, gallery: int) -> float:
    """Returns the recall@k that a random order would have.

    Args:
        k: How many are looked at.
        right_items: `[N]`, how many items of the gallery are right for each query, at least 1.
        gallery: The size of the gallery.
    """
    if k >= gallery:
        return 1.0
    values, counts = torch.unique(right_items, return_counts=True)
    expected = 0.0
    for right, times in zip(values.tolist(), counts.tolist(), strict=True):
        # 1 - C(gallery - right, k) / C(gallery, k): that not all k are among the wrong ones.
        if right > gallery - k:
            found = 1.0
        elif right == 1:
            found = k / gallery
        else:
            found = 1 - math.exp(_log_choose(gallery - right, k) - _log_choose(gallery, k))
        expected += times * found
    return expected / len(right_items)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def count_right_items(count: int, labels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns `[N]`, how many items are right for each query, itself included."""
    if not labels:
        return torch.ones(count, dtype=torch.long)
    if len(labels) == 1:
        codes = labels[0]
        _, inverse, counts = torch.unique(codes, return_inverse=True, return_counts=True)
        return torch.where(codes >= 0, counts[inverse], 1)
    right = torch.empty(count, dtype=torch.long)
    for i in range(count):
        same = torch.zeros(count, dtype=torch.bool)
        for codes in labels:
            same |= (codes == codes[i]) & (codes[i] >= 0)
        same[i] = True
        right[i] = same.sum()
    return right
