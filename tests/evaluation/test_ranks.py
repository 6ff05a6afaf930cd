"""Ranks against counting them one by one, and what is made of them."""

import itertools
import statistics
from collections.abc import Sequence
from math import comb

import numpy as np
import pytest
import torch

from geobind_core.evaluation import ranks as module
from geobind_core.evaluation.ranks import (
    chance_recall_at,
    count_right_items,
    median_rank,
    recall_at,
    retrieval_ranks,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def counted(query: torch.Tensor, gallery: torch.Tensor, labels: Sequence[Sequence[int]] = ()) -> list[int]:
    """Ranks by definition: of the right items the best counts, and whatever wrong ties with it is before it."""
    similarity = (query.double() @ gallery.double().T).tolist()
    found = []
    for i, row in enumerate(similarity):
        right = {i} | {j for codes in labels for j in range(len(row)) if codes[i] >= 0 and codes[j] == codes[i]}
        best = max(row[j] for j in right)
        found.append(1 + sum(1 for j, value in enumerate(row) if j not in right and value >= best))
    return found


def whole_numbers(count: int, seed: int, dim: int = 3) -> torch.Tensor:
    """Embeddings of small whole numbers: products are exact, and ties frequent."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, (count, dim), generator=generator).float()


def few_labels(count: int, seed: int) -> list[int]:
    """Labels of which about a fifth are none."""
    return (torch.randint(0, 5, (count,), generator=torch.Generator().manual_seed(seed)) - 1).tolist()


@pytest.fixture(params=[1, 7, 50, 4_000_000], ids=lambda n: f"tiles of {n} numbers")
def _tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TILE_ELEMENTS", request.param)


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("count", [2, 3, 17, 40])
def test_ranks_are_counts_ties_included(count: int) -> None:
    query, gallery = whole_numbers(count, 0), whole_numbers(count, 1)
    expected = counted(query, gallery)
    assert retrieval_ranks(query, gallery).tolist() == expected
    if count == 40:
        similarity = query @ gallery.T
        assert ((similarity == similarity.diagonal()[:, None]).sum(1) > 1).any(), "the example must have ties"
        assert min(expected) < 5
        assert max(expected) > 20


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("sides", [1, 2])
def test_the_best_ranked_right_item_counts(sides: int) -> None:
    query, gallery = whole_numbers(40, 2), whole_numbers(40, 3)
    labels = [few_labels(40, seed) for seed in range(sides)]
    found = retrieval_ranks(query, gallery, [torch.tensor(codes) for codes in labels])
    assert found.tolist() == counted(query, gallery, labels)
    assert found.sum() < retrieval_ranks(query, gallery).sum(), "labels can only help"


def test_rows_without_a_label_have_only_themselves() -> None:
    query, gallery = whole_numbers(30, 4), whole_numbers(30, 5)
    nobody = torch.full((30,), -1)
    assert torch.equal(retrieval_ranks(query, gallery, [nobody]), retrieval_ranks(query, gallery))


def test_all_of_one_label_is_always_right() -> None:
    query, gallery = whole_numbers(30, 4), whole_numbers(30, 5)
    assert retrieval_ranks(query, gallery, [torch.zeros(30, dtype=torch.long)]).tolist() == [1] * 30


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize(("count", "dim"), [(13, 5), (250, 512), (251, 128)])
def test_an_encoder_that_says_the_same_of_everything_comes_last(count: int, dim: int) -> None:
    same = torch.nn.functional.normalize(torch.randn(dim, generator=torch.Generator().manual_seed(0)), dim=0)
    constant = same.expand(count, dim).clone()
    assert retrieval_ranks(constant, constant).tolist() == [count] * count


def test_a_perfect_encoder_comes_first() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(200, 16, generator=generator), dim=-1)
    assert retrieval_ranks(embeddings, embeddings).tolist() == [1] * 200


def test_the_direction_is_from_query_to_gallery() -> None:
    query = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2]])
    gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.9]])
    assert retrieval_ranks(query, gallery).tolist() == [1, 2, 3]
    assert retrieval_ranks(gallery, query).tolist() == counted(gallery, query) == [1, 2, 1]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_has_no_rank_is_refused(broken: float) -> None:
    good = whole_numbers(4, 0)
    bad = good.clone()
    bad[2, 1] = broken
    for query, gallery in ((bad, good), (good, bad)):
        with pytest.raises(ValueError, match="not finite"):
            retrieval_ranks(query, gallery)
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(3, 3\)"):
        retrieval_ranks(good, good[:3])


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
