"""Figures beside the ranks: what came first, by hand as well; distances on the ground; metrics that fail."""

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from geobind_core import Metric, MetricConfig, Retrieval
from geobind_core.evaluation import retrieve as module
from geobind_core.evaluation.metrics import MedianKm, WithinKm, WithinKmConfig, further_figures
from geobind_core.evaluation.retrieve import retrieve
from geobind_core.progress import Reporter

pytestmark = pytest.mark.usefixtures("one_thread")


def whole_numbers(count: int, seed: int) -> torch.Tensor:
    """Embeddings of small whole numbers: products are exact, and ties frequent."""
    return torch.randint(-2, 3, (count, 3), generator=torch.Generator().manual_seed(seed)).float()


def first_by_hand(query: torch.Tensor, gallery: torch.Tensor, labels: list[list[int]]) -> list[int]:
    """What came first, by definition: nothing is closer, and of what ties a wrong item comes before a right one."""
    similarity = (query.double() @ gallery.double().T).tolist()
    found = []
    for i, row in enumerate(similarity):
        right = {i} | {j for codes in labels for j in range(len(row)) if codes[i] >= 0 and codes[j] == codes[i]}
        found.append(min(range(len(row)), key=lambda j: (-row[j], j in right, j)))
    return found


@pytest.mark.parametrize("tile", [(1, 1), (90, 30), (10_000_000, 1_000_000)])
@pytest.mark.parametrize("labelled", [0, 1, 2])
@pytest.mark.parametrize("count", [2, 17, 40])
def test_what_came_first(monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int], labelled: int, count: int) -> None:
    monkeypatch.setattr(module, "_TILE_ELEMENTS", tile[0])
    monkeypatch.setattr(module, "_PART_ELEMENTS", tile[1])
    query, gallery = whole_numbers(count, 0), whole_numbers(count, 1)
    labels = [(torch.randint(0, 5, (count,), generator=torch.Generator().manual_seed(s)) - 1) for s in range(labelled)]
    found = retrieve(query, gallery, labels)
    assert found.nearest.tolist() == first_by_hand(query, gallery, [codes.tolist() for codes in labels])
    right = torch.eye(count, dtype=torch.bool)
    for codes in labels:
        right |= (codes[:, None] == codes[None, :]) & (codes >= 0)[:, None]
    # The rank is 1 just where what came first is right.
    assert torch.equal(found.ranks == 1, right[torch.arange(count), found.nearest])


def test_where_all_is_right_the_best_comes_first() -> None:
    query, gallery = torch.eye(3), torch.eye(3)[[2, 0, 1]]
    assert retrieve(query, gallery, [torch.zeros(3, dtype=torch.long)]).nearest.tolist() == [1, 2, 0]


# ---------------------------------------------------------------------- kilometres


def kilometres(first: tuple[float, float], second: tuple[float, float]) -> float:
    """The haversine formula, on longitudes and latitudes in degrees."""
    (a, b), (c, d) = (tuple(map(math.radians, place)) for place in (first, second))
    h = math.sin((d - b) / 2) ** 2 + math.cos(b) * math.cos(d) * math.sin((c - a) / 2) ** 2
    return 2 * 6371.0088 * math.asin(math.sqrt(h))


def retrieval(nearest: list[int], queries: Any, gallery: Any) -> Retrieval:
    ranks = np.ones(len(nearest), dtype=np.int64)
    places = [None if side is None else np.array(side, dtype=np.float64) for side in (queries, gallery)]
    return Retrieval("satellite", "location", len(nearest), ranks, np.array(nearest), *places)


def median_km(found: Retrieval) -> Mapping[str, float]:
    return MedianKm(MetricConfig(name="median_km")).compute(found)


def test_median_of_great_circles() -> None:
    rng = np.random.default_rng(3)
    places = np.stack([rng.uniform(-180, 180, 51), rng.uniform(-90, 90, 51)], axis=-1)
    nearest = rng.integers(0, 51, 51).tolist()
    each = [kilometres(tuple(places[i]), tuple(places[j])) for i, j in enumerate(nearest)]
    found = median_km(retrieval(nearest, places, places))
    assert found["median_km"] == pytest.approx(sorted(each)[25], rel=1e-9)
    every = [kilometres(tuple(a), tuple(b)) for a in places for b in places]
    assert found["chance_median_km"] == pytest.approx(float(np.median(every)), rel=1e-9)
    many = np.tile(places, (8, 1))  # whose pairs are too many to take them all
    drawn = median_km(retrieval(list(range(len(many))), many, many))["chance_median_km"]
    assert drawn == pytest.approx(float(np.median(every)), rel=0.02)
    assert drawn != found["chance_median_km"]


