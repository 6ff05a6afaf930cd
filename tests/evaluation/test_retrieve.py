"""Ranks against counting them one by one, by definition, on plain and on adversarial embeddings."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from geobind_core.evaluation import products
from geobind_core.evaluation import retrieve as module
from geobind_core.evaluation.retrieve import retrieve

pytestmark = pytest.mark.usefixtures("one_thread")


def retrieval_ranks(query: torch.Tensor, gallery: torch.Tensor, labels: Sequence[torch.Tensor] = ()) -> torch.Tensor:
    return retrieve(query, gallery, labels).ranks


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


@pytest.fixture(params=[(1, 1), (90, 30), (10_000_000, 1_000_000)], ids=lambda size: f"tiles of {size[0]} numbers")
def _tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TILE_ELEMENTS", request.param[0])
    monkeypatch.setattr(module, "_PART_ELEMENTS", request.param[1])


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


@pytest.mark.parametrize("tile", [(3000, 1000), (10_000_000, 1_000_000)])
@pytest.mark.parametrize(("count", "dim"), [(13, 5), (250, 512), (251, 128)])
def test_an_encoder_that_says_the_same_of_everything_comes_last(
    monkeypatch: pytest.MonkeyPatch, count: int, dim: int, tile: tuple[int, int]
) -> None:
    monkeypatch.setattr(module, "_TILE_ELEMENTS", tile[0])
    monkeypatch.setattr(module, "_PART_ELEMENTS", tile[1])
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


# ---------------------------------------------------------------------- adversarial


def by_definition(
    query: torch.Tensor, gallery: torch.Tensor, labels: Sequence[torch.Tensor] = (), own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks and what came first, by sums in extended precision, in which only equal items are equal."""
    wide = [side.numpy().astype(np.longdouble) for side in (query, gallery)]
    scores = wide[0] @ wide[1].T
    own = np.arange(len(query)) if own is None else own
    ranks, nearest = [], []
    for i, row in enumerate(scores):
        right = np.zeros(len(row), dtype=bool)
        for codes in labels:
            right |= (codes.numpy() == int(codes[own[i]])) & (int(codes[own[i]]) >= 0)
        right[own[i]] = True
        before = ~right & (row >= row[right].max())
        ranks.append(1 + int(before.sum()))
        candidates = ~right if before.any() else right
        nearest.append(int(np.flatnonzero(candidates & (row >= row[candidates].max()))[0]))
    return np.array(ranks), np.array(nearest)


def unit(count: int, dim: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)


def duplicates(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randint(0, 9, (count,), generator=torch.Generator().manual_seed(3))
    return unit(count, 40, 0), unit(9, 40, 1)[rows]


def one_ulp_apart(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    gallery = unit(1, 64, 1).repeat(count, 1)
    for i in range(count):  # some are moved by one step of float32 in one coordinate, some are not
        if i % 3:
            gallery[i, i % 64] = torch.nextafter(gallery[i, i % 64], torch.tensor((-1.0) ** i * 9))
    return unit(count, 64, 0), gallery


def constant(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return unit(1, 33, 0).repeat(count, 1), unit(1, 33, 1).repeat(count, 1)


def nearly_as_close(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All items are as close as float32 can tell, and none is as float64 can."""
    gallery = unit(count, 128, 1) * 1e-6
    gallery[:, 0] = 1
    query = unit(count, 128, 0) * 1e-2
    query[:, 0] = 1
    return query, gallery


def of_all_lengths(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    scales = 10.0 ** torch.arange(-3, 4).repeat(count)[:count, None]
    return unit(count, 20, 0) * scales, unit(count, 20, 1) * scales.flip(0)


def some_nothing(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    query, gallery = unit(count, 20, 0), unit(count, 20, 1)
    query[::3], gallery[::4] = 0, 0
    return query, gallery


CASES: dict[str, Callable[[int], tuple[torch.Tensor, torch.Tensor]]] = {
    "random": lambda count: (unit(count, 96, 0), unit(count, 96, 1)),
    "alike": lambda count: (unit(count, 96, 0), unit(count, 96, 0) + 0.1 * unit(count, 96, 1)),
    "small": lambda count: (1e-3 * unit(count, 96, 0), 1e-3 * unit(count, 96, 1)),
    "large": lambda count: (1e3 * unit(count, 96, 0), 1e3 * unit(count, 96, 1)),
    "beyond float32": lambda count: (unit(count, 9, 0).double() * 1e30, unit(count, 9, 1).double() * 1e30),
    "too small for float32": lambda count: (unit(count, 9, 0).double() * 1e-30, unit(count, 9, 1) * 1e-25),
    "float64": lambda count: (unit(count, 30, 0).double() + 1e-9, unit(count, 30, 1).double()),
    **{f.__name__: f for f in (duplicates, one_ulp_apart, constant, nearly_as_close, of_all_lengths, some_nothing)},
}


@pytest.mark.parametrize("labelled", [0, 1, 2])
@pytest.mark.parametrize("count", [2, 31, 100])
@pytest.mark.parametrize("case", CASES)
def test_against_the_definition(monkeypatch: pytest.MonkeyPatch, case: str, count: int, labelled: int) -> None:
    monkeypatch.setattr(module, "_TILE_ELEMENTS", 3000)
    monkeypatch.setattr(module, "_PART_ELEMENTS", 1000)
    query, gallery = CASES[case](count)
    labels = [torch.tensor(few_labels(count, seed)) for seed in range(labelled)]
    ranks, nearest = by_definition(query, gallery, labels)
    found = retrieve(query, gallery, labels)
    assert found.ranks.tolist() == ranks.tolist()
    assert found.nearest.tolist() == nearest.tolist()


@pytest.mark.parametrize("size", [99, 100, 101, 2039, 2041])  # a tile has 100 rows of 100; 255 words have 2040 bytes
def test_at_the_border_of_a_tile(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(module, "_TILE_ELEMENTS", 10_000)
    query, gallery = unit(size, 8, 0), unit(size, 8, 1)
    gallery[-1] = gallery[0]
    ranks, nearest = by_definition(query, gallery)
    found = retrieve(query, gallery)
    assert (found.ranks.tolist(), found.nearest.tolist()) == (ranks.tolist(), nearest.tolist())


@pytest.mark.parametrize("labelled", [False, True])
def test_a_gallery_of_another_size(labelled: bool) -> None:
    query, gallery = unit(20, 12, 0), unit(70, 12, 1)
    own = np.random.default_rng(0).integers(0, 70, 20)
    labels = [torch.tensor(few_labels(70, 1))] if labelled else []
    found = retrieve(query, gallery, labels, own=torch.from_numpy(own))
    ranks, nearest = by_definition(query, gallery, labels, own)
    assert (found.ranks.tolist(), found.nearest.tolist()) == (ranks.tolist(), nearest.tolist())
    with pytest.raises(ValueError, match="one item of the gallery for each query"):
        retrieve(query, gallery, own=torch.from_numpy(own + 60))


def test_the_examples_are_adversarial() -> None:
    """float32 alone gets them wrong, and most of the doubtful ones are settled pair by pair, the rest in float64."""
    query, gallery = nearly_as_close(100)
    product = query @ gallery.T
    alone = (product >= product.diagonal()[:, None]).sum(dim=1)
    assert (alone != retrieval_ranks(query, gallery)).any()
    work = products.work_of(query.numpy(), gallery.numpy(), (), None)
    assert (np.abs(product.numpy() - product.diagonal().numpy()[:, None]) <= work.band[:, None]).sum(axis=1).max() > 64
