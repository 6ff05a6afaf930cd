"""What is made of ranks, and what it would be by chance."""

import itertools
import statistics
from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np
import pytest
import torch

from geobind_core.evaluation import bootstrap
from geobind_core.evaluation.figures import figures_of, intervals_of, legacy_figures
from geobind_core.evaluation.ranks import (
    chance_mean_reciprocal_rank,
    chance_median_rank,
    chance_recall_at,
    count_right_items,
    cutoff,
    legacy_recall_at,
    mean_reciprocal_rank,
    median_rank,
    recall_at,
)
from geobind_core.evaluation.retrieve import retrieve

pytestmark = pytest.mark.usefixtures("one_thread")


def retrieval_ranks(query: torch.Tensor, gallery: torch.Tensor, labels: Sequence[torch.Tensor] = ()) -> torch.Tensor:
    return retrieve(query, gallery, labels).ranks


def whole_numbers(count: int, seed: int, dim: int = 3) -> torch.Tensor:
    """Embeddings of small whole numbers: products are exact, and ties frequent."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, (count, dim), generator=generator).float()


def few_labels(count: int, seed: int) -> list[int]:
    """Labels of which about a fifth are none."""
    return (torch.randint(0, 5, (count,), generator=torch.Generator().manual_seed(seed)) - 1).tolist()


# ---------------------------------------------------------------------- recall, median


def test_recall() -> None:
    ranks = torch.tensor([1, 1, 2, 5, 10, 11])
    assert [recall_at(ranks, k) for k in (1, 2, 4, 10, 11)] == pytest.approx([2 / 6, 3 / 6, 3 / 6, 5 / 6, 1.0])
    some = retrieval_ranks(whole_numbers(40, 0), whole_numbers(40, 1))
    found = [recall_at(some, k) for k in range(1, 41)]
    assert all(0 <= value <= 1 for value in found)
    assert found == sorted(found)
    assert found[-1] == 1.0


@pytest.mark.parametrize(
    ("ranks", "expected"), [([7], 7.0), ([3, 1, 2], 2.0), ([13, 1, 14, 500], 13.5), ([5, 5, 9, 9], 7.0)]
)
def test_median(ranks: list[int], expected: float) -> None:
    assert median_rank(torch.tensor(ranks)) == expected == statistics.median(ranks)


# ---------------------------------------------------------------------- chance


@pytest.mark.parametrize("gallery", [5, 7])
def test_chance_with_several_right_items_by_enumeration(gallery: int) -> None:
    """All orders of a small gallery, one by one."""
    orders = list(itertools.permutations(range(gallery)))
    for right, k in itertools.product(range(1, gallery + 1), range(1, gallery + 2)):
        hits = sum(any(item < right for item in order[:k]) for order in orders)
        found = chance_recall_at(k, torch.tensor([right]), gallery)
        assert found == pytest.approx(hits / len(orders), abs=1e-9), (right, k)


def test_chance_is_the_mean_over_queries() -> None:
    right = torch.tensor([1, 1, 4, 9])
    expected = sum(1 - comb(1000 - r, 10) / comb(1000, 10) for r in right.tolist()) / 4
    assert chance_recall_at(10, right, 1000) == pytest.approx(expected, rel=1e-9)
    assert chance_recall_at(10, torch.ones(5, dtype=torch.long), 10_000) == pytest.approx(0.001, rel=1e-12)


def test_chance_is_what_random_embeddings_reach() -> None:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 40, 300))
    generator = torch.Generator().manual_seed(1)
    found = [
        recall_at(
            retrieval_ranks(
                torch.randn(300, 16, generator=generator), torch.randn(300, 16, generator=generator), [labels]
            ),
            10,
        )
        for _ in range(40)
    ]
    chance = chance_recall_at(10, count_right_items(300, [labels]), 300)
    assert statistics.mean(found) == pytest.approx(chance, abs=4 * statistics.stdev(found) / len(found) ** 0.5)
    assert chance > 3 * 10 / 300, "labels must have made it easier"


@pytest.mark.parametrize("sides", [0, 1, 2])
def test_right_items_are_counted(sides: int) -> None:
    labels = [few_labels(50, seed) for seed in range(sides)]
    found = count_right_items(50, [torch.tensor(codes) for codes in labels])
    for i in range(50):
        right = {i} | {j for codes in labels for j in range(50) if codes[i] >= 0 and codes[i] == codes[j]}
        assert found[i] == len(right)


@pytest.mark.parametrize("gallery", [4, 5, 7])
def test_chance_of_median_and_reciprocal_ranks_by_enumeration(gallery: int) -> None:
    """All orders of a small gallery; the rank is 1 + the wrong items before the first right one."""
    for right in range(1, gallery + 1):
        orders = itertools.permutations(range(gallery))
        ranks = [1 + next(i for i, item in enumerate(order) if item < right) for order in orders]
        items = torch.tensor([right])
        assert chance_mean_reciprocal_rank(items, gallery) == pytest.approx(statistics.mean(1 / r for r in ranks))
        assert chance_median_rank(items, gallery) == statistics.median(ranks)


def test_chance_of_large_galleries() -> None:
    ones = torch.ones(3, dtype=torch.long)
    assert chance_median_rank(ones, 10_000) == 5000.5
    assert chance_median_rank(ones, 9_999) == 5000
    harmonic = sum(1 / k for k in range(1, 10_001))
    assert chance_mean_reciprocal_rank(ones, 10_000) == pytest.approx(harmonic / 10_000, rel=1e-9)


# ---------------------------------------------------------------------- shares, mean reciprocal rank, older papers


@pytest.mark.parametrize(
    ("k", "gallery", "expected"),
    [
        (10, 5, 10),
        ("1%", 1000, 10),
        ("10%", 993, 99),
        ("9%", 9, 1),
        ("0.5%", 1000, 5),
        ("100%", 7, 7),
        ("29%", 100, 29),
    ],
)
def test_shares_of_the_gallery(k: int | str, gallery: int, expected: int) -> None:
    assert cutoff(k, gallery) == expected


def test_figures_by_hand() -> None:
    ranks = torch.tensor([1, 2, 4, 4, 100] * 20)
    found = figures_of(ranks, torch.ones(100, dtype=torch.long), [1, 3, "4%"])
    assert found == {
        "recall@1": 0.2, "recall@3": 0.4, "recall@4%": 0.8, "median_rank": 4.0,
        "mean_reciprocal_rank": pytest.approx((1 + 0.5 + 0.25 + 0.25 + 0.01) / 5),
        "chance_recall@1": 0.01, "chance_recall@3": 0.03, "chance_recall@4%": 0.04, "chance_median_rank": 50.5,
        "chance_mean_reciprocal_rank": pytest.approx(sum(1 / k for k in range(1, 101)) / 100),
    }  # fmt: skip
    assert mean_reciprocal_rank(ranks) == found["mean_reciprocal_rank"]


def soundingearth_recall(similarity: np.ndarray, k: int) -> float:
    """As SoundingEarth: the place of the own item in the order, from 0, is to be less than k."""
    order = (-similarity).argsort(axis=1)
    return float(np.mean([list(row).index(i) < k for i, row in enumerate(order)]))


def geoclap_recall(similarity: np.ndarray, k: int) -> float:
    """As GeoCLAP: that place from 1 is to be less than k."""
    order = (-similarity).argsort(axis=1)
    return float(np.mean([list(row).index(i) + 1 < k for i, row in enumerate(order)]))


def test_older_papers_corrected_for_their_conventions_say_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(300, 12, generator=generator)
    gallery = query + torch.randn(300, 12, generator=generator)
    similarity, ranks = (query @ gallery.T).numpy(), retrieval_ranks(query, gallery)
    legacy = legacy_figures(ranks, [1, 2, 10, "10%"])["legacy_strict"]
    for k in (1, 2, 10):
        assert soundingearth_recall(similarity, k) == recall_at(ranks, k)
        assert geoclap_recall(similarity, k) == recall_at(ranks, k - 1) == legacy[f"recall@{k}"]
    assert geoclap_recall(similarity, 30) == legacy["recall@10%"]
    assert 0.2 < legacy["recall@10"] < recall_at(ranks, 10)
    perfect = torch.ones(5, dtype=torch.long)
    assert (legacy_recall_at(perfect, 1), legacy_recall_at(perfect, 2)) == (0, 1)


# ---------------------------------------------------------------------- intervals


def drawn_anew(values: np.ndarray, figure: Any, times: int = 4000) -> tuple[float, float]:
    """The plain bootstrap: the queries drawn with replacement, one draw after the other."""
    rng = np.random.default_rng(9)
    found = [figure(values[rng.integers(0, len(values), len(values))]) for _ in range(times)]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


@pytest.mark.parametrize("count", [60, 61])
def test_intervals_are_those_of_the_plain_bootstrap(count: int) -> None:
    ranks = np.random.default_rng(1).geometric(0.05, count)
    rng = np.random.default_rng(2)
    spread = 12.0
    hits = int((ranks <= 10).sum())
    share = bootstrap.of_share(hits, count, 4000, rng)
    assert share == pytest.approx(drawn_anew(ranks, lambda r: (r <= 10).mean()), abs=0.02)
    assert bootstrap.of_median(ranks, 4000, rng) == pytest.approx(drawn_anew(ranks, np.median), abs=spread / 12)
    mean = bootstrap.of_mean(1 / ranks, 4000, rng)
    assert mean == pytest.approx(drawn_anew(1 / ranks, np.mean), abs=0.01)
    assert mean[0] < (1 / ranks).mean() < mean[1]


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Of 300 galleries with a recall of 0.3 in truth, about 95 % of the intervals have it."""
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(300):
        low, high = bootstrap.of_share(int(rng.binomial(500, 0.3)), 500, 500, rng)
        covered.append(low <= 0.3 <= high)
    assert 0.9 < np.mean(covered) < 0.985


def test_intervals_repeat_and_can_be_left_out() -> None:
    ranks = torch.from_numpy(np.random.default_rng(1).integers(1, 50, 200))
    first = intervals_of(ranks, [1, "10%"], 100, 7)
    assert first == intervals_of(ranks, [1, "10%"], 100, 7) != intervals_of(ranks, [1, "10%"], 100, 8)
    assert first["intervals"].keys() == {"recall@1", "recall@10%", "median_rank", "mean_reciprocal_rank"}
    assert all(low <= high for low, high in first["intervals"].values())
    assert intervals_of(ranks, [1], 0, 7) == {}
