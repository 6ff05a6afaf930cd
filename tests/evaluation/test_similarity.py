"""Ranks by the similarity of a loss, in tiles."""

import pytest
import torch

from geobind_core import EncoderOutput
from geobind_core.evaluation import similarity as module
from geobind_core.evaluation.retrieve import retrieve
from geobind_core.evaluation.similarity import retrieve_by, scores_by

pytestmark = pytest.mark.usefixtures("one_thread")


def output(count: int, seed: int) -> EncoderOutput:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.nn.functional.normalize(torch.randn(count, 6, generator=generator), dim=-1)
    return EncoderOutput(mean, log_variance=torch.randn(count, 6, generator=generator) - 2)


def probabilistic(query: EncoderOutput, gallery: EncoderOutput) -> torch.Tensor:
    assert query.log_variance is not None
    assert gallery.log_variance is not None
    spread = [side.log_variance.exp().sum(dim=-1) for side in (query, gallery)]  # type: ignore[union-attr]
    return 2 * query.embedding @ gallery.embedding.T - 2 - spread[0][:, None] - spread[1][None, :]


@pytest.mark.parametrize("tile", [1, 100, 1_000_000])
@pytest.mark.parametrize("labelled", [False, True])
def test_ranks_are_counts(monkeypatch: pytest.MonkeyPatch, tile: int, labelled: bool) -> None:
    monkeypatch.setattr(module, "_TILE_ELEMENTS", tile)
    query, gallery = output(50, 0), output(50, 1)
    assert gallery.log_variance is not None
    gallery.embedding[10], gallery.log_variance[10] = gallery.embedding[3], gallery.log_variance[3]
    codes = torch.arange(50) // 4 - 1 if labelled else torch.arange(50)
    found = retrieve_by(probabilistic, query, gallery, [codes] if labelled else [])
    scores = scores_by(probabilistic, query, gallery).tolist()
    for i, row in enumerate(scores):
        right = {j for j in range(50) if j == i or (codes[i] >= 0 and codes[j] == codes[i])}
        best = max(row[j] for j in right)
        assert found.ranks[i] == 1 + sum(row[j] >= best for j in range(50) if j not in right)
        assert row[int(found.nearest[i])] == max(row)
    assert not torch.equal(found.ranks, retrieve(query.embedding, gallery.embedding).ranks)


def test_what_is_no_similarity_is_refused() -> None:
    both = output(5, 0)
    with pytest.raises(ValueError, match=r"shape \(5,\); expected \(5, 5\)"):
        retrieve_by(lambda query, gallery: query.embedding[:, 0], both, both)
    with pytest.raises(ValueError, match="not a number"):
        retrieve_by(lambda query, gallery: torch.full((5, 5), torch.nan), both, both)
