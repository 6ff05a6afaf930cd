"""The matrix of all ordered pairs of modalities, trained and emergent alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from geobind_core.config.models import EvaluateConfig, LoaderConfig
from geobind_core.data.paired import PairedData
from geobind_core.data.samples import BadSampleCount, SampleReader
from geobind_core.errors import DataError
from geobind_core.evaluation.metrics import further_figures
from geobind_core.evaluation.ranks import (
    chance_recall_at,
    count_right_items,
    median_rank,
    recall_at,
    retrieval_ranks,
    retrieve,
)
from geobind_core.plugins.metric import Metric, Retrieval
from geobind_core.progress import Reporter
from geobind_core.space.embed import embed_rows
from geobind_core.space.space import Space


def evaluate_data(
    space: Space,
    data: PairedData,
    modalities: Sequence[str],
    config: EvaluateConfig,
    loader: LoaderConfig,
    reporter: Reporter,
    seed: int,
    metrics: Mapping[str, Metric[Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Measures every ordered pair of modalities on the held-out rows of one data set.

    All pairs are ranked among the same rows: those that have every one of these modalities.

    Args:
        space: The space.
        data: The data set.
        modalities: Those of the space that the data set has too; at least two.
        config: What to measure.
        loader: How to read.
        reporter: Where progress goes.
        seed: Decides which rows make the gallery when there are more than `config.gallery`.
        metrics: What is measured beside the ranks, by what messages call it.

    Returns:
        `{"satellite_to_audio": {"recall@1": …, …}, …}`, see `docs/pages/run-folder.md`.

    Raises:
        DataError: No rows are held out, or too many cannot be read.
    """
    rows = data.rows(config.split, modalities)
    if len(rows) > config.gallery:
        chosen = np.random.default_rng(seed).permutation(len(rows))[: config.gallery]
        rows = rows[np.sort(chosen)]
    bad = BadSampleCount(len(rows), config.max_bad_samples, f"evaluation on data.{data.name}")
    embeddings: dict[str, dict[int, torch.Tensor]] = {}
    for name in modalities:
        reader = SampleReader(data, name, space.modality(name), train=False, seed=0)
        encoder = space.encoder(name)
        with reporter.task(f"  {data.name}: {name}", len(rows), "rows") as task:
            embedded = embed_rows(
                reader,
                encoder,
                rows,
                batch_size=config.batch_size,
                loader=loader,
                device=next(encoder.parameters()).device,
                advance=task.advance,
            )
        for sample in bad.add(embedded.bad):
            reporter.warn(f"left out of the evaluation: {sample}")
        bad.require_few()
        embeddings[name] = dict(zip(embedded.rows.tolist(), embedded.embeddings, strict=True))
    readable = [row for row in rows.tolist() if all(row in found for found in embeddings.values())]
    if len(readable) < 2:
        raise DataError(f"{len(readable)} held-out rows can be read; expected at least 2.", place=f"data.{data.name}")
    stacked = {name: torch.stack([found[row] for row in readable]) for name, found in embeddings.items()}
    trained, places = space.record.trained_pairs(), _places(data, readable)
    pairs = {}
    for query, gallery in permutations(modalities, 2):
        labels = _labels(data, query, gallery, readable)
        found = retrieve(stacked[query], stacked[gallery], labels)
        figures = {
            **_figures(found.ranks, labels, config.recall_at),
            # Only the very row counts, whatever else has the same label.
            **({"strict": _strict(stacked[query], stacked[gallery], config.recall_at)} if labels else {}),
            "gallery": len(readable),
            "data": data.name,
            "emergent": frozenset((query, gallery)) not in trained,
            "trained_in": trained.get(frozenset((query, gallery))),
        }
        retrieval = Retrieval(query, gallery, len(readable), found.ranks.numpy(), found.nearest.numpy(), places, places)
        further = further_figures(metrics or {}, retrieval, figures, reporter)
        pairs[f"{query}_to_{gallery}"] = {**figures, **further}
    return pairs


def _places(data: PairedData, rows: Sequence[int]) -> npt.NDArray[np.float64] | None:
    """Returns `[N, 2]` longitudes and latitudes, or None where the data has none."""
    if data.places is None:
        return None
    places = data.places.take(np.array(rows))
    return np.stack([places.longitude, places.latitude], axis=-1) if places.known.any() else None


def _labels(data: PairedData, query: str, gallery: str, rows: Sequence[int]) -> list[torch.Tensor]:
    return [torch.from_numpy(codes[np.array(rows)]) for codes in data.pair_labels(query, gallery)]


def _figures(ranks: torch.Tensor, labels: Sequence[torch.Tensor], recall_ks: Sequence[int]) -> dict[str, Any]:
    count = len(ranks)
    right = count_right_items(count, labels)
    return _recalls(ranks, recall_ks) | {f"chance_recall@{k}": chance_recall_at(k, right, count) for k in recall_ks}


def _strict(query: torch.Tensor, gallery: torch.Tensor, recall_ks: Sequence[int]) -> dict[str, Any]:
    return _figures(retrieval_ranks(query, gallery), (), recall_ks)


def _recalls(ranks: torch.Tensor, recall_ks: Sequence[int]) -> dict[str, Any]:
    return {**{f"recall@{k}": recall_at(ranks, k) for k in recall_ks}, "median_rank": median_rank(ranks)}


def largest_gallery(pairs: Mapping[str, Mapping[str, Any]]) -> int:
    """Returns the size of the largest gallery among pairs."""
    return max((int(figures["gallery"]) for figures in pairs.values()), default=0)
