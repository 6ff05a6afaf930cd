"""What is made of ranks: recall, median and mean reciprocal rank, and what each would be by chance.

Definitions, the same everywhere: a higher similarity is closer; ranks start at 1; items that tie
with the right one are counted before it; where several items are right, the best-ranked one counts;
recall@k is the share of ranks <= k; the median of an even count is the mean of the middle two.
`recall@1%` looks at one in a hundred of the gallery: k is that share of it, rounded down, but at
least 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch

Cutoff = int | str
"""How many of the gallery are looked at: a number, or a share such as `"1%"`."""


def cutoff(k: Cutoff, gallery: int) -> int:
    """Returns how many items of a gallery are looked at.

    Example:
        >>> cutoff(10, 993), cutoff("10%", 993), cutoff("1%", 20)
        (10, 99, 1)
    """
    if isinstance(k, int):
        return k
    return max(1, int(Fraction(k.removesuffix("%")) * gallery / 100))


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


def mean_reciprocal_rank(ranks: torch.Tensor) -> float:
    """Returns the mean of 1 / rank, in (0, 1]."""
    return float((1 / ranks.double()).mean())


def legacy_recall_at(ranks: torch.Tensor, k: int) -> float:
    """Returns the share of ranks, from 1, that are less than k, as GeoCLAP's code counts: our recall@(k - 1)."""
    return recall_at(ranks, k - 1)


# ---------------------------------------------------------------------- chance


def chance_recall_at(k: int, right_items: torch.Tensor, gallery: int) -> float:
    """Returns the recall@k that a random order would have.

    Args:
        k: How many are looked at.
        right_items: `[N]`, how many items of the gallery are right for each query, at least 1.
        gallery: The size of the gallery.
    """
    if k >= gallery:
        return 1.0
    expected = 0.0
    for right, times in _numbers_of_times(right_items):
        # 1 - C(gallery - right, k) / C(gallery, k): that not all k are among the wrong ones.
        if right > gallery - k:
            found = 1.0
        elif right == 1:
            found = k / gallery
        else:
            found = 1 - math.exp(_log_choose(gallery - right, k) - _log_choose(gallery, k))
        expected += times * found
    return expected / len(right_items)


def chance_median_rank(right_items: torch.Tensor, gallery: int) -> float:
    """Returns the median rank that a random order would have, of the queries together."""
    low, high = 1, gallery
    while low < high:  # the lowest k within which half of the queries would find theirs
        middle = (low + high) // 2
        if chance_recall_at(middle, right_items, gallery) >= 0.5 - 1e-12:
            high = middle
        else:
            low = middle + 1
    exactly_half = chance_recall_at(low, right_items, gallery) <= 0.5 + 1e-12
    return low + 0.5 if exactly_half and low < gallery else float(low)


def chance_mean_reciprocal_rank(right_items: torch.Tensor, gallery: int) -> float:
    """Returns the mean reciprocal rank that a random order would have."""
    expected = 0.0
    for right, times in _numbers_of_times(right_items):
        # The first right item comes at k where the other right ones are all among those after it.
        ranks = np.arange(1, gallery - right + 2)
        shares = np.exp(_log_chooses(gallery - ranks, right - 1) - _log_choose(gallery, right))
        expected += times * float((shares / ranks).sum())
    return expected / len(right_items)


def _numbers_of_times(right_items: torch.Tensor) -> list[tuple[int, int]]:
    values, counts = torch.unique(right_items, return_counts=True)
    return list(zip(values.tolist(), counts.tolist(), strict=True))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_chooses(n: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.float64]:
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n.max(initial=0) + 1)))])
    found: npt.NDArray[np.float64] = factorials[n] - factorials[k] - factorials[n - k]
    return found


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