def test_the_seam_and_the_poles() -> None:
    queries = [(179.5, 0.0), (-179.5, 0.0), (0.0, 90.0)]
    gallery = [(-179.5, 0.0), (179.5, 0.0), (77.0, 90.0)]
    assert median_km(retrieval([0, 1, 2], queries, gallery))["median_km"] == pytest.approx(111.19, abs=0.01)
    same = [(77.0, 90.0)] * 3
    assert median_km(retrieval([0, 1, 2], same, [(0.0, 90.0)] * 3))["median_km"] == pytest.approx(0, abs=1e-6)


def test_places_that_are_not_known_do_not_count() -> None:
    nothing = (math.nan, math.nan)
    queries, gallery = [(0, 0), nothing, (0, 0), (0, 0)], [(0, 1), (0, 9), nothing, (0, 3)]
    found = median_km(retrieval([0, 1, 2, 3], queries, gallery))
    assert found["median_km"] == pytest.approx(kilometres((0, 0), (0, 2)))
    assert median_km(retrieval([0], [nothing], [(0, 0)])) == {}
    assert median_km(retrieval([0], None, None)) == {}


def test_shares_within_a_distance() -> None:
    queries = [(0.0, 0.0)] * 5 + [(math.nan, 0.0)]
    gallery = [(0.0, 0.1), (0.0, 1.0), (0.0, 5.0), (0.0, 20.0), (0.0, 90.0), (0.0, 0.0)]  # 11, 111, 556, 2224 km, ...
    found = WithinKm(WithinKmConfig(name="within_km")).compute(retrieval(list(range(6)), queries, gallery))
    shares = {name: value for name, value in found.items() if not name.startswith("chance_")}
    assert shares == {"within_25_km": 0.2, "within_200_km": 0.4, "within_750_km": 0.6, "within_2500_km": 0.8}
    assert found["chance_within_25_km"] == pytest.approx(2 / 6, rel=1e-12)  # of the gallery, two are as near
    other = WithinKm(WithinKmConfig(name="within_km", km=[1.5])).compute(retrieval([5], [(0, 0)], gallery))
    assert other["within_1.5_km"] == 1
    assert WithinKm(WithinKmConfig(name="within_km")).compute(retrieval([0], None, None)) == {}


# ---------------------------------------------------------------------- metrics of plugins


class Of(Metric[MetricConfig]):
    """Returns, or raises, what it was given."""

    name = "of"

    def __init__(self, result: Any) -> None:
        self.result = result

    def compute(self, retrieval: Retrieval) -> Mapping[str, float]:
        if isinstance(self.result, Exception):
            raise self.result
        found: Mapping[str, float] = self.result
        return found


@pytest.mark.parametrize(
    ("result", "figures", "said"),
    [
        ({"share": np.float32(0.5), "count": 3}, {"share": 0.5, "count": 3.0}, ""),
        ({}, {}, ""),
        (ValueError("no such place"), {}, "ValueError: no such place; its figures are left out"),
        ({"share": "much"}, {}, "ValueError: could not convert string to float: 'much'; its figures are left out"),
        (None, {}, "AttributeError: "),
        ({"share": math.nan, "count": 3}, {"count": 3.0}, "'share' is nan; it is left out"),
        ({"recall@1": 1.0}, {}, "there is a figure 'recall@1' already; this one is left out"),
        ({"other": 9.0}, {}, "there is a figure 'other' already; this one is left out"),
    ],
)
def test_one_that_fails_costs_its_own_figures_only(result: Any, figures: dict[str, float], said: str) -> None:
    said_so_far = io.StringIO()
    reporter = Reporter(Console(file=said_so_far, width=500))
    metrics = {"metric good of geobind 1": Of({"other": 1.0}), "metric of of geobind-plugin-of 0.3": Of(result)}
    found = further_figures(metrics, retrieval([0], None, None), {"recall@1"}, reporter)
    assert found == {"other": 1.0, **figures}
    assert all(type(value) is float for value in found.values())
    written = said_so_far.getvalue()
    place = "warning: metric of of geobind-plugin-of 0.3, satellite_to_location: "
    assert written.startswith(place + said) if said else written == ""
