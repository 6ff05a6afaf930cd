"""Scores of a few queries against a whole gallery, and ranks by the similarity that a loss brings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from geobind_core.evaluation.products import as_array, products, spans, work_of
from geobind_core.evaluation.retrieve import Found, decide

if TYPE_CHECKING:
    from geobind_core.plugins.loss import Similarity
    from geobind_core.plugins.modality import EncoderOutput

_TILE_ELEMENTS = 1_000_000


def retrieve_by(
    similarity: Similarity, query: EncoderOutput, gallery: EncoderOutput, labels: Sequence[torch.Tensor] = ()
) -> Found:
    """Ranks as `retrieve` does, by the similarity of a loss. What is equal in float32 ties.

    Args:
        similarity: Scores queries `[B, …]` and items `[N, …]` as `[B, N]`; higher is closer.
        query: Rows `[N, …]`.
        gallery: Rows `[N, …]`; row i is the own item of query i.
        labels: As for `retrieve`.

    Raises:
        ValueError: The sides do not fit each other, or a similarity is not a number.
    """
    work = work_of(as_array(query.embedding), as_array(gallery.embedding), labels, None)
    count = len(work.query)
    ranks, nearest = np.empty(count, np.int64), np.empty(count, np.int64)
    for rows in spans(np.arange(count), max(1, _TILE_ELEMENTS // max(1, count))):
        scores = scores_by(similarity, output_rows(query, torch.from_numpy(rows)), gallery)
        ranks[rows], nearest[rows] = decide(scores.numpy(), work.right(rows), np.zeros(len(rows)))
    return Found(torch.from_numpy(ranks), torch.from_numpy(nearest))


def scores_by(similarity: Similarity, query: EncoderOutput, gallery: EncoderOutput) -> torch.Tensor:
    """Returns `[B, N]` float32 scores by the similarity of a loss, computed in float64.

    Raises:
        ValueError: They have another shape, or one of them is not a number.
    """
    with torch.inference_mode():
        scores = similarity(_doubled(query), _doubled(gallery)).float().cpu()
    expected = (len(query.embedding), len(gallery.embedding))
    if scores.shape != expected:
        raise ValueError(f"the similarity has shape {tuple(scores.shape)}; expected {expected}")
    if torch.isnan(scores).any():
        raise ValueError("a similarity is not a number; it has no rank")
    return scores


def dot_scores(query: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """Returns `[B, N]` float32 dot products of a few queries, computed in float64."""
    return torch.from_numpy(products(as_array(query), as_array(gallery)).astype(np.float32))


def top_of(scores: torch.Tensor, k: int, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the k highest scores of each row, best first, and the items that have them.

    Args:
        scores: `[B, N]` float32.
        k: How many, at most N.
        own: `[B]`, each query's own item, which comes after what ties with it, as for the ranks.
    """
    values, items = scores.numpy(), np.arange(scores.shape[1])
    last = items[None, :] == own.numpy()[:, None]
    order = np.lexsort((np.broadcast_to(items, values.shape), last, -values), axis=-1)[:, :k]
    return torch.from_numpy(np.take_along_axis(values, order, axis=1)), torch.from_numpy(order)


def output_rows(output: EncoderOutput, rows: torch.Tensor) -> EncoderOutput:
    """Returns some rows of all that an encoder returned."""
    return _each(output, lambda tensor: tensor[rows])


def _doubled(output: EncoderOutput) -> EncoderOutput:
    return _each(output, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def _each(output: EncoderOutput, change: Callable[[torch.Tensor], torch.Tensor]) -> EncoderOutput:
    present = {f.name: value for f in fields(output) if (value := getattr(output, f.name)) is not None}
    return replace(output, **{name: change(value) for name, value in present.items()})
