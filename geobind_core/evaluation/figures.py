"""The figures of one retrieval, as `metrics.json` has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from geobind_core.evaluation import bootstrap
from geobind_core.evaluation.ranks import (
    Cutoff,
    chance_mean_reciprocal_rank,
    chance_median_rank,
    chance_recall_at,
    cutoff,
    legacy_recall_at,
    mean_reciprocal_rank,
    median_rank,
    recall_at,
)

GEOCLAP = "rank < k with ranks from 1, as GeoCLAP: recall@(k - 1) of ours"


def figures_of(ranks: torch.Tensor, right_items: torch.Tensor, recall_ks: Sequence[Cutoff]) -> dict[str, Any]:
    """Returns recalls, median and mean reciprocal rank, and what a random order would have.

    Args:
        ranks: `[N]`.
        right_items: `[N]`, how many items of the gallery are right for each query.
        recall_ks: The k of recall@k.
    """
    count = len(ranks)
    limits = {k: cutoff(k, count) for k in recall_ks}
    return {
        **{f"recall@{k}": recall_at(ranks, limit) for k, limit in limits.items()},
        "median_rank": median_rank(ranks),
        "mean_reciprocal_rank": mean_reciprocal_rank(ranks),
        **{f"chance_recall@{k}": chance_recall_at(limit, right_items, count) for k, limit in limits.items()},
        "chance_median_rank": chance_median_rank(right_items, count),
        "chance_mean_reciprocal_rank": chance_mean_reciprocal_rank(right_items, count),
    }


def intervals_of(ranks: torch.Tensor, recall_ks: Sequence[Cutoff], times: int, seed: int) -> dict[str, Any]:
    """Returns `{"intervals": …}`, 95 % intervals over the queries by the name of the figure; nothing for 0 times."""
    if not times:
        return {}
    rng, count = np.random.default_rng(seed), len(ranks)
    hits = {k: int((ranks <= cutoff(k, count)).sum()) for k in recall_ks}
    return {
        "intervals": {
            **{f"recall@{k}": bootstrap.of_share(found, count, times, rng) for k, found in hits.items()},
            "median_rank": bootstrap.of_median(ranks.numpy(), times, rng),
            "mean_reciprocal_rank": bootstrap.of_mean(1 / ranks.double().numpy(), times, rng),
        }
    }


def legacy_figures(ranks: torch.Tensor, recall_ks: Sequence[Cutoff]) -> dict[str, Any]:
    """Returns `{"legacy_strict": …}`: the recalls as older papers count them, and how that is."""
    recalls = {f"recall@{k}": legacy_recall_at(ranks, cutoff(k, len(ranks))) for k in recall_ks}
    return {"legacy_strict": {"convention": GEOCLAP, **recalls}}
