"""Which queries are shown, and what was found for them."""

import numpy as np
import pytest
import torch

from geobind_core.evaluation.examples import choose_queries, examples_of
from geobind_core.evaluation.retrieve import retrieve
from geobind_core.evaluation.similarity import dot_scores

pytestmark = pytest.mark.usefixtures("one_thread")


def test_good_median_and_bad_ranks() -> None:
    ranks = np.random.default_rng(0).permutation(200) + 1
    chosen = choose_queries(ranks, 3, seed=1)
    assert chosen == choose_queries(ranks, 3, seed=1) != choose_queries(ranks, 3, seed=2)
    found = {kind: [int(ranks[query]) for k, query in chosen if k == kind] for kind in ("good", "median", "bad")}
    assert all(len(of_kind) == 3 for of_kind in found.values())
    assert max(found["good"]) <= 20
    assert 91 <= min(found["median"]) <= max(found["median"]) <= 110
    assert min(found["bad"]) > 180


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_queries_are_shown_once(count: int) -> None:
    chosen = [query for _, query in choose_queries(np.arange(1, count + 1), 3, seed=0)]
    assert 1 <= len(chosen) == len(set(chosen)) <= count


def test_what_was_found_is_what_was_ranked() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.nn.functional.normalize(torch.randn(90, 12, generator=generator), dim=-1)
    gallery = torch.nn.functional.normalize(query + 0.3 * torch.randn(90, 12, generator=generator), dim=-1)
    gallery[40] = gallery[7]  # of two that tie, the wrong one comes first
    rows = np.arange(1000, 1090)
    found = retrieve(query, gallery)
    scores = lambda queries: dot_scores(query[queries], gallery)  # noqa: E731
    examples = examples_of(found, rows, scores, each=30, seed=0)
    similarity = (query @ gallery.T).numpy()
    for example in examples:
        asked = example.query_row - 1000
        assert example.rank == found.ranks[asked]
        best = np.sort(similarity[asked])[::-1][:3]
        assert [score for _, score in example.found] == pytest.approx(best.tolist(), abs=1e-6)
        assert [similarity[asked, row - 1000] for row, _ in example.found] == pytest.approx(best.tolist(), abs=1e-6)
        assert example.found[0][0] - 1000 == found.nearest[asked]
        assert (example.found[0][0] == example.query_row) == (example.rank == 1)
